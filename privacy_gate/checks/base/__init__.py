"""The base class of checks, and modules that several checks share."""
