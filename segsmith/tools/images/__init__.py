"""Image models and the simulator."""
