"""Packing any readable set into shuffled WebDataset shards, in parallel and resumable."""

import json
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from supmim_scale.data.dataset import Dataset
from supmim_scale.data.headers import BadImageError, read_header
from supmim_scale.data.index_table import Defect, TableFacts
from supmim_scale.data.quarantine import (
    SkipRule,
    read_list,
    require_few,
    require_usable,
    write_list,
)
from supmim_scale.data.shards import MANIFEST, write_manifest, write_shard
from supmim_scale.errors import UserError
from supmim_scale.files.checksums import sha256_of
from supmim_scale.files.progress import progress

NOTE = "pack.json"
QUARANTINE = "quarantine.jsonl"


@dataclass(frozen=True)
class PackSpec:
    """`shard_size` images a shard; `seed` of the global shuffle; `skip_bad` leaves out samples
    that are no whole images, and lists them."""

    shard_size: int = 5000
    seed: int = 0
    skip_bad: bool = False


def pack(dataset: Dataset, out: Path, spec: PackSpec, classes: list[str], workers: int) -> int:
    """Write the set's images to `out`/NAME-000000.tar ...; returns how many were packed.

    The samples are shuffled over all shards. Bytes are copied, not re-encoded. Whole shards are
    kept, so that a second call finishes an interrupted one. `SHA256SUMS` comes last: a folder
    with it is complete. Raises `UserError` for a bad sample unless `spec.skip_bad`.
    """
    if spec.shard_size < 1:
        raise UserError("--shard-size", f"{spec.shard_size}", "1 or more", "raise it")
    policy = SkipRule(skip=spec.skip_bad, rate=1.0)
    require_usable(dataset, policy)
    _require_same(dataset, out, spec)
    order = np.random.default_rng(spec.seed).permutation(len(dataset))
    starts = range(0, len(dataset), spec.shard_size)
    paths = [out / f"{out.name}-{number:06d}.tar" for number in range(len(starts))]
    jobs = [
        (path, start, order[start : start + spec.shard_size])
        for path, start in zip(paths, starts, strict=True)
        if not path.exists()
    ]
    todo = sum(len(chosen) for _, _, chosen in jobs)
    with (
        progress("pack", todo, "image") as bar,
        # Not forked: this process may hold DALI's and torch's threads.
        ProcessPoolExecutor(workers, get_context("spawn"), _open, (dataset.tables,)) as pool,
    ):
        for images in pool.map(partial(_write, spec), jobs):
            bar.update(images)
    if classes:
        (out / "classes.txt").write_text("\n".join(classes) + "\n")
    bad = [d for path in paths if (p := _list_of(path)).exists() for d in read_list(p)]
    if bad or dataset.defects:
        write_list(out / QUARANTINE, [*dataset.defects, *bad])
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        sums = pool.map(sha256_of, paths)
        write_manifest(out / MANIFEST, {p.name: s for p, s in zip(paths, sums, strict=True)})
    return len(dataset) - len(bad)


_set: list[Dataset] = []  # of a worker process, which opens it once


def _open(tables: tuple[TableFacts, ...]) -> None:
    _set[:] = [Dataset(tables)]


def _write(spec: PackSpec, job: tuple[Path, int, NDArray[np.int64]]) -> int:
    """Write one shard, and before it appears the list of what was left out of it."""
    path, start, chosen = job
    (dataset,) = _set
    bad: list[Defect] = []

    def samples() -> Iterator[tuple[str, bytes, str, str | None]]:
        for place, sample in enumerate(chosen.tolist(), start=start):
            try:
                encoded = dataset.read(sample)
                kind = read_header(encoded).kind
            except BadImageError as error:
                bad.append(dataset.defect(sample, str(error)))
                require_few(bad, len(bad), len(dataset), SkipRule(skip=spec.skip_bad, rate=1.0))
                continue
            labels = dataset.labels_of(sample)
            yield (
                f"{place:010d}",
                encoded.tobytes(),
                kind,
                " ".join(map(str, labels)) if len(labels) else None,
            )
        if bad:
            write_list(_list_of(path), bad)

    write_shard(path, samples())
    return len(chosen)


def _list_of(path: Path) -> Path:
    return path.with_name(path.name + ".bad.jsonl")


def _require_same(dataset: Dataset, out: Path, spec: PackSpec) -> None:
    """Note down what `out` is packed from. Raises `UserError` if it was begun from another set."""
    note = out / NOTE
    facts = {
        "samples": len(dataset),
        "digest": dataset.digest,
        "shard_size": spec.shard_size,
        "seed": spec.seed,
        "skip_bad": spec.skip_bad,
    }
    wanted = json.dumps(facts)
    if note.exists() and note.read_text() != wanted:
        raise UserError(
            str(out), f"shards of {note.read_text()}", wanted, "name another folder or remove it"
        )
    if not note.exists() and any(out.glob("*.tar")):
        raise UserError(str(out), "shards", "a folder without any", "name another folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        note.write_text(wanted)
    except OSError as error:
        raise UserError(str(out), str(error), "a writable folder", "name another") from None
