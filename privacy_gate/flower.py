"""`privacy_gate.flower.logged`: round logs of federations that Flower trains. See registry/flower.py."""

from privacy_gate.registry.flower import client_of, logged

__all__ = ["client_of", "logged"]
