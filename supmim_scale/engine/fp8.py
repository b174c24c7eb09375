"""fp8 matrix products of the transformer blocks, by torchao: the only importer of it."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from supmim_scale.errors import UserError

_MULTIPLE = 16  # of both sides of a weight, which torch's scaled product wants; tokens are padded
_FIRST_GPU = (8, 9)  # compute capability with fp8 tensor cores: Ada, then Hopper


def use_fp8_linears(stacks: Iterable[nn.Sequential], kind: str, device: torch.device) -> int:
    """Turn the blocks' linears into torchao's, scaled by tensor at every step; returns their
    number. Parameters and their names stay, and so does what is saved.

    `linears` needs a GPU that has fp8; `emulated` rounds to fp8 and multiplies in the working
    type, on any device and slowly, to see what training loses. Raises `UserError`.
    """
    require_fp8(kind, device)
    convert, config = _torchao(kind == "emulated")
    blocks = [block for stack in stacks for block in stack]
    for block in blocks:
        convert(block, config=config, module_filter_fn=_is_aligned)
    return sum(type(m).__name__ == "Float8Linear" for block in blocks for m in block.modules())


def _torchao(emulates: bool) -> tuple[Any, Any]:
    try:
        from torchao.float8 import Float8LinearConfig, convert_to_float8_training
    except ImportError as error:
        fix = "pip install 'supmim-scale[fp8]', or set engine.fp8=none"
        raise UserError("engine.fp8", str(error), "torchao", fix) from None
    return convert_to_float8_training, Float8LinearConfig(emulate=emulates, pad_inner_dim=True)


def require_fp8(kind: str, device: torch.device) -> None:
    """Raise `UserError` where torchao is missing, or `linears` are wanted of another device."""
    if kind == "none":
        return
    _torchao(emulates=True)
    if kind != "linears":
        return
    found = device.type
    if device.type == "cuda":
        found = torch.cuda.get_device_name(device)
        if torch.cuda.get_device_capability(device) >= _FIRST_GPU:
            return
    raise UserError(
        "engine.fp8",
        f"linears on {found}",
        "a GPU of compute capability 8.9 or above",
        "set engine.fp8=none, or emulated to see what it would lose",
    )


def _is_aligned(module: nn.Module, name: str) -> bool:
    sides = module.weight.shape if isinstance(module, nn.Linear) else [1]
    return not any(side % _MULTIPLE for side in sides)
