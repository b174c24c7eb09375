#!/usr/bin/env python3
"""Seconds and memory that `supmim-scale plan` takes, each time in a fresh process.

    python benchmarks/plan_time.py
    python benchmarks/plan_time.py --recipes vitl14_in21k --repeats 5

Held against 10 s (median) and 8 GiB, a laptop's; the exit code is 1 where one is missed.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.rows.pages import Row, markdown_table
from benchmarks.rows.ranks import append, origin
from supmim_scale.units import gib

RESULTS = Path(__file__).parents[1] / "results" / "plan_time_cpu.jsonl"
MOST_S, MOST_BYTES = 10.0, 8 * 2**30


def main() -> int:
    """Plan every recipe some times; print and keep what it took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add("--recipes", nargs="+", default=["vitg14_in21k"])
    add("--gpu", default="h100")
    add("--nodes", type=int, default=8)
    add("--repeats", type=int, default=3)
    add("--out", type=Path, default=RESULTS, help="JSON-lines file to append to")
    arguments = parser.parse_args()
    rows = []
    for recipe in arguments.recipes:
        words = [recipe, "--gpu", arguments.gpu, "--nodes", str(arguments.nodes)]
        try:
            rows.append(measure(words, arguments.repeats) | origin())
        except subprocess.CalledProcessError as failed:
            print(f"error: plan {' '.join(words)} failed: {failed.stderr.strip()}", file=sys.stderr)
            return 2
        append(arguments.out, rows[-1])
    heads = ["plan", "median", "of", "processor", "most memory", "verdict"]
    print(
        markdown_table(
            heads,
            [
                [
                    row["plan"],
                    f"{row['wall_s']:.1f} s",
                    str(len(row["walls_s"])),
                    f"{row['cpu_s']:.1f} s",
                    gib(row["peak_memory_bytes"]),
                    row["verdict"],
                ]
                for row in rows
            ],
        )
    )
    return 0 if all(row["verdict"] == "PASS" for row in rows) else 1


def measure(words: list[str], repeats: int) -> Row:
    """A plan's row. Raises `CalledProcessError` where it fails."""
    walls, cpus, peaks = zip(*(one(words) for _ in range(repeats)), strict=True)
    wall_s, peak = statistics.median(walls), max(peaks)
    is_kept = wall_s < MOST_S and peak < MOST_BYTES
    return {
        "plan": " ".join(words),
        "wall_s": wall_s,
        "walls_s": walls,
        "cpu_s": statistics.median(cpus),
        "peak_memory_bytes": peak,
        "verdict": "PASS" if is_kept else "FAIL",
    }


def one(words: list[str]) -> tuple[float, float, int]:
    """(wall seconds, seconds of processors, peak resident bytes) of one process."""
    command = [sys.executable, "-m", "supmim_scale", "plan", *words]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    stderr = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    wall_s = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, stderr=stderr)
    return wall_s, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024  # KiB on Linux
