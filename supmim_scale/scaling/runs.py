"""Our runs' folders as table rows: sizes from `run.json`, results from `log.jsonl`."""

import json
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError
from supmim_scale.flops import PEAK_BF16_FLOPS, JointShape, step_flops
from supmim_scale.scaling.table import Row
from supmim_scale.variants import VARIANTS


def is_run(path: Path) -> bool:
    """Whether a path is a run's folder."""
    return (path / "run.json").is_file()


def find_runs(folders: list[Path]) -> list[Path]:
    """Run folders among these and directly below them."""
    found = []
    for folder in folders:
        below = sorted(p for p in folder.glob("*") if is_run(p)) if folder.is_dir() else []
        runs = [folder] if is_run(folder) else below
        if not runs:
            raise UserError(
                str(folder), "no run.json in it or below it", "runs, or a CSV or Parquet table",
                "check the path",
            )  # fmt: skip
        found += runs
    return found


def run_row(run_dir: Path, place: int) -> Row:
    """A finished run as a row: `params` of encoder and head, `samples_seen`, `train_flops` of its
    joint step without recomputation, last figures. Raises `UserError` for an unfinished run."""
    facts = json.loads((run_dir / "run.json").read_text())
    last = _last_rows(run_dir)
    recipe = facts["recipe"]
    shape = joint_shape(recipe, run_dir)
    steps = int(last["train"]["steps_done"])
    samples = steps * recipe["optim"]["global_batch"]
    flops = step_flops(shape).model
    measured = {k: v for k, v in last["train"].items() if k in _TRAINED}
    peak = PEAK_BF16_FLOPS.get(facts.get("device", ""))
    if peak is not None:
        rate = flops * last["train"]["images_per_s"]
        measured["mfu"] = rate / (peak * facts["device_count"])
    if "eval" in last:
        measured |= {"top1": last["eval"]["top1"], "error": 1 - last["eval"]["top1"]}
    return {
        "row": place,
        "run": str(run_dir),
        "digest": facts["digest"],
        "seed": recipe["seed"],
        "objective": _objective(recipe),
        "params": encoder_params(shape),
        "samples_seen": samples,
        "train_flops": samples * flops,
        **measured,
    }


def _objective(recipe: dict[str, Any]) -> str:
    mim = recipe["mim"]
    return f"supervised + MIM, {mim['layout']}" if mim["weight"] else "supervised"


_TRAINED = ("loss", "class_loss", "mim_loss", "images_per_s", "data_wait")


def joint_shape(recipe: dict[str, Any], run_dir: Path) -> JointShape:
    """The shape of a resolved recipe. Raises `UserError` for a model it cannot know by name."""
    model, mim, mask = recipe["model"], recipe["mim"], recipe["mask"]
    variant = VARIANTS.get(model["name"])
    if variant is None or mim["target"] == "vqgan":
        raise UserError(
            str(run_dir), f"model.name={model['name']} mim.target={mim['target']}",
            f"a model of {', '.join(VARIANTS)} and a target whose size the recipe holds",
            "give a table with params and train_flops columns",
        )  # fmt: skip
    width = model["width"] or variant.width
    # timm's mlp_ratio belongs to the name and is kept at another width.
    mlp = round(width * variant.mlp / variant.width)
    patch = model["patch_size"] or variant.patch_size
    patches = (model["image_size"] // patch) ** 2
    dropped = min(patches - 1, max(1, round(mask["ratio"] * patches)))
    top = min(patches, round((mask["ratio_max"] or mask["ratio"]) * patches))
    return JointShape(
        width=width, depth=model["depth"] or variant.depth, mlp=mlp, patch_size=patch,
        num_patches=patches, num_prefix_tokens=int(model["class_token"]),
        num_classes=model["num_classes"], pool=model["pool"],
        layout=mim["layout"] if mim["weight"] else None,
        num_visible=patches - dropped, num_predicted=max(dropped, top),
        decoder_width=model["decoder_width"] or width, decoder_depth=model["decoder_depth"],
        out_features=mim["codebook_size"] if mim["target"] != "pixel" else 3 * patch**2,
    )  # fmt: skip


def encoder_params(shape: JointShape) -> int:
    """Parameters of encoder and head, what inference needs."""
    width, tokens = shape.width, shape.num_patches + shape.num_prefix_tokens
    embed = width * (3 * shape.patch_size**2 + 1) + width * (tokens + shape.num_prefix_tokens)
    attention, norms = 4 * width * (width + 1), 4 * width
    mlp = shape.mlp * (width + 1) + width * (shape.mlp + 1)
    head = (width + 1) * shape.num_classes + 2 * width
    pool = width + attention + 2 * width + mlp if shape.pool == "map" else 0
    return embed + shape.depth * (attention + norms + mlp) + pool + head


def _last_rows(run_dir: Path) -> dict[str, Any]:
    """The last log row of every kind."""
    path = run_dir / "log.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    try:
        last = {row["kind"]: row for row in map(json.loads, lines)}
    except ValueError:
        raise UserError(str(path), "a broken line", "JSON lines", "let the run go on") from None
    if "train" not in last:
        raise UserError(str(run_dir), "no training step in log.jsonl", "a finished run",
                        "let it finish, or leave it out")  # fmt: skip
    return last
