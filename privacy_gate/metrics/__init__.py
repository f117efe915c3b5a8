"""Metrics: functions from scores or accuracies to a Measurement with its interval."""
