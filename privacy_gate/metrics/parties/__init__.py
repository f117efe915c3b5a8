"""Differences between clients and between groups."""
