"""ImageNet's sets of harder images in the folder layouts they come in, and its ReaL labels.

`imagenet-a` (Hendrycks et al., arXiv 1907.07174), `imagenet-r` (arXiv 2006.16241) and
`imagenet-sketch` (arXiv 1905.13549) are folders of classes named as in training; `imagenet-v2`
(arXiv 1902.10811) names them by id. `real` (arXiv 2006.07159) is a JSON list of label lists in the
order of the held-out files' numbers.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from supmim_scale.config.schema import RunConfig
from supmim_scale.data.classes import load_classes
from supmim_scale.data.dataset import Dataset, open_dataset
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.readers.folder import class_names
from supmim_scale.errors import UserError
from supmim_scale.evaluation.features import Features

REAL = "real"
SETS = ("imagenet-a", "imagenet-r", "imagenet-sketch", "imagenet-v2", REAL)
_SUBSETS = ("imagenet-a", "imagenet-r")  # scored among the classes they have
_IMAGENET = "timm/imagenet_synsets"
_NUMBER = re.compile(r"(\d{8})\.\w+$")  # ILSVRC2012_val_00000001.JPEG


def open_set(kind: str, folder: Path, config: RunConfig) -> Dataset:
    """A folder of class folders as a set. Raises `UserError` for a class the model has not."""
    count = config.model.num_classes
    names = tuple(map(str, range(count))) if kind == "imagenet-v2" else _classes(kind, config)
    if not folder.is_dir():
        raise UserError(
            f"--robustness {kind}",
            f"no folder {folder}",
            "a folder of class folders",
            "check the path",
        )
    index_dir = Path(config.input.index_dir) if config.input.index_dir else None
    folder = folder.resolve()
    return open_dataset(
        folder.parent,
        folder.name,
        SampleLayout(reader="folder", classes=names),
        where=f"--robustness {kind}",
        index_dir=index_dir,
        num_classes=count,
        workers=config.input.index_workers,
    )


def scored_classes(kind: str, labels_NL: Tensor, num_classes: int) -> Tensor:
    """(classes,) bool: those that a prediction may choose: all, or for A and R the set's own."""
    if kind not in _SUBSETS:
        return torch.ones(num_classes, dtype=torch.bool)
    allowed_K = torch.zeros(num_classes, dtype=torch.bool)
    allowed_K[labels_NL[labels_NL >= 0].unique()] = True
    return allowed_K


def names_of(wanted: Sequence[tuple[str, Path]]) -> dict[str, tuple[str, Path]]:
    """(kind, path) of sets by the name of their figures: the kind, and the folder's name where
    several are of one kind. Raises `UserError` for two of one name."""
    named: dict[str, tuple[str, Path]] = {}
    kinds = [kind for kind, _ in wanted]
    for kind, path in wanted:
        name = kind if kinds.count(kind) == 1 else f"{kind}-{path.resolve().stem}"
        name = name.replace("-", "_")
        if name in named:
            raise UserError(
                f"--robustness {kind}",
                f"two of the name {path.resolve().stem}",
                "sets of different names",
                "rename a folder",
            )
        named[name] = (kind, path)
    return named


def real_labels(path: Path, held_out: Dataset, num_classes: int) -> Tensor:
    """(images, labels) ReaL's labels of the held-out images by id, padded with -1.

    Raises `UserError` where list and set do not belong together.
    """
    try:
        given = json.loads(path.read_text())
        lists = [[int(label) for label in row] for row in given]
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"--robustness {REAL}",
            f"{path} ({error})",
            "a JSON list of label lists",
            "take real.json",
        ) from None
    places = _numbers(held_out, np.arange(len(held_out)))
    largest = max(map(max, filter(None, lists)), default=-1)
    if places.max(initial=0) >= len(lists) or not 0 <= largest < num_classes:
        raise UserError(
            f"--robustness {REAL}",
            f"{len(lists)} lists, labels up to {largest}",
            f"a list for each image of this set, of {num_classes} classes",
            "take real.json",
        )
    width = max((len(lists[place]) for place in places), default=1)
    labels_NL = torch.full((len(places), max(1, width)), -1)
    for row, place in enumerate(places):
        labels_NL[row, : len(lists[place])] = torch.tensor(lists[place], dtype=torch.long)
    return labels_NL


def relabelled(features: Features, labels_NL: Tensor) -> Features:
    """Features with other labels, by id; images that these leave empty are left out."""
    given = Features(features.ids_N, labels_NL[features.ids_N], features.features_ND)
    return given.rows(np.flatnonzero((given.labels_NL[:, 0] >= 0).numpy()))


def _numbers(held_out: Dataset, ids_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of images in ReaL's list, from the numbers in their names."""
    found = []
    for sample in ids_N.tolist():
        key = held_out.defect(sample, "").key
        match = _NUMBER.search(key)
        if match is None or match[1] == "00000000":
            raise UserError(
                f"--robustness {REAL}",
                f"a held-out image named {key}",
                "names like ILSVRC2012_val_00000001.JPEG",
                "read the original folder: data.reader=folder",
            )
        found.append(int(match[1]) - 1)
    return np.array(found, dtype=np.int64)


def _classes(kind: str, config: RunConfig) -> tuple[str, ...]:
    """Class names in the order of the head's outputs."""
    data, count = config.data, config.model.num_classes
    names: tuple[str, ...] = ()
    if data.classes is not None:
        names = load_classes(data.classes)
    elif data.reader == "folder":
        names = tuple(class_names(Path(config.input.root) / data.train))
    if len(names) != count and count == 1000 and data.classes is None:
        names = load_classes(_IMAGENET)
    if len(names) != count:
        raise UserError(
            f"--robustness {kind}",
            f"{len(names)} class names for a head of {count}",
            "the names in the order of the head's outputs",
            "set data.classes to timm/imagenet_synsets or a file",
        )
    return names
