"""Progress of long work, with rate and time left: a bar on a terminal, lines in a job's log."""

import sys
from typing import Any

from tqdm import tqdm

_LINE_EVERY_S = 30.0


def progress(what: str, total: int, unit: str, *, shown: bool = True) -> "tqdm[Any]":
    """A counter to `update`; also a context manager. Nothing is shown for nothing to do."""
    if not shown or not total:
        return tqdm(disable=True)
    if sys.stderr.isatty():
        return tqdm(total=total, desc=what, unit=unit, leave=False)
    line = "{desc}: {n_fmt}/{total_fmt} {unit}s, {rate_fmt}, {remaining} left\n"
    return tqdm(
        total=total,
        desc=what,
        unit=unit,
        bar_format=line,
        delay=_LINE_EVERY_S,
        mininterval=_LINE_EVERY_S,
        maxinterval=_LINE_EVERY_S,
    )
