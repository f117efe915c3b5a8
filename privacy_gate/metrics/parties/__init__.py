"""How much clients and groups differ."""
