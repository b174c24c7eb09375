"""A run's parts, built from its recipe in the one order that works."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from supmim_scale.build.check import check_recipe
from supmim_scale.build.data import known_bad, sample_order, skip_rule, view_settings
from supmim_scale.build.engine import choose_attention, engine_settings
from supmim_scale.build.model import encoder_geometry, mask_spec, recipe_model
from supmim_scale.build.step import step_arguments
from supmim_scale.build.target import make_codebook, open_target
from supmim_scale.config import digest
from supmim_scale.config.checks import accumulation_steps, num_steps
from supmim_scale.config.schema import RunConfig
from supmim_scale.data.dataset import Dataset
from supmim_scale.data.loader import Batch, Share, training_batches
from supmim_scale.data.mixing import mixing_group
from supmim_scale.data.order import SampleOrder
from supmim_scale.data.position import ReaderPosition
from supmim_scale.data.quarantine import Quarantine
from supmim_scale.engine.base import Engine, build_engine
from supmim_scale.engine.settings import EngineSettings, resolve_precision
from supmim_scale.engine.state import Counters
from supmim_scale.errors import UserError
from supmim_scale.launch.provenance import provenance
from supmim_scale.launch.world import World
from supmim_scale.models.masking import Masks, MaskSpec
from supmim_scale.models.targets import PatchTarget
from supmim_scale.models.weights import start_from
from supmim_scale.runs.checkpoints import Checkpoint, PieceReader, newest_whole
from supmim_scale.runs.folder import CHECKPOINTS, identity_of
from supmim_scale.training.profile import StepProfiler, profiled_from
from supmim_scale.training.resume import Start, open_folder, position_of
from supmim_scale.training.saver import Saver
from supmim_scale.training.watch import Watch


class Began(NamedTuple):
    """Where the reader was set going: at the start, on a resume, after a roll-back."""

    steps_done: int
    samples_seen: int


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
    engine: Engine
    quarantine: Quarantine
    saver: Saver
    watch: Watch
    profiler: StepProfiler
    resumed: Checkpoint | None
    batches: Iterator[Batch]
    began: Began
    cooldown_at: int | None  # steps done before the cool-down, where a checkpoint is kept
    held: Any  # the folder's lock
    rollbacks: int = 0

    def step_arguments(self, batch: Batch) -> tuple[tuple[Any, ...], Masks | None]:
        """Arguments of `JointModel.forward` for a micro-batch, and its masks."""
        return step_arguments(self.config, batch, self.target, self.masks)

    def position(self, steps_done: int) -> ReaderPosition:
        """Where the reader stands after `steps_done` steps."""
        steps = steps_done - self.began.steps_done
        seen = self.began.samples_seen + steps * self.config.optim.global_batch
        return ReaderPosition(seen, len(self.train_set), self.train_set.digest)

    def roll_back(self, steps_done: int) -> int:
        """Collective: the weights of the last checkpoint, and the samples since then skipped;
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
        self.began = Began(checkpoint.steps_done, seen)
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


def build_run(
    config: RunConfig,
    world: World,
    run_dir: Path,
    start: Start = Start(),  # noqa: B008
) -> Run:
    """Collective: data, target, model, engine and loader of a recipe, in this order; from the
    folder's last checkpoint if it has one."""
    train_set, val_set = world.main_first(
        lambda: check_recipe(config, world.world_size, run_dir=run_dir, device=world.device)
    )
    total = num_steps(config, len(train_set))
    held, resumed = open_folder(config, world, run_dir, start, train_set, total)
    cooldown_at = total - config.optim.cooldown_steps if config.checkpoint.before_cooldown else None
    micro_batch, accumulation = accumulation_steps(config, world.world_size)
    precision = resolve_precision(config.engine.precision, world.device)
    order, shape = sample_order(config, train_set), encoder_geometry(config)
    target = None
    if config.mim.weight:
        target = world.main_first(lambda: _target(config, train_set, order, run_dir, world))
    attention = choose_attention(config, micro_batch, precision, world)
    settings = engine_settings(config, micro_batch, accumulation, precision, attention)
    engine = _engine(config, settings, target, resumed, world)
    _record_ds_config(engine, run_dir, world)
    seen = position_of(resumed).samples_seen if resumed else 0
    listed = run_dir / "quarantine" / f"train-{world.rank:05d}.jsonl"
    quarantine = Quarantine(skip_rule(config), len(train_set), listed)
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
        masks=mask_spec(config, shape.grid),
        engine=engine,
        quarantine=quarantine,
        saver=Saver(run_dir / CHECKPOINTS, world, config.checkpoint, keep=cooldown_at),
        watch=Watch(config.watch, world, run_dir),
        profiler=_profiler(config, world, run_dir, resumed.steps_done if resumed else 0, total),
        resumed=resumed,
        began=Began(resumed.steps_done, seen) if resumed else Began(0, 0),
        held=held,
        batches=training_batches(
            train_set,
            order,
            view_settings(config, world.device),
            Share(micro_batch, accumulation, world.rank, world.world_size),
            seed=config.seed,
            device=world.device,
            samples_seen=seen,
            group=mixing_group(config.augment),
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
    model = recipe_model(config, target.out_features if target else 0)
    if config.model.init_from and not resumed:
        left = start_from(model, config.model.init_from)
        if world.is_main:
            print(
                f"initialised from {config.model.init_from}; "
                f"left at random initialisation: {', '.join(left) or 'none'}"
            )
    engine = build_engine(model, settings, world)
    if resumed:
        engine.restore(PieceReader(resumed), Counters(**resumed.facts["counters"]))
    return engine


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
    config: RunConfig, train_set: Dataset, order: SampleOrder, run_dir: Path, world: World
) -> PatchTarget:
    """The recipe's target; a codebook is fitted by rank 0."""
    if world.is_main:
        make_codebook(config, train_set, order, run_dir)
    return open_target(config, run_dir)


def _record_ds_config(engine: Engine, run_dir: Path, world: World) -> None:
    used = getattr(engine, "ds_config", None)
    if used is not None and world.is_main:
        (run_dir / "ds_config.json").write_text(json.dumps(used, indent=2) + "\n")
