"""What a run does with samples that cannot be read: stop, or replace up to a stated rate."""

import json
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from supmim_scale.data.dataset import Dataset
from supmim_scale.data.index_table import Defect
from supmim_scale.errors import RankError, UserError
from supmim_scale.files.whole import write_whole

_SHOWN = 5


@dataclass(frozen=True)
class SkipRule:
    """`skip`: bad samples are replaced, at most `rate` of the set's samples; else they stop."""

    skip: bool = False
    rate: float = 0.0

    def allows(self, num_bad: int, num_samples: int) -> bool:
        """Whether so many bad samples of a set may be skipped."""
        return num_bad == 0 or (self.skip and num_bad <= self.rate * num_samples)


class Quarantine:
    """Bad samples met so far, each once; safe to call from several threads.

    `path`: this rank's list; what all ranks of earlier starts listed beside it counts from the
    beginning, so that a rate holds for the whole run.
    """

    def __init__(self, policy: SkipRule, num_samples: int, path: Path | None = None) -> None:
        self._policy, self._num_samples, self._path = policy, num_samples, path
        earlier = sorted(path.parent.glob(f"{path.stem.split('-')[0]}-*.jsonl")) if path else []
        self._met = {_place(defect): defect for file in earlier for defect in read_list(file)}
        self._lock = threading.Lock()

    @property
    def met(self) -> set[tuple[str, str]]:
        """(source, key) of the bad samples."""
        return set(self._met)

    def add(self, defect: Defect) -> None:
        """Note a bad sample, on disk first. Raises `RankError` where the policy says stop."""
        with self._lock:
            if _place(defect) in self._met:
                return
            self._met[_place(defect)] = defect
            if self._path is not None:
                self._write(self._path, defect)
            self.require_few(len(self._met))

    def require_few(self, count: int) -> None:
        """Raise `RankError` if `count` bad samples, over all ranks, are more than allowed."""
        if not self._policy.allows(count, self._num_samples):
            raise RankError(
                *_refusal(list(self._met.values()), count, self._num_samples, self._policy)
            )

    def _write(self, path: Path, defect: Defect) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a") as file:
                file.write(json.dumps(asdict(defect)) + "\n")
        except OSError as error:
            raise RankError(
                str(path), str(error), "a writable run folder", "fix it and start again"
            ) from None


def _place(defect: Defect) -> tuple[str, str]:
    return defect.source, defect.key


def require_usable(dataset: Dataset, policy: SkipRule) -> None:
    """Raise `UserError` if indexing left out, or sources that are gone take along, more samples
    than the policy allows."""
    lost = sum(facts.num_samples for facts in dataset.gone)
    defects = [
        Defect(f.name, "", "gone", f"{f.num_samples} samples; or remove {f.index}")
        for f in dataset.gone
    ] + dataset.defects
    require_few(defects, lost + len(dataset.defects), len(dataset), policy)


def require_few(defects: list[Defect], count: int, num_samples: int, policy: SkipRule) -> None:
    """Raise `UserError` if `count` bad samples are more than the policy allows."""
    if not policy.allows(count, num_samples):
        raise UserError(*_refusal(defects, count, num_samples, policy))


def read_list(path: Path) -> list[Defect]:
    """The defects of a quarantine file. Raises `UserError` where it is none."""
    try:
        return [Defect(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            "input.quarantine",
            f"{path} ({error})",
            "a file of supmim-scale data verify",
            "check the path",
        ) from None


def write_list(path: Path, defects: Iterable[Defect]) -> None:
    """Write a quarantine file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, "".join(json.dumps(asdict(defect)) + "\n" for defect in defects))


def _refusal(
    defects: list[Defect], count: int, num_samples: int, policy: SkipRule
) -> tuple[str, str, str, str]:
    shown = "; ".join(str(defect) for defect in defects[:_SHOWN])
    left = count - len(defects[:_SHOWN])
    more = f"; and {left} more" if left > 0 else ""
    allowed = f"at most {policy.rate:g} of {num_samples} samples" if policy.skip else "none"
    fix = (
        "raise input.bad_rate if that is expected"
        if policy.skip
        else "set input.bad_samples=skip to continue without them"
    )
    return (
        "data",
        f"{count} bad sample{'s' if count != 1 else ''}: {shown}{more}",
        f"{allowed} (input.bad_samples={'skip' if policy.skip else 'stop'})",
        f"list them all with supmim-scale data verify, or {fix}",
    )
