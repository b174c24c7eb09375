#!/usr/bin/env python3
"""Tables and a picture of what dataloader.py measured, and the arithmetic of its rows.

    python benchmarks/dataloader_report.py benchmarks/results/dataloader.jsonl

Writes dataloader.md and dataloader.png. Of rows with one name the latest counts.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.input.rows import STAGES
from benchmarks.rows.pages import COLORS, Row, markdown_table, mib, read_rows
from supmim_scale.units import si

TOGETHER = {
    "read_header": "read, header and labels",
    "decode_whole": "decode whole image",
    "view": "a view from bytes in memory",
    "rand_augment_view": "the same with rand_augment",
}
LOADERS = {"torch": "DataLoader, PIL", "webdataset": "webdataset, PIL"}


def main() -> int:
    """Read rows, write the report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("rows", type=Path, help="JSON lines of dataloader.py")
    parser.add_argument("--out", type=Path, help="folder; default: that of the rows")
    arguments = parser.parse_args()
    rows = read_rows(arguments.rows, ("name",))
    machines = {(row["device"], row["host_cpus"]) for row in rows}
    if len(machines) != 1:
        print(f"error: rows of {len(machines)} machines; name a file of one", file=sys.stderr)
        return 2
    out = arguments.out or arguments.rows.parent
    out.mkdir(parents=True, exist_ok=True)
    (out / "dataloader.md").write_text(markdown(rows) + "\n")
    figure(rows).savefig(out / "dataloader.png", dpi=120)
    print(f"{out / 'dataloader.md'}\n{out / 'dataloader.png'}")
    return 0


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    """Rows of a kind."""
    return [row for row in rows if row["kind"] == kind]


def label(row: Row, several: bool = False) -> str:
    """A variant's name for people, whatever its cores; `several`: with its readers."""
    if row["loader"] in LOADERS:
        return LOADERS[row["loader"]]
    extra = "" if row["augment"] == "none" else f", {row['augment']}"
    readers = f", readers={row['readers']}" if several else ""
    return f"ours, {row['reader']}, {row['decoder']}{extra}{readers}"


def spanned(row: Row, name: str, form: str) -> str:
    """Median and ends of a column."""
    if row.get(name) is None:
        return "null"
    low, high = row[f"{name}_min"], row[f"{name}_max"]
    return f"{row[name]:{form}} ({low:{form}} - {high:{form}})"


def markdown(rows: list[Row]) -> str:
    """All tables, each with what its columns mean."""
    sections = [loader_table, stage_table, feeds_table, training_table, memory_table]
    parts = [section(rows) for section in sections]
    failed = [f"- {row['name']}: {row['error']}" for row in rows if "error" in row]
    parts.append("Failed:\n" + "\n".join(failed) if failed else "")
    return "\n\n".join([origin(rows), *(part for part in parts if part)])


def origin(rows: list[Row]) -> str:
    """Where and when the rows come from."""
    last = max(rows, key=lambda row: row["measured_at"])
    commits = ", ".join(sorted({str(row["commit"]) for row in rows}))
    versions = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    return (
        f"# Input path\n\n{machine(rows)}; until {last['measured_at']}; commit {commits}; "
        f"Python {last['python']}, {versions}."
    )


def machine(rows: list[Row]) -> str:
    """The hardware."""
    row = rows[-1]
    gpu = f"{row['device_count']} x {row['device']}, " if row["device_count"] else ""
    return f"{gpu}{row['host_cpus']} cores of {row['cpu_model']}"


def loader_table(rows: list[Row]) -> str:
    """Rates of loaders; a row a variant and number of cores."""
    good = [row for row in of_kind(rows, "loader") if "error" not in row]
    if not good:
        return ""
    ordered = sorted(good, key=lambda row: (row["cores"], -row["images_per_s"]))
    several = has_several_readers(good)
    lines = [
        [
            str(row["cores"]),
            label(row, several),
            spanned(row, "images_per_s", ".1f"),
            spanned(row, "ratio_to_torch", ".2f"),
            str(row["repeats"]),
        ]
        for row in ordered
    ]
    one = ordered[-1]
    heads = ["cores", "loader", "images/s", "x DataLoader, PIL", "rounds"]
    return (
        f"## Loaders\n\n{one['num_images']} JPEGs of {one['mean_image_bytes'] / 1e3:.1f} kB from "
        f"the page cache, batches of {one['micro_batch']}, {one['seconds']:g} s a run. Median "
        "(lowest - highest); ratios are taken within a round, at the same cores.\n\n"
    ) + markdown_table(heads, lines)


def has_several_readers(rows: list[Row]) -> bool:
    """Whether our loader was measured with more than one number of reading threads."""
    return len({row["readers"] for row in rows if "readers" in row}) > 1


def stage_table(rows: list[Row]) -> str:
    """Microseconds an image of every stage."""
    lines = []
    for row in of_kind(rows, "stage"):
        for name, stage in row.get("stages", {}).items():
            if stage is None:
                shown, rate = "null", row["null_reasons"][name]
            else:
                us = {key: 1e6 * value for key, value in stage.items()}
                shown = spanned(us, "s_per_image", ".1f")
                median = stage["s_per_image"]
                rate = f"{1 / median:.0f}" if median > 0 else "within the noise of a difference"
            bold = "**" if name == row["binds"] else ""
            name = f"{bold}{STAGES[name]}{bold}"
            lines.append([row["decoder"], str(row["cores"]), name, shown, rate])
        for name, what in TOGETHER.items() if "measured" in row else ():
            us = {key: 1e6 * value for key, value in row["measured"][name].items()}
            shown, rate = spanned(us, "s_per_image", ".1f"), row["measured"][name]["images_per_s"]
            lines.append([row["decoder"], str(row["cores"]), f"({what})", shown, f"{rate:.0f}"])
    note = (
        "## Stages\n\nMicroseconds an image, every stage alone; bold: the one that binds; in "
        "brackets: several together, or what training does not do. Header, resize and "
        "rand_augment are differences of two measurements of a round.\n\n"
    )
    heads = ["decoder", "cores", "stage", "us an image", "images/s"]
    return note + markdown_table(heads, lines) if lines else ""


