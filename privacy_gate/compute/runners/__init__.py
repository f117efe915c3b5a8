"""One runner for each kind of job: each computes jobs of its kind and stores their results."""
