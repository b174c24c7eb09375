"""Files that are there whole, or not at all."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PART = ".part"


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Another name beside `path` to write to; at the end it takes the place of `path`.

    Where writing fails nothing is left behind. Two writers never share a name, on whatever hosts
    they are. `sync`: the file is on disk before it gets its name, and the name after that.
    """
    part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{PART}")
    try:
        yield part
        if sync:
            sync_to_disk(part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    if sync:
        sync_to_disk(path.parent)


def write_whole(path: Path, text: str, *, sync: bool = False) -> None:
    """Write a text, whole or not at all."""
    with whole_file(path, sync=sync) as part:
        part.write_text(text)


def sync_to_disk(path: Path) -> None:
    """What is written is on disk; for a folder, the names in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
