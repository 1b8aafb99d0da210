"""Settings files, one for each kind of machine."""
