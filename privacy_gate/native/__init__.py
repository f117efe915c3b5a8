"""Every loop that is machine code, where Numba is installed."""
