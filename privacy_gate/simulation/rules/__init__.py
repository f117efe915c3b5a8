"""How a server combines updates."""
