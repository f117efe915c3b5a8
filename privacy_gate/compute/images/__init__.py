"""Decodes image bytes to pixels, and computes features from them."""
