"""Readers: from a source on disk to a table of its samples.

A reader knows how samples lie in one kind of source: `find` lists a split's sources and `scan`
makes the table of one. Reading bytes, ordering and decoding know nothing of kinds.
"""

from supmim_scale.data.readers.base import Reader, SampleLayout, reader_named

__all__ = ["Reader", "SampleLayout", "reader_named"]
