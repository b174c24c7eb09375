"""Watching a run: steps that went wrong, losses that jump, ranks that hang or lag behind."""

import faulthandler
import statistics
import time
from collections import deque
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from supmim_scale.config.running import WatchConfig
from supmim_scale.engine.base import Engine
from supmim_scale.errors import UserError
from supmim_scale.launch.world import World
from supmim_scale.models.joint import JointOutput

_SIGMA = 1.4826  # of a normal distribution, times its median absolute deviation
_FEWEST = 8  # losses that a jump is measured against
_SHOWN = 8  # samples of a batch that went wrong

_Seen = tuple[dict[str, Tensor], NDArray[np.int64]]  # a micro-batch's losses and sample ids


class Watch:
    """Health checks while a run trains; every rank holds one."""

    def __init__(self, settings: WatchConfig, world: World, run_dir: Path) -> None:
        self._settings, self._world, self._run_dir = settings, world, run_dir
        self._seen: list[_Seen] = []
        self._skipped_before, self._in_a_row = 0, 0
        self._losses: deque[float] = deque(maxlen=settings.spike_window)
        self._step_times: list[float] = []
        self._last = time.perf_counter()
        self._stacks: IO[str] | None = None

    def begin(self, engine: Engine) -> None:
        """The loop is about to start: from here on a step must come in time."""
        self._skipped_before = engine.skipped_steps
        self._last = time.perf_counter()
        if self._settings.hang_s:
            folder = self._run_dir / "stacks"
            folder.mkdir(parents=True, exist_ok=True)
            self._stacks = open(folder / f"rank-{self._world.rank:05d}.txt", "w")  # noqa: SIM115
            self.alive()

    def end(self) -> None:
        """The loop is over."""
        if self._stacks is not None:
            faulthandler.cancel_dump_traceback_later()
            self._stacks.close()

    def alive(self) -> None:
        """Begin to wait anew: for a step, an evaluation, a checkpoint."""
        if self._stacks is not None:
            faulthandler.dump_traceback_later(self._settings.hang_s, exit=True, file=self._stacks)

    def saw(self, output: JointOutput, ids_B: NDArray[np.int64]) -> None:
        """A micro-batch of the step in hand; keeps only its losses."""
        terms = {"class_loss": output.class_loss, "mim_loss": output.mim_loss}
        self._seen.append((terms, ids_B))

    def step(self, engine: Engine) -> dict[str, Any] | None:
        """Collective: after an update. What went wrong where, if the step was skipped.

        Raises `UserError` after so many in a row.
        """
        self.alive()
        now = time.perf_counter()
        self._step_times.append(now - self._last)
        self._last, seen, self._seen = now, self._seen, []
        if engine.skipped_steps == self._skipped_before:  # the same on every rank
            self._in_a_row = 0
            return None
        self._skipped_before, self._in_a_row = engine.skipped_steps, self._in_a_row + 1
        found = self._world.gather(_non_finite(seen))
        blame = {f"rank {rank}": what for rank, what in enumerate(found) if what}
        if self._in_a_row > self._settings.skipped_in_a_row:
            raise UserError(
                "gradients",
                f"{self._in_a_row} skipped steps in a row, the last {blame or 'only in backward'}",
                f"at most {self._settings.skipped_in_a_row} (watch.skipped_in_a_row)",
                "look at these samples, lower optim.lr, or start again from a checkpoint",
            )
        return {"in_a_row": self._in_a_row, "non_finite": blame}

    def paused(self) -> None:
        """Time that was no step: an evaluation, a checkpoint."""
        self._last = time.perf_counter()
        self.alive()

    def slowest(self) -> dict[str, float]:
        """Collective: the median step time of the fastest and the slowest rank since the last
        call, and which that is."""
        mine = statistics.median(self._step_times) if self._step_times else 0.0
        self._step_times = []
        times = self._world.gather(mine)
        worst = max(range(len(times)), key=times.__getitem__)
        return {"fastest_rank_s": min(times), "slowest_rank_s": max(times), "slowest_rank": worst}

    def is_spike(self, loss: float) -> bool:
        """Whether a logged loss has jumped; a jump does not enter what it is measured against."""
        settings, before = self._settings, list(self._losses)
        if settings.spike_sigmas and len(before) >= _FEWEST:
            middle = statistics.median(before)
            spread = _SIGMA * statistics.median(abs(value - middle) for value in before)
            if not loss <= middle + settings.spike_sigmas * max(spread, 1e-3 * abs(middle)):
                return True
        self._losses.append(loss)
        return False


def _non_finite(seen: list[_Seen]) -> dict[str, Any]:
    """Waits: the terms that are not finite, and the first samples of their micro-batches."""
    terms, ids = set[str](), list[int]()
    for losses, ids_B in seen:
        bad = {name for name, loss in losses.items() if not bool(loss.isfinite().all())}
        terms |= bad
        ids += ids_B.tolist() if bad else []
    return {"terms": sorted(terms), "samples": ids[:_SHOWN]} if terms else {}
