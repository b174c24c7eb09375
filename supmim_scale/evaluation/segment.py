"""Semantic segmentation with a linear head on patch features: mIoU by sliding windows.

The encoder is frozen, or with `finetune` trained with the head. The head is trained on random
crops. For windows an image's shorter side is that of the model; its logits are brought back to the
size that the mask has, and scored there. Head, steps, rates and scales are ours.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from supmim_scale.errors import UserError
from supmim_scale.evaluation.classify import autocast
from supmim_scale.evaluation.segment_sets import IGNORE, MaskedImages, open_masks, resized
from supmim_scale.evaluation.subject import Subject
from supmim_scale.files.progress import progress
from supmim_scale.launch.world import World

_SEED, _SCALES = 0, (1.0, 2.0)  # the shorter side of a training image, in crops
_LR, _ENCODER_LR, _DECAY = 1e-3, 5e-5, 1e-4
_WINDOWS = 16  # a forward
_SHOWN = 6
_CELL, _EDGE = (152, 200), 8  # of the picture, in pixels


@dataclass(frozen=True)
class SegmentSettings:
    """A set's folder, and how the head is trained on its `train` part: crops of `batch` images a
    step over all ranks, AdamW, cosine to zero. `classes`: None for the layout's own number."""

    folder: Path
    finetune: bool = False
    steps: int = 2000
    batch: int = 16
    classes: int | None = None


class Segmenter(nn.Module):
    """Class logits of square views, from a subject's patch features."""

    def __init__(self, subject: Subject, num_classes: int) -> None:
        super().__init__()
        self.encoder, self._subject = subject.encoder, subject
        embed: Any = subject.encoder.patch_embed
        self.grid: tuple[int, int] = tuple(embed.grid_size)
        self.size = int(embed.img_size[0])
        self._prefix = int(getattr(subject.encoder, "num_prefix_tokens", 0))
        self.head = nn.Linear(int(subject.encoder.num_features), num_classes)  # type: ignore[arg-type]
        nn.init.normal_(self.head.weight, std=0.01, generator=torch.Generator().manual_seed(_SEED))
        nn.init.zeros_(self.head.bias)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        """(B, classes, size, size) from images in [0, 1]."""
        data = self._subject.config.data
        views_BCHW = self._subject.prepared((images_BCHW - data.mean) / data.std)
        device = views_BCHW.device
        with autocast(device, self._subject.precision(device)):
            tokens_BTD = self.encoder.forward_features(views_BCHW)  # type: ignore[operator]
            logits_BNK = self.head(tokens_BTD[:, self._prefix :])
        logits_BKhw = logits_BNK.transpose(1, 2).unflatten(2, self.grid)
        return F.interpolate(
            logits_BKhw.float(), size=(self.size, self.size), mode="bilinear", align_corners=False
        )


def open_parts(subject: Subject, settings: SegmentSettings) -> tuple[MaskedImages, MaskedImages]:
    """The `train` and `val` parts. Raises `UserError` for a set that cannot be read, or a subject
    without patches."""
    embed = getattr(subject.encoder, "patch_embed", None)
    if embed is None or getattr(embed, "grid_size", None) is None:
        raise UserError(
            "--segment", f"{subject.name}, which has no patches", "a ViT", "leave it out"
        )
    train, val = (open_masks(settings.folder, s, settings.classes) for s in ("train", "val"))
    return train, val


def segment_figures(
    subject: Subject,
    parts: tuple[MaskedImages, MaskedImages],
    settings: SegmentSettings,
    world: World,
) -> tuple[dict[str, Any], Tensor]:
    """Collective: mIoU and pixel accuracy of the second of `parts` after training on the first, and
    a picture of some of it. With `finetune` the subject's encoder is changed."""
    train, held_out = parts
    model = Segmenter(subject, train.num_classes).to(world.device)
    fit(model, train, settings, world)
    confusion_KK, sheets = score(model, held_out, world)
    iou_K, accuracy = scores_of(confusion_KK)
    name = "segment_finetuned" if settings.finetune else "segment_linear"
    row = {
        f"{name}_miou": iou_K.nanmean().item(),
        f"{name}_accuracy": accuracy,
        f"{name}_images": len(held_out),
        f"{name}_steps": settings.steps,
        "segment_set": str(settings.folder),
    }
    return row, sheets


