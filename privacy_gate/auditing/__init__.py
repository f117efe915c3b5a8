"""What policy and results say together."""
