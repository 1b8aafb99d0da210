"""Dataset formats."""
