"""Slurm itself: the commands that are called, and what its variables say of a task."""
