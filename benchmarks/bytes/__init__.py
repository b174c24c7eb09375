"""Peak memory beside what the planner says of it."""
