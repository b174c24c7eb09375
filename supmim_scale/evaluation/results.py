"""Where results go: `eval.json` and `eval.jsonl`, TensorBoard, pictures."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from supmim_scale.errors import UserError
from supmim_scale.files.whole import write_whole

FOLDER = "eval"
# What a figure is of: rows that differ in one of these are no parts of one row.
IDENTITY = (
    "weights_digest",
    "weights_file",
    "steps_done",
    "precision",
    "image_size",
    "eval_crop",
    "split",
    "set_digest",
    "train_set_digest",
    "segment_set",
)
# Figures that are measured together: those of another call's settings do not stand beside them.
_TOGETHER = ("knn_", "probe_", "few_shot")


class Results:
    """Results of one evaluation under `out`; on ranks other than the main one nothing is written.

    Raises `UserError` where the folder cannot be written.
    """

    def __init__(self, out: Path, step: int, *, is_main: bool) -> None:
        self._out, self._step, self._is_main = out, step, is_main

    def require_writable(self) -> None:
        """Raise `UserError` where the folder could not be made, before anything is measured."""
        nearest = next(path for path in (self._out, *self._out.resolve().parents) if path.exists())
        if not nearest.is_dir() or not os.access(nearest, os.W_OK):
            raise UserError(
                "--out",
                f"{nearest}, which is no folder to write to",
                "a writable folder",
                "name another",
            )

    @cached_property
    def _events(self) -> SummaryWriter:
        """Opened by the first result: an evaluation that is refused leaves nothing."""
        try:
            (self._out / FOLDER).mkdir(parents=True, exist_ok=True)
            return SummaryWriter(str(self._out / FOLDER / "tensorboard"))
        except OSError as error:
            raise UserError("--out", str(error), "a writable folder", "name another") from None

    def picture(self, name: str, pixels_CHW: Tensor) -> None:
        """A picture with values in [0, 1], as PNG and to TensorBoard."""
        if not self._is_main:
            return
        self._events.add_image(name, pixels_CHW, self._step)
        bytes_HWC = (pixels_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
        Image.fromarray(bytes_HWC).save(self._out / FOLDER / f"{name}.png")

    def close(self, row: dict[str, Any]) -> None:
        """Add the figures as a line of JSON to `eval.jsonl`, and write `eval.json`,
        whole or not at all: with what earlier calls measured of the same weights and sets."""
        if not self._is_main:
            return
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(f"eval/{name}", value, self._step)
        self._events.close()
        path = self._out / "eval.json"
        write_whole(path, json.dumps(merged(_kept(path), row)) + "\n")
        with open(path.with_suffix(".jsonl"), "a") as file:
            file.write(json.dumps(row) + "\n")


def merged(kept: dict[str, Any], row: dict[str, Any]) -> dict[str, Any]:
    """`row` with the figures of `kept` that it has not, if both are of the same weights and sets;
    else `row` alone. Of a measure that `row` has, it keeps nothing: a probe has one solver."""
    same = all(kept[name] == row[name] for name in IDENTITY if name in kept and name in row)
    if not same or "weights_digest" not in kept:
        return row
    anew = tuple(start for start in _TOGETHER if any(name.startswith(start) for name in row))
    return {name: value for name, value in kept.items() if not name.startswith(anew)} | row


def _kept(path: Path) -> dict[str, Any]:
    """The row of an earlier call, empty where there is none or it cannot be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
