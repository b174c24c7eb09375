"""The model card: what was trained on what, how it was measured, and by which versions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supmim_scale.build.model import encoder_geometry
from supmim_scale.config import RunConfig, as_yaml
from supmim_scale.evaluation.results import IDENTITY
from supmim_scale.evaluation.subject import recipe_of
from supmim_scale.exports.parity import Parity
from supmim_scale.files.checksums import sha256_of
from supmim_scale.launch.provenance import versions

_METHOD = """\
Trained with supervision and masked image modelling (arXiv 2312.00950, in our implementation): a
shallow decoder reconstructs image tokens from masked input beside the classification loss, and is
dropped here. The encoder is timm's, unchanged."""
_BASELINE = (
    "Trained with supervision alone (the baseline of arXiv 2312.00950 in our implementation)."
)
_NOT_FIGURES = {"weights", "digest", "reader", "set", "images", *IDENTITY}
_SHARES = ("top1", "top5", "map", "std", "miou", "accuracy", "calibration_error")  # endings


def write_card(
    folder: Path,
    run_dir: Path,
    config: RunConfig,
    weights: Path,
    facts: dict[str, str],
    parities: Sequence[Parity],
) -> None:
    """Write `README.md` beside the weights in `folder`, with the metadata the hub reads."""
    model, data, shape = config.model, config.data, encoder_geometry(config)
    run = _read(run_dir / "run.json")
    lines = [
        "---",
        "library_name: timm",
        "tags:",
        "- image-classification",
        "- timm",
        "---",
        "",
        f"# {run_dir.name}",
        "",
        _METHOD if config.mim.weight else _BASELINE,
        "",
        "```python",
        "import timm",
        "model = timm.create_model('local-dir:FOLDER', pretrained=True).eval()",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| encoder | {model.name}: width {shape.width}, {shape.depth} blocks, patches of "
        f"{shape.patch_size}; {model.image_size} px, {model.num_classes} classes |",
        f"| weights | {facts.get('weights', 'unknown')}, step {facts.get('steps_done', 'unknown')},"
        f" `{weights.name}` |",
        f"| trained on | {data.name} |",
        f"| input | centre crop of {data.eval_crop:g} of the shorter side, bilinear; mean "
        f"{data.mean:g}, std {data.std:g} |",
        f"| recipe digest | `{facts.get('digest', 'unknown')}` |",
        f"| SHA-256 of `model.safetensors` | `{sha256_of(folder / 'model.safetensors')}` |",
        f"| trained with | {_versions(run.get('versions'))} |",
        f"| exported with | {_versions(versions())} |",
        f"| commit | {run.get('commit') or 'unknown'} |",
        *(f"| parity | {parity} |" for parity in parities),
        "",
        "## Metrics",
        "",
        *_metrics(run_dir, config, weights, facts),
        "",
        "## Recipe",
        "",
        f"Paper and choices: {config.about.paper}",
        "",
        "```yaml",
        as_yaml(recipe_of(run_dir)).rstrip(),
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines))


def _metrics(run_dir: Path, config: RunConfig, weights: Path, facts: dict[str, str]) -> list[str]:
    """A table of the run's evaluation, if it is one of these weights as they are exported."""
    row = _read(run_dir / "eval.json")
    wanted = (weights.name, facts.get("steps_done"))
    if (row.get("weights_file"), row.get("steps_done")) != wanted:
        return ["Not measured: `supmim-scale eval` was not run on these weights."]
    figures = {name: value for name, value in row.items() if name not in _NOT_FIGURES}
    table = [f"| {name} | {shown(name, value)} |" for name, value in figures.items()]
    own = recipe_of(run_dir)
    size = row.get("image_size", own.model.image_size)
    resampled = size != config.model.image_size
    note = [f"Measured at {size} px, before positions were resampled.", ""] if resampled else []
    where = _measured_on(row, own)
    return [where, "", *note, "| figure | value |", "|---|---|", *table]


def _measured_on(row: dict[str, Any], own: RunConfig) -> str:
    """Which images, named: `eval` may have been given another set than the recipe's."""
    named = [f"segmentation on `{row['segment_set']}`"] if "segment_set" in row else []
    if "set_digest" in row:
        is_own = (row.get("set"), row.get("split")) == (own.data.name, own.data.val)
        whose = "the recipe's" if is_own else "another set than the recipe's:"
        named.insert(
            0,
            f"on {int(row['images'])} images of {whose} `{row.get('set')}`, part "
            f"`{row.get('split')}` (set digest `{row['set_digest']}`)",
        )
    return f"Measured {', '.join(named)}, in {row.get('precision')}."


def shown(name: str, value: Any) -> str:
    """Shares with four decimals, counts whole, whatever else with six digits that matter."""
    if isinstance(value, (str, int)):
        return str(value)
    if name.endswith(_SHARES) or name.startswith("recall_at_"):
        return f"{value:.4f}"
    return str(int(value)) if value.is_integer() and abs(value) < 1e15 else f"{value:.6g}"


def _versions(found: Any) -> str:
    return ", ".join(f"{name} {version}" for name, version in (found or {}).items()) or "unknown"


def _read(path: Path) -> dict[str, Any]:
    """A JSON file's mapping; empty where there is none."""
    if not path.is_file():
        return {}
    found: dict[str, Any] = json.loads(path.read_text())
    return found
