"""Preparation of a recipe's data sets before training: index, verify, inspect, prepare."""

import json
from collections.abc import Sequence
from pathlib import Path

from supmim_scale.build.data import index_split, sample_order
from supmim_scale.config.schema import RunConfig
from supmim_scale.data.inspect import Stats, inspect, plot_inspection
from supmim_scale.data.readers.folder import class_names
from supmim_scale.data.source import pack_source
from supmim_scale.data.verify import Verdict, verify
from supmim_scale.errors import UserError

SPLITS = ("train", "val")


def verify_split(config: RunConfig, split: str, out: Path, workers: int) -> Verdict:
    """Decode every sample of a split and compare its checksums; reports go to `out`."""
    num_classes = config.model.num_classes if config.loss.kind != "none" else None
    return verify(index_split(config, split), out, num_classes, workers)


def inspect_split(config: RunConfig, split: str, out: Path) -> Stats:
    """Labels, sizes and mixing of a split; `stats.json` and `stats.png` go to `out`."""
    dataset = index_split(config, split)
    order = sample_order(config, dataset)
    stats = inspect(dataset, order, config.optim.global_batch, config.model.num_classes)
    (out / "stats.json").write_text(json.dumps(stats.facts, indent=2) + "\n")
    title = f"{config.data.name}, {split}: {len(dataset)} images"
    plot_inspection(stats, out / "stats.png", title)
    return stats


def prepare(
    config: RunConfig, images: Path, splits: Sequence[str], *, shard_size: int, workers: int
) -> dict[str, str]:
    """Pack class folders of both splits to where the recipe reads them; yields a line per split.

    Raises `UserError` if the two splits do not have the same class folders.
    """
    if config.data.classes is None:  # ids are then the places of the folders' names
        train, val = (set(class_names(images / split)) for split in SPLITS)
        if train != val:
            raise UserError(
                str(images),
                f"class {min(train ^ val)}, which exists only in one of train and val",
                "the same class folders in both",
                "set data.classes to a list of all names",
            )
    return {
        split: pack_source(
            images / split,
            Path(config.input.root) / split,
            classes=config.data.classes,
            labelled=config.loss.kind != "none",
            skip_bad=config.input.bad_samples == "skip",
            shard_size=shard_size,
            workers=workers,
        )
        for split in splits
    }
