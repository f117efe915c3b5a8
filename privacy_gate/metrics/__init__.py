"""Metrics: scores or accuracies in, a Measurement with its interval out."""
