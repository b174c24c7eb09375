"""The training steps that the benchmarks measure: ours, on a fixed batch, and what a job is."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from benchmarks.rows.ranks import Job
from benchmarks.speed.batches import CODES, Feed, fixed_batch
from supmim_scale.build.engine import choose_attention, engine_settings
from supmim_scale.build.model import encoder_geometry, joint_shape, recipe_model
from supmim_scale.config import RunConfig, load_config
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.engine import build_engine
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.errors import UserError
from supmim_scale.launch.world import World
from supmim_scale.models.flops import StepFlops, step_flops
from supmim_scale.models.joint import JointModel
from supmim_scale.planner.budget import within_budget

CLASSES = 1000
LR = 1e-4
CLASSIFICATION = "classification"  # a layout's name for the supervised baseline
_VARIED = ("engine", "input")  # the sections that must not change the result


@dataclass
class Step:
    """A training step, whoever wrote it.

    `module` is what forward runs, `forward_backward` gives the detached loss of a micro-batch,
    `apply` updates the weights, `images` are those of a step over all ranks. `feed` has the batches
    of the next step; None: the batch is fixed.
    """

    module: nn.Module
    forward_backward: Callable[[], Tensor]
    apply: Callable[[], None]
    flops: StepFlops
    images: int
    feed: Feed | None = None

    def fetch(self) -> float:
        """Have the next step's input ready; the seconds that were waited for it."""
        return self.feed.fetch() if self.feed else 0.0

    def run(self) -> Tensor:
        """One whole step; its loss."""
        self.fetch()
        loss = self.forward_backward()
        self.apply()
        return loss


def recipe_of(job: Job) -> RunConfig:
    """The smoke recipe with the job's model at its own size, and without a moving average, which
    the baselines do not keep. Raises `UserError`.

    `model` is a name, or NAME,key=value,... with keys of the model section.
    """
    name, *shape = job["model"].split(",")
    engine = ["engine.kind=plain"]
    if job["stage"]:
        file = job.get("ds_config") or f"zero{job['stage']}"
        engine = ["engine.kind=deepspeed", f"engine.ds_config={file}"]
    is_joint = job["layout"] != CLASSIFICATION
    objective = f"mim.layout={job['layout']}" if is_joint else "mim.weight=0"
    own_size = [f"model.{key}=null" for key in ("patch_size", "width", "depth", "heads")]
    images = job["micro_batch"] * job["ranks"] * job.get("accumulation", 1)
    return load_config(
        "smoke",
        [
            *engine,
            *own_size,
            "model.decoder_width=null",
            f"model.name={name}",
            objective,
            f"model.image_size={job['image_size']}",
            f"model.num_classes={CLASSES}",
            *(f"model.{word}" for word in shape),
            f"mim.codebook_size={CODES}",
            f"engine.activation_checkpointing={job['policy']}",
            f"engine.precision={job['precision']}",
            f"engine.micro_batch={job['micro_batch'] * (1 if job['stage'] else job['ranks'])}",
            f"optim.lr={LR}",
            "optim.ema_decay=0",
            f"optim.global_batch={images}",
            *([f"input.root={job['data']}"] if job.get("data") else []),
            *job.get("overrides", []),
        ],
    )


def require_runnable(job: Job) -> None:
    """Raise `UserError` for what is wrong with a job's recipe or model, before a rank starts."""
    encoder_geometry(recipe_of(job))


def require_varied(words: list[str]) -> list[list[str]]:
    """Every combination of `KEY=VALUE[,VALUE...]` words, each a list of overrides.

    Raises `UserError` for a key whose value may change the result.
    """
    combined: list[list[str]] = [[]]
    for word in words:
        key, _, values = word.partition("=")
        if key.partition(".")[0] not in _VARIED or not values:
            raise UserError(
                "--vary",
                f"'{word}'",
                "engine.KEY=VALUE[,VALUE] or input.KEY=VALUE[,VALUE]",
                "other keys change what is learned; use the other flags for them",
            )
        combined = [[*row, f"{key}={value}"] for row in combined for value in values.split(",")]
    return combined


def joint_model(config: RunConfig) -> JointModel:
    """The recipe's model, drawn from its seed."""
    return recipe_model(config, CODES if config.mim.weight else 0)


def our_step(config: RunConfig, world: World, *, is_fed: bool = False) -> Step:
    """Collective: the step that `supmim-scale train` takes, on one fixed batch, or fed with the
    recipe's training set."""
    micro, accumulation = accumulation_steps(config, world.world_size)
    precision = resolve_precision(config.engine.precision, world.device)
    config = within_budget(config, world.world_size, precision)
    model = joint_model(config)
    attention = choose_attention(config, micro, precision, world)
    settings = engine_settings(config, micro, accumulation, precision, attention)
    engine = build_engine(model, settings, world)
    fixed, is_joint = fixed_batch(config, world, micro), config.mim.weight > 0
    held = Feed(config, world, micro, fixed.codes_BN) if is_fed else fixed

    def forward_backward() -> Tensor:
        batch = held.batch if isinstance(held, Feed) else held
        return engine.forward_backward(*batch.arguments(is_joint=is_joint)).loss.detach()

    return Step(
        module=model,
        forward_backward=forward_backward,
        apply=lambda: engine.apply(LR),
        flops=our_flops(config, micro),
        images=config.optim.global_batch,
        feed=held if isinstance(held, Feed) else None,
    )


def our_flops(config: RunConfig, micro_batch: int) -> StepFlops:
    """FLOPs of an image under the recipe's policy."""
    engine = config.engine
    shape = joint_shape(config, CODES, micro_batch)
    return step_flops(shape, engine.activation_checkpointing, engine.checkpoint_every_k)
