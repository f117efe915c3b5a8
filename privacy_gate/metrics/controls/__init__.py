"""Tests of the audit itself."""
