"""Supervised beside supervised + MIM: the paper's claim, small."""
