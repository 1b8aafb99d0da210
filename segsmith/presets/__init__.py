"""Presets: a file of settings for each kind of machine."""
