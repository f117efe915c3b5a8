"""Attacks: membership evidence in, (N,) scores out; larger = more likely a member."""
