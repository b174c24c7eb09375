"""Checkpoints on disk: whole or not there.

A checkpoint is a folder `step-NNNNNNNN` of one safetensors file a rank and `checkpoint.json`, which
names every file with its size and SHA-256 and says what else the run needs. It is written under
another name, synced, renamed, and only then does `latest` name it. Nothing in it is ever unpickled.

These are not torch's distributed checkpoints (DCP): the metadata of those is a pickle, and ZeRO's
shards are flat runs of parameters, no DTensors that DCP could reshard.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from supmim_scale.engine.state import Piece
from supmim_scale.errors import UserError
from supmim_scale.files.checksums import sha256_of
from supmim_scale.files.tensors import write_tensors
from supmim_scale.files.whole import PART, sync_to_disk, write_whole
from supmim_scale.units import gib

MANIFEST, LATEST = "checkpoint.json", "latest"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{8,})")
_DAMAGED = ".damaged"


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, its step, and what its manifest says."""

    path: Path
    steps_done: int
    facts: dict[str, Any]
    files: tuple[str, ...]


def checkpoint_name(steps_done: int) -> str:
    """The folder's name."""
    return f"step-{steps_done:08d}"


def rank_file(rank: int, world_size: int) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}-of-{world_size:05d}.safetensors"


def begin(folder: Path, steps_done: int, num_bytes: int) -> Path:
    """Make the folder that a checkpoint is written in before it has its name.

    Raises `OSError` where there is no room for `num_bytes`.
    """
    part = folder / (checkpoint_name(steps_done) + PART)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise OSError(f"{gib(free)} free in {folder}, {gib(num_bytes)} needed")
    return part


