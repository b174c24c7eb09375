"""A run's parts, built from its recipe in the one order that works."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supmim_scale import assemble
from supmim_scale.config import as_yaml, digest, resolved
from supmim_scale.config.checks import accumulation_steps, require_schedule_fits
from supmim_scale.config.schema import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import Batch, Share, evaluation_batches, training_batches
from supmim_scale.data.mixing import MixSettings, draw_mix
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.position import ReaderPosition
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.engine.base import Engine, EngineSettings, build_engine, resolve_precision
from supmim_scale.engine.ds_config import load_ds_config
from supmim_scale.engine.world import World
from supmim_scale.errors import UserError
from supmim_scale.inputs import (
    known_bad,
    mix_settings,
    open_split,
    policy,
    sample_order,
    view_settings,
)
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import Masks, MaskSpec, draw_masks
from supmim_scale.models.targets import (
    CodebookTarget,
    PatchTarget,
    PixelTarget,
    VqganTarget,
    fit_codebook,
    require_vqgan_folder,
)
from supmim_scale.provenance import provenance


@dataclass(frozen=True)
class Run:
    """Everything the loop works with."""

    config: RunConfig
    world: World
    run_dir: Path
    num_steps: int
    micro_batch: int
    accumulation: int
    precision: str
    train_set: Dataset
    val_set: Dataset
    target: PatchTarget | None
    masks: MaskSpec
    mixing: MixSettings
    engine: Engine
    quarantine: Quarantine
    batches: Iterator[Batch]

    def step_arguments(self, batch: Batch) -> tuple[tuple[Any, ...], Masks | None]:
        """Arguments of `JointModel.forward` for a micro-batch, and its masks."""
        config = self.config
        targets_BK = class_targets(
            batch.labels_BL, config.model.num_classes, config.loss.kind, config.loss.label_smoothing
        )
        images_BCHW, who, device = (
            batch.images_BCHW,
            (batch.epochs_B, batch.ids_B),
            self.world.device,
        )
        if self.mixing.is_on:
            mix = draw_mix(self.mixing, images_BCHW.shape[-1], config.seed, *who, device)
            images_BCHW, targets_BK = mix.images(images_BCHW), mix.targets(targets_BK)
        if self.target is None:
            return (images_BCHW, targets_BK), None
        masks = draw_masks(self.masks, config.seed, *who).to(device)
        return (images_BCHW, targets_BK, masks, self.target(images_BCHW)), masks

    def position(self, steps_done: int) -> ReaderPosition:
        """Where the reader stands after `steps_done` steps."""
        seen = steps_done * self.config.optim.global_batch
        return ReaderPosition(seen, len(self.train_set), self.train_set.digest)


def preflight(config: RunConfig, world_size: int) -> tuple[Dataset, Dataset]:
    """Everything a user can get wrong that needs no device: batches, DeepSpeed file, shards.

    Raises `UserError`. Makes missing shard indexes.
    """
    accumulation_steps(config, world_size)
    if config.mim.weight and config.mim.target == "vqgan":
        require_vqgan_folder(config.mim.vqgan)
    if config.engine.kind == "deepspeed":
        load_ds_config(config.engine.ds_config)
    shape = assemble.encoder_geometry(config)
    if shape.num_patches != shape.grid**2:
        raise UserError("model.name", "a non-square grid", "square patches", "choose another model")
    train_set, val_set = open_split(config, "train"), open_split(config, "val")
    sample_order(config, train_set, world_size)
    known_bad(config, train_set)
    require_schedule_fits(config, num_steps(config, len(train_set)))
    return train_set, val_set


def build_run(config: RunConfig, world: World, run_dir: Path) -> Run:
    """Collective: data, target, model, engine and loader of a recipe, in this order."""
    train_set, val_set = world.main_first(lambda: preflight(config, world.world_size))
    world.main_first(lambda: _open_run_dir(config, run_dir) if world.is_main else None)
    micro_batch, accumulation = accumulation_steps(config, world.world_size)
    precision = resolve_precision(config.engine.precision, world.device)
    order = sample_order(config, train_set)
    quarantine_path = run_dir / "quarantine" / f"train-{world.rank:05d}.jsonl"
    quarantine = Quarantine(policy(config), len(train_set), quarantine_path)
    shape = assemble.encoder_geometry(config)
    target = None
    if config.mim.weight:
        target = world.main_first(lambda: _target(config, shape, train_set, order, run_dir, world))
    model = assemble.joint_model(config, target.out_features if target else 0)
    settings = engine_settings(config, micro_batch, accumulation, precision)
    engine = build_engine(model, settings, world)
    _record_ds_config(engine, run_dir, world)
    return Run(
        config=config,
        world=world,
        run_dir=run_dir,
        num_steps=num_steps(config, len(train_set)),
        micro_batch=micro_batch,
        accumulation=accumulation,
        precision=precision,
        train_set=train_set,
        val_set=val_set,
        target=target,
        masks=assemble.mask_spec(config, shape.grid),
        mixing=mix_settings(config),
        engine=engine,
        quarantine=quarantine,
        batches=training_batches(
            train_set,
            order,
            view_settings(config, world.device),
            Share(micro_batch, accumulation, world.rank, world.world_size),
            seed=config.seed,
            device=world.device,
            group=mix_settings(config).group,
            quarantine=quarantine,
            known_bad=known_bad(config, train_set),
        ),
    )


def engine_settings(
    config: RunConfig, micro_batch: int, accumulation: int, precision: str
) -> EngineSettings:
    """The engine's share of a recipe."""
    optim, engine = config.optim, config.engine
    head_decay = optim.head_weight_decay
    return EngineSettings(
        ds_config=load_ds_config(engine.ds_config) if engine.kind == "deepspeed" else None,
        precision=precision,
        micro_batch=micro_batch,
        accumulation=accumulation,
        policy=engine.activation_checkpointing,
        every_k=engine.checkpoint_every_k,
        lr=optim.lr,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
        head_weight_decay=optim.weight_decay if head_decay is None else head_decay,
        layer_decay=optim.layer_decay,
        clip_grad_norm=optim.clip_grad_norm,
        ema_decay=optim.ema_decay,
    )


