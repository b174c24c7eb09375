"""Measurements of this project: a folder a subject, with scripts to run them beside it."""
