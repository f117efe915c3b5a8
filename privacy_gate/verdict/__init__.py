"""What was found, and whether it passes."""
