"""Policies, and the audit that judges stored results by one."""
