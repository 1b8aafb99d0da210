"""Every reader and writer of a dataset format."""
