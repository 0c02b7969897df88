"""Atelier on a real cluster: three hosts, a store behind a line that fails, Airflow on PostgreSQL."""
