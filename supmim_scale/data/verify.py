"""Reading every sample of a set: what is bad, what is odd, and a checksum of every shard."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from supmim_scale.data.dali import DecodeCheck
from supmim_scale.data.dataset import Dataset, Shard
from supmim_scale.data.encoded import BadImageError, read_header, require_decodable
from supmim_scale.data.quarantine import write_list
from supmim_scale.data.shards import MANIFEST, read_manifest, sha256_of, write_manifest
from supmim_scale.data.table import Defect, TableFacts, source_name

QUARANTINE = "quarantine.jsonl"
REPORT = "report.json"
SPANS = "SPANS.sha256"  # of a listing: no file that sha256sum could check
_DECODED = 32  # images decoded at a time

_EXTENSIONS = {"jpeg": "jpg", "jpe": "jpg"}


@dataclass
class Verdict:
    """What verifying found. `bad` samples are of no use to training; `odd` ones are read all the
    same: another format than their name says, CMYK, more than 8 bits."""

    num_samples: int = 0
    bad: list[Defect] = field(default_factory=list)
    odd: list[Defect] = field(default_factory=list)
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def is_clean(self) -> bool:
        """Whether nothing bad was found."""
        return not self.bad

    def add(self, other: "Verdict") -> None:
        """Take in what another shard showed."""
        self.num_samples += other.num_samples
        self.bad += other.bad
        self.odd += other.odd
        self.checksums |= other.checksums

    def table(self, examples: int = 3) -> str:
        """Counts by reason, with the first places."""
        lines = [f"{self.num_samples} samples read, {len(self.bad)} bad, {len(self.odd)} odd"]
        for name, defects in (("bad", self.bad), ("odd", self.odd)):
            for reason, count in Counter(_kind(d) for d in defects).most_common():
                places = [
                    f"{d.source}: {d.key}".rstrip(": ") for d in defects if _kind(d) == reason
                ]
                more = ", ..." if len(places) > examples else ""
                lines.append(f"  {name} {count:>8}  {reason}: {', '.join(places[:examples])}{more}")
        return "\n".join(lines)


def verify(dataset: Dataset, out: Path, num_classes: int | None, workers: int) -> Verdict:
    """Decode every sample; write `quarantine.jsonl`, `report.json` and checksums into `out`.

    Shards are compared with the `SHA256SUMS` beside them or in `out`, which is written for those
    that are in none. So a second call finds what has changed since the first, even flipped bits
    that still decode.
    """
    verdict = Verdict(bad=list(dataset.defects))
    work = partial(_verify_shard, num_classes=num_classes)
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        tqdm(total=len(dataset), desc="verify", unit="image", disable=None) as bar,
    ):
        empty = (Shard(facts, 0, 0) for facts in dataset.tables if not facts.num_samples)
        for part in pool.map(work, [*dataset.shards, *empty]):
            verdict.add(part)
            bar.update(part.num_samples)
    out.mkdir(parents=True, exist_ok=True)
    verdict.bad += _compare(verdict.checksums, out)
    write_list(out / QUARANTINE, verdict.bad)
    reasons = {
        name: dict(Counter(_kind(d) for d in getattr(verdict, name))) for name in ("bad", "odd")
    }
    facts = {"samples": verdict.num_samples, "clean": verdict.is_clean, **reasons}
    (out / REPORT).write_text(json.dumps(facts, indent=2) + "\n")
    return verdict


def _verify_shard(shard: Shard, num_classes: int | None) -> Verdict:
    """Everything about one shard; its checksum covers what was read."""
    verdict = Verdict(num_samples=shard.num_samples)
    dataset, source = _opened(shard.facts, num_classes), shard.facts.source
    contents = hashlib.sha256()
    ids = range(shard.first_row, shard.first_row + shard.num_samples)
    for chunk in _chunks(ids):
        whole: list[tuple[int, NDArray[np.uint8]]] = []
        for sample in chunk:
            try:
                encoded = dataset.read(sample)
                contents.update(encoded.tobytes())
                header = read_header(encoded)
                dataset.labels_of(sample)
                whole.append((sample, encoded))
            except BadImageError as error:
                verdict.bad.append(dataset.defect(sample, str(error)))
                continue
            named = Path(dataset.defect(sample, "").key).suffix[1:].lower()
            if named and _EXTENSIONS.get(named, named) != header.kind:
                verdict.odd.append(dataset.defect(sample, f"{header.kind} under another name"))
            if header.oddity:
                verdict.odd.append(dataset.defect(sample, header.oddity))
        for sample, reason in _undecodable(whole):
            verdict.bad.append(dataset.defect(sample, reason))
    if shard.facts.is_listing:
        verdict.checksums[f"{source}#{ids.start}-{ids.stop}"] = contents.hexdigest()
    elif source.exists():
        verdict.checksums[str(source)] = sha256_of(source)
    return verdict


def _undecodable(
    images: list[tuple[int, NDArray[np.uint8]]],
) -> Iterator[tuple[int, str]]:
    """Samples that the training decoder refuses, and why."""
    check = _checker()
    if not images or check.decodes([encoded for _, encoded in images]):
        return
    for sample, encoded in images:
        try:
            require_decodable(encoded)
        except BadImageError as error:
            yield sample, f"undecodable: {error}"
            continue
        if not check.decodes([encoded]):
            yield sample, "undecodable by DALI"


@lru_cache(maxsize=1)
def _checker() -> DecodeCheck:
    return DecodeCheck(batch=_DECODED, threads=1, decoder="cpu", device=torch.device("cpu"))


@lru_cache(maxsize=1)
def _opened(facts: TableFacts, num_classes: int | None) -> Dataset:
    return Dataset([facts], num_classes)


def _chunks(ids: range) -> Iterator[range]:
    for start in range(0, len(ids), _DECODED):
        yield ids[start : start + _DECODED]


def _compare(checksums: dict[str, str], out: Path) -> list[Defect]:
    """Shards that are not what a manifest says; those in no manifest enter `out`'s."""
    read = lru_cache(maxsize=None)(_read_if_there)
    changed, new = [], dict[str, dict[str, str]]()
    for place, found in checksums.items():
        path, is_span = Path(place), "#" in place
        kind = SPANS if is_span else MANIFEST
        beside, ours = {} if is_span else read(path.parent / MANIFEST), read(out / kind)
        expected = beside.get(path.name) or ours.get(path.name)
        if expected is None:
            new.setdefault(kind, dict(ours))[path.name] = found
        elif expected != found:
            where = path.parent / MANIFEST if path.name in beside else out / kind
            changed.append(Defect(source_name(path), "", "changed", f"unlike {where}"))
    for kind, sums in new.items():
        write_manifest(out / kind, sums)
    return changed


def _read_if_there(path: Path) -> dict[str, str]:
    return read_manifest(path) if path.is_file() else {}


def _kind(defect: Defect) -> str:
    """A reason without what is particular to the sample."""
    return defect.reason.partition(":")[0]