def num_steps(config: RunConfig, num_samples: int) -> int:
    """Optimizer steps of the run."""
    optim = config.optim
    if optim.steps is not None:
        return optim.steps
    assert optim.epochs is not None
    return max(1, round(optim.epochs * num_samples / optim.global_batch))


def _open_run_dir(config: RunConfig, run_dir: Path) -> None:
    """Make the run folder and write down what is about to run. Raises where one ran before."""
    if (run_dir / "log.jsonl").exists():
        raise UserError(
            "log.run_dir",
            f"{run_dir} with a run in it",
            "a new folder",
            "set log.run_dir=FOLDER or remove the old run",
        )
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / "recipe.yaml").write_text(as_yaml(config))
        facts = {"digest": digest(config), **provenance(), "recipe": resolved(config)}
        (run_dir / "run.json").write_text(json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise UserError("log.run_dir", str(error), "a writable folder", "name another") from None


def _target(
    config: RunConfig,
    shape: Any,
    train_set: Dataset,
    order: SampleOrder,
    run_dir: Path,
    world: World,
) -> PatchTarget:
    """The recipe's target; a codebook is fitted once by rank 0 and kept beside the run."""
    if config.mim.target == "pixel":
        return PixelTarget(shape.patch_size)
    if config.mim.target == "vqgan":
        assert config.mim.vqgan is not None
        return VqganTarget(config.mim.vqgan, shape.grid, config.data.mean, config.data.std)
    path = run_dir / "codebook.safetensors"
    if world.is_main:
        images = _sample_images(config, train_set, order)
        fit_codebook(images, shape.patch_size, config.mim.codebook_size, config.seed).save(path)
    return CodebookTarget.load(path, shape.patch_size)


def _sample_images(config: RunConfig, train_set: Dataset, order: SampleOrder) -> torch.Tensor:
    """Centre crops of the first samples of the run's order."""
    count = min(config.mim.codebook_images, len(train_set))
    _, ids = order.at(0, count)
    cpu = torch.device("cpu")
    settings = view_settings(config, cpu, decoder="cpu")
    ids = np.setdiff1d(ids, list(known_bad(config, train_set)))
    batches = evaluation_batches(
        train_set, settings, batch=64, device=cpu, ids=ids, policy=policy(config)
    )
    return torch.cat([batch.images_BCHW for batch in batches])


def _record_ds_config(engine: Engine, run_dir: Path, world: World) -> None:
    used = getattr(engine, "ds_config", None)
    if used is not None and world.is_main:
        (run_dir / "ds_config.json").write_text(json.dumps(used, indent=2) + "\n")
