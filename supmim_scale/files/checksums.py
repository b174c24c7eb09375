"""Checksums of files, as `sha256sum` gives them."""

import hashlib
from pathlib import Path

_CHUNK_BYTES = 1 << 22


def sha256_of(path: Path) -> str:
    """The file's SHA-256, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
