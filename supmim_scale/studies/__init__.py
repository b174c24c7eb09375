"""Scaling studies: one YAML file to runs with their cost, and finished runs back to one table."""
