"""What Airflow parses: no torch and no ray here."""
