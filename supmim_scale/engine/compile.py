"""Per-block `torch.compile`."""

from collections.abc import Iterable

import torch
from torch import nn

from supmim_scale.models.blocks import wrap_pass

_SHAPES = 3  # of tokens that a block's code meets: two passes of the encoder, the decoder's


def compile_blocks(stacks: Iterable[nn.Sequential]) -> None:
    """Compile what each block does with one pass; to be called once checkpointing is in place.

    Blocks are alike, so that one compilation serves all that have the same rate of drop path (with
    drop path each has its own, and compiling takes as many times longer). A whole step would be
    compiled for minutes, and ZeRO's hooks, which stand around the blocks, would break it into
    pieces.
    """
    blocks = [block for stack in stacks for block in stack]
    limit = _SHAPES * len(blocks)
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # it would go on without compiling
    for block in blocks:
        wrap_pass(block, lambda one_pass: torch.compile(one_pass, dynamic=False))
