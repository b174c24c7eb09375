"""Where results go: `eval.json`, TensorBoard, pictures."""

import json
import os
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from supmim_scale.errors import UserError

FOLDER = "eval"


class Results:
    """Results of one evaluation under `out`; on ranks other than the main one nothing is written.

    Raises `UserError` where the folder cannot be written.
    """

    def __init__(self, out: Path, step: int, *, is_main: bool) -> None:
        self._out, self._step, self._is_main = out, step, is_main

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
        """Write the figures, whole or not at all, and print them as one line of JSON."""
        if not self._is_main:
            return
        for name, value in row.items():
            if isinstance(value, (int, float)):
                self._events.add_scalar(f"eval/{name}", value, self._step)
        self._events.close()
        text, path = json.dumps(row), self._out / "eval.json"
        part = path.with_name(path.name + ".part")
        part.write_text(text + "\n")
        os.replace(part, path)
        print(text, flush=True)
