"""Pure algorithms of segmentation, and the trainer."""
