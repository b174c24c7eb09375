"""A run as it is started: here, as one of its ranks, or on ranks of its own."""

import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from supmim_scale.config import as_yaml
from supmim_scale.config.schema import RunConfig
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import EXIT_DONE, EXIT_PREEMPTED, UserError
from supmim_scale.launch.join import join_world, leave_world
from supmim_scale.launch.local import launch
from supmim_scale.launch.nodes import inspect_nodes, require_shape
from supmim_scale.launch.signals import Stopper
from supmim_scale.launch.world import World
from supmim_scale.runs.folder import note_stop
from supmim_scale.training.build import Run, build_run
from supmim_scale.training.loop import train
from supmim_scale.training.resume import Start


@dataclass(frozen=True, repr=False)
class Outcome:
    """How a run ended: `figures` are its last ones, on every rank."""

    run_dir: Path
    is_finished: bool
    figures: Mapping[str, float] = field(default_factory=dict)

    def __repr__(self) -> str:
        """In a line."""
        shown = ", ".join(
            f"{name} {self.figures[name]:.4g}"
            for name in ("loss", "eval_top1", "steps_done")
            if name in self.figures
        )
        return f"{self.run_dir}: {'finished' if self.is_finished else 'stopped and saved'}, {shown}"


def run_folder(config: RunConfig, recipe: str) -> Path:
    """Where a recipe's run is written."""
    named = config.log.run_dir
    return Path(named) if named else Path("runs") / Path(recipe).stem


def train_here(config: RunConfig, run_dir: Path, start: Start, stopper: Stopper) -> Outcome:
    """Collective: train as the rank that this process is, to the end or until `stopper` is asked.

    Raises `UserError`. The process group is left in order only after success: a rank that fails
    must end at once, not wait for others.
    """
    stopper.budget_s = config.checkpoint.time_budget_s
    require_shape(config)
    world = join_world(config.engine.device)
    if world.world_size > 1 or world.launcher == "srun":
        line = inspect_nodes(world, Path(config.input.root), run_dir)
        if world.is_main:
            print(f"preflight: {line}", flush=True)
    config = _within_budget(config, world)
    run = build_run(config, world, run_dir, start)
    figures = train(run, stopper)
    outcome = Outcome(run_dir, figures["steps_done"] == run.num_steps, figures)
    if not outcome.is_finished and world.is_main:
        _say_stopped(run, int(figures["steps_done"]), stopper, world)
    leave_world(world)
    if run.held is not None:
        run.held.close()  # another run of this process may resume in the folder
    _require_finite(outcome)
    return outcome


def train_on_ranks(config: RunConfig, run_dir: Path, ranks: int, start: Start) -> Outcome:
    """Train on so many processes of this machine. Raises `UserError` where one of them fails."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(as_yaml(config))
        where = [] if config.log.run_dir else [f"log.run_dir={run_dir}"]
        code = launch(ranks, ["train", str(recipe), *start.words(), *where])
    if code not in (EXIT_DONE, EXIT_PREEMPTED):
        raise UserError(str(run_dir), f"exit code {code} of the ranks", "0", "see the lines above")
    return Outcome(run_dir, code == EXIT_DONE)


def _within_budget(config: RunConfig, world: World) -> RunConfig:
    """The recipe with as many recomputed blocks as its activation budget asks for."""
    if config.engine.activation_budget is None:
        return config
    from supmim_scale.planner.budget import within_budget  # most runs need no planner

    precision = resolve_precision(config.engine.precision, world.device)
    return within_budget(config, world.world_size, precision)


def _say_stopped(run: Run, steps_done: int, stopper: Stopper, world: World) -> None:
    saved = "saved" if run.saver.saved_step == steps_done else "NOT saved"
    line = f"after step {steps_done} ({stopper.reason or 'another rank was asked'}), {saved}"
    note_stop(run.run_dir, line)
    print(f"stopped {line}", flush=True)


def _require_finite(outcome: Outcome) -> None:
    """Raise `UserError` for a finished run whose last loss is not finite."""
    loss = outcome.figures.get("loss", 0.0)
    if outcome.is_finished and not math.isfinite(loss):
        raise UserError(
            "loss",
            f"{loss} after the last step, saved in {outcome.run_dir}",
            "a finite one",
            "look at skipped_steps in its log, lower optim.lr, and set another log.run_dir",
        )
