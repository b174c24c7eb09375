"""WebDataset shards: tar files of `KEY.jpg` and `KEY.cls`.

The index is our own because DALI's `wds2idx` gives wrong bytes for long names, accepts
truncated tars and cannot read names with blanks (DALI 2.4). A shard that is damaged in the middle
keeps the samples before the damage.
"""

import os
import tarfile
from pathlib import Path

import pyarrow as pa

from supmim_scale.data.index_table import Defect, Rows
from supmim_scale.data.readers import base
from supmim_scale.data.readers.base import SampleLayout

LABEL_EXTENSION = "cls"


class WebDatasetReader:
    """`*.tar` files of a folder, or the files that a glob matches."""

    def find(self, root: Path, pattern: str, where: str) -> list[Path]:
        """See `Reader`."""
        return base.find_files(root, pattern, where, ("*.tar",))

    def stamp(self, source: Path) -> dict[str, str]:
        """See `Reader`."""
        return base.file_stamp(source)

    def scan(self, source: Path, name: str, layout: SampleLayout) -> tuple[pa.Table, list[Defect]]:
        """See `Reader`."""
        rows, parts = Rows(name), _Members()
        _read_headers(source, layout.label or LABEL_EXTENSION, parts, rows)
        ids = base.class_ids(layout)
        for key, (member, offset, size) in parts.images.items():
            if key in parts.bad:
                continue
            if not layout.labelled:
                rows.add(member, offset, size, [])
                continue
            try:
                labels = base.parse_labels(parts.labels.get(key, ""), ids)
                if labels:
                    rows.add(member, offset, size, labels)
                else:
                    rows.reject(key, base.NO_LABEL)
            except ValueError as error:
                rows.reject(key, base.BAD_LABEL, str(error))
        for key in parts.labels.keys() - parts.images.keys() - parts.bad:
            rows.reject(key, "label without an image")
        if not parts.images and not rows.defects:
            rows.reject("", base.NO_SAMPLE, "a tar without images")
        return rows.as_arrow(), rows.defects


class _Members:
    """Images and labels of a tar by key, and the keys that cannot be used."""

    def __init__(self) -> None:
        self.images: dict[str, tuple[str, int, int]] = {}  # member's name, offset, size
        self.labels: dict[str, str] = {}
        self.bad: set[str] = set()


def _read_headers(source: Path, label: str, parts: _Members, rows: Rows) -> None:
    """Fill `parts` up to the end of the tar or its first damage."""
    try:
        if not source.stat().st_size:
            rows.reject("", base.NO_SAMPLE, "zero bytes")
            return
        with tarfile.open(source, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    _take(tar, member, label, parts, rows)
            end = tar.offset
        # tarfile takes a header it cannot read for the end; the end is a block of zeros.
        with open(source, "rb") as file:
            file.seek(end)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                rows.reject(
                    "", base.DAMAGED, f"no header and no end at byte {end}; the rest is lost"
                )
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        rows.reject("", base.DAMAGED, f"{error}; samples after it are lost")
        _drop_cut_images(source, parts)


def _take(
    tar: tarfile.TarFile, member: tarfile.TarInfo, label: str, parts: _Members, rows: Rows
) -> None:
    folder, name = os.path.split(member.name)
    stem, _, extension = name.partition(".")
    key, extension = os.path.join(folder, stem), extension.lower()
    if extension not in base.IMAGE_EXTENSIONS and extension != label:
        return
    if base.is_unsafe(member.name):
        if key not in parts.bad:
            rows.reject(member.name, base.UNSAFE)
        parts.bad.add(key)
    elif extension == label:
        file = tar.extractfile(member)
        text = (file.read() if file else b"").decode(errors="replace").strip()
        if parts.labels.setdefault(key, text) != text:
            rows.reject(key, base.DUPLICATE, f"two .{label}")
            parts.bad.add(key)
    elif key in parts.images:
        rows.reject(key, base.DUPLICATE, "the first is kept")
    elif not member.size:
        rows.reject(key, base.EMPTY)
        parts.bad.add(key)
    else:
        parts.images[key] = (member.name, member.offset_data, member.size)


def _drop_cut_images(source: Path, parts: _Members) -> None:
    """An image that reaches beyond the file's end is no sample."""
    end = source.stat().st_size
    for key, (_, offset, size) in list(parts.images.items()):
        if offset + size > end:
            del parts.images[key]
            parts.bad.add(key)


READER = WebDatasetReader()
