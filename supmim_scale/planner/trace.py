"""One forward and backward of the joint model, with its live bytes by phase and by block."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import RunConfig
from supmim_scale.engine.activation_checkpointing import (
    apply_activation_checkpointing,
    autocast_bf16,
)
from supmim_scale.engine.attention import attention_kernel
from supmim_scale.models.blocks import Tokens
from supmim_scale.models.encoder import geometry
from supmim_scale.models.joint import JointModel
from supmim_scale.models.masking import Masks, MaskSpec
from supmim_scale.planner.live import LiveBytes, is_logits_of, storages_bytes


@dataclass(frozen=True)
class Gradient:
    """The peak since the last parameter, and what is alive when this one is whole."""

    num_values: int
    peak: int
    live: int


@dataclass(frozen=True)
class Trace:
    """Bytes beyond parameters and inputs.

    `saved`: alive between forward and backward; `logits`: of these, of the class head's shape;
    `forward_peak`; `outer_peak`: backward before the encoder's blocks; `block_peaks`: backward of
    each block, in the order of execution; `done`: share of the encoder's blocks that backward has
    behind it after each. `outer`: gradients that become whole before the encoder's blocks, the
    last of no values for where these begin; `block_lives`: the most that is alive when one of a
    block's gradients is whole, or where the next block begins.
    """

    saved: int
    logits: int
    forward_peak: int
    outer_peak: int
    block_peaks: tuple[int, ...]
    done: tuple[float, ...]
    outer: tuple[Gradient, ...]
    block_lives: tuple[int, ...]

    @property
    def peak(self) -> int:
        """The largest of all."""
        return max(self.forward_peak, self.outer_peak, *self.block_peaks)

    def fullest_backward(self, late: float, outer_share: float) -> tuple[float, float]:
        """(bytes of the trace, bytes of `late`) when their sum is largest in backward.

        `late` fills while gradients become whole, with its `outer_share` before the blocks.
        """
        filled = [late * (outer_share + (1 - outer_share) * share) for share in self.done]
        moments = [
            (self.outer_peak, late * outer_share),
            *zip(self.block_peaks, filled, strict=True),
        ]
        return max(moments, key=sum)


@dataclass(frozen=True)
class Numerics:
    """How an engine holds a model.

    `autocast`: fp32 parameters, products in bf16 (the plain engine); `keeps_gradients`: they pile
    up in `.grad` during backward instead of going to a buffer that is counted elsewhere;
    `is_attention_plain`: scores are kept (engine.attention=math), which a fused kernel does not.
    """

    dtype: torch.dtype
    autocast: bool = False
    keeps_gradients: bool = False
    is_attention_plain: bool = False


def fake_trace(
    config: RunConfig, numerics: Numerics, policy: str, micro_batch: int, out_features: int
) -> Trace:
    """A trace under fake tensors: shapes and operations of the real model, no memory, no GPU."""
    mode = FakeTensorMode()
    model = meta_model(config, out_features).to(numerics.dtype)
    apply_activation_checkpointing(model.block_lists(), policy, config.engine.checkpoint_every_k)
    spec = mask_spec(config, geometry(model.encoder).grid)
    with mode:
        fill(model)
        arguments = fake_arguments(config, spec, micro_batch, out_features)
        return trace(model, arguments, numerics, policy)


def meta_model(config: RunConfig, out_features: int) -> JointModel:
    """The recipe's joint model on the meta device; torch's random state stays as it is."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        return recipe_model(config, out_features).train()


def fake_arguments(
    config: RunConfig, spec: MaskSpec, micro_batch: int, out_features: int
) -> tuple[Any, ...]:
    """Tensors of the shapes that `JointModel.forward` gets; of what kind says the mode around."""
    B, N, M, size = micro_batch, spec.num_patches, spec.num_predicted, config.model.image_size
    images_BCHW = torch.empty(B, 3, size, size)
    targets_BK = torch.empty(B, config.model.num_classes)
    if not config.mim.weight:
        return images_BCHW, targets_BK
    masks = Masks(
        mask_BN=torch.zeros(B, N, dtype=torch.bool),
        keep_BV=torch.zeros(B, spec.num_visible, dtype=torch.long),
        masked_BM=torch.zeros(B, M, dtype=torch.long),
        weight_BM=torch.empty(B, M),
    )
    if config.mim.target == "pixel":
        return images_BCHW, targets_BK, masks, torch.empty(B, N, out_features)
    return images_BCHW, targets_BK, masks, torch.zeros(B, N, dtype=torch.long)


