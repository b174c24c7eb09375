"""Reading every sample of a set: what is bad, what is odd, and a checksum of every shard."""

import hashlib
import json
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from supmim_scale.data.dali import DecodeCheck
from supmim_scale.data.dataset import Dataset, Shard
from supmim_scale.data.headers import BadImageError, Header, read_header, why_undecodable
from supmim_scale.data.index_table import Defect, TableFacts
from supmim_scale.data.quarantine import write_list
from supmim_scale.data.shards import MANIFEST, read_manifest, write_manifest
from supmim_scale.files.checksums import sha256_of
from supmim_scale.files.progress import progress

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
    that still decode, and shards that are no longer there. Decodes on the CPU.
    """
    verdict = Verdict(bad=list(dataset.defects))
    work = partial(_verify_shard, num_classes=num_classes)
    empty = [Shard(facts, 0, 0) for facts in dataset.tables if not facts.num_samples]
    with (
        ProcessPoolExecutor(workers, get_context("spawn")) as pool,
        progress("verify", len(dataset), "image") as bar,
    ):
        for part in pool.map(work, [*dataset.shards, *empty]):
            verdict.add(part)
            bar.update(part.num_samples)
    out.mkdir(parents=True, exist_ok=True)
    verdict.bad += _compare(dataset, verdict.checksums, out)
    write_list(out / QUARANTINE, verdict.bad)
    counts = {"bad": verdict.bad, "odd": verdict.odd}
    reasons = {name: dict(Counter(map(_kind, defects))) for name, defects in counts.items()}
    facts = {"samples": verdict.num_samples, "clean": verdict.is_clean, **reasons}
    (out / REPORT).write_text(json.dumps(facts, indent=2) + "\n")
    return verdict


def _verify_shard(shard: Shard, num_classes: int | None) -> Verdict:
    """Everything about one shard, or one span of a listing."""
    verdict, facts = Verdict(num_samples=shard.num_samples), shard.facts
    dataset = _opened(facts, num_classes)
    contents = hashlib.sha256()
    ids = range(shard.first_row, shard.first_row + shard.num_samples)
    for start in range(0, len(ids), _DECODED):
        whole: list[tuple[int, NDArray[np.uint8], Header]] = []
        for sample in ids[start : start + _DECODED]:
            try:
                encoded = dataset.read(sample)
                if facts.is_listing:
                    contents.update(encoded.tobytes())
                header = read_header(encoded)
                dataset.labels_of(sample)
                whole.append((sample, encoded, header))
            except BadImageError as error:
                verdict.bad.append(dataset.defect(sample, str(error)))
                continue
            verdict.odd += [dataset.defect(sample, odd) for odd in _oddities(dataset, whole[-1])]
        images = [encoded for _, encoded, _ in whole]
        windows = [(0, 0, header.height, header.width) for _, _, header in whole]
        for place in _checker().refused(images, windows):
            reason = why_undecodable(images[place])
            verdict.bad.append(dataset.defect(whole[place][0], reason))
    if facts.is_listing:
        verdict.checksums[f"{facts.name}#{ids.start}-{ids.stop}"] = contents.hexdigest()
    elif facts.source.exists():
        verdict.checksums[facts.name] = sha256_of(facts.source)
    return verdict


def _oddities(dataset: Dataset, found: tuple[int, NDArray[np.uint8], Header]) -> list[str]:
    """What is unusual about a sample that training reads all the same."""
    sample, _, header = found
    named = Path(dataset.defect(sample, "").key).suffix[1:].lower()
    is_misnamed = named and _EXTENSIONS.get(named, named) != header.kind
    return [
        *([f"{header.kind} under another name"] if is_misnamed else []),
        *([header.oddity] if header.oddity else []),
    ]


@lru_cache(maxsize=1)
def _checker() -> DecodeCheck:
    return DecodeCheck(batch=_DECODED, threads=1, decoder="cpu", device=torch.device("cpu"))


@lru_cache(maxsize=1)
def _opened(facts: TableFacts, num_classes: int | None) -> Dataset:
    return Dataset([facts], num_classes)


def _compare(dataset: Dataset, checksums: dict[str, str], out: Path) -> list[Defect]:
    """Shards that are not what a manifest says, or are named there and gone; those in no manifest
    enter `out`'s."""
    kind = SPANS if any(facts.is_listing for facts in dataset.tables) else MANIFEST
    known = _read_if_there(out / kind)
    if kind == MANIFEST:
        for folder in {facts.source.parent for facts in dataset.tables}:
            facts = next(f for f in dataset.tables if f.source.parent == folder)
            prefix = facts.name.removesuffix(facts.source.name)
            beside = _read_if_there(folder / MANIFEST)
            known |= {prefix + name: digest for name, digest in beside.items()}
    changed = [
        Defect(name, "", "changed", "unlike its checksum")
        for name, digest in checksums.items()
        if known.get(name, digest) != digest
    ]
    gone = [Defect(name, "", "gone", "named in a manifest") for name in known.keys() - checksums]
    ours = _read_if_there(out / kind)
    new = {name: digest for name, digest in checksums.items() if name not in known}
    if new:
        write_manifest(out / kind, ours | new)
    return changed + sorted(gone, key=str)


def _read_if_there(path: Path) -> dict[str, str]:
    return read_manifest(path) if path.is_file() else {}


def _kind(defect: Defect) -> str:
    """A reason without what is particular to the sample."""
    return defect.reason.partition(":")[0]