def fit(model: Segmenter, train: MaskedImages, settings: SegmentSettings, world: World) -> None:
    """Collective: train the head, and the encoder where it is to be. A step's crops and mean are
    those of the whole batch, whatever the number of ranks."""
    model.encoder.requires_grad_(settings.finetune)
    groups = [{"params": list(model.head.parameters()), "peak": _LR}]
    if settings.finetune:
        groups.append({"params": list(model.encoder.parameters()), "peak": _ENCODER_LR})
    optimizer = torch.optim.AdamW(groups, lr=_LR, weight_decay=_DECAY)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    model.encoder.train(settings.finetune)
    with progress("segmentation head", settings.steps, "step", shown=world.is_main) as bar:
        for step in range(settings.steps):
            images_BCHW, masks_BHW = _crops(model, train, settings.batch, step, world)
            labelled = world.sum((masks_BHW != IGNORE).sum().double())
            logits_BKHW = model(images_BCHW)
            loss = F.cross_entropy(logits_BKHW, masks_BHW, ignore_index=IGNORE, reduction="sum")
            optimizer.zero_grad()
            (loss / labelled.clamp_min(1).to(loss.dtype)).backward()
            _sum_gradients(params, world)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * (1 + math.cos(math.pi * step / settings.steps)) / 2
            optimizer.step()
            bar.update()
    model.eval()


@torch.inference_mode()
def score(model: Segmenter, held_out: MaskedImages, world: World) -> tuple[Tensor, Tensor]:
    """Collective: the confusion of all pixels of all images, each by one rank, and a sheet of the
    first images beside truth and prediction."""
    count = model.head.out_features
    confusion_KK = torch.zeros(count, count, dtype=torch.int64, device=world.device)
    mine, sheets = range(world.rank, len(held_out), world.world_size), list[Tensor]()
    with progress("segmentation", len(mine), "image", shown=world.is_main) as bar:
        for place in mine:
            mask_HW = held_out.mask(place).to(world.device)
            logits_KHW = slide(model, resized(held_out.image(place), model.size).to(world.device))
            logits_1KHW = F.interpolate(
                logits_KHW.unsqueeze(0),
                size=tuple(mask_HW.shape),
                mode="bilinear",
                align_corners=False,
            )
            predicted_HW = logits_1KHW[0].argmax(0)
            confusion_KK += confusion(predicted_HW, mask_HW, count)
            if world.is_main and len(sheets) < _SHOWN:
                sheets.append(_sheet(held_out, place, mask_HW.cpu(), predicted_HW.cpu()))
            bar.update()
    return world.sum(confusion_KK).cpu(), torch.cat(sheets, dim=1) if sheets else torch.zeros(
        3, 1, 1
    )


def slide(model: nn.Module, image_CHW: Tensor, size: int | None = None) -> Tensor:
    """(classes, H, W): the mean of the logits of all square windows over a pixel.

    Windows of `size` pixels (the model's) stand at most two thirds of it apart, the last ones flush
    with the edge.
    """
    size = int(model.size) if size is None else size  # type: ignore[arg-type]
    _, height, width = image_CHW.shape
    corners = [(y, x) for y in _starts(height, size) for x in _starts(width, size)]
    total_KHW: Tensor | None = None
    seen_HW = image_CHW.new_zeros(height, width)
    for some in (corners[i : i + _WINDOWS] for i in range(0, len(corners), _WINDOWS)):
        windows = torch.stack([image_CHW[:, y : y + size, x : x + size] for y, x in some])
        logits_BKHW = model(windows).float()
        if total_KHW is None:
            total_KHW = logits_BKHW.new_zeros(logits_BKHW.shape[1], height, width)
        for (y, x), logits_KHW in zip(some, logits_BKHW, strict=True):
            total_KHW[:, y : y + size, x : x + size] += logits_KHW
            seen_HW[y : y + size, x : x + size] += 1
    assert total_KHW is not None
    return total_KHW / seen_HW


def confusion(predicted_HW: Tensor, mask_HW: Tensor, num_classes: int) -> Tensor:
    """(truth, prediction) counts of the labelled pixels, int64."""
    kept = mask_HW != IGNORE
    pairs = mask_HW[kept] * num_classes + predicted_HW[kept]
    return pairs.bincount(minlength=num_classes**2).view(num_classes, num_classes)


def scores_of(confusion_KK: Tensor) -> tuple[Tensor, float]:
    """(intersection over union a class, NaN for one that is neither there nor predicted; share of
    pixels that are right)."""
    right_K = confusion_KK.diagonal().double()
    union_K = confusion_KK.sum(0) + confusion_KK.sum(1) - confusion_KK.diagonal()
    return right_K / union_K.double(), (right_K.sum() / confusion_KK.sum()).item()


