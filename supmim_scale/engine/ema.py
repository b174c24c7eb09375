"""An exponential moving average of whatever tensors a rank owns: its shards, or everything."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


class ShardEma:
    """The average of `live` tensors, updated in place of their own shape, device and shard.

    Averaging shards needs no communication and survives ZeRO-3, where writes to gathered
    parameters are thrown away.
    """

    def __init__(self, live: Sequence[Tensor], decay: float) -> None:
        self._live, self._decay = list(live), decay
        self.average = [tensor.detach().clone() for tensor in live]

    @torch.no_grad()
    def update(self, applied_steps: int) -> None:
        """Fold in the live values; early on the decay is (1 + t) / (10 + t), as in TensorFlow."""
        decay = min(self._decay, (1 + applied_steps) / (10 + applied_steps))
        torch._foreach_lerp_(self.average, [t.detach() for t in self._live], 1 - decay)

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """The live tensors hold the average inside, their own values again after."""
        kept = [tensor.detach().clone() for tensor in self._live]
        torch._foreach_copy_(self._live, self.average)
        try:
            yield
        finally:
            torch._foreach_copy_(self._live, kept)

    @torch.no_grad()
    def take_over(self) -> None:
        """The live values become the average."""
        torch._foreach_copy_(self.average, [tensor.detach() for tensor in self._live])
