"""What every check is, and what several of them share."""
