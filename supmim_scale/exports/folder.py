"""A run's encoder and head as a folder: what timm and the Hugging Face hub read, whole or not."""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from supmim_scale.build.model import encoder_arguments, encoder_geometry, recipe_encoder
from supmim_scale.config import RunConfig
from supmim_scale.errors import UserError
from supmim_scale.evaluation.subject import recipe_of
from supmim_scale.exports.card import write_card
from supmim_scale.exports.onnx_file import require_onnx, write_onnx
from supmim_scale.exports.parity import FP32, Parity, compare
from supmim_scale.files.tensors import open_as_folder
from supmim_scale.models.encoder import save_timm_folder
from supmim_scale.models.timm_models import open_folder
from supmim_scale.models.weights import load_encoder
from supmim_scale.runs.weights import last_weights

_SEED = 0


def export_run(
    run_dir: Path,
    out: Path,
    *,
    weights: Path | None = None,
    raw: bool = False,
    image_size: int | None = None,
    onnx: bool = False,
) -> list[Parity]:
    """Write `model.safetensors`, `config.json`, `README.md` and perhaps `model.onnx` to `out`,
    under another name first; returns how close what was written came to the run's encoder.

    `weights`: a file instead of the run's last; `raw`: the last that is no average; `image_size`:
    positions are resampled to this many pixels. Raises `UserError` for a run, a size or a folder
    that cannot be taken.
    """
    config = recipe_of(run_dir)
    if onnx:
        require_onnx()
    if raw and weights is not None:
        raise UserError("--raw", f"--weights {weights} too", "one of them", "drop one")
    if image_size is not None:
        config = recipe_of(run_dir, [f"model.image_size={image_size}"])
    _require_new(out)
    weights = weights or last_weights(run_dir, raw=raw)
    encoder = recipe_encoder(config).eval()
    facts = load_encoder(encoder, weights, resample=image_size is not None)
    part = out.with_name(out.name + ".part")
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        parities = _write(encoder, config, part, onnx=onnx)
        write_card(part, run_dir, config, weights, facts, parities)
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    except OSError as error:
        raise UserError(str(out), str(error), "a writable folder", "name another") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return parities


def _write(encoder: nn.Module, config: RunConfig, folder: Path, *, onnx: bool) -> list[Parity]:
    data = config.data
    _, arguments = encoder_arguments(config)
    save_timm_folder(encoder, arguments, folder, mean=data.mean, std=data.std, crop=data.eval_crop)
    images_BCHW = _images(config)
    open_as_folder(folder / "model.safetensors")
    parities = [compare("timm", encoder, open_folder(folder).eval(), images_BCHW, FP32)]
    if onnx:
        parities.append(write_onnx(encoder, images_BCHW, folder / "model.onnx"))
    return parities


def _images(config: RunConfig) -> Tensor:
    """Two images of noise; of a large model one, for its activations' sake."""
    count = 1 if encoder_geometry(config).width > 1000 else 2
    size = config.model.image_size
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(_SEED))


def _require_new(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            str(out),
            "something that is there already",
            "a new or an empty folder",
            "name another or remove it",
        )
