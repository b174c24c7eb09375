"""Supervised + masked-image-modelling training of vision transformers at scale."""

__version__ = "0.1.0"
