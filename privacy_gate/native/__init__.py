"""All machine code of the package: kernels compiled by Numba, if it is installed. Each has a twin in NumPy or torch."""
