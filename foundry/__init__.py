"""Recipes of the packaged mini checkpoints: how each was trained, and how it is measured."""