def feeds_table(rows: list[Row]) -> str:
    """GPUs that this host feeds."""
    good = [row for row in of_kind(rows, "feeds") if "error" not in row]
    if not good:
        return ""
    lines = [
        [
            row["recipe"],
            f"{si(row['train_flops_per_image'])}FLOP",
            f"{row['needed_images_per_s_per_gpu']:.0f}",
            f"{row['host_images_per_s']:.0f}",
            f"{row['gpus_fed']:.2f}",
            f"{row['cores_per_gpu']:.1f}",
        ]
        for row in good
    ]
    one = good[0]
    heads = ["recipe", "an image", "images/s a GPU", "images/s here", "GPUs fed", "cores a GPU"]
    return (
        f"## GPUs fed\n\nWhat an {one['gpu']} needs at {one['mfu']:.0%} MFU of its dense bf16 "
        f"peak, and the best of our loaders here ({one['loader']}): "
        f"{one['images_per_s_per_core']:.0f} images/s a core.\n\n"
    ) + markdown_table(heads, lines)


def training_table(rows: list[Row]) -> str:
    """Real against cached batches in training."""
    lines = [
        [
            str(row["width"]),
            spanned(row, "images_per_s", ".1f"),
            spanned(row, "synthetic_images_per_s", ".1f"),
            spanned(row, "ratio_to_synthetic", ".3f"),
            spanned(row, "data_wait", ".1%"),
            f"{row['pairs']} x {row['steps']}",
            str(row["cores"]),
        ]
        for row in of_kind(rows, "training")
        if "error" not in row
    ]
    heads = [
        "width",
        "images/s, real",
        "images/s, one batch",
        "ratio",
        "data wait",
        "pairs x steps",
        "cores",
    ]
    note = (
        "## Training\n\nThe smoke recipe on real batches and on one batch repeated, in blocks "
        "that alternate. On a CPU, decoding and training share the cores.\n\n"
    )
    return note + markdown_table(heads, lines) if lines else ""


def memory_table(rows: list[Row]) -> str:
    """Resident memory over epochs."""
    lines = [
        [
            str(row["epochs"]),
            *(
                f"{mib(row[name])} MiB"
                for name in (
                    "resident_bytes_epoch_2",
                    "resident_bytes_last",
                    "growth_bytes",
                    "noise_bytes",
                )
            ),
        ]
        for row in of_kind(rows, "memory")
        if "error" not in row
    ]
    heads = ["epochs", "after the second", "after the last", "growth", "noise (epochs 3 to 10)"]
    note = "## Memory\n\nResident set of a process that runs our loader over a small set.\n\n"
    return note + markdown_table(heads, lines) if lines else ""


def figure(rows: list[Row]) -> Figure:
    """Images/s by loader and cores, and what a stage takes."""
    picture = Figure(figsize=(15, 6.5), layout="constrained")
    picture.suptitle(machine(rows), fontsize=10)
    left, right = picture.subplots(1, 2, width_ratios=(1.15, 1))
    loaders = [row for row in of_kind(rows, "loader") if "error" not in row]
    several = has_several_readers(loaders)
    bars(
        left,
        [(label(row, several), row["cores"], row, "images_per_s", 1) for row in loaders],
        "lower right",
    )
    left.set_xlabel("images/s (median, lowest and highest round)")
    left.set_title("Loaders: higher is better", loc="left")
    decoders = {row["decoder"] for row in of_kind(rows, "stage")}
    stages = [
        (STAGES[name] + (f" ({row['decoder']})" if len(decoders) > 1 else ""), row["cores"], stage)
        for row in of_kind(rows, "stage")
        for name, stage in row.get("stages", {}).items()
        if stage is not None
    ]
    bars(
        right,
        [(name, cores, stage, "s_per_image", 1e6) for name, cores, stage in stages],
        "upper right",
    )
    right.set_xlabel("microseconds an image (median, lowest and highest round)")
    right.set_title("Stages, each alone: lower is better", loc="left")
    return picture


def bars(axes: Axes, values: list[tuple[str, int, Row, str, float]], corner: str) -> None:
    """Grouped horizontal bars of (name, cores, row, column, factor) with their ends."""
    names = list(dict.fromkeys(name for name, *_ in values))
    counts = sorted({cores for _, cores, *_ in values})
    height = 0.8 / max(1, len(counts))
    top = max((f * row[f"{column}_max"] for *_, row, column, f in values), default=1.0)
    for place, cores in enumerate(counts):
        mine = [value for value in values if value[1] == cores]
        y = np.array([names.index(name) for name, *_ in mine]) + (place + 0.5) * height - 0.4
        x, low, high = (
            np.array([f * row[column + end] for *_, row, column, f in mine])
            for end in ("", "_min", "_max")
        )
        axes.barh(
            y,
            x,
            height * 0.92,
            color=COLORS[place % len(COLORS)],
            label=f"{cores} core{'s' if cores > 1 else ''}",
            xerr=(x - low, high - x),
            error_kw={"elinewidth": 1, "capsize": 2},
        )
        for where, value, end in zip(y, x, high, strict=True):
            axes.text(max(end, 0) + 0.012 * top, where, f"{value:.0f}", va="center", fontsize=9)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(right=1.16 * top)
    axes.spines[["top", "right"]].set_visible(False)
    if values:
        axes.legend(frameon=False, loc=corner)
    else:
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)
