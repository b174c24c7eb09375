"""What ZeRO-2 holds while gradients become whole: its buckets, its shard, its temporaries.

DeepSpeed 0.19.8, runtime/zero/stage_1_and_2.py. A gradient is copied into the bucket
(`reduce_independent_p_g_buckets_and_remove_grads`). Where the next one does not fit, the bucket is
reduced: its parts are flattened into a copy (`allreduce_bucket`), and in bf16 what is this rank's
is cast to fp32, a parameter at a time (`_add_to_grad_partition_buffer`). A gradient larger than
the bucket stays where it is until the next one comes (`extra_large_param_to_reduce`), and its
parts are flattened only where several fit into a bucket (`allreduce_and_scatter`).

In bf16 the rank's shard is one fp32 buffer (`_build_compact_grad_partition_buffer`). In fp32 there
is none: a parameter of which the rank owns a part is kept whole (`copy_grads_in_partition`).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from supmim_scale.planner.sharding import ModelSize, Sharding
from supmim_scale.planner.states import BF16, FP32
from supmim_scale.planner.trace import Trace

_NORM = 8  # the norm of a gradient is taken in fp64 (`get_grad_norm_direct`)


@dataclass(frozen=True)
class Moment:
    """Bytes of a trace, and of gradients, buffers and gathered parameters beside it."""

    traced: float
    gradients: float
    buckets: float
    gathered: float = 0.0

    @property
    def total(self) -> float:
        """All of them."""
        return self.traced + self.gradients + self.buckets + self.gathered


@dataclass(frozen=True)
class Reduction:
    """Stage 2's reduction on the fullest of `ranks` ranks; parameters lie in the shards in their
    order in the model, as one group (no decay and layer-wise rates make several of them)."""

    size: ModelSize
    sharding: Sharding
    ranks: int

    def fullest(self, trace: Trace, accumulation: int) -> Moment:
        """The fullest moment of forward and backward."""
        return max(self._moments(trace, accumulation), key=lambda moment: moment.total)

    def step_bytes(self) -> float:
        """Beyond the states, while weights are updated: the fp64 copy that a norm is taken of; in
        fp32 the whole parameters from which the shard is flattened, too."""
        shard, norm = FP32 * self._shard, float(_NORM * max(map(self._owned, self._places())))
        return norm if self._is_bf16 else self._kept() + max(0.0, norm - shard)

    def _moments(self, trace: Trace, accumulation: int) -> Iterator[Moment]:
        bucket, working = self.sharding.reduce_bucket, self.sharding.working
        standing = self.sharding.bucket_bytes
        whole = FP32 * self._shard if self._is_bf16 else self._kept()
        held = whole if accumulation > 1 else 0.0
        after = whole if self._is_bf16 else held + whole
        yield Moment(trace.forward_peak, held, 0.0)
        filled = waiting = 0  # elements of the bucket; of a gradient larger than it
        buffers = 0.0
        for grad in trace.outer:
            yield Moment(grad.peak, held + working * waiting, buffers)
            buffers = standing
            if filled and grad.num_values and filled + grad.num_values > bucket:
                held, copies = after, self._temporaries(filled)
                yield Moment(grad.live, held + working * waiting, buffers + copies)
                filled = waiting = 0
            filled += grad.num_values
            waiting = grad.num_values if grad.num_values > bucket else waiting
        blocks = zip(trace.block_peaks, trace.block_lives, trace.done, strict=True)
        outer = filled  # of the bucket that the first block finds
        for peak, live, done in blocks:
            if waiting or filled + done * self.size.encoder_params > bucket:
                held, largest = after, max(outer, self.size.block_params)
                copies = self._temporaries(waiting or bucket, largest)
                outer = 0
                yield Moment(live, held + working * waiting, buffers + copies)
            yield Moment(peak, held + working * waiting, buffers)
            waiting = 0
        last = self._temporaries(min(bucket, self.size.num_params))
        yield Moment(trace.block_lives[-1], after, standing + last)

    def _temporaries(self, num_values: int, largest: int | None = None) -> float:
        """Copies while the bucket, or one gradient larger than it, is reduced; `largest`: no
        parameter in the bucket has more values."""
        bucket, flat = self.sharding.reduce_bucket, float(num_values)
        most = num_values if largest is None else min(num_values, largest)
        places = [place for place in self._places() if place[1] <= most]
        if num_values > bucket:
            places = [place for place in self._places() if place[1] == num_values]
            flat = _flattened(self._parts(places[0]), bucket)
        owned = max(map(self._owned, places), default=0.0)
        return BF16 * flat + FP32 * owned if self._is_bf16 else FP32 * flat

    @property
    def _is_bf16(self) -> bool:
        return self.sharding.precision == "bf16"

    @property
    def _shard(self) -> float:
        return self.size.num_params / self.ranks

    def _places(self) -> Iterator[tuple[int, int]]:
        """(values before it, own values) of every parameter."""
        start = 0
        for num_values in self.size.sizes:
            yield start, num_values
            start += num_values

    def _parts(self, place: tuple[int, int]) -> list[float]:
        """A parameter's values by the rank that owns them."""
        start, end, shard = place[0], sum(place), self._shard
        ranks = range(int(start // shard), min(self.ranks, int(-(-end // shard))))
        return [min(end, (rank + 1) * shard) - max(start, rank * shard) for rank in ranks]

    def _owned(self, place: tuple[int, int]) -> float:
        return max(self._parts(place))

    def _kept(self) -> float:
        """Bytes of the parameters of which the fullest rank owns a part, whole, in fp32."""
        kept = [0.0] * self.ranks
        for place in self._places():
            first = int(place[0] // self._shard)
            for rank in range(first, first + len(self._parts(place))):
                kept[rank] += place[1]
        return FP32 * max(kept)


def _flattened(parts: list[float], bucket: int) -> float:
    """The largest copy of neighbouring parts that are flattened together, until they exceed the
    bucket; one alone is not copied."""
    largest, together = 0.0, list[float]()
    for part in parts:
        together.append(part)
        if len(together) > 1:
            largest = max(largest, sum(together))
        if sum(together) > bucket:
            together = []
    return largest
