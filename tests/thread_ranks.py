"""Ranks as threads of this process: what they say to each other meets at a barrier."""

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch

from supmim_scale.launch.world import World


@dataclass(frozen=True)
class ThreadWorld(World):
    """A rank whose words go through a table that all of them share."""

    table: list[Any] = field(default_factory=list)
    meeting: threading.Barrier | None = None

    def gather(self, value):
        self.table[self.rank] = value
        self.meeting.wait(20)
        found = list(self.table)
        self.meeting.wait(20)
        return found

    def any(self, flag):
        return any(self.gather(flag))

    def broadcast(self, values, source):
        return values.copy_(self.gather(values.clone())[source])

    def sum(self, values):
        return values.copy_(torch.stack(self.gather(values.clone())).sum(0))


def on_ranks(count, work):
    """`work(world)` on every rank at once: what each returned, or the exception that it raised."""
    table, meeting = [None] * count, threading.Barrier(count)

    def run(rank):
        cpu = torch.device("cpu")
        try:
            return work(ThreadWorld(rank, rank, count, cpu, "threads", None, table, meeting))
        except Exception as error:
            return error

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))
