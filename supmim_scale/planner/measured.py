"""How far predictions were off so far, from the rows of `benchmarks/memory.py`."""

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"


def rows_of(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """Rows of `memory_*.jsonl`; none where the package lies outside its source tree.

    Raises `UserError` for a file that is none of that benchmark's.
    """
    rows: list[dict[str, Any]] = []
    for path in sorted(folder.glob("memory_*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
                row["accelerator"], row["peak_error"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    str(path), f"{type(error).__name__}", "rows of memory.py", "make it again"
                ) from None
            rows.append(row)
    return rows


def error_lines(rows: Iterable[dict[str, Any]]) -> list[str]:
    """What was measured, on GPUs and on CPUs."""
    by_kind: dict[str, list[float]] = {"GPU": [], "CPU": []}
    for row in rows:
        kind = "GPU" if row["accelerator"] == "cuda" else "CPU"
        by_kind[kind].append(float(row["peak_error"]))
    return [f"peak memory on a {kind}: {_spread(errors)}" for kind, errors in by_kind.items()] + [
        "step time: not compared with a measured one yet"
    ]


def _spread(errors: list[float]) -> str:
    if not errors:
        return "not measured yet"
    sizes = [abs(error) for error in errors]
    return (
        f"off by {statistics.median(sizes):.1%} in the median of {len(errors)} runs, "
        f"{max(sizes):.1%} at most"
    )
