"""Training state in pieces: what a rank owns of every parameter, as runs of its flattened values.

A piece says where it begins, so that any number of ranks under any ZeRO stage can be put
together from the pieces of any other.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

WEIGHT, EMA = "weight", "ema"
MOMENTS = ("exp_avg", "exp_avg_sq")  # AdamW's, by the names of its state


@dataclass(frozen=True)
class Piece:
    """Values `start` to `start + len(values)` of a flattened parameter, fp32 on the CPU.

    `kind` is the master weight, one of AdamW's moments, or the weight's moving average.
    """

    name: str
    kind: str
    start: int
    values: Tensor


def copied(values: Tensor) -> Tensor:
    """Waits: the values flattened, in fp32, in memory of the host's own."""
    return torch.empty(values.numel()).copy_(values.detach().view(-1))


# Values of (name, kind, start, count), whichever pieces they lie in.
ReadValues = Callable[[str, str, int, int], Tensor]


@dataclass(frozen=True)
class Counters:
    """Steps that an engine has counted; `adam_steps` is the optimizer's own, of its bias terms."""

    applied_steps: int
    skipped_steps: int
    adam_steps: float
