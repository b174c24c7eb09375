"""Weights on disk: one safetensors file of whole fp32 tensors, written atomically."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from supmim_scale.errors import UserError
from supmim_scale.models.encoder import resampled_positions
from supmim_scale.models.joint import JointModel, is_head

_ENCODER = "encoder."


def save_weights(weights: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write the file under another name, sync it, rename it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, part, metadata)
    with open(part, "rb") as file:
        os.fsync(file.fileno())
    os.replace(part, path)


def start_from(model: JointModel, path: Path) -> list[str]:
    """Fill a new model from weights of another run, or of timm; returns what was left as it was.

    `path` is a safetensors file or a folder with `model.safetensors`. Position embeddings are
    resampled to the model's grid; a head for other classes is left. Raises `UserError` naming the
    first encoder tensor that is missing or of another shape.
    """
    path = path / "model.safetensors" if path.is_dir() else path
    given, _ = read_weights(path)
    if not any(name.startswith(_ENCODER) for name in given):  # timm's: the encoder alone
        given = {_ENCODER + name: value for name, value in given.items()}
    wanted, filled, left = model.state_dict(), dict[str, Tensor](), list[str]()
    for name, own in wanted.items():
        value = given.get(name)
        if value is None and name.startswith(_ENCODER + "norm."):  # timm's name with avg pooling
            value = given.get(name.replace("norm.", "fc_norm.", 1))
        if value is not None and name == _ENCODER + "pos_embed":
            value = resampled_positions(model.encoder, value, str(path))
        if value is not None and value.shape == own.shape:
            filled[name] = value
        elif name.startswith(_ENCODER) and not is_head(name):
            have = list(value.shape) if value is not None else "no such tensor"
            raise UserError(
                f"{path}: {name}", f"{have}", f"{list(own.shape)}", "take weights of this encoder"
            )
        else:
            left.append(name)
    model.load_state_dict(filled, strict=False)
    return left


def load_encoder(encoder: torch.nn.Module, path: Path) -> dict[str, str]:
    """Fill a timm encoder from a run's weights; returns the file's metadata.

    Raises `UserError` naming the first tensor that is missing or of another shape.
    """
    given, metadata = read_weights(path)
    found = {
        name.removeprefix(_ENCODER): value
        for name, value in given.items()
        if name.startswith(_ENCODER)
    }
    wanted = encoder.state_dict()
    for name, tensor in wanted.items():
        if name not in found or found[name].shape != tensor.shape:
            have = list(found[name].shape) if name in found else "no such tensor"
            raise UserError(
                f"{path}: {name}", f"{have}", f"{list(tensor.shape)}", "use the run's own recipe"
            )
    encoder.load_state_dict(found)
    return metadata


def last_weights(run_dir: Path) -> Path:
    """The newest weights of a run, averaged ones before raw ones of the same step."""
    files = sorted((run_dir / "weights").glob("step-*.safetensors"), key=lambda p: p.stem)
    if not files:
        raise UserError(
            str(run_dir),
            "no weights/step-*.safetensors",
            "a run that saved weights",
            "train first, or name a file with --weights",
        )
    return files[-1]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """A safetensors file's tensors and metadata. Raises `UserError` for another or broken one."""
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise UserError(str(path), str(error), "a safetensors file", "check the path") from None
