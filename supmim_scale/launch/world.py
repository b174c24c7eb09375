"""The ranks of a run, and what they say to each other."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed as dist

from supmim_scale.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process's place; `device` is where its model lives."""

    rank: int
    local_rank: int
    world_size: int
    device: torch.device
    launcher: str
    control: Any = None  # process group of the hosts, for words between them

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and prints."""
        return self.rank == 0

    def barrier(self) -> None:
        """Collective: wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Collective: the sum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values)
        return values

    def max(self, values: torch.Tensor) -> torch.Tensor:
        """Collective: the maximum over ranks, in place."""
        if self.world_size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    def any(self, flag: bool) -> bool:
        """Collective of the hosts: whether it is so on any rank; does not wait for devices."""
        if self.world_size == 1:
            return flag
        flags = torch.tensor([int(flag)])
        dist.all_reduce(flags, op=dist.ReduceOp.MAX, group=self.control)
        return bool(flags.item())

    def all(self, flag: bool) -> bool:
        """Collective of the hosts: whether it is so on every rank."""
        return not self.any(not flag)

    def gather(self, value: T) -> list[T]:
        """Collective of the hosts: every rank's value, in order of ranks."""
        values: list[Any] = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value, group=self.control)
        return values

    def broadcast(self, values: torch.Tensor, source: int) -> torch.Tensor:
        """Collective of the hosts: those of rank `source`, in place; `values` lie on the CPU."""
        if self.world_size > 1:
            dist.broadcast(values, source, group=self.control)
        return values

    def main_first(self, make: Callable[[], T]) -> T:
        """Collective of the hosts: run `make` on rank 0, then on one rank of each other node, then
        on the rest, which find the files of those before them.

        A `UserError` of one rank is raised on every rank, so that none waits for ever.
        """
        result, error = None, None
        turn = 0 if self.is_main else 1 if self.local_rank == 0 else 2
        for number in range(3):
            if number == turn:
                try:
                    result = make()
                except UserError as raised:
                    error = raised
            first = next((found for found in self.gather(error) if found), None)
            if first is not None:
                raise UserError(*first.args)
        return result  # type: ignore[return-value]
