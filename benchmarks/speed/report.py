#!/usr/bin/env python3
"""A page and a picture of what throughput.py measured.

    python benchmarks/throughput_report.py benchmarks/results/throughput_cpu.jsonl

Writes throughput_cpu.md, between its markers where the file is there already, and
throughput_cpu.png. Of rows with one name the latest counts.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.rows.pages import Row, origin_line, read_rows, write_page
from benchmarks.speed.picture import figure
from benchmarks.speed.tables import gpu_table, pair_table, shape_table, table

NAMES = (
    "kind",
    "pair",
    "model",
    "layout",
    "engine",
    "policy",
    "precision",
    "image_size",
    "micro_batch",
    "images",
    "world_size",
    "overrides",
    "data",
)


def main() -> int:
    """Read rows, write the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("rows", type=Path, help="JSON lines of throughput.py")
    parser.add_argument("--page", type=Path, help="Markdown file; default: beside the rows")
    arguments = parser.parse_args()
    if not arguments.rows.is_file():
        print(
            f"error: {arguments.rows}: found no file; expected rows of throughput.py; run it first",
            file=sys.stderr,
        )
        return 2
    rows = read_rows(arguments.rows, NAMES)
    if not all("kind" in row for row in rows):
        print(
            f"error: {arguments.rows}: found rows without a kind; expected rows of this "
            "throughput.py; make them again",
            file=sys.stderr,
        )
        return 2
    page = arguments.page or arguments.rows.with_suffix(".md")
    write_page(page, markdown(rows))
    picture = page.with_suffix(".png")
    figure(rows).savefig(picture, dpi=110)
    print(f"{page}\n{picture}")
    return 0


def markdown(rows: list[Row]) -> str:
    """The whole page."""
    pairs = [row for row in rows if row["kind"] == "pair"]
    steps = [row for row in rows if row["kind"] == "row"]
    shapes = [row for row in rows if row["kind"] == "shapes"]
    parts = [f"# Throughput\n\n{origin_line(rows)}"]
    if pairs:
        parts += ["## Ratios of steps that take turns", pair_table(pairs)]
    if steps:
        parts += ["## Rows", table(steps)]
    if shapes:
        parts += ["## Matmul shapes", shape_table(shapes)]
    return "\n\n".join([*parts, "## What a GPU must show", gpu_table(rows)])
