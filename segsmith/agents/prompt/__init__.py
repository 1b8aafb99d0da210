"""The prompt agent and its parts."""
