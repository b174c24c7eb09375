"""One way to run a recipe on a cluster, and everything that is computed once for the recipe."""

from dataclasses import dataclass

import torch

from supmim_scale.build.model import mask_spec, target_features
from supmim_scale.config import RunConfig
from supmim_scale.config.checks import accumulation_steps
from supmim_scale.errors import UserError
from supmim_scale.models.encoder import geometry
from supmim_scale.planner.activations import ActivationModel, deep_trace
from supmim_scale.planner.memory import Memory, memory_of
from supmim_scale.planner.sharding import ModelSize, Sharding, model_size, sharding_of
from supmim_scale.planner.trace import Numerics, Trace, input_bytes, meta_model

# ImageNet-like JPEGs are 500x375 in our synthetic sets too (`data synth --size 500x375`).
_DECODED_BYTES = 3 * 500 * 375
_PIXEL_BYTES = 3 * 4


@dataclass(frozen=True)
class Setting:
    """A recipe on a number of ranks: batches, sharding and a rank's memory."""

    config: RunConfig
    micro_batch: int
    accumulation: int
    sharding: Sharding
    memory: Memory

    @property
    def name(self) -> str:
        """For people."""
        stage = self.config.engine.ds_config if self.sharding.stage else "plain"
        policy = self.config.engine.activation_checkpointing
        return f"{stage}, {policy}, {self.micro_batch} x {self.accumulation}"


class RecipeMemory:
    """A recipe on the meta device; traces of its activations are made once a policy and batch."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.out_features = target_features(config)
        model = meta_model(config, self.out_features)
        self.size: ModelSize = model_size(model)
        self.precision = _precision(config)
        spec = mask_spec(config, geometry(model.encoder).grid)
        self.inputs_per_image = input_bytes(config, spec, 1, self.out_features)
        self.depth = len(model.encoder.blocks)
        self._traces: dict[tuple[str, int, Numerics], dict[int, Trace]] = {}

    def prepare(self, config: RunConfig, micro_batches: set[int]) -> None:
        """Trace the smallest and the largest micro-batch, for all between them."""
        numerics = self.numerics(config, accumulation=2)
        for micro_batch in (min(micro_batches), max(micro_batches)):
            self._trace(config, numerics, micro_batch)

    def setting(self, config: RunConfig, ranks: int, *, pool: bool = True) -> Setting:
        """How `config`, which differs in its engine section alone, runs on `ranks` ranks.

        Raises `UserError` where its batches do not divide.
        """
        micro_batch, accumulation = accumulation_steps(config, ranks)
        sharding = sharding_of(config, self.size, micro_batch, accumulation, self.precision)
        if sharding.stage is None and ranks > 1:
            raise UserError(
                "engine.kind", f"plain on {ranks} GPUs", "one", "set engine.kind=deepspeed"
            )
        numerics = self.numerics(config, accumulation)
        activations = self.activations(config, micro_batch, accumulation)
        memory = memory_of(
            self.size,
            sharding,
            ranks,
            activations,
            accumulation,
            has_ema=config.optim.ema_decay > 0,
            inputs=float(micro_batch * self.inputs_per_image),
            dali_pool=pool_bytes(config, micro_batch) if pool else 0.0,
            are_gradients_traced=numerics.keeps_gradients,
        )
        return Setting(config, micro_batch, accumulation, sharding, memory)

    def numerics(self, config: RunConfig, accumulation: int) -> Numerics:
        """How the engine holds the model: DeepSpeed in the working type, plain under autocast."""
        is_bf16, is_plain = self.precision == "bf16", config.engine.kind == "plain"
        dtype = torch.bfloat16 if is_bf16 and not is_plain else torch.float32
        return Numerics(
            dtype,
            autocast=is_bf16 and is_plain,
            keeps_gradients=is_plain and accumulation == 1,
            is_attention_plain=config.engine.attention == "math",
        )

    def activations(self, config: RunConfig, micro_batch: int, accumulation: int) -> Trace:
        """What `config`'s policy leaves alive of a micro-batch."""
        numerics = self.numerics(config, accumulation)
        known = self._traces.get(_trace_key(config, numerics), {})
        if not known or not min(known) <= micro_batch <= max(known):
            known = self._trace(config, numerics, micro_batch)
        return ActivationModel(known).at(micro_batch)

    def _trace(self, config: RunConfig, numerics: Numerics, micro_batch: int) -> dict[int, Trace]:
        known = self._traces.setdefault(_trace_key(config, numerics), {})
        policy = config.engine.activation_checkpointing
        if micro_batch not in known:
            known[micro_batch] = deep_trace(
                config, self.depth, numerics, policy, micro_batch, self.out_features
            )
        return known


def _trace_key(config: RunConfig, numerics: Numerics) -> tuple[str, int, Numerics]:
    engine = config.engine
    return engine.activation_checkpointing, engine.checkpoint_every_k, numerics


def pool_bytes(config: RunConfig, micro_batch: int) -> float:
    """DALI's memory on the GPU, an assumption: `input.prefetch` + 1 batches of views and of
    decoded photographs of 500x375; none where the CPU decodes but the views in flight."""
    views = micro_batch * config.model.image_size**2 * _PIXEL_BYTES
    decoded = 0 if config.input.decoder == "cpu" else micro_batch * _DECODED_BYTES
    return float((config.input.prefetch + 1) * (views + decoded))


def _precision(config: RunConfig) -> str:
    return "bf16" if config.engine.precision == "auto" else config.engine.precision
