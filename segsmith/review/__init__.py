"""The conversation with a reviewer about a run."""
