"""The planner itself."""
