"""An evaluation as it is started: by this process as one of its ranks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from supmim_scale.evaluation.request import Request
from supmim_scale.evaluation.run import run_evaluation
from supmim_scale.evaluation.subject import open_subject
from supmim_scale.launch.join import join_world, leave_world


def evaluate_here(
    what: str,
    request: Request,
    *,
    overrides: Sequence[str] = (),
    weights: Path | None = None,
    model: str | None = None,
) -> dict[str, Any]:
    """Collective: measure a run, a weights file, a timm folder or a timm name; returns figures.

    `overrides` are those of the subject's recipe, which says the data. `weights`: of a run, another
    file than its last. `model`: timm's name of the architecture of a safetensors file. Raises
    `UserError` before the first image is read where something does not go together.
    """
    world = join_world()
    subject = world.main_first(lambda: open_subject(what, weights, model, overrides))
    figures = run_evaluation(subject, request, world)
    leave_world(world)
    return figures
