"""Report formats: views of the one JSON report."""
