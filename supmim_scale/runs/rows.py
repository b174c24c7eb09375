"""A run's log as rows."""

import json
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError


def read_log(run_dir: str | Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of `log.jsonl`, those of a kind (start, train, eval, knn, ...) or all, in order.

    Raises `UserError` where there is none, or a line is broken.
    """
    path = Path(run_dir) / "log.jsonl"
    if not path.is_file():
        raise UserError(str(run_dir), "no log.jsonl", "a run folder", "check the path")
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError:
        raise UserError(str(path), "a broken line", "JSON lines", "let the run resume") from None
    return [row for row in rows if kind in (None, row["kind"])]
