"""segsmith: a labelled segmentation dataset, and a segmenter, from nothing but a class list."""

__version__ = "0.1.0"
