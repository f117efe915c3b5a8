"""What MLflow holds."""
