"""Images with a class a pixel, in the folder layouts of ADE20K and Pascal VOC.

ADE20K (`images/` and `annotations/` of `training` and `validation`): 0 is unlabelled, classes count
from 1. VOC (`JPEGImages/`, `SegmentationClass/`, `ImageSets/Segmentation/train.txt` and
`val.txt`): classes count from 0, 255 is unlabelled.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from supmim_scale.errors import RankError, UserError

IGNORE = 255
_ADE_CLASSES, _VOC_CLASSES = 150, 21
_WHERE = "--segment"


@dataclass(frozen=True)
class MaskedImages:
    """Pairs of image and mask; `first`: what stands in a mask for class 0."""

    pairs: tuple[tuple[Path, Path], ...]
    num_classes: int
    first: int

    def __len__(self) -> int:
        return len(self.pairs)

    def image(self, place: int) -> Image.Image:
        """An image in RGB. Raises `RankError` where it cannot be read."""
        return _opened(self.pairs[place][0]).convert("RGB")

    def mask(self, place: int) -> Tensor:
        """(H, W) int64 classes, `IGNORE` where there is none. Raises `RankError` for a value that
        is no class, or a mask of another size than its image."""
        image, path = self.pairs[place]
        raw_HW = torch.from_numpy(np.array(_opened(path), dtype=np.int64))
        size = (_opened(image).height, _opened(image).width)
        if raw_HW.shape != size:
            raise RankError(
                str(path),
                f"shape {list(raw_HW.shape)}",
                f"{list(size)}, as its image",
                "fix the mask",
            )
        labelled_HW = (raw_HW != IGNORE) & (raw_HW >= self.first)
        mask_HW = torch.where(labelled_HW, raw_HW - self.first, IGNORE)
        if mask_HW[labelled_HW].numel() and int(mask_HW[labelled_HW].max()) >= self.num_classes:
            largest = int(raw_HW[labelled_HW].max())
            raise RankError(
                str(path),
                f"the value {largest}",
                f"{self.num_classes} classes",
                "set --segment-classes",
            )
        return mask_HW


def open_masks(folder: Path, split: str, num_classes: int | None = None) -> MaskedImages:
    """The `train` or `val` part of a set. Raises `UserError` for a folder of neither layout, or
    images without masks."""
    if (folder / "annotations").is_dir():
        part = {"train": "training", "val": "validation"}[split]
        names = sorted(path.stem for path in (folder / "annotations" / part).glob("*.png"))
        places = ("images/" + part, "annotations/" + part)
        first, usual = 1, _ADE_CLASSES
    elif (folder / "SegmentationClass").is_dir():
        listed = folder / "ImageSets" / "Segmentation" / f"{split}.txt"
        if not listed.is_file():
            raise UserError(_WHERE, f"no {listed}", "the list of names", "restore it")
        names, places = listed.read_text().split(), ("JPEGImages", "SegmentationClass")
        first, usual = 0, _VOC_CLASSES
    else:
        raise UserError(
            _WHERE,
            f"{folder}, without annotations/ and SegmentationClass/",
            "the layout of ADE20K or Pascal VOC",
            "check the path",
        )
    pairs = tuple(
        (folder / places[0] / f"{name}.jpg", folder / places[1] / f"{name}.png") for name in names
    )
    for path in (path for pair in pairs for path in pair):
        if not path.is_file():
            raise UserError(_WHERE, f"no {path}", "an image and a mask a name", "restore it")
    if not pairs:
        raise UserError(_WHERE, f"{folder} without a mask of {split}", "masks", "check the set")
    return MaskedImages(pairs, num_classes or usual, first)


def resized(image: Image.Image, shorter: int) -> Tensor:
    """(3, H, W) in [0, 1], the shorter side `shorter` pixels, bilinear with antialiasing."""
    scale = shorter / min(image.size)
    size = (max(shorter, round(image.width * scale)), max(shorter, round(image.height * scale)))
    pixels_HWC = np.asarray(image.resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    return torch.from_numpy(pixels_HWC / 255).permute(2, 0, 1)


def _opened(path: Path) -> Image.Image:
    try:
        image = Image.open(path)
        image.load()
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise RankError(str(path), str(error), "an image", "restore it") from None
    return image
