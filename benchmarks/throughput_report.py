#!/usr/bin/env python3
"""A page and a picture of what throughput.py measured.

    python benchmarks/throughput_report.py benchmarks/results/throughput_cpu.jsonl

Writes throughput_cpu.md, between its markers where the file is there already, and
throughput_cpu.png. Of rows with one name the latest counts.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pages import Row, markdown_table, origin_line, percent, read_rows, seconds, write_page

from supmim_scale.units import gib, si

COLORS = {"forward": "#0072B2", "backward": "#56B4E9", "optimizer": "#E69F00"}  # Okabe & Ito 2008
# What a GPU must show: executed bf16 MFU by model, and ratios by pair.
MFU_BOUNDS = {"vit_l14": 0.50, "vit_h14": 0.52, "vit_g14": 0.53}
PAIR_BOUNDS = {
    "timm": "at least 1.20",
    "timm_compiled": "at least 1.05",
    "two_forwards": "at least 1.25",
    "stage3": "at most 1.10",
}
SAME = ("model", "layout", "policy", "micro_batch", "world_size", "image_size", "overrides")
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


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table, with what its null columns lack."""
    heads = [
        "model",
        "layout",
        "engine",
        "recompute",
        "batch a rank",
        "ranks",
        "precision",
        "images/s",
        "a rank",
        "x plain",
        "step median",
        "p95",
        "forward",
        "backward",
        "optimizer",
        "collectives",
        "data wait",
        "FLOP/s",
        "of the roof",
        "MFU",
        "HFU",
        "peak memory",
        "reserved",
        "attention",
        "loss",
    ]
    lines = [_line(row) for row in rows if row["kind"] == "row"]
    reasons = {
        row.get(name)
        for row in rows
        for name in ("mfu_reason", "data_wait_reason", "memory_reason")
    } - {None}
    notes = [f"Null: {reason}." for reason in sorted(reasons)]
    failed = [f"- {line_of(row)}" for row in rows if "error" in row]
    return "\n".join([markdown_table(heads, lines), "", *notes, *failed])


def _line(row: Row) -> list[str]:
    words = [word.partition(".")[2] for word in row["overrides"]]
    policy = " ".join([row["policy"], *words, *_fed(row)])
    names = [row["model"], row["layout"], row["engine"], policy]
    if "error" in row:
        return [*names, *["" for _ in range(20)], "failed"]
    ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "-"
    shares = (percent(row[name]) for name in ("roof_share", "mfu", "hfu"))
    reserved = row["peak_reserved_bytes"]
    return [
        *names,
        str(row["micro_batch"]),
        str(row["world_size"]),
        row["precision"],
        f"{row['images_per_s']:.2f}",
        f"{row['images_per_s_per_rank']:.2f}",
        ratio,
        *(
            seconds(row[f"{name}_s"])
            for name in (
                "step_time_median",
                "step_time_p95",
                "forward",
                "backward",
                "optimizer",
                "communication",
            )
        ),
        "null" if row["data_wait_s"] is None else seconds(row["data_wait_s"]),
        si(row["achieved_flops_per_s"]).strip(),
        *shares,
        gib(row["peak_memory_bytes"]),
        gib(reserved) if reserved else "null",
        attention_name(row),
        f"{row['loss']:.5f}",
    ]


def attention_name(row: Row) -> str:
    """The forward's operator or kernel, as the profiler named it."""
    names = [name for name in row["attention"] if "backward" not in name.lower()]
    short = [name.removeprefix("aten::").partition("(")[0][:60] for name in names]
    return ", ".join(short) or "none seen"


