"""Witnesses: models beside CLIP and the ViT that say what an image shows, and what follows from their agreement."""
