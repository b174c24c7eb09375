"""Transformer blocks that a step calls once for all its passes."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

Tokens = Tensor | tuple[Tensor, ...]
OnePass = Callable[[Tensor], Tensor]


def join_passes(blocks: Iterable[nn.Module]) -> None:
    """Let each block take the tokens of several passes, and give those of each, in one call.

    Under ZeRO-3 a module's parameters are gathered where it is called: a block called for the
    clean pass and, much later, for the masked one is gathered twice, forward and backward. What
    runs a single pass stays apart, and can be wrapped by `wrap_pass`.
    """
    for block in blocks:
        held: Any = block
        held.one_pass = block.forward
        held.forward = _each_pass(held)


def wrap_pass(block: nn.Module, wrapper: Callable[[OnePass], OnePass]) -> None:
    """Replace what a block of `join_passes` does with one pass; parameter names stay."""
    held: Any = block
    held.one_pass = wrapper(held.one_pass)


def run_blocks(blocks: Iterable[nn.Module], passes: list[Tensor]) -> list[Tensor]:
    """Tokens (B, T, D) of every pass after all blocks; passes of one shape go as one batch."""
    shapes = {tokens_BTD.shape[1:] for tokens_BTD in passes}
    if len(passes) > 1 and len(shapes) == 1:
        sizes = [len(tokens_BTD) for tokens_BTD in passes]
        return list(run_blocks(blocks, [torch.cat(passes)])[0].split(sizes))
    for block in blocks:
        done: Tokens = block(*passes)
        passes = list(done) if isinstance(done, tuple) else [done]
    return passes


def _each_pass(block: Any) -> Callable[..., Tokens]:
    def forward(*passes: Tensor) -> Tokens:
        done = tuple(block.one_pass(tokens_BTD) for tokens_BTD in passes)
        return done if len(done) > 1 else done[0]

    return forward
