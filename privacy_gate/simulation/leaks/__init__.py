"""Attacks on the updates that a federation's server sees: what they reveal about the clients' rows."""
