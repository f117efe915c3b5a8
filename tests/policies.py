"""A policy that several tests judge by."""

MEMBERSHIP = """\
name: test
version: 1
release_context: api
checks:
  - check: membership
    references: 32
    attacks: [lira, loss]
    limits:
      tpr_at_0.01_fpr: {max: 0.1}
promotion: {alias: champion}
"""
