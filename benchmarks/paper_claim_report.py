#!/usr/bin/env python3
"""The table and the figure of paper_claim.py's rows.

python benchmarks/paper_claim_report.py benchmarks/results/paper_claim.jsonl
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

MEASURES = {"top1": "top-1", "knn_top1": "k-NN top-1", "probe_top1": "linear probe",
            "retrieval_map": "retrieval mAP"}  # fmt: skip
NAMES = {"supervised": "supervised", "supervised_mim": "supervised + MIM"}
COLOURS = {"supervised": "#777777", "supervised_mim": "#0072B2"}
PUBLISHED = (
    "beside it: a small ViT with 4-pixel patches trained on CIFAR-10 alone reaches 80 % "
    "(github.com/kentaroy47/vision-transformers-cifar10, README)"
)
LEVEL = 0.95


def report(path: Path) -> str:
    """The tables as Markdown; the figure is written beside the rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = []
    for short in sorted({row["short"] for row in rows}):
        chosen = last_of_each([row for row in rows if row["short"] == short])
        lines += [_head(chosen, short), "", *_table(chosen), "", PUBLISHED, "", *_tuned(chosen)]
        lines += ["", *_ablations(chosen), ""]
        draw(chosen, path.with_name(f"{path.stem}_{'short' if short else 'full'}.png"))
    return "\n".join(lines)


def last_of_each(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without runs that another learning rate, once it was tried, has replaced."""
    last = {
        (row["kind"], row["objective"], row["seed"], row["lr"] if row["kind"] == "tune" else 0): row
        for row in rows
    }
    return list(last.values())


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) of paired differences; NaN wide for a single one."""
    count = len(differences)
    if count < 2:
        return float(np.mean(differences)), float("nan")
    wide = stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(differences, ddof=1) / count**0.5
    return float(np.mean(differences)), float(wide)


def paired(rows: Sequence[dict[str, Any]], measure: str) -> dict[str, list[float]]:
    """Values of the seeds that both objectives have, in order of seeds."""
    runs = {(row["objective"], row["seed"]): row[measure] for row in rows if row["kind"] == "run"}
    seeds = sorted({seed for _, seed in runs if all((name, seed) in runs for name in NAMES)})
    return {name: [runs[name, seed] for seed in seeds] for name in NAMES}


def _head(rows: Sequence[dict[str, Any]], short: bool) -> str:
    row = rows[-1]
    return (
        f"**{'Short' if short else 'Full'} version**: {row['train_images']} training images, "
        f"{row['images_seen']} seen, {row['images']:.0f} test images, {row['device']}, "
        f"{row['precision']}"
    )


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    lines = [f"| measure | {' | '.join(NAMES.values())} | difference, 95 % interval | seeds |",
             "|---|---|---|---|---|"]  # fmt: skip
    for measure, title in MEASURES.items():
        values = paired(rows, measure)
        if not values["supervised"]:
            return ["not run"]
        differences = np.subtract(values["supervised_mim"], values["supervised"])
        mean, wide = interval(differences.tolist())
        cells = [f"{np.mean(values[name]):.2%}" for name in NAMES]
        lines.append(
            f"| {title} | {' | '.join(cells)} | {100 * mean:+.2f} +- {100 * wide:.2f} points "
            f"| {len(differences)} |"
        )
    return lines


def _tuned(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Learning rates tried, on held-out training images."""
    tuned = [row for row in rows if row["kind"] == "tune"]
    told = "of held-out training images"
    return [f"- {NAMES[r['objective']]}, lr {r['lr']:g}: {r['top1']:.2%} {told}" for r in tuned]


def _ablations(rows: Sequence[dict[str, Any]]) -> list[str]:
    ablated = [row for row in rows if row["kind"] == "ablation"]
    if not ablated:
        return ["Ablations: not run."]
    seed = ablated[0]["seed"]
    base = [row for row in rows if row["kind"] == "run" and row["seed"] == seed]
    lines = [f"| seed {seed} | {' | '.join(MEASURES.values())} |",
             "|---|" + "---|" * len(MEASURES)]  # fmt: skip
    for row in [*base, *ablated]:
        cells = " | ".join(f"{row[measure]:.2%}" for measure in MEASURES)
        lines.append(f"| {NAMES.get(row['objective'], row['objective'])} | {cells} |")
    return lines


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Class loss over steps, and the differences of every measure with their intervals."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, title in NAMES.items():
        runs = [row for row in rows if row["kind"] == "run" and row["objective"] == name]
        curves = [row["curve"] for row in runs]
        for place, curve in enumerate(curves):
            steps, losses = [point[0] for point in curve], [point[1] for point in curve]
            left.plot(steps, losses, color=COLOURS[name], alpha=0.7, label=None if place else title)
    left.set(xlabel="steps", ylabel="class loss, training")
    left.legend()
    for place, (measure, _) in enumerate(MEASURES.items()):
        values = paired(rows, measure)
        differences = 100 * np.subtract(values["supervised_mim"], values["supervised"])
        if not len(differences):
            continue
        mean, wide = interval(differences.tolist())
        right.errorbar([place], [mean], yerr=[wide], fmt="o", color=COLOURS["supervised_mim"],
                       capsize=4)  # fmt: skip
        right.plot([place + 0.12] * len(differences), differences, ".", color="#777777")
    right.axhline(0, color="#777777", linewidth=0.8)
    right.set_xticks(range(len(MEASURES)), MEASURES.values(), rotation=15)
    right.set(ylabel="with MIM minus without, points")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    print(report(Path(sys.argv[1])))
