#!/usr/bin/env python3
"""A page and a picture of what memory.py measured.

    python benchmarks/memory_report.py benchmarks/results/memory_cpu.jsonl

Writes memory_cpu.md, between its markers where the file is there already, and memory_cpu.png: live
bytes by kind over a step, of the rows with a timeline. Of rows with one name the latest counts.
"""

import argparse
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rows.pages import (
    COLORS,
    Row,
    markdown_table,
    mib,
    origin_line,
    read_rows,
    write_page,
)
from supmim_scale.units import gib

NAMES = (
    "model",
    "layout",
    "engine",
    "policy",
    "precision",
    "image_size",
    "micro_batch",
    "world_size",
    "accumulation",
    "reduce_bucket",
    "accelerator",
)
KINDS = (
    "parameters",
    "masters",
    "gradients",
    "optimizer",
    "ema",
    "gathered",
    "buckets",
    "activations",
    "logits",
    "inputs",
)
PHASES = ("forward", "backward", "step")
MOST_PICTURES = 4


def main() -> int:
    """Read rows, write the page and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("rows", type=Path, help="JSON lines of memory.py")
    parser.add_argument("--page", type=Path, help="Markdown file; default: beside the rows")
    arguments = parser.parse_args()
    if not arguments.rows.is_file():
        print(
            f"error: {arguments.rows}: found no file; expected rows of memory.py; run it first",
            file=sys.stderr,
        )
        return 2
    rows = read_rows(arguments.rows, NAMES)
    page = arguments.page or arguments.rows.with_suffix(".md")
    write_page(page, markdown(rows))
    figure(rows).savefig(page.with_suffix(".png"), dpi=110)
    print(f"{page}\n{page.with_suffix('.png')}")
    return 0


def markdown(rows: list[Row]) -> str:
    """The whole page."""
    parts = [f"# Memory\n\n{origin_line(rows)}", "## Peaks by phase", table(rows), worst_line(rows)]
    parts += ["## Kinds at the fullest moment, MiB", kind_table(rows)]
    gpu = [row for row in rows if row["accelerator"] == "cuda"]
    found = worst_line(gpu) if gpu else "not run: no GPU"
    parts += [f"Predicted peak within 8 % of the measured one on a GPU: {found}."]
    parts += [f"DALI's pool: null, {rows[-1].get('dali_pool_reason', 'not measured')}."]
    return "\n\n".join(parts)


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    heads = [
        "model",
        "layout",
        "engine",
        "recompute",
        "precision",
        "ranks",
        *PHASES,
        "measured peak",
        "predicted",
        "error",
        "without inputs",
    ]
    lines = []
    for row in rows:
        names = [row["model"], row["layout"], row["engine"], row["policy"]]
        if "error" in row:
            lines.append([*names, f"failed: {row['error']}", *["" for _ in range(8)]])
            continue
        peaks = [gib(row["phases"][name]["peak"]) for name in PHASES]
        core = f"{row['core_error']:+.2%}" if "core_error" in row else "null"
        lines.append(
            [
                *names,
                row["precision"],
                str(row["world_size"]),
                *peaks,
                gib(row["measured_peak_bytes"]),
                gib(row["predicted_peak_bytes"]),
                f"{row['peak_error']:+.2%}",
                core,
            ]
        )
    return markdown_table(heads, lines)


def worst_line(rows: list[Row]) -> str:
    """The largest error, of each engine."""
    good = [row for row in rows if "error" not in row]
    engines = dict.fromkeys(row["engine"] for row in good)
    worst = {
        engine: max((row["peak_error"] for row in good if row["engine"] == engine), key=abs)
        for engine in engines
    }
    return f"Largest error of {len(good)} rows: " + (
        ", ".join(f"{engine} {error:+.2%}" for engine, error in worst.items()) or "none measured"
    )


def kind_table(rows: list[Row]) -> str:
    """Measured / predicted bytes of each kind, where the census found the fullest moment."""
    lines = [
        [
            row["model"],
            row["layout"],
            row["engine"],
            row["policy"],
            row["fullest_phase"],
            *(_both(row, kind) for kind in KINDS),
            _both(row, "gradients", "activations"),
        ]
        for row in rows
        if row.get("measured_bytes")
    ]
    heads = [
        "model",
        "layout",
        "engine",
        "recompute",
        "fullest in",
        *KINDS,
        "gradients + activations",
    ]
    note = (
        "Measured / predicted while backward runs; a prediction of the step has no kinds. Plain "
        "PyTorch's gradients come while activations go: the planner has them among those. Nobody "
        "owns the buffer of a prefetch: it is measured among activations, predicted as gathered."
    )
    return f"{note}\n\n{markdown_table(heads, lines)}"


def line_of(row: Row) -> str:
    """A row for people."""
    found = row.get("error") or f"{gib(row['measured_peak_bytes'])}, {row['peak_error']:+.2%}"
    return f"{row['model']} {row['layout']} {row['engine']} {row['policy']}: {found}"


def figure(rows: list[Row]) -> Figure:
    """Live bytes by kind over the operations of a step."""
    drawn = [row for row in rows if row.get("timeline")][:MOST_PICTURES]
    count = max(1, len(drawn))
    picture = Figure(figsize=(15, 1 + 3.4 * ((count + 1) // 2)), layout="constrained")
    places = picture.subplots((count + 1) // 2, min(2, count), squeeze=False).ravel()
    for axes, row in zip(places, drawn, strict=False):
        timeline(axes, row)
    if drawn:
        picture.legend(
            *places[0].get_legend_handles_labels(),
            loc="outside right upper",
            frameon=False,
            reverse=True,
        )
    else:
        places[0].text(0.5, 0.5, "no row with a timeline", ha="center")
    return picture


def timeline(axes: Axes, row: Row) -> None:
    """One step, stacked."""
    points = row["timeline"]
    x = [point["operation"] for point in points]
    heights = [[point[kind] / 2**20 for point in points] for kind in KINDS]
    labels = [kind if kind != "activations" else "activations, temporaries" for kind in KINDS]
    axes.stackplot(x, heights, labels=labels, colors=COLORS, linewidth=0)
    top = row["measured_peak_bytes"] / 2**20
    axes.axhline(row["predicted_peak_bytes"] / 2**20, color="black", linestyle="--", linewidth=1)
    axes.text(
        x[-1],
        row["predicted_peak_bytes"] / 2**20,
        "predicted peak ",
        ha="right",
        va="bottom",
        fontsize=8,
    )
    start = 0
    for name in PHASES:
        end = row["phases"][name]["ended_at"]
        axes.axvline(end, color="black", linewidth=0.5)
        axes.text((start + end) / 2, 1.13 * top, name, ha="center", va="top", fontsize=9)
        start = end
    axes.set_ylim(0, 1.16 * top)
    axes.set_xlim(x[0], x[-1])
    axes.set_xlabel("operation of the step")
    axes.set_ylabel("MiB alive")
    ranks = f"{row['world_size']} ranks" if row["world_size"] > 1 else "one process"
    axes.set_title(
        f"{row['model']}, batch {row['micro_batch']}, {row['layout']}\n{row['engine']}, recompute "
        f"{row['policy']}, {row['precision']}, {ranks}",
        loc="left",
        fontsize=9,
    )
    axes.spines[["top", "right"]].set_visible(False)


def _both(row: Row, *kinds: str) -> str:
    measured, predicted = (
        mib(sum(row[name][kind] for kind in kinds))
        for name in ("measured_bytes", "predicted_bytes")
    )
    return f"{measured} / {'-' if row['fullest_phase'] == 'step' else predicted}"
