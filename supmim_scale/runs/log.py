"""What a run logs: lines for people, JSON lines, TensorBoard, pictures."""

import json
import sys
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from supmim_scale.units import duration, gib


class RunLog:
    """Writes one run's log lines, `log.jsonl` and TensorBoard events; only rank 0 holds one."""

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
        """Where and how the run starts or resumes."""
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
