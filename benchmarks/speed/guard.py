"""What a row is held against: its model's own products, and rows of the same model before it."""

import json
from pathlib import Path

from benchmarks.rows.ranks import Job, Row
from benchmarks.speed.paired import LOSS_TOLERANCE

GROUP = ("model", "layout", "image_size", "precision", "global_batch", "data")


def expected_mfu(path: Path, job: Job) -> float | None:
    """The share of the vendor's peak that the model's own products reach, as shapes.py found it
    last; None: it has not."""
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    names = ("model", "layout", "image_size")
    found = [
        row["expected_mfu"]
        for row in rows
        if row.get("kind") == "shapes" and all(row[name] == job[name] for name in names)
    ]
    return found[-1] if found else None


def guard(row: Row, before: list[Row]) -> None:
    """Compare with the first row that learns the same; one that learned something else is no
    measurement of speed."""
    row |= {"loss_reference": None, "loss_gap": None, "ratio_to_plain": None}
    if "error" in row:
        return
    alike = [r for r in before if "error" not in r and all(r[name] == row[name] for name in GROUP)]
    if not alike:
        return
    first = alike[0]
    gap = abs(row["loss"] - first["loss"]) / abs(first["loss"])
    row |= {"loss_reference": first["engine"], "loss_gap": gap}
    if not gap <= LOSS_TOLERANCE[row["precision"]]:
        row["error"] = f"loss {row['loss']:.6f} where {first['engine']} has {first['loss']:.6f}"
        del row["images_per_s"]
    elif first["engine"] == "plain":
        row["ratio_to_plain"] = row["images_per_s"] / first["images_per_s"]
