"""CLIP, ViT and SAM."""
