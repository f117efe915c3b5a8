"""How references are trained."""
