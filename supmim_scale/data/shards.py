"""WebDataset shards: tar files of `KEY.jpg` and `KEY.cls`, written atomically and indexed.

The index of a shard is a small safetensors file: offset and size of every image, and its label
ids padded with -1. It is our own because `wds2idx` gives wrong bytes for long names and accepts
truncated tars.
"""

import io
import os
import tarfile
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from supmim_scale.errors import UserError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSION = "cls"


@dataclass(frozen=True)
class ShardIndex:
    """Where a shard's samples lie.

    `offset`, `size`: bytes of each image in the file. `labels`: (samples, L) ids, -1 for none.
    """

    path: Path
    offset: NDArray[np.int64]
    size: NDArray[np.int64]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offset)


def write_shard(path: Path, samples: Iterable[tuple[str, bytes, str, str]]) -> int:
    """Write (key, image, extension, label text) samples to a tar; returns their number.

    The file appears under its name only when it is whole and on disk.
    """
    part = path.with_name(path.name + ".part")
    count = 0
    with open(part, "wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for key, image, extension, label in samples:
                _add(tar, f"{key}.{extension}", image)
                _add(tar, f"{key}.{LABEL_EXTENSION}", label.encode())
                count += 1
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)
    return count


def find_shards(root: Path, pattern: str, where: str) -> list[Path]:
    """Shards of a folder or glob under `root`, sorted. Raises `UserError` if there are none."""
    if Path(pattern).is_absolute() or ".." in Path(pattern).parts:
        raise UserError(where, f"'{pattern}'", "a path below input.root", "move input.root instead")
    target = root / pattern
    if not root.is_dir():
        raise UserError(
            "input.root",
            f"no folder {root}",
            "the folder that holds the shards",
            f"set input.root=FOLDER, or make one: supmim-scale data synth {root}",
        )
    shards = sorted(target.glob("*.tar")) if target.is_dir() else sorted(root.glob(pattern))
    if not shards:
        kind = "no .tar in it" if target.is_dir() else "no such folder and no match as a glob"
        raise UserError(
            where, f"{target} ({kind})", "shards", f"set {where} to their folder under {root}"
        )
    return shards


def load_index(shard: Path, index_dir: Path | None) -> ShardIndex:
    """The shard's index, made first if it is missing or older than the shard.

    Raises `UserError` for a damaged shard or where the index cannot be written.
    """
    path = _index_path(shard, index_dir)
    stamp = _stamp(shard)
    if path.is_file():
        try:
            with safe_open(path, framework="numpy") as file:
                if file.metadata() == stamp:
                    parts = (file.get_tensor(name) for name in ("offset", "size", "labels"))
                    return ShardIndex(shard, *parts)
        except (SafetensorError, OSError):
            pass  # damaged index: made again below, from the shard it describes
    index = scan_shard(shard)
    tensors = {"offset": index.offset, "size": index.size, "labels": index.labels}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, part, metadata=stamp)
        os.replace(part, path)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"index {path}", str(error), "a writable folder", "set input.index_dir=FOLDER"
        ) from None
    return index


def scan_shard(shard: Path) -> ShardIndex:
    """Read a tar's headers into an index. Raises `UserError` naming shard and sample."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, list[int]] = {}
    try:
        with tarfile.open(shard, mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, name = os.path.split(member.name)
                stem, _, extension = name.partition(".")
                key = os.path.join(folder, stem)
                if extension.lower() in IMAGE_EXTENSIONS:
                    _require_new(key, images, shard)
                    images[key] = (member.offset_data, member.size)
                elif extension == LABEL_EXTENSION:
                    _require_new(key, labels, shard)
                    file = tar.extractfile(member)
                    text = file.read() if file else b""
                    labels[key] = parse_labels(text, f"{shard}: {key}.cls")
    except (tarfile.TarError, OSError) as error:
        raise UserError(str(shard), str(error), "a whole tar", "fetch the shard again") from None
    for key in images.keys() - labels.keys():
        raise UserError(f"{shard}: {key}", "no .cls", "an image and its label", "pack it again")
    width = max((len(ids) for ids in labels.values()), default=1)
    table = np.full((len(images), max(1, width)), -1, dtype=np.int64)
    for row, key in enumerate(images):
        table[row, : len(labels[key])] = labels[key]
    where = np.array(list(images.values()), dtype=np.int64).reshape(-1, 2)
    return ShardIndex(shard, where[:, 0].copy(), where[:, 1].copy(), table)


def parse_labels(text: bytes, where: str) -> list[int]:
    """Label ids from the text of a `.cls` entry, separated by blanks or commas."""
    try:
        ids = [int(word) for word in text.decode().replace(",", " ").split()]
    except ValueError:
        ids = [-1]
    if any(label < 0 for label in ids):
        raise UserError(where, f"'{text[:40]!r}'", "label ids from 0 on", "mend the label")
    return ids


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _require_new(key: str, seen: Container[str], shard: Path) -> None:
    if key in seen:
        raise UserError(f"{shard}: {key}", "the key twice", "one sample a key", "pack it again")


def _index_path(shard: Path, index_dir: Path | None) -> Path:
    folder = index_dir / shard.parent.name if index_dir else shard.parent
    return folder / f"{shard.name}.index"


def _stamp(shard: Path) -> dict[str, str]:
    stat = shard.stat()
    return {"format": "1", "bytes": str(stat.st_size), "mtime_ns": str(stat.st_mtime_ns)}
