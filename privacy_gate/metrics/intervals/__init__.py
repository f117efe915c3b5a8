"""Intervals that several metrics share."""
