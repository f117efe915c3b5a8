"""The GPU floor: jobs in, arrays out. Only here are models built and run."""
