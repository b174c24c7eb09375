"""A run's folder: its lock, log, checkpoints and weights, and runs side by side."""
