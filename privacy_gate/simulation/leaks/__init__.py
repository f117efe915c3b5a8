"""What updates reveal."""
