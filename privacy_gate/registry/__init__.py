"""Candidates from MLflow, decisions to MLflow, and dossiers and round logs for the gate to read."""
