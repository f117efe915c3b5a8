"""Trains references: heads, networks, with DP-SGD, or by an external program."""
