"""Intervals that metrics share."""
