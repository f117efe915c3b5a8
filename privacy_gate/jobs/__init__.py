"""What is work, as plain data."""
