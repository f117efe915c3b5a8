"""What the gate looks like on real models."""
