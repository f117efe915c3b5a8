"""What the producer declared."""
