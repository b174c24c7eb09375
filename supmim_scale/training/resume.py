"""A run's folder opened by its ranks: locked, and what the run resumes from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from supmim_scale.config.schema import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.position import ReaderPosition
from supmim_scale.launch.world import World
from supmim_scale.runs.branch import branch_off
from supmim_scale.runs.checkpoints import Checkpoint
from supmim_scale.runs.folder import lock, open_run_dir, require_unfinished


@dataclass(frozen=True)
class Start:
    """What a run may begin with besides its recipe: keys that may differ from its checkpoint's, and
    a run whose checkpoint before its cool-down a new one continues from."""

    allow_drift: Sequence[str] = ()
    branch_from: Path | None = None

    def words(self) -> list[str]:
        """The options of `supmim-scale train` that say it."""
        words = [word for key in self.allow_drift for word in ("--allow-drift", key)]
        return [*words, *(["--branch-from", str(self.branch_from)] if self.branch_from else [])]


def open_folder(
    config: RunConfig, world: World, run_dir: Path, start: Start, train_set: Dataset, num_steps: int
) -> tuple[Any, Checkpoint | None]:
    """Collective: rank 0's lock of the run folder, and the checkpoint to resume from."""
    held = world.main_first(lambda: lock(run_dir) if world.is_main else None)
    found = world.main_first(lambda: _open(config, run_dir, start) if world.is_main else None)
    resumed = world.gather(found)[0]
    require_unfinished(resumed, num_steps, run_dir)
    if resumed:
        position_of(resumed).require_same_set(len(train_set), train_set.digest)
    return held, resumed


def position_of(checkpoint: Checkpoint) -> ReaderPosition:
    """Where the reader stood."""
    return ReaderPosition.of(checkpoint.facts["reader"])


def _open(config: RunConfig, run_dir: Path, start: Start) -> Checkpoint | None:
    drift = tuple(start.allow_drift)
    if start.branch_from is not None:
        drift += branch_off(config, run_dir, start.branch_from)
    return open_run_dir(config, run_dir, drift)
