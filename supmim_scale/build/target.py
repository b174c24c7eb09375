"""The decoder's target that a recipe names."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from supmim_scale.build.data import known_bad, skip_rule, view_settings
from supmim_scale.build.model import encoder_geometry
from supmim_scale.config.schema import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import evaluation_batches
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.models.targets import (
    CodebookTarget,
    PatchTarget,
    PixelTarget,
    VqganTarget,
    fit_codebook,
)

_CODEBOOK = "codebook.safetensors"


def open_target(config: RunConfig, run_dir: Path) -> PatchTarget:
    """The recipe's target; a codebook is read from the run's folder."""
    shape = encoder_geometry(config)
    if config.mim.target == "pixel":
        return PixelTarget(shape.patch_size)
    if config.mim.target == "vqgan":
        assert config.mim.vqgan is not None
        return VqganTarget(config.mim.vqgan, shape.grid, config.data.mean, config.data.std)
    return CodebookTarget.load(run_dir / _CODEBOOK, shape.patch_size)


def make_codebook(config: RunConfig, train_set: Dataset, order: SampleOrder, run_dir: Path) -> None:
    """Fit the codebook of a recipe that has one and save it in the run's folder, once per run."""
    path = run_dir / _CODEBOOK
    if config.mim.target != "codebook" or path.exists():
        return
    images_BCHW = _first_images(config, train_set, order)
    patch_size = encoder_geometry(config).patch_size
    fit_codebook(images_BCHW, patch_size, config.mim.codebook_size, config.seed).save(path)


def _first_images(config: RunConfig, train_set: Dataset, order: SampleOrder) -> Tensor:
    """Centre crops of the first samples of the run's order."""
    count = min(config.mim.codebook_images, len(train_set))
    _, ids = order.at(0, count)
    cpu = torch.device("cpu")
    settings = view_settings(config, cpu, decoder="cpu")
    ids = np.setdiff1d(ids, list(known_bad(config, train_set)))
    quarantine = Quarantine(skip_rule(config), len(train_set))
    batches = evaluation_batches(
        train_set, settings, batch=64, device=cpu, ids=ids, quarantine=quarantine
    )
    return torch.cat([batch.images_BCHW for batch in batches])
