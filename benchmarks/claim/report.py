#!/usr/bin/env python3
"""The table and the figure of paper_claim.py's rows.

python benchmarks/paper_claim_report.py benchmarks/results/paper_claim.jsonl
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scipy import stats

MEASURES = {
    "top1": "top-1",
    "knn_top1": "k-NN top-1",
    "probe_top1": "linear probe",
    "retrieval_map": "retrieval mAP",
}
NAMES = {"supervised": "supervised", "supervised_mim": "supervised + MIM"}
COLOURS = {"supervised": "#777777", "supervised_mim": "#0072B2"}
# As the READMEs say: kentaroy47 at commit 03690f3, s-chh at commit 01a7c83.
PUBLISHED = (
    "Published beside it, small ViTs with 4-pixel patches trained on CIFAR-10 alone: 80 % after 200"
    " epochs and 88 % after 500 (github.com/kentaroy47/vision-transformers-cifar10); 82.1 %, and "
    "86.3 % with RandAugment, of 6 layers of width 128 "
    "(github.com/s-chh/PyTorch-Scratch-Vision-Transformer-ViT)."
)
NOT_COMPARABLE = (
    "This version sees a small part of the images, so its accuracy is not comparable to these."
)
LEVEL = 0.95
Row = dict[str, Any]


def report(path: Path) -> str:
    """The tables as Markdown; the figures are written beside the rows."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    lines = []
    for version in sorted({version_of(row) for row in rows}):
        given = [row for row in rows if version_of(row) == version]
        for size in dict.fromkeys(row["size"] for row in given):
            sized = [row for row in given if row["size"] == size]
            chosen = comparable(sized)
            lines += [_head(chosen, version, size), "", *_table(chosen), "", *_tuned(chosen), ""]
            lines += [*_ablations(chosen), "", *_commits(chosen), *_left_out(sized, chosen), ""]
            name = f"{path.stem}_{version}_{size.replace('/', 'p')}.png"
            draw(chosen, path.with_name(name), f"{version} version, {size}")
        lines += [PUBLISHED, *([NOT_COMPARABLE] if version != "full" else []), ""]
    return "\n".join(lines).rstrip()


