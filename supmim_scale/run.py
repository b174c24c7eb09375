"""A run's parts, built from its recipe in the one order that works."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from supmim_scale import assemble
from supmim_scale.checkpoints import Checkpoint, PieceReader, newest_whole
from supmim_scale.config import digest
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
from supmim_scale.engine.pieces import Counters
from supmim_scale.engine.world import World
from supmim_scale.engine_choice import choose_attention, engine_settings
from supmim_scale.errors import UserError
from supmim_scale.inputs import (
    known_bad,
    mix_settings,
    num_steps,
    open_split,
    require_same_classes,
    sample_order,
    skip_policy,
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
from supmim_scale.opening import Start, open_folder, position_of
from supmim_scale.profiling import StepProfiler, profiled_from
from supmim_scale.provenance import provenance
from supmim_scale.run_folder import CHECKPOINTS, identity_of
from supmim_scale.saving import Saver
from supmim_scale.watching import Watch, WatchSettings
from supmim_scale.weights import start_from


@dataclass
class Run:
    """Everything the loop works with."""

    config: RunConfig
    world: World
    run_dir: Path
    num_steps: int
    micro_batch: int
    accumulation: int
    precision: str
    attention: str
    train_set: Dataset
    val_set: Dataset
    target: PatchTarget | None
    masks: MaskSpec
    mixing: MixSettings
    engine: Engine
    quarantine: Quarantine
    saver: Saver
    watch: Watch
    profiler: StepProfiler
    resumed: Checkpoint | None
    batches: Iterator[Batch]
    began: tuple[int, int]  # steps done and samples seen where the reader was set going
    cooldown_at: int | None  # steps done before the cool-down, where a checkpoint is kept
    held: Any  # the folder's lock
    rollbacks: int = 0

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
        steps_before, seen_before = self.began
        seen = seen_before + (steps_done - steps_before) * self.config.optim.global_batch
        return ReaderPosition(seen, len(self.train_set), self.train_set.digest)

    def roll_back(self, steps_done: int) -> int:
        """Collective: the weights of the last checkpoint, and the samples since then passed over;
        returns its steps done. Raises `UserError` where there is none."""
        self.saver.finish()
        seen = self.position(steps_done).samples_seen
        found = self.world.main_first(
            lambda: newest_whole(self.saver.folder)[0] if self.world.is_main else None
        )
        checkpoint = self.world.gather(found)[0]
        if checkpoint is None:
            raise UserError(
                "watch.on_spike", "no checkpoint to roll back to", "one", "set checkpoint.every"
            )
        self.engine.restore(PieceReader(checkpoint), Counters(**checkpoint.facts["counters"]))
        self.began = (checkpoint.steps_done, seen)
        return checkpoint.steps_done

    def save(self, steps_done: int, meter_sums: list[float]) -> None:
        """Collective: a checkpoint of everything that decides the rest of the run."""
        facts = {
            "steps_done": steps_done,
            "counters": asdict(self.engine.counters()),
            "reader": asdict(self.position(steps_done)),
            "meter_sums": self.world.gather(meter_sums),
            "recipe": identity_of(self.config),
            "digest": digest(self.config),
            "world_size": self.world.world_size,
            **provenance(),
        }
        self.saver.save(self.engine, facts)


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
    require_same_classes(config)
    train_set, val_set = open_split(config, "train"), open_split(config, "val")
    sample_order(config, train_set, world_size)
    known_bad(config, train_set)
    require_schedule_fits(config, num_steps(config, len(train_set)))
    return train_set, val_set


def build_run(
    config: RunConfig,
    world: World,
    run_dir: Path,
    start: Start = Start(),  # noqa: B008
) -> Run:
    """Collective: data, target, model, engine and loader of a recipe, in this order; from the
    folder's last checkpoint if it has one."""
    train_set, val_set = world.main_first(lambda: preflight(config, world.world_size))
    total = num_steps(config, len(train_set))
    held, resumed = open_folder(config, world, run_dir, start, train_set, total)
    cooldown_at = total - config.optim.cooldown_steps if config.checkpoint.before_cooldown else None
    micro_batch, accumulation = accumulation_steps(config, world.world_size)
    precision = resolve_precision(config.engine.precision, world.device)
    order, shape = sample_order(config, train_set), assemble.encoder_geometry(config)
    target = None
    if config.mim.weight:
        target = world.main_first(lambda: _target(config, shape, train_set, order, run_dir, world))
    attention = choose_attention(config, micro_batch, precision, world)
    settings = engine_settings(config, micro_batch, accumulation, precision, attention)
    engine = _engine(config, settings, target, resumed, world)
    _record_ds_config(engine, run_dir, world)
    seen = position_of(resumed).samples_seen if resumed else 0
    listed = run_dir / "quarantine" / f"train-{world.rank:05d}.jsonl"
    quarantine = Quarantine(skip_policy(config), len(train_set), listed)
    return Run(
        config=config,
        world=world,
        run_dir=run_dir,
        num_steps=total,
        cooldown_at=cooldown_at,
        micro_batch=micro_batch,
        accumulation=accumulation,
        precision=precision,
        attention=attention,
        train_set=train_set,
        val_set=val_set,
        target=target,
        masks=assemble.mask_spec(config, shape.grid),
        mixing=mix_settings(config),
        engine=engine,
        quarantine=quarantine,
        saver=_saver(config, world, run_dir, cooldown_at),
        watch=_watch(config, world, run_dir),
        profiler=_profiler(config, world, run_dir, resumed.steps_done if resumed else 0, total),
        resumed=resumed,
        began=(resumed.steps_done, seen) if resumed else (0, 0),
        held=held,
        batches=training_batches(
            train_set,
            order,
            view_settings(config, world.device),
            Share(micro_batch, accumulation, world.rank, world.world_size),
            seed=config.seed,
            device=world.device,
            samples_seen=seen,
            group=mix_settings(config).group,
            quarantine=quarantine,
            known_bad=known_bad(config, train_set),
        ),
    )


