"""The steps of the gate, in the order in which they run."""
