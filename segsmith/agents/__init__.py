"""The agents: decisions, one file each."""
