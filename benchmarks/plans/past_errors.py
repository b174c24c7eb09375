"""How far predictions were off so far, of the rows of memory.py and throughput.py, as data of the
package: an installed wheel tells the same as a checkout."""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.planner.past_errors import DATA, Errors

RESULTS = Path(__file__).parents[1] / "results"


def main() -> int:
    """Collect the errors of all rows and write them into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS, help="folder of rows")
    parser.add_argument("--out", type=Path, default=DATA, help="file to write")
    arguments = parser.parse_args()
    try:
        errors = errors_in(arguments.results)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    arguments.out.write_text(json.dumps(asdict(errors), indent=1) + "\n")
    print("\n".join(errors.lines()))
    return 0


def errors_in(folder: Path) -> Errors:
    """Errors of the rows of `memory_*.jsonl` and `throughput_*.jsonl` that were measured with the
    step as it is by default.

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
