"""Packing a folder per class, or a CSV of path,label, into shuffled WebDataset shards."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from supmim_scale.data.shards import IMAGE_EXTENSIONS, parse_labels, write_shard
from supmim_scale.errors import UserError


def pack(source: Path, out: Path, shard_size: int, seed: int) -> int:
    """Write `source`'s images to `out`/NAME-000000.tar ...; returns their number.

    The samples are shuffled over all shards. A folder's classes are its subfolders in sorted
    order, written to `out`/classes.txt. JPEG bytes are copied, not re-encoded. Raises
    `UserError` before the first shard is written if a file is missing or a label is none.
    """
    if shard_size < 1:
        raise UserError("--shard-size", f"{shard_size}", "1 or more", "raise it")
    if any(out.glob("*.tar")):
        raise UserError(str(out), "shards", "a folder without any", "name another folder")
    samples = _from_folder(source, out) if source.is_dir() else _from_csv(source)
    if not samples:
        raise UserError(str(source), "no image", f"files ending in {IMAGE_EXTENSIONS}", "check it")
    order = np.random.default_rng(seed).permutation(len(samples))
    out.mkdir(parents=True, exist_ok=True)
    starts = range(0, len(order), shard_size)
    with tqdm(total=len(order), desc="pack", unit="image", disable=None) as bar:
        for number, start in enumerate(starts):
            chosen = [(int(i), *samples[i]) for i in order[start : start + shard_size]]
            path = out / f"{source.stem}-{number:06d}.tar"
            bar.update(write_shard(path, _read(chosen)))
    return len(order)


def _read(samples: list[tuple[int, Path, str]]) -> Iterator[tuple[str, bytes, str, str]]:
    for number, path, label in samples:
        yield f"{number:09d}", path.read_bytes(), path.suffix[1:].lower(), label


def _from_folder(source: Path, out: Path) -> list[tuple[Path, str]]:
    classes = sorted(entry.name for entry in source.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(str(source), "no subfolder", "a subfolder a class", "check the path")
    out.mkdir(parents=True, exist_ok=True)
    (out / "classes.txt").write_text("\n".join(classes) + "\n")
    return [
        (path, str(label))
        for label, name in enumerate(classes)
        for path in sorted((source / name).rglob("*"))
        if path.suffix[1:].lower() in IMAGE_EXTENSIONS
    ]


def _from_csv(source: Path) -> list[tuple[Path, str]]:
    """Rows of path,label; paths are relative to the CSV; several labels are separated by blanks."""
    try:
        text = source.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(source), str(error), "a folder or a CSV file", "check it") from None
    rows = csv.DictReader(text.splitlines())
    if not {"path", "label"} <= set(rows.fieldnames or ()):
        found = f"columns {', '.join(rows.fieldnames or ()) or 'none'}"
        raise UserError(str(source), found, "a header line path,label", "add it")
    samples = []
    for line, row in enumerate(rows, start=2):
        where = f"{source}, line {line}"
        path = source.parent / (row["path"] or "")
        if not path.is_file():
            raise UserError(where, f"no file {path}", "an image", "mend the path")
        if path.suffix[1:].lower() not in IMAGE_EXTENSIONS:
            raise UserError(where, path.name, f"one of {', '.join(IMAGE_EXTENSIONS)}", "convert it")
        parse_labels((row["label"] or "").encode() or b"-1", where)
        samples.append((path, row["label"]))
    return samples
