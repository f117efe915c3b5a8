"""One runner for each kind of job."""
