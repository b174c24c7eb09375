"""Scaling laws beside published figures."""
