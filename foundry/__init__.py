"""How the packaged mini checkpoints are trained and measured."""