def _engine(
    config: RunConfig,
    settings: EngineSettings,
    target: PatchTarget | None,
    resumed: Checkpoint | None,
    world: World,
) -> Engine:
    """The engine over the recipe's model: of `model.init_from`, or as a checkpoint left it."""
    model = assemble.joint_model(config, target.out_features if target else 0)
    if config.model.init_from and not resumed:
        left = start_from(model, config.model.init_from)
        if world.is_main:
            print(f"starting from {config.model.init_from}; as drawn: {', '.join(left) or 'none'}")
    engine = build_engine(model, settings, world)
    if resumed:
        engine.restore(PieceReader(resumed), Counters(**resumed.facts["counters"]))
    return engine


def _saver(config: RunConfig, world: World, run_dir: Path, keep: int | None) -> Saver:
    return Saver(
        run_dir / CHECKPOINTS,
        world,
        in_background=config.checkpoint.in_background,
        goes_on=config.checkpoint.on_failure == "continue",
        keep_last=config.checkpoint.keep_last,
        keep_every=config.checkpoint.keep_every,
        keep=keep,
    )


def _watch(config: RunConfig, world: World, run_dir: Path) -> Watch:
    watch = config.watch
    settings = WatchSettings(
        skipped_in_a_row=watch.skipped_in_a_row,
        spike_sigmas=watch.spike_sigmas,
        spike_window=watch.spike_window,
        hang_s=watch.hang_s,
    )
    return Watch(settings, world, run_dir)


def _profiler(
    config: RunConfig, world: World, run_dir: Path, begun: int, total: int
) -> StepProfiler:
    """Rank 0's, where the recipe asks for one and the run is long enough."""
    log = config.log
    if not (log.profile and world.is_main):
        return StepProfiler(None, 0, 0)
    start = profiled_from(begun, total, log.every, log.profile_steps)
    if start is None:
        print(f"profile: none, {total - begun} steps are too few for log.profile_steps")
        return StepProfiler(None, 0, 0)
    return StepProfiler(run_dir / "profile", start, log.profile_steps)


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
    if world.is_main and not path.exists():
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
    quarantine = Quarantine(skip_policy(config), len(train_set))
    batches = evaluation_batches(
        train_set, settings, batch=64, device=cpu, ids=ids, quarantine=quarantine
    )
    return torch.cat([batch.images_BCHW for batch in batches])


def _record_ds_config(engine: Engine, run_dir: Path, world: World) -> None:
    used = getattr(engine, "ds_config", None)
    if used is not None and world.is_main:
        (run_dir / "ds_config.json").write_text(json.dumps(used, indent=2) + "\n")