def _starts(length: int, size: int) -> list[int]:
    steps = math.ceil((length - size) / max(1, size * 2 // 3))
    return [round(i * (length - size) / steps) for i in range(steps + 1)] if steps > 0 else [0]


def _crops(
    model: Segmenter, train: MaskedImages, batch: int, step: int, world: World
) -> tuple[Tensor, Tensor]:
    """This rank's share of a step's crops: functions of the step and the place in the batch."""
    made = [
        _crop(model.size, train, step, place)
        for place in range(world.rank, batch, world.world_size)
    ]
    if not made:  # more ranks than images: one that counts nothing, for the sake of the sum
        image, mask = _crop(model.size, train, step, 0)
        made = [(image, torch.full_like(mask, IGNORE))]
    images, masks = zip(*made, strict=True)
    return torch.stack(images).to(world.device), torch.stack(masks).to(world.device)


def _crop(size: int, train: MaskedImages, step: int, place: int) -> tuple[Tensor, Tensor]:
    rng = np.random.default_rng([_SEED, step, place])
    number = int(rng.integers(len(train)))
    image_CHW = resized(train.image(number), round(size * rng.uniform(*_SCALES)))
    mask_1HW = train.mask(number).unsqueeze(0).float()
    mask_HW = F.interpolate(
        mask_1HW.unsqueeze(0), size=tuple(image_CHW.shape[1:]), mode="nearest-exact"
    )
    y, x = (int(rng.integers(side - size + 1)) for side in image_CHW.shape[1:])
    image_CHW = image_CHW[:, y : y + size, x : x + size]
    mask_HW = mask_HW[0, 0, y : y + size, x : x + size].long()
    if rng.uniform() < 0.5:
        image_CHW, mask_HW = image_CHW.flip(2), mask_HW.flip(1)
    return image_CHW, mask_HW


def _sum_gradients(params: Sequence[Tensor], world: World) -> None:
    """Collective: gradients of the whole batch on every rank."""
    if world.world_size == 1:
        return
    flat = torch.cat([_gradient(p).flatten() for p in params])
    places: Iterator[Tensor] = iter(world.sum(flat).split([p.numel() for p in params]))
    for param in params:
        param.grad = next(places).view_as(param)


def _gradient(param: Tensor) -> Tensor:
    return torch.zeros_like(param) if param.grad is None else param.grad


def _sheet(held_out: MaskedImages, place: int, mask_HW: Tensor, predicted_HW: Tensor) -> Tensor:
    """Image, truth and prediction side by side, these in Pascal VOC's colours on the grey image;
    unlabelled is white."""
    image_CHW = torch.from_numpy(np.asarray(held_out.image(place), dtype=np.float32) / 255)
    image_CHW = image_CHW.permute(2, 0, 1)
    grey_CHW, colours = image_CHW.mean(0, keepdim=True).expand(3, -1, -1), _colours()
    shown = [image_CHW]
    for classes_HW in (mask_HW, predicted_HW):
        values_HW = torch.where(classes_HW == IGNORE, IGNORE, classes_HW + held_out.first)
        shown.append(torch.lerp(grey_CHW, colours[values_HW].permute(2, 0, 1), 0.6))
    return torch.cat([_in_cell(picture_CHW) for picture_CHW in shown], dim=2)


def _in_cell(picture_CHW: Tensor) -> Tensor:
    """As large as it fits in the middle of a white cell, its sides in proportion."""
    sides = picture_CHW.shape[1:]
    scale = min((cell - _EDGE) / side for cell, side in zip(_CELL, sides, strict=True))
    size = [max(1, round(side * scale)) for side in sides]
    fitted = F.interpolate(picture_CHW.unsqueeze(0), size=size, mode="bilinear", antialias=True)[0]
    top, left = ((cell - side) // 2 for cell, side in zip(_CELL, size, strict=True))
    white = torch.ones(3, *_CELL)
    white[:, top : top + size[0], left : left + size[1]] = fitted
    return white


def _colours() -> Tensor:
    """(256, 3) in [0, 1]: the colours of VOC's own masks, whose bits are those of the class, the
    lowest first."""
    values = torch.arange(IGNORE + 1).unsqueeze(1)
    bits = [((values >> (3 * bit + torch.arange(3))) & 1) << (7 - bit) for bit in range(3)]
    colours = torch.stack(bits).sum(0) / 255
    colours[IGNORE] = 1.0
    return colours