def pair_table(rows: list[Row]) -> str:
    """Pairs as a Markdown table."""
    heads = [
        "pair",
        "model",
        "engine",
        "recompute",
        "precision",
        "images",
        "ratio",
        "interval",
        "bound",
        "verdict",
        "loss gap",
        "rounds",
        "first, a step",
        "second, a step",
    ]
    lines = []
    for row in rows:
        names = [row.get("what", row["pair"]), row["model"], row["engine"], row["policy"]]
        if "error" in row:
            lines.append([*names, "", "", "", "", "", f"error: {row['error']}", "", "", "", ""])
            continue
        bound = f"{row['bound']:.2f}" if row["bound"] else "-"
        lines.append(
            [
                *names,
                row["precision"],
                str(row["images"]),
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
                bound,
                verdict_of(row),
                f"{row['loss_gap']:.1e}",
                f"{row['rounds']} x {row['steps_a_round']}",
                seconds(row["first_s"]),
                seconds(row["second_s"]),
            ]
        )
    return markdown_table(heads, lines)


def verdict_of(row: Row) -> str:
    """PASS or FAIL, and whether the interval leaves a doubt."""
    if row["verdict"] is None:
        return row["verdict_reason"]  # type: ignore[no-any-return]
    return row["verdict"] + ("" if row["is_clear"] else " (the interval holds the bound)")


def shape_table(rows: list[Row]) -> str:
    """What the products of each model can reach by themselves."""
    heads = [
        "model",
        "precision",
        "images",
        "products alone",
        "of the roof",
        "of the peak",
        "costliest shape (b x m x k x n)",
        "its share of the roof",
    ]
    return markdown_table(
        heads,
        [
            [
                row["model"],
                row["precision"],
                str(row["micro_batch"]),
                si(row["products_flops_per_s"]) + "FLOP/s",
                percent(row["products_share_of_roof"]),
                percent(row["expected_mfu"]),
                row["slowest"]["shape"],
                percent(row["slowest"]["share_of_roof"]),
            ]
            for row in rows
        ],
    )


def gpu_table(rows: list[Row]) -> str:
    """Each promise of a GPU beside what was measured there."""
    lines = []
    on_gpu = [row for row in rows if row.get("device_count") and "error" not in row]
    steps = [
        row
        for row in on_gpu
        if row["kind"] == "row"
        and row["precision"] == "bf16"
        and not any("fp8" in word for word in row["overrides"])
        and row.get("data") is None
    ]
    products = {
        row["model"]: percent(row["expected_mfu"])
        for row in on_gpu
        if row["kind"] == "shapes" and row["expected_mfu"] is not None
    }
    for model, bound in MFU_BOUNDS.items():
        for engine in ("zero1", "zero3"):
            for what in ("none", "full"):
                mine = [
                    row
                    for row in steps
                    if row["hfu"]
                    and (row["model"], row["engine"], row["policy"]) == (model, engine, what)
                ]
                best = max((row["hfu"] for row in mine), default=None)
                name = f"{model}, {engine}, recompute {what}: executed FLOPs of the peak"
                lines.append(
                    [
                        name,
                        f"at least {bound:.0%}",
                        products.get(model, "not run: no GPU"),
                        _found(best, percent),
                    ]
                )
        alike = [
            first["images_per_s"] / third["images_per_s"]
            for first in steps
            for third in steps
            if (first["engine"], third["engine"]) == ("zero1", "zero3")
            and first["model"] == model
            and all(first[key] == third[key] for key in SAME)
        ]
        both = max(alike, default=None)
        lines.append(
            [
                f"{model}: ZeRO-3's step / ZeRO-1's on one rank",
                "at most 1.10",
                "",
                _found(both, _ratio),
            ]
        )
    errors = [
        row["planned_error"]
        for row in steps
        if row.get("planned_error") is not None and not row["overrides"]
    ]
    worst = max(errors, key=abs, default=None)
    lines.append(
        ["images/s that the planner says, largest error", "within 10 %", "", _found(worst, percent)]
    )
    for pair, bound_text in PAIR_BOUNDS.items():
        ratios = [row["ratio"] for row in on_gpu if row["kind"] == "pair" and row["pair"] == pair]
        last = ratios[-1] if ratios else None
        lines.append([f"pair {pair}", bound_text, "", _found(last, _ratio)])
    heads = ["figure", "wanted", "the model's products alone reach", "measured"]
    return markdown_table(heads, lines)


