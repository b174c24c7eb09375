"""Training steps: ours beside what you would run without us."""
