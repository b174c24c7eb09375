"""From a recipe to its data: the only place where config and data meet."""

from pathlib import Path
from typing import Any

import torch

from supmim_scale.config.schema import RunConfig
from supmim_scale.data.classes import load_classes
from supmim_scale.data.dali import ViewSpec
from supmim_scale.data.dataset import Dataset, open_dataset
from supmim_scale.data.loader import ViewSettings
from supmim_scale.data.mixing import mixing_group
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.quarantine import SkipRule, read_list, require_usable
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.readers.folder import class_names
from supmim_scale.errors import UserError


def layout(config: RunConfig) -> SampleLayout:
    """The layout of samples that the recipe describes."""
    data = config.data
    return SampleLayout(
        reader=data.reader,
        image=data.image_field,
        label=data.label_field,
        labelled=config.loss.kind != "none",
        classes=load_classes(data.classes) if data.classes else None,
    )


def skip_rule(config: RunConfig) -> SkipRule:
    """What to do about bad samples."""
    return SkipRule(skip=config.input.bad_samples == "skip", rate=config.input.bad_rate)


def index_split(config: RunConfig, split: str) -> Dataset:
    """The indexed `train` or `val` set, without checking it against the recipe."""
    index_dir = config.input.index_dir
    return open_dataset(
        Path(config.input.root),
        getattr(config.data, split),
        layout(config),
        where=f"data.{split}",
        index_dir=Path(index_dir) if index_dir else None,
        num_classes=config.model.num_classes,
        workers=config.input.index_workers,
    )


def open_split(config: RunConfig, split: str) -> Dataset:
    """The indexed `train` or `val` set. Raises `UserError` if it does not fit the recipe."""
    dataset = index_split(config, split)
    require_usable(dataset, skip_rule(config))
    _require_labels_fit(config, dataset, split)
    return dataset


def require_same_classes(config: RunConfig) -> None:
    """Raise `UserError` if train and val number their classes differently."""
    data, root = config.data, Path(config.input.root)
    if data.reader != "folder" or data.classes is not None or config.loss.kind == "none":
        return
    train, val = (class_names(root / split) for split in (data.train, data.val))
    if train != val:
        only = min(set(train) ^ set(val))
        where = "data.train" if only in train else "data.val"
        raise UserError(
            "data.train, data.val",
            f"class folder '{only}' exists only in {where}",
            "the same folders in both, since class ids follow their sorted order",
            "set data.classes to a file with all names, one per line",
        )


def known_bad(config: RunConfig, train_set: Dataset) -> set[int]:
    """Training samples that the recipe's quarantine list names."""
    if config.input.quarantine is None:
        return set()
    if config.input.bad_samples != "skip":
        raise UserError(
            "input.quarantine",
            f"{config.input.quarantine} with input.bad_samples=stop",
            "skip, which replaces the listed samples",
            "set input.bad_samples=skip",
        )
    return train_set.ids_of(read_list(Path(config.input.quarantine)))


def sample_order(config: RunConfig, train_set: Dataset, world_size: int = 1) -> SampleOrder:
    """The order of training samples. Raises `UserError` if strict sharding is impossible."""
    order = SampleOrder(train_set.sizes, config.seed, config.data.shuffle_shards)
    if config.input.strict_shards and world_size * mixing_group(config.augment) > order.lanes:
        raise UserError(
            "input.strict_shards",
            f"{world_size} ranks and {order.lanes} shards read at the same time"
            f" (of {len(train_set.sizes)})",
            "at least as many shards as ranks, twice as many with mixup or cutmix",
            "raise data.shuffle_shards, pack smaller shards, or set input.strict_shards=false",
        )
    return order


def view_settings(
    config: RunConfig, device: torch.device, decoder: str | None = None
) -> ViewSettings:
    """The input pipeline's settings from a recipe; `auto` decodes on the GPU if there is one."""
    data, read = config.data, config.input
    decoder = decoder or read.decoder
    if decoder == "auto":
        decoder = "mixed" if device.type == "cuda" else "cpu"
    if decoder == "mixed" and device.type != "cuda":
        raise UserError(
            "input.decoder", "mixed without a GPU", "cpu on this machine", "set input.decoder=auto"
        )
    spec = ViewSpec(
        size=config.model.image_size,
        mean=data.mean,
        std=data.std,
        decoder=decoder,
        hw_decoder_load=read.hw_decoder_load,
        augment=config.augment,
    )
    return ViewSettings(
        spec=spec,
        crop_scale=(data.crop_scale_min, data.crop_scale_max),
        flip=data.flip,
        eval_crop=data.eval_crop,
        threads=read.threads,
        readers=read.readers,
        prefetch=read.prefetch,
    )


def _require_labels_fit(config: RunConfig, dataset: Dataset, split: str) -> None:
    """Raise `UserError` if labels do not fit the head or the loss."""
    num_classes, where = (
        config.model.num_classes,
        Path(config.input.root) / getattr(config.data, split),
    )
    classes: Any = layout(config).classes
    if classes is not None and len(classes) != num_classes:
        raise UserError(
            "model.num_classes",
            f"{num_classes}, but {config.data.classes} has {len(classes)} classes",
            "the number of classes",
            f"set model.num_classes={len(classes)}",
        )
    if dataset.largest_label >= num_classes and config.input.bad_samples == "stop":
        raise UserError(
            "model.num_classes",
            f"{num_classes}, but {where} has label {dataset.largest_label}",
            "more classes than the largest label",
            f"set model.num_classes={dataset.largest_label + 1}, or input.bad_samples=skip if "
            "few labels are wrong",
        )
    if config.loss.kind == "softmax" and dataset.labels_per_image > 1:
        raise UserError(
            "loss.kind",
            f"softmax, but {where} has up to {dataset.labels_per_image} labels per image",
            "sigmoid for several labels per image",
            "set loss.kind=sigmoid",
        )
