"""Computes jobs: job descriptions in, arrays out. Models are built and run only in this package."""
