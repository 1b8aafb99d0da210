"""Model files: where they come from, what a config needs, and how they are fetched."""
