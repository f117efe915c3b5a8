"""`privacy_gate.flower.logged` logs the rounds of federations that Flower trains. See registry/flower.py."""

from privacy_gate.registry.flower import client_of, logged

__all__ = ["client_of", "logged"]
