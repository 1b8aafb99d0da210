"""The agents: what to write and draw, which images to accept, which labels and masks they get."""