def line_of(row: Row) -> str:
    """A row for people."""
    name = " ".join(
        str(row[key])
        for key in ("pair", "model", "layout", "engine", "policy")
        if row.get(key) and not (key == "layout" and "pair" in row)
    )
    name += "".join(f" {word}" for word in row.get("overrides") or [])
    if "error" in row:
        return f"{name}: {row['error']}"
    if row["kind"] == "pair":
        bound = f", bound {row['bound']}: {verdict_of(row)}" if row["bound"] else ""
        spread = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}"
        return f"{name}: {row['ratio']:.3f} ({spread}){bound}"
    return f"{name}: {row['images_per_s']:.2f} img/s, {percent(row['roof_share'])} of the roof"


def figure(rows: list[Row]) -> Figure:
    """Where a step's time goes, and the ratios of pairs with their bounds."""
    good = [row for row in rows if "error" not in row]
    steps, pairs = ([row for row in good if row["kind"] == kind] for kind in ("row", "pair"))
    height = 2.5 + max(0.36 * len(steps), 0.8 * len(pairs))
    picture = Figure(figsize=(15, max(5.0, height)), layout="constrained")
    left, right = picture.subplots(1, 2, width_ratios=(1.2, 1))
    splits(left, steps)
    ratios(right, pairs)
    last = rows[-1]
    picture.suptitle(f"{last.get('device')}, {last.get('host_cpus')} host cores", fontsize=10)
    return picture


def splits(axes: Axes, rows: list[Row]) -> None:
    """Milliseconds an image of forward, backward and optimizer, a bar a row."""
    axes.set_title("A step by phase, per image: shorter is better", loc="left")
    axes.set_xlabel("milliseconds an image (median)")
    _bare(axes, rows)
    left = np.zeros(len(rows))
    for phase, color in COLORS.items():
        width = np.array([1e3 * row[f"{phase}_s"] / row["global_batch"] for row in rows])
        axes.barh(range(len(rows)), width, left=left, color=color, label=phase)
        left += width
    names = [
        " ".join(
            [
                row["model"],
                row["layout"],
                row["engine"],
                row["policy"],
                row["precision"],
                *row["overrides"],
                *_fed(row),
            ]
        )
        for row in rows
    ]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    for place, (row, end) in enumerate(zip(rows, left, strict=True)):
        text = f" {row['images_per_s']:.1f} img/s, {row['roof_share']:.0%} of the roof"
        axes.text(end, place, text, va="center", fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(right=1.45 * max(left, default=1.0))
    if rows:
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)


def ratios(axes: Axes, rows: list[Row]) -> None:
    """Each pair's rounds, its median and interval, and the bound."""
    axes.set_title("Ratios of steps that take turns", loc="left")
    axes.set_xlabel("rounds, median, 95 % interval; bound")
    _bare(axes, rows)
    for place, row in enumerate(rows):
        axes.plot(
            row["round_ratios"],
            [place] * len(row["round_ratios"]),
            "o",
            color="#999999",
            markersize=3,
        )
        low, middle, high = row["ratio_low"], row["ratio"], row["ratio_high"]
        axes.errorbar(
            middle,
            place,
            xerr=[[middle - low], [high - middle]],
            fmt="D",
            color="#0072B2",
            capsize=4,
        )
        if row["bound"]:
            axes.plot([row["bound"]] * 2, [place - 0.3, place + 0.3], color="#D55E00", linewidth=2)
        axes.text(
            middle, place - 0.18, f"{middle:.3f} {row['verdict'] or ''}", ha="center", fontsize=9
        )
    names = [f"{row['what']}\n{row['model']}, {row['engine']}, {row['precision']}" for row in rows]
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)


def _fed(row: Row) -> list[str]:
    return ["fed"] if row.get("data") else []


def _bare(axes: Axes, rows: list[Row]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if not rows:
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)


def _found(value: float | None, form: Any) -> str:
    return "not run: no GPU" if value is None else form(value)


def _ratio(value: float) -> str:
    return f"{value:.3f}"


if __name__ == "__main__":
    sys.exit(main())
