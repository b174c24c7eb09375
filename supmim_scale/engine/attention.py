"""Which kernel computes attention: torch's choice, a named one, or the fastest by measurement."""

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from supmim_scale.errors import UserError

KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
_ROUNDS = 5

AttentionShape = tuple[int, int, int, int, int]  # images, heads, queries, keys, width of a head


def attention_kernel(name: str) -> AbstractContextManager[None]:
    """Inside, attention runs in the named kernel alone, recomputation in backward included;
    `torch`: in the one that torch chooses."""
    return nullcontext() if name == "torch" else sdpa_kernel(KERNELS[name])


def resolve_attention(
    wanted: str, shapes: Iterable[AttentionShape], dtype: torch.dtype, device: torch.device
) -> tuple[str, dict[str, float]]:
    """(kernel, seconds of forward and backward by kernel) for the recipe's word.

    `fastest` times every kernel that can run all of the shapes; waits for the device. Raises
    `UserError` where the named one, or every one, cannot.
    """
    if wanted == "torch":
        return wanted, {}
    shapes = list(shapes)
    if wanted in KERNELS:
        try:
            return wanted, {wanted: _seconds(wanted, shapes, dtype, device)}
        except RuntimeError as error:
            raise UserError(
                "engine.attention",
                f"{wanted}, which cannot run {shapes} in {dtype} on {device.type}: {error}",
                "a kernel of this device",
                "set engine.attention=fastest or torch",
            ) from None
    seconds = {}
    for name in KERNELS:
        try:
            seconds[name] = _seconds(name, shapes, dtype, device)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # torch has no such kernel for the device, type or width of a head
            continue
    if not seconds:
        raise UserError(
            "engine.attention",
            f"no kernel that runs {shapes} in {dtype} on {device.type}",
            "one of " + ", ".join(KERNELS),
            "set engine.attention=torch",
        )
    return min(seconds, key=lambda name: seconds[name]), seconds


def _seconds(
    name: str, shapes: list[AttentionShape], dtype: torch.dtype, device: torch.device
) -> float:
    """The fastest of some rounds of forward and backward; the first, which warms up, not."""
    inputs = [_inputs(shape, dtype, device) for shape in shapes]
    times = []
    for _ in range(_ROUNDS + 1):
        began = _now(device)
        for q, k, v in inputs:
            with attention_kernel(name):
                out = scaled_dot_product_attention(q, k, v)
                torch.autograd.grad(out, (q, k, v), out.detach())
        times.append(_now(device) - began)
    return min(times[1:])


def _inputs(shape: AttentionShape, dtype: torch.dtype, device: torch.device) -> list[Tensor]:
    """Queries, keys and values (B, A, T, K) as strided as a block's: a product (B, T, 3, A, K)
    taken apart."""
    B, A, queries, keys, K = shape
    qkv_3BATK = torch.randn(B, keys, 3, A, K, dtype=dtype, device=device).permute(2, 0, 3, 1, 4)
    q_BAQK, k_BATK, v_BATK = qkv_3BATK.unbind(0)
    return [x.detach().requires_grad_() for x in (q_BAQK[:, :, :queries], k_BATK, v_BATK)]


def _now(device: torch.device) -> float:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