def trace(model: JointModel, arguments: tuple[Any, ...], numerics: Numerics, policy: str) -> Trace:
    """Live bytes of one forward and backward, on real or fake tensors."""
    inputs = input_tensors(arguments)
    live = LiveBytes(is_logits_of(len(inputs[0]), model.encoder.num_classes))
    live.ignore([*model.parameters(), *model.buffers(), *inputs])
    phases = _Phases(live)
    casts = autocast_bf16("cpu", policy, enabled=numerics.autocast)
    kernel = attention_kernel("math" if numerics.is_attention_plain else "torch")
    with kernel, _gradients(model, numerics, phases.gradient), _marked(model, phases.block):
        with live, casts:
            output = model(*arguments)
        saved, logits, forward_peak = live.live, live.apart, live.restart_peak()
        with live:
            output.loss.backward()  # the engines, too, hold the whole output until backward is over
    depth = len(model.encoder.blocks)
    phases.end()
    outer, *blocks = phases.peaks
    done = tuple((place + 1) / depth for place in range(depth))
    lives = tuple(phases.lives[1:])
    return Trace(
        saved, logits, forward_peak, outer, tuple(blocks), done, tuple(phases.outer), lives
    )


class _Phases:
    """Peaks of backward: before the encoder's blocks, and of each of them."""

    def __init__(self, live: LiveBytes) -> None:
        self._live = live
        self.peaks, self.lives = [0], [0]
        self.outer: list[Gradient] = []

    def block(self) -> None:
        """Backward enters a block of the encoder."""
        self._note(0)
        self.peaks.append(0)
        self.lives.append(0)

    def gradient(self, param: Tensor) -> None:
        """A gradient is whole: it is thrown away."""
        self._note(param.numel())
        param.grad = None
        self._live.restart_peak()

    def end(self) -> None:
        """Backward is over."""
        self.peaks[-1] = max(self.peaks[-1], self._live.restart_peak())

    def _note(self, num_values: int) -> None:
        live, peak = self._live.live, self._live.restart_peak()
        self.peaks[-1] = max(self.peaks[-1], peak)
        self.lives[-1] = max(self.lives[-1], live)
        if len(self.peaks) == 1:
            self.outer.append(Gradient(num_values, peak, live))


def input_tensors(arguments: tuple[Any, ...]) -> list[Tensor]:
    """Every tensor of the model's arguments, those of the masks too."""
    tensors: list[Tensor] = []
    for argument in arguments:
        parts = vars(argument).values() if isinstance(argument, Masks) else (argument,)
        tensors.extend(parts)
    return tensors


def input_bytes(config: RunConfig, spec: MaskSpec, micro_batch: int, out_features: int) -> int:
    """Bytes of a micro-batch's images, targets and masks."""
    with FakeTensorMode():
        arguments = fake_arguments(config, spec, micro_batch, out_features)
        return storages_bytes(input_tensors(arguments))


def fill(model: nn.Module) -> None:
    """Parameters and buffers of the meta device become tensors of the mode around."""
    for module in model.modules():
        for name, param in module.named_parameters(recurse=False):
            filled = torch.empty(param.shape, dtype=param.dtype, device="cpu")
            setattr(module, name, nn.Parameter(filled))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty(buffer.shape, dtype=buffer.dtype, device="cpu"))


@contextmanager
def _marked(model: JointModel, mark: Callable[[], None]) -> Iterator[None]:
    """`mark` is called where backward enters a block of the encoder."""

    def after_forward(_: nn.Module, __: Any, output: Tokens) -> None:
        last = output[-1] if isinstance(output, tuple) else output
        last.register_hook(lambda _grad: mark())

    handles = [block.register_forward_hook(after_forward) for block in model.encoder.blocks]
    yield
    for handle in handles:
        handle.remove()


@contextmanager
def _gradients(
    model: JointModel, numerics: Numerics, drop: Callable[[Tensor], None]
) -> Iterator[None]:
    """`drop` is called with a parameter whose gradient is whole, unless it is kept."""
    params = [] if numerics.keeps_gradients else list(model.parameters())
    handles = [param.register_post_accumulate_grad_hook(drop) for param in params]
    yield
    for handle in handles:
        handle.remove()
