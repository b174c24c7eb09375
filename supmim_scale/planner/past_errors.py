"""How far predictions were off so far, from the rows of the benchmarks."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


@dataclass(frozen=True)
class Errors:
    """Relative errors of predictions: of peak memory on GPUs and on CPUs, and of images/s."""

    gpu_memory: list[float]
    cpu_memory: list[float]
    images_per_s: list[float]

    def lines(self) -> list[str]:
        """What was measured."""
        return [
            f"peak memory on a GPU: {_spread(self.gpu_memory)}",
            f"peak memory on a CPU: {_spread(self.cpu_memory)}",
            f"images/s on a GPU: {_spread(self.images_per_s)}",
        ]


def errors_in(folder: Path = RESULTS) -> Errors:
    """Of the rows of `memory_*.jsonl` and `throughput_*.jsonl`, those of the step as it is by
    default; none where the package lies outside its source tree.

    Raises `UserError` for a file that is none of these benchmarks'.
    """
    found = Errors([], [], [])
    for row in _rows(folder, "memory", ("accelerator", "peak_error")):
        is_gpu = row["accelerator"] == "cuda"
        (found.gpu_memory if is_gpu else found.cpu_memory).append(float(row["peak_error"]))
    for row in _rows(folder, "throughput", ("kind",)):
        if row.get("planned_error") is not None and not row["overrides"]:
            found.images_per_s.append(float(row["planned_error"]))
    return found


def _rows(folder: Path, name: str, keys: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob(f"{name}_*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
                for key in keys:
                    row[key]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    str(path), f"{type(error).__name__}", f"rows of {name}.py", "make it again"
                ) from None
            yield row


def _spread(errors: list[float]) -> str:
    if not errors:
        return "not measured yet"
    sizes = [abs(error) for error in errors]
    return (
        f"off by {statistics.median(sizes):.1%} in the median of {len(errors)} runs, "
        f"{max(sizes):.1%} at most"
    )
