"""What can be done with a finished run: evaluate its weights, export them to timm."""

import json
from collections.abc import Sequence
from pathlib import Path

from supmim_scale import assemble
from supmim_scale.config import RunConfig, load_config
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.engine.world import World
from supmim_scale.errors import UserError
from supmim_scale.evaluation import evaluate
from supmim_scale.inputs import open_split, skip_policy, view_settings
from supmim_scale.models.encoder import save_timm_folder
from supmim_scale.weights import load_encoder


def evaluate_run(
    run_dir: Path, weights: Path | None, overrides: Sequence[str], world: World
) -> dict[str, float]:
    """Collective: top-1 and top-5 on the held-out set; printed and kept in `eval.json`."""
    config = _recipe_of(run_dir, overrides)
    weights = weights or last_weights(run_dir)
    encoder = assemble.encoder(config)
    facts = load_encoder(encoder, weights)
    val_set = world.main_first(lambda: open_split(config, "val"))
    batches = evaluation_batches(
        val_set,
        view_settings(config, world.device),
        batch=config.log.eval_batch,
        rank=world.rank,
        world_size=world.world_size,
        device=world.device,
        quarantine=Quarantine(skip_policy(config), len(val_set)),
    )
    row = evaluate(encoder, batches, world, len(val_set))
    if world.is_main:
        text = json.dumps({**row, "weights": weights.name, **facts})
        (run_dir / "eval.json").write_text(text + "\n")
        print(text)
    return row


def export_run(run_dir: Path, weights: Path | None, out: Path) -> None:
    """Write encoder and head as a folder that plain `timm.create_model` opens."""
    config = _recipe_of(run_dir)
    encoder = assemble.encoder(config)
    load_encoder(encoder, weights or last_weights(run_dir))
    _, arguments = assemble.encoder_arguments(config)
    data = config.data
    save_timm_folder(encoder, arguments, out, mean=data.mean, std=data.std, crop=data.eval_crop)


def last_weights(run_dir: Path) -> Path:
    """The newest weights of a run, averaged ones before raw ones of the same step."""
    files = sorted((run_dir / "weights").glob("step-*.safetensors"), key=lambda p: p.stem)
    if not files:
        raise UserError(
            str(run_dir),
            "no weights/step-*.safetensors",
            "a run that saved weights",
            "train first, or name a file with --weights",
        )
    return files[-1]


def _recipe_of(run_dir: Path, overrides: Sequence[str] = ()) -> RunConfig:
    recipe = run_dir / "recipe.yaml"
    if not recipe.is_file():
        raise UserError(str(run_dir), "no recipe.yaml", "a run folder", "check the path")
    return load_config(str(recipe), overrides)