def version_of(row: Row) -> str:
    """`short`, `middle` or `full`."""
    return str(row["version"])


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Rows of the recipe and the number of images that ran last: all that was tuned, runs and
    ablations at the learning rate that the tuning chose, and the last of those run twice."""
    runs = [row for row in rows if row["kind"] == "run"]
    if not runs:
        return list(rows)
    recipe, size = recipe_of(runs[-1]), _size(runs[-1])
    tuned = [row for row in rows if row["kind"] == "tune" and recipe_of(row) == recipe]
    measured = [
        row
        for row in rows
        if row["kind"] != "tune"
        and (recipe_of(row), _size(row)) == (recipe, size)
        and row["lr"] == (best_lr(tuned, _objective(row)) or row["lr"])
    ]
    last = {(r["kind"], r["objective"], r["seed"], r["lr"]): r for r in [*tuned, *measured]}
    return list(last.values())


def recipe_of(row: Row) -> tuple[str, ...]:
    """What a row's recipe has in common with that of the other objective: its overrides without
    `mim.weight=0`, the learning rate and the ablation."""
    own = ("mim.weight=0", row["objective"])
    return tuple(w for w in row["overrides"] if w not in own and not w.startswith("optim.lr="))


def best_lr(tuned: Sequence[Row], objective: str) -> float | None:
    """The learning rate of the best accuracy, the lowest of equals; None without tuning."""
    tried = sorted((r for r in tuned if r["objective"] == objective), key=lambda r: r["lr"])
    return float(max(tried, key=lambda r: r["top1"])["lr"]) if tried else None


def _objective(row: Row) -> str:
    """Whose learning rate a row has: an ablation that of the joint objective."""
    return row["objective"] if row["kind"] != "ablation" else "supervised_mim"


def _size(row: Row) -> tuple[Any, ...]:
    return tuple(
        row[name] for name in ("images_seen", "train_images", "steps", "images", "precision")
    )


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """(mean, half width of the 95 % interval) of paired differences; NaN wide for a single one."""
    count = len(differences)
    if count < 2:
        return float(np.mean(differences)), float("nan")
    wide = stats.t.ppf((1 + LEVEL) / 2, count - 1) * np.std(differences, ddof=1) / count**0.5
    return float(np.mean(differences)), float(wide)


def paired(rows: Sequence[Row], measure: str) -> dict[str, list[float]]:
    """Values of the seeds that both objectives have, in order of seeds."""
    runs = {(row["objective"], row["seed"]): row[measure] for row in rows if row["kind"] == "run"}
    seeds = sorted({seed for _, seed in runs if all((name, seed) in runs for name in NAMES)})
    return {name: [runs[name, seed] for seed in seeds] for name in NAMES}


def _head(rows: Sequence[Row], version: str, size: str) -> str:
    row = next((row for row in rows if row["kind"] == "run"), None)
    title = f"**{version.capitalize()} version, {size}** (width x depth / patch)"
    if row is None:
        return f"{title}: no run"
    return (
        f"{title}: {row['train_images']} training images, "
        f"{row['images_seen']} seen, {row['images']:.0f} test images, {row['device']}, "
        f"{row['precision']}"
    )


def _table(rows: Sequence[Row]) -> list[str]:
    lines = [
        f"| measure | {' | '.join(NAMES.values())} | difference, 95 % interval | seeds |",
        "|---|---|---|---|---|",
    ]
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


def _tuned(rows: Sequence[Row]) -> list[str]:
    """Learning rates tried, on held-out training images, and which was taken."""
    tuned = sorted(
        (r for r in rows if r["kind"] == "tune"), key=lambda r: (r["objective"], r["lr"])
    )
    lines = []
    for row in tuned:
        tried = [r["lr"] for r in tuned if r["objective"] == row["objective"]]
        error = (row["top1"] * (1 - row["top1"]) / row["images"]) ** 0.5
        taken = row["lr"] == best_lr(tuned, row["objective"])
        edge = ", on the edge of the grid" if row["lr"] in (min(tried), max(tried)) else ""
        lines.append(
            f"- {NAMES[row['objective']]}, lr {row['lr']:g}: {row['top1']:.2%} of "
            f"{row['images']:.0f} held-out training images, standard error {error:.2%}"
            + (f" (taken{edge})" if taken else "")
        )
    return lines


def _commits(rows: Sequence[Row]) -> list[str]:
    """Which commits the runs are of, and which pairs mix them."""
    runs = {(r["objective"], r["seed"]): _commit(r) for r in rows if r["kind"] == "run"}
    lines = [f"Commits of the runs: {', '.join(sorted(set(runs.values())))}."] if runs else []
    pairs = {seed: {commit for (_, s), commit in runs.items() if s == seed} for _, seed in runs}
    mixed = ", ".join(str(seed) for seed in sorted(pairs) if len(pairs[seed]) > 1)
    return lines + ([f"Warning: runs of two commits are paired, seeds {mixed}."] if mixed else [])


def _commit(row: Row) -> str:
    name, changed, _ = str(row.get("commit") or "unknown").partition("+")
    return name[:10] + ("+changes" if changed else "")


def _left_out(given: Sequence[Row], chosen: Sequence[Row]) -> list[str]:
    """How many rows stand in the file but in no table."""
    count = len(given) - len(chosen)
    return [f"Rows of another learning rate, recipe or size, left out: {count}."] if count else []


def _ablations(rows: Sequence[Row]) -> list[str]:
    ablated = [row for row in rows if row["kind"] == "ablation"]
    if not ablated:
        return ["Ablations: not run."]
    seed = ablated[0]["seed"]
    base = [row for row in rows if row["kind"] == "run" and row["seed"] == seed]
    lines = [f"| seed {seed} | {' | '.join(MEASURES.values())} |", "|---|" + "---|" * len(MEASURES)]
    for row in [*base, *ablated]:
        cells = " | ".join(f"{row[measure]:.2%}" for measure in MEASURES)
        lines.append(f"| {NAMES.get(row['objective'], row['objective'])} | {cells} |")
    return lines


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Class loss over steps, and the differences of every measure with their intervals."""
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, label in NAMES.items():
        runs = [row for row in rows if row["kind"] == "run" and row["objective"] == name]
        curves = [row["curve"] for row in runs]
        for place, curve in enumerate(curves):
            steps, losses = [point[0] for point in curve], [point[1] for point in curve]
            left.plot(steps, losses, color=COLOURS[name], alpha=0.7, label=None if place else label)
    left.set(xlabel="steps", ylabel="class loss, training", title=title)
    left.legend()
    for place, (measure, _) in enumerate(MEASURES.items()):
        values = paired(rows, measure)
        differences = 100 * np.subtract(values["supervised_mim"], values["supervised"])
        if not len(differences):
            continue
        mean, wide = interval(differences.tolist())
        right.errorbar(
            [place], [mean], yerr=[wide], fmt="o", color=COLOURS["supervised_mim"], capsize=4
        )
        right.plot([place + 0.12] * len(differences), differences, ".", color="#777777")
    right.axhline(0, color="#777777", linewidth=0.8)
    right.set_xticks(range(len(MEASURES)), MEASURES.values(), rotation=15)
    right.set(ylabel="with MIM minus without, points")
    figure.savefig(path, dpi=120)
