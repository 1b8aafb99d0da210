"""Segmentation: pure algorithms that make masks, the segmentation network, and its training and evaluation."""
