"""What a run tells: meters on the device, log lines, JSON lines, TensorBoard, pictures."""

import json
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from supmim_scale.engine.world import World
from supmim_scale.models.joint import JointOutput
from supmim_scale.units import duration, gib


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
        """Go on from the sums of all ranks; of another number of ranks, rank 0 takes them all."""
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


class RunLog:
    """Writes one run's log lines, `log.jsonl` and TensorBoard events; rank 0 alone holds one."""

    def __init__(self, run_dir: Path, num_steps: int, steps_done: int = 0) -> None:
        purge = steps_done + 1 if steps_done else None  # events after a checkpoint come again
        self._events = SummaryWriter(str(run_dir / "tensorboard"), purge_step=purge)
        self._file = open(run_dir / "log.jsonl", "a")  # noqa: SIM115
        self._num_steps = num_steps
        self._bar = tqdm(
            total=num_steps, initial=steps_done, unit="step", disable=None, leave=False
        )

    def say(self, text: str) -> None:
        """A line for people."""
        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()

    def start(self, steps_done: int, facts: dict[str, Any]) -> None:
        """Where and how the run starts, or goes on."""
        self._write("start", steps_done, {"num_steps": self._num_steps, **facts})

    def steps(self, steps_done: int, row: dict[str, float]) -> None:
        """A log step: to the console, the JSON lines and the curves."""
        self._record("train", steps_done, row)
        self._bar.update(steps_done - self._bar.n)
        mim = f" + mim {row['mim_loss']:.3f}" if row["mim_loss"] else ""
        self.say(
            f"step {steps_done}/{self._num_steps}  loss {row['loss']:.4f} "
            f"(class {row['class_loss']:.3f}{mim})  top-1 {row['top1']:.1%}  lr {row['lr']:.2e}  "
            f"grad {row['grad_norm']:.2f}  {row['images_per_s']:.1f} img/s  "
            f"data wait {row['data_wait']:.0%}  mem {gib(row['peak_memory_bytes'])}  "
            f"ETA {duration(row['eta_s'])}"
            + (f"  skipped {row['skipped_steps']:.0f}" if row["skipped_steps"] else "")
            + (f"  bad samples {row['bad_samples']}" if row["bad_samples"] else "")
        )

    def event(self, kind: str, steps_done: int, facts: dict[str, Any]) -> None:
        """Something out of the ordinary, to the console and the JSON lines."""
        self._write(kind, steps_done, facts)
        self.say(f"step {steps_done}: {kind} {json.dumps(facts)}")

    def evaluation(self, steps_done: int, row: dict[str, float]) -> None:
        """An evaluation's figures."""
        self._record("eval", steps_done, row)
        shown = "  ".join(f"{k} {v:.2%}" for k, v in row.items() if k.startswith("top"))
        self.say(f"evaluation at step {steps_done}: {shown} of {row['images']:.0f} images")

    def knn(self, steps_done: int, row: dict[str, float]) -> None:
        """An online k-NN evaluation's figures."""
        self._record("knn", steps_done, row)
        self.say(f"k-NN at step {steps_done}: top-1 {row['knn_top1']:.2%} of {row['images']:.0f}")

    def picture(self, steps_done: int, name: str, rows_CHW: Tensor, path: Path) -> None:
        """A picture with values in [0, 1], to TensorBoard and as PNG."""
        self._events.add_image(name, rows_CHW, steps_done)
        pixels = (rows_CHW.clamp(0, 1) * 255).byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(pixels).save(path)

    def close(self) -> None:
        """Flush everything to disk."""
        self._bar.close()
        self._events.close()
        self._file.close()

    def _record(self, kind: str, steps_done: int, row: dict[str, Any]) -> None:
        self._write(kind, steps_done, row)
        for name, value in row.items():
            self._events.add_scalar(f"{kind}/{name}", value, steps_done)

    def _write(self, kind: str, steps_done: int, row: dict[str, Any]) -> None:
        self._file.write(json.dumps({"kind": kind, "steps_done": steps_done, **row}) + "\n")
        self._file.flush()
