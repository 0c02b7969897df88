"""Training, evaluation and sampling with torch. Importable without ray and deepspeed."""
