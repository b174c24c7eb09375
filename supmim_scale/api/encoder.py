"""Trained encoders and their features."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import ViewSettings, evaluation_batches
from supmim_scale.evaluation.features import extract
from supmim_scale.evaluation.subject import open_subject
from supmim_scale.launch.world import World
from supmim_scale.models.timm_models import views_of


def load_encoder(
    what: str | Path, *, weights: str | Path | None = None, overrides: Sequence[str] = ()
) -> nn.Module:
    """Load a plain timm model in eval mode from a run's folder or weights file, from a folder that
    timm or `export` wrote, or by a timm model name.

    `weights`: for a run, a file other than the latest. The model's `pretrained_cfg` says how its
    images must be prepared. Raises `UserError`.
    """
    file = None if weights is None else Path(weights)
    subject = open_subject(str(what), file, None, overrides)
    encoder: Any = subject.encoder.eval()
    if subject.views is None:  # a run's: the recipe says it
        data = subject.config.data
        encoder.pretrained_cfg = {
            **(encoder.pretrained_cfg or {}),
            "input_size": (3, subject.config.model.image_size, subject.config.model.image_size),
            "mean": (data.mean,) * 3,
            "std": (data.std,) * 3,
            "crop_pct": data.eval_crop,
            "interpolation": "bilinear",
        }
    return subject.encoder


def features(
    encoder: nn.Module,
    data: Dataset,
    *,
    batch: int = 64,
    device: torch.device | str | None = None,
    precision: str = "fp32",
) -> Tensor:
    """(N, D) fp32 on the CPU: the features the encoder's head reads, for every image in order.

    Images are cropped and normalised as `encoder.pretrained_cfg` says. `device`: by default a GPU
    if torch has one. `precision` of the forward pass: fp32 or bf16. Raises `RankError` for
    features that are not finite.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    views = views_of(encoder)
    decoder = "mixed" if device.type == "cuda" else "cpu"
    is_cubic = views.interpolation == "bicubic"
    spec = ViewSpec(views.size, mean=0.0, std=1.0, decoder=decoder, cubic=is_cubic)
    mean, std = (torch.tensor(v, device=device).view(3, 1, 1) for v in (views.mean, views.std))
    model: Any = encoder.eval().to(device)

    def encode(images_BCHW: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            tokens = model.forward_features((images_BCHW - mean) / std)
            pooled: Tensor = model.forward_head(tokens, pre_logits=True)
        return pooled

    settings = ViewSettings(spec, eval_crop=views.crop)
    found = evaluation_batches(data, settings, batch=batch, device=device)
    alone = World(0, 0, 1, device, "none")
    return extract(encode, found, alone, len(data), "features").features_ND
