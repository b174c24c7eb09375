"""Weights on disk: one safetensors file of whole fp32 tensors, written atomically."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from supmim_scale.errors import UserError

_ENCODER = "encoder."


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the file under another name, sync it, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part, metadata)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def load_encoder(encoder: torch.nn.Module, path: Path) -> dict[str, str]:
    """Fill a timm encoder from a run's weights; returns the file's metadata.

    Raises `UserError` naming the first tensor that is missing or of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(_ENCODER)]  # noqa: SIM118
            found = {name.removeprefix(_ENCODER): file.get_tensor(name) for name in names}
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), str(error), "safetensors of a run", "check the path") from None
    wanted = encoder.state_dict()
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            have = list(found[name].shape) if name in found else "no such tensor"
            raise UserError(
                f"{path}: {name}", f"{have}", f"{list(tensor.shape)}", "use the run's own recipe"
            )
    encoder.load_state_dict(found)
    return metadata
