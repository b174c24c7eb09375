"""Checks for everything that can be known to fail before a run starts."""

import os
from pathlib import Path

import torch

from supmim_scale.build.data import (
    known_bad,
    open_split,
    require_same_classes,
    sample_order,
    view_settings,
)
from supmim_scale.build.model import attention_shapes, encoder_geometry
from supmim_scale.config.checks import accumulation_steps, num_steps, require_schedule_fits
from supmim_scale.config.schema import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.engine.attention import resolve_attention
from supmim_scale.engine.ds_config import load_ds_config
from supmim_scale.engine.fp8 import require_fp8
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import UserError
from supmim_scale.models.encoder import Geometry
from supmim_scale.models.joint import default_heads
from supmim_scale.models.targets import require_vqgan_folder
from supmim_scale.models.weights import require_source


def check_recipe(
    config: RunConfig,
    world_size: int,
    *,
    run_dir: Path | None = None,
    device: torch.device | None = None,
) -> tuple[Dataset, Dataset]:
    """Return the training and held-out sets of a recipe that can be trained on this many ranks.

    `run_dir`: where the run would be written. `device`: by default the one that a run here would
    use. Raises `UserError` for the first thing that cannot work. Writes nothing but missing shard
    indexes.
    """
    _require_ranks(config, world_size)
    accumulation_steps(config, world_size)
    if run_dir is not None:
        _require_writable(run_dir)
    _require_files(config)
    shape = encoder_geometry(config)
    _require_shape(config, shape)
    _require_device(config, device or _device(config))
    if _place(config, config.data.train) == _place(config, config.data.val):
        raise UserError(
            "data.val",
            f"{config.data.val}, the same as data.train",
            "held-out images",
            "hold out some shards, as in data.train=train-0*.tar data.val=train-1*.tar",
        )
    require_same_classes(config)
    train_set, val_set = open_split(config, "train"), open_split(config, "val")
    sample_order(config, train_set, world_size)
    _require_codebook_patches(config, shape, len(train_set) - len(known_bad(config, train_set)))
    require_schedule_fits(config, num_steps(config, len(train_set)))
    return train_set, val_set


def _require_ranks(config: RunConfig, world_size: int) -> None:
    if world_size < 1:
        raise UserError("--ranks", f"{world_size}", "1 or more", "raise --ranks")
    if config.engine.kind == "plain" and world_size > 1:
        raise UserError(
            "engine.kind",
            f"plain with {world_size} ranks",
            "one process",
            "set engine.kind=deepspeed",
        )


def _require_writable(run_dir: Path) -> None:
    """Check that the folder, or its nearest existing parent, is writable."""
    there = next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists())
    if not there.is_dir():
        found = f"{there}, which is a file"
    elif not os.access(there, os.W_OK | os.X_OK):
        found = f"{there}, which cannot be written"
    else:
        return
    raise UserError("log.run_dir", found, "a writable folder", "set log.run_dir=FOLDER")


def _require_files(config: RunConfig) -> None:
    """Check the files that the recipe names, except its data."""
    if config.mim.weight and config.mim.target == "vqgan":
        require_vqgan_folder(config.mim.vqgan)
    if config.model.init_from is not None:
        require_source(config.model.init_from)
    if config.engine.kind == "deepspeed":
        load_ds_config(config.engine.ds_config)


def _require_shape(config: RunConfig, shape: Geometry) -> None:
    """Check the built encoder's shape against the recipe's keys."""
    if shape.num_patches != shape.grid**2:
        raise UserError("model.name", "a non-square grid", "square patches", "choose another model")
    if not config.mim.weight:
        return
    if shape.num_patches < 2:
        raise UserError(
            "model.image_size",
            f"{config.model.image_size}, one patch of {shape.patch_size}",
            "two or more patches, some of which are masked",
            f"set model.image_size={2 * shape.patch_size} or more, or mim.weight=0",
        )
    width = config.model.decoder_width or shape.width
    heads = config.model.decoder_heads or default_heads(width)
    if width % heads:
        raise UserError(
            "model.decoder_heads",
            f"{heads} for width {width}",
            "a divisor of the decoder's width",
            "change one, or set model.decoder_heads=null",
        )


def _require_device(config: RunConfig, device: torch.device) -> None:
    """Check that the kernels and decoders that the recipe names are available."""
    view_settings(config, device)
    require_fp8(config.engine.fp8, device)
    attention = config.engine.attention
    if attention not in ("torch", "fastest"):
        is_bf16 = resolve_precision(config.engine.precision, device) == "bf16"
        dtype = torch.bfloat16 if is_bf16 else torch.float32
        resolve_attention(attention, attention_shapes(config, 1), dtype, device)


def _device(config: RunConfig) -> torch.device:
    """The kind of device that a run here would use."""
    has_gpu = config.engine.device != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if has_gpu else "cpu")


def _place(config: RunConfig, pattern: str) -> Path:
    return (Path(config.input.root) / pattern).resolve()


def _require_codebook_patches(config: RunConfig, shape: Geometry, num_images: int) -> None:
    mim = config.mim
    patches = min(mim.codebook_images, num_images) * shape.num_patches
    if mim.weight and mim.target == "codebook" and patches < mim.codebook_size:
        raise UserError(
            "mim.codebook_size",
            f"{mim.codebook_size} centres for {patches} patches",
            "fewer centres than patches",
            "lower mim.codebook_size or raise mim.codebook_images",
        )
