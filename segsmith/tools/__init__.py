"""One adapter file per outside model family, behind `tools.protocols`."""
