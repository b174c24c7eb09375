"""The arithmetic of the loader benchmark's rows: spreads, stages by difference, GPUs fed."""

import statistics

import numpy as np

from benchmarks.rows.pages import Row, mib

STAGES = {
    "read": "read bytes",
    "header": "header and labels",
    "draw": "draw window and flip",
    "decode": "decode its window",
    "resize_normalise": "resize, normalise, hand over",
    "rand_augment": "rand_augment",
    "copy": "copy to the GPU",
}
PARTS = {  # a stage by difference: what was measured, and what is taken off
    "read": ("read", None),
    "header": ("read_header", "read"),
    "draw": ("draw", None),
    "decode": ("decode", None),
    "resize_normalise": ("view", "decode"),
    "rand_augment": ("rand_augment_view", "view"),
    "copy": ("copy", None),
}


def spread(name: str, values: list[float]) -> Row:
    """Median, quartiles and ends of a column."""
    low, high = np.percentile(values, [25, 75]).tolist()
    return {
        name: statistics.median(values),
        f"{name}_min": min(values),
        f"{name}_max": max(values),
        f"{name}_q25": low,
        f"{name}_q75": high,
    }


def summary(runs: list[Row], torch_runs: list[Row]) -> Row:
    """Rates of a variant's runs, and their ratios to the DataLoader's of the same rounds."""
    errors = [run["error"] for run in runs if "error" in run]
    if errors:
        return {"error": f"{len(errors)} of {len(runs)} runs failed: {errors[0]}"}
    row = spread("images_per_s", [run["images_per_s"] for run in runs])
    if any("error" in run for run in torch_runs):
        return row | {"ratio_to_torch": None, "ratio_reason": "a run of the DataLoader failed"}
    pairs = zip(runs, torch_runs, strict=True)
    return row | spread("ratio_to_torch", [a["images_per_s"] / b["images_per_s"] for a, b in pairs])


def stage_summary(rounds: list[dict[str, float]], no_copy: str | None) -> Row:
    """Seconds an image of each stage from those of what was measured, a round at a time.

    `binds` is the slowest stage of a training view without augmentation.
    """
    measured = {n: spread("s_per_image", [r[n] for r in rounds]) for n in rounds[0]}
    stages: dict[str, Row | None] = {
        stage: spread("s_per_image", [r[of] - (r[less] if less else 0) for r in rounds])
        for stage, (of, less) in PARTS.items()
        if of in measured
    }
    usual = {n: s["s_per_image"] for n, s in stages.items() if s and n != "rand_augment"}
    binds = max(usual, key=lambda n: usual[n])
    reasons = {}
    if no_copy:
        stages["copy"], reasons["copy"] = None, no_copy
    for row in measured.values():
        row["images_per_s"] = 1 / row["s_per_image"]
    return {"binds": binds, "stages": stages, "null_reasons": reasons, "measured": measured}


def fed(best: Row, needed: float) -> Row:
    """GPUs that a loader's rate feeds, and cores that a GPU takes."""
    rate = best["images_per_s"]
    return {
        "loader": best["name"],
        "cores": best["cores"],
        "host_images_per_s": rate,
        "images_per_s_per_core": rate / best["cores"],
        "gpus_fed": rate / needed,
        "cores_per_gpu": needed * best["cores"] / rate,
    }


def loader_name(row: Row) -> str:
    """A variant's name in files."""
    readers = f" readers={row['readers']}" if "readers" in row else ""
    policy = "" if row["augment"] == "none" else f" {row['augment']}"
    return f"{row['loader']} {row['reader']} {row['decoder']}{policy}{readers} cores={row['cores']}"


def headline(found: Row) -> str:
    """What a measurement gave, in a line."""
    if "error" in found:
        return f"failed: {found['error']}"
    if "binds" in found:
        stage = found["stages"][found["binds"]]
        return f"{STAGES[found['binds']]} binds, {1e6 * stage['s_per_image']:.0f} us an image"
    if "growth_bytes" in found:
        return f"{mib(found['growth_bytes'])} MiB more after the last epoch than after the second"
    wait = f", data wait {found['data_wait']:.1%}" if "data_wait" in found else ""
    return f"{found['images_per_s']:.1f} img/s{wait}"
