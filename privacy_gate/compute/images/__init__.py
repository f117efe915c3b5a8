"""From bytes to pixels to features."""
