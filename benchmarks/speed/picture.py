"""A picture of throughput.py's rows: where a step's time goes, and ratios of pairs."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rows.pages import Row
from benchmarks.speed.tables import fed_by

COLORS = {"forward": "#0072B2", "backward": "#56B4E9", "optimizer": "#E69F00"}  # Okabe & Ito 2008


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
                *fed_by(row),
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


def _bare(axes: Axes, rows: list[Row]) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    if not rows:
        axes.text(0.5, 0.5, "not run", ha="center", transform=axes.transAxes)
