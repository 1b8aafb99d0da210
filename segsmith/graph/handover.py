"""What the tool nodes hand over: the dataset to its files, the files to the trainer, the weights to the test."""

from __future__ import annotations


