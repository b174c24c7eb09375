"""Train, evaluate and export runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supmim_scale.build.check import check_recipe
from supmim_scale.config import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.evaluation.knn import TEMPERATURE, K, KnnSettings
from supmim_scale.evaluation.request import Request
from supmim_scale.evaluation.segment import SegmentSettings
from supmim_scale.evaluation.start import evaluate_here
from supmim_scale.exports.folder import export_run
from supmim_scale.exports.parity import Parity
from supmim_scale.launch.signals import Stopper
from supmim_scale.training.resume import Start
from supmim_scale.training.start import Outcome, run_folder, train_here, train_on_ranks


def check(recipe: RunConfig, *, ranks: int = 1) -> tuple[Dataset, Dataset]:
    """Return the training and held-out sets of a recipe that can be trained on this many ranks.

    Raises `UserError` for the first thing that would not work.
    """
    return check_recipe(recipe, ranks, run_dir=run_folder(recipe, "recipe"))


def train(
    recipe: RunConfig,
    *,
    ranks: int | None = None,
    allow_drift: Sequence[str] = (),
    branch_from: str | Path | None = None,
) -> Outcome:
    """Train a recipe into its `log.run_dir`; an existing run is resumed.

    `ranks`: number of processes to start; None: train in this one, as the rank that the launcher's
    variables give. `allow_drift`: recipe keys that may differ from the checkpoint's. `branch_from`:
    a shorter run to continue from. Raises `UserError`.
    """
    run_dir = run_folder(recipe, "recipe")
    branch = None if branch_from is None else Path(branch_from)
    if ranks is None:
        return train_here(recipe, run_dir, Start(allow_drift, branch), Stopper())
    check(recipe, ranks=ranks)
    return train_on_ranks(recipe, run_dir, ranks, Start(allow_drift, branch))


def evaluate(
    what: str | Path,
    *,
    overrides: Sequence[str] = (),
    weights: str | Path | None = None,
    model: str | None = None,
    knn: bool = False,
    knn_k: int = K,
    knn_temperature: float = TEMPERATURE,
    probe: bool = False,
    probe_solver: str = "lbfgs",
    few_shot: bool = False,
    calibration: bool = False,
    robustness: Sequence[tuple[str, str | Path]] = (),
    reconstructions: bool = False,
    segment: str | Path | None = None,
    segment_finetune: bool = False,
    segment_steps: int = 2000,
    segment_classes: int | None = None,
    out: str | Path | None = None,
) -> dict[str, Any]:
    """Evaluate a run, a weights file, a timm folder or a timm model name; returns figures by name,
    which are also written into the run's folder or `out`. Options are those of
    `supmim-scale eval`. Raises `UserError`.
    """
    request = Request(
        knn=KnnSettings(knn_k, knn_temperature) if knn else None,
        probe=probe_solver if probe else None,
        few_shot=few_shot,
        calibration=calibration,
        robustness=[(kind, Path(path)) for kind, path in robustness],
        reconstructions=reconstructions,
        segment=None
        if segment is None
        else SegmentSettings(
            Path(segment), segment_finetune, segment_steps, classes=segment_classes
        ),
        out=None if out is None else Path(out),
    )
    file = None if weights is None else Path(weights)
    return evaluate_here(str(what), request, overrides=overrides, weights=file, model=model)


def export(
    run_dir: str | Path,
    out: str | Path,
    *,
    weights: str | Path | None = None,
    raw: bool = False,
    image_size: int | None = None,
    onnx: bool = False,
) -> list[Parity]:
    """Write a run's encoder and head as a folder that timm opens; returns how closely the logits of
    each reader agree.

    Options are those of `supmim-scale export`. Raises `UserError`.
    """
    file = None if weights is None else Path(weights)
    return export_run(
        Path(run_dir), Path(out), weights=file, raw=raw, image_size=image_size, onnx=onnx
    )
