"""Measurements, limits and findings, the judgement on them, and the report that records it."""
