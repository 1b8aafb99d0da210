"""The judge agent and its parts."""
