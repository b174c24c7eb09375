"""Rows of results: measured in processes of their own, shown on pages."""
