"""Files that must not be found half-written: whole tensors, checksums, progress of long reads."""
