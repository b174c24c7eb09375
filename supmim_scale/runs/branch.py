"""Several lengths out of one long run: a run that goes on from where a shorter one cooled down.

Until its cool-down a run under `wsd` or `rsqrt` knows nothing of its length (Zhai et al. 2022,
arXiv 2106.04560, section 3.5), so a longer one shares those steps with it.
"""

import json
import shutil
from pathlib import Path

from supmim_scale.config.schema import RunConfig
from supmim_scale.errors import UserError
from supmim_scale.runs import checkpoints
from supmim_scale.runs.folder import CHECKPOINTS

MAY_DIFFER = ("optim.steps", "optim.epochs")
_CODEBOOK = "codebook.safetensors"


def branch_off(config: RunConfig, run_dir: Path, parent: Path) -> tuple[str, ...]:
    """Give a new run the checkpoint that `parent` kept before its cool-down; a run that has
    checkpoints goes on from its own. Returns the keys that may differ from the checkpoint's: of
    one that is the parent's, the length. Raises `UserError` where there is nothing to branch off.
    """
    if config.optim.schedule == "cosine":
        raise UserError(
            "--branch-from",
            "optim.schedule=cosine, which depends on the run's length",
            "wsd or rsqrt",
            "set optim.schedule",
        )
    theirs, optim = _cooldown_of(parent), config.optim
    newest = checkpoints.newest_steps(run_dir / CHECKPOINTS)
    if newest is not None:
        return MAY_DIFFER if newest <= theirs else ()
    if optim.steps is None or optim.steps - optim.cooldown_steps < theirs:
        raise UserError(
            "--branch-from",
            f"optim.steps={optim.steps}, which cools down before the parent does",
            f"a cool-down after step {theirs} or later",
            "raise optim.steps",
        )
    given = parent / CHECKPOINTS / checkpoints.checkpoint_name(theirs)
    if not given.is_dir():
        raise UserError(
            "--branch-from",
            f"no {given}",
            "the checkpoint before the parent's cool-down",
            "let the parent run first, with checkpoint.before_cooldown=true",
        )
    try:
        checkpoints.adopt(run_dir / CHECKPOINTS, given)
        if (parent / _CODEBOOK).exists():
            shutil.copy2(parent / _CODEBOOK, run_dir / _CODEBOOK)
    except OSError as error:
        raise UserError("log.run_dir", str(error), "a writable folder", "name another") from None
    return MAY_DIFFER


def _cooldown_of(parent: Path) -> int:
    """Steps done before the parent's cool-down."""
    try:
        optim = json.loads((parent / "run.json").read_text())["recipe"]["optim"]
        return int(optim["steps"]) - int(optim["cooldown_steps"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            "--branch-from",
            f"{parent} without optim.steps in a run.json",
            "a run's folder",
            "name a run that was given optim.steps",
        ) from None