def write_pieces(path: Path, pieces: Iterable[Piece]) -> dict[str, Any]:
    """Write one rank's pieces, synced; returns the file's entry of the manifest."""
    tensors, starts = {}, {}
    for piece in pieces:
        key = f"{piece.kind}:{piece.name}"
        tensors[key], starts[key] = piece.values, piece.start
    write_tensors(tensors, path, {"starts": json.dumps(starts)})
    sync_to_disk(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": sha256_of(path)}


def commit(part: Path, files: list[dict[str, Any]], facts: dict[str, Any]) -> Path:
    """Give a written checkpoint its manifest and its name, then let `latest` name it."""
    body = {"format": _FORMAT, "files": files, **facts}
    text = json.dumps({**body, "sha256": _digest(body)}, indent=1)
    write_whole(part / MANIFEST, text, sync=True)
    final = part.with_name(part.name.removesuffix(PART))
    if final.exists():  # of an earlier try at the same steps
        final.rename(final.with_name(final.name + _DAMAGED))
    part.rename(final)
    sync_to_disk(final.parent)
    write_whole(final.parent / LATEST, final.name + "\n", sync=True)
    return final


def prune(folder: Path, keep_last: int, keep_every: int, keep: int | None = None) -> None:
    """Remove all but the last checkpoints, those at multiples of `keep_every` steps (0: none) and
    the one of `keep` steps."""
    for path in _named(folder)[:-keep_last]:
        steps = _steps_of(path)
        if steps != keep and (not keep_every or steps % keep_every):
            doomed = path.with_name(path.name + PART)  # never half a checkpoint under its name
            path.rename(doomed)
            shutil.rmtree(doomed)


def adopt(folder: Path, given: Path) -> None:
    """Take over a checkpoint of another run under the same name, as the last one. Its files are
    linked where the file system can, for no checkpoint is written to once it has its name."""
    part = folder / (given.name + PART)
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(given, part, copy_function=_link)
    part.rename(folder / given.name)
    write_whole(folder / LATEST, given.name + "\n", sync=True)


def newest_steps(folder: Path) -> int | None:
    """Steps done of the newest checkpoint, whole or not; None where there is none."""
    return max(map(_steps_of, _named(folder)), default=None)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that is whole, and in words what was wrong with newer ones.

    Every file of it is read against its checksum. Raises `UserError` where there are checkpoints
    and none is whole: starting anew would lose the run without a word.
    """
    faults: list[str] = []
    paths = _named(folder)
    for path in reversed(paths):
        found = read_manifest(path)
        problem = found if isinstance(found, str) else _first_damage(found)
        if not problem and not isinstance(found, str):
            return found, faults + _latest_faults(folder, found)
        faults.append(f"{path}: {problem}")
    if paths:
        raise UserError(
            str(folder),
            "; ".join(faults),
            "a whole checkpoint",
            "restore one, or remove the folder to start from the first step",
        )
    return None, []


def read_manifest(path: Path) -> Checkpoint | str:
    """A checkpoint's manifest, or what is wrong with it."""
    try:
        body = json.loads((path / MANIFEST).read_text())
        given = body.pop("sha256")
        if given != _digest(body):
            return f"{MANIFEST} is not as it was written"
        if body["format"] != _FORMAT:
            return f"format {body['format']}, this version reads {_FORMAT}"
        names = [entry["name"] for entry in body["files"]]
        if any(name != Path(name).name for name in names) or body["steps_done"] != _steps_of(path):
            return f"{MANIFEST} belongs to another checkpoint"
    except OSError as error:
        return f"no {MANIFEST} ({error.strerror})"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is not as it was written"
    return Checkpoint(path, body["steps_done"], body, tuple(names))


class PieceReader:
    """Values of a checkpoint by parameter, kind and range, whichever rank wrote them.

    Raises `UserError` for a parameter or a range that it does not hold.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._path = checkpoint.path
        self._places: dict[str, list[tuple[int, int, str]]] = {}
        self._open = {}
        for name in checkpoint.files:
            file = safe_open(checkpoint.path / name, framework="pt")
            self._open[name] = file
            for key, start in json.loads(file.metadata()["starts"]).items():
                (count,) = file.get_slice(key).get_shape()
                self._places.setdefault(key, []).append((start, start + count, name))

    def __call__(self, name: str, kind: str, start: int, count: int) -> Tensor:
        """Values `start` to `start + count` of a flattened parameter."""
        key, out, filled = f"{kind}:{name}", torch.empty(count), 0
        for first, last, file in self._places.get(key, []):
            low, high = max(first, start), min(last, start + count)
            if low < high:
                values = self._open[file].get_slice(key)[low - first : high - first]
                out[low - start : high - start] = values
                filled += high - low
        if filled != count:
            raise UserError(
                f"{self._path}: {key}",
                f"{filled} of {count} values" if filled else "nothing",
                f"values {start} to {start + count}",
                "resume with the recipe that wrote it",
            )
        return out


def _first_damage(checkpoint: Checkpoint) -> str:
    """What is wrong with the first damaged file, or nothing."""
    for entry in checkpoint.facts["files"]:
        path = checkpoint.path / entry["name"]
        try:
            if path.stat().st_size != entry["bytes"] or sha256_of(path) != entry["sha256"]:
                return f"{entry['name']} is not as it was written"
            with safe_open(path, framework="pt") as file:
                file.metadata()
        except (OSError, SafetensorError):
            return f"{entry['name']} cannot be read"
    return ""


def _latest_faults(folder: Path, found: Checkpoint) -> list[str]:
    """A `latest` that does not name the checkpoint that is taken."""
    try:
        named = (folder / LATEST).read_text().strip()
    except (OSError, UnicodeDecodeError):
        named = ""
    if named == found.path.name:
        return []
    return [f"{folder / LATEST} names {named or 'nothing'!r}; taking {found.path.name}"]


def _named(folder: Path) -> list[Path]:
    """Checkpoints by step, whole or not."""
    paths = [path for path in folder.glob("step-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(paths, key=_steps_of)


def _steps_of(path: Path) -> int:
    match = _NAME.match(path.name)
    return int(match[1]) if match else -1


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
