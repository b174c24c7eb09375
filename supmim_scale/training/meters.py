"""Figures of training steps: sums on the device, and the host's clock."""

import time
from typing import NamedTuple

import torch
from torch import Tensor

from supmim_scale.launch.world import World
from supmim_scale.models.joint import JointOutput


class StepMeter:
    """Sums of losses and hits on the device since the last reading; adding never waits."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._sums = torch.zeros(5, dtype=torch.float64, device=world.device)

    def add(self, output: JointOutput, labels_BL: Tensor) -> None:
        """Add one micro-batch."""
        images = len(labels_BL)
        parts = (output.loss.detach(), output.class_loss, output.mim_loss)
        best_B1 = output.logits_BK.argmax(dim=1, keepdim=True)
        hits = (best_B1 == labels_BL).any(dim=1).sum()
        values = [part.double() * images for part in parts]
        self._sums += torch.stack([*values, hits.double(), torch.full_like(values[0], images)])

    def state(self) -> list[float]:
        """Waits: this rank's sums since the last reading, for a checkpoint."""
        return [float(value) for value in self._sums.tolist()]

    def resume(self, sums: list[list[float]]) -> None:
        """Continue from the sums of all ranks; if their number changed, rank 0 takes all."""
        mine = torch.tensor(sums, dtype=torch.float64)
        if len(sums) == self._world.world_size:
            self._sums += mine[self._world.rank].to(self._sums.device)
        elif self._world.is_main:
            self._sums += mine.sum(dim=0).to(self._sums.device)

    def read(self) -> dict[str, float]:
        """Collective, waits: means over all images of all ranks since the last call."""
        loss, class_loss, mim_loss, hits, images = self._world.sum(self._sums.clone()).tolist()
        self._sums.zero_()
        names = ("loss", "class_loss", "mim_loss", "top1")
        return {
            n: v / images for n, v in zip(names, (loss, class_loss, mim_loss, hits), strict=True)
        }


class ClockMark(NamedTuple):
    """A `StepClock` at a moment."""

    at: float
    waited_s: float
    paused_s: float
    steps: int


class StepClock:
    """Throughput and data wait of training steps; evaluation and saving are paused out."""

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._start = time.perf_counter()
        self._waited_s, self._paused_s, self._steps = 0.0, 0.0, 0
        self._rates: list[tuple[int, float]] = []

    def waited(self, seconds: float) -> None:
        """Count time the step stood waiting for input."""
        self._waited_s += seconds

    def paused(self, seconds: float) -> None:
        """Leave time out that was not training."""
        self._paused_s += seconds

    def step_done(self) -> None:
        """Count a step."""
        self._steps += 1

    def mark(self) -> ClockMark:
        """The clock as it stands, to go back to before it is next read."""
        return ClockMark(time.perf_counter(), self._waited_s, self._paused_s, self._steps)

    def go_back(self, mark: ClockMark) -> tuple[float, float]:
        """Leave out the steps since `mark`, unless it was read meanwhile; the seconds that they
        waited for input and that were paused."""
        waited, paused = self._waited_s - mark.waited_s, self._paused_s - mark.paused_s
        if self._start < mark.at:
            self._start += time.perf_counter() - mark.at
            self._waited_s, self._paused_s, self._steps = mark[1:]
        return waited, paused

    def read(self, steps_left: int) -> dict[str, float]:
        """Figures since the last call."""
        now = time.perf_counter()
        elapsed = max(1e-9, now - self._start - self._paused_s)
        figures = {
            "step_time_s": elapsed / max(1, self._steps),
            "images_per_s": self._steps * self._global_batch / elapsed,
            "data_wait": self._waited_s / elapsed,
            "eta_s": steps_left * elapsed / max(1, self._steps),
        }
        self._rates.append((self._steps, elapsed))
        self._start, self._waited_s, self._paused_s, self._steps = now, 0.0, 0.0, 0
        return figures

    @property
    def mean_images_per_s(self) -> float:
        """Over all intervals read so far, but the first if there are more: it warms up."""
        rates = self._rates[1:] or self._rates
        return sum(n for n, _ in rates) * self._global_batch / max(1e-9, sum(s for _, s in rates))
