"""Activations of a recipe for any micro-batch, from traces of a few blocks.

Blocks are alike, so that what lives at a given place of the step is linear in the depth and in
the batch: four short traces give a deep model's bytes in a second. Tests hold them equal to a
trace of the whole model.
"""

from dataclasses import dataclass, replace

from supmim_scale.config import RunConfig
from supmim_scale.planner.trace import Gradient, Numerics, Trace, fake_trace


@dataclass(frozen=True)
class ActivationModel:
    """Traces of the recipe's depth at some micro-batches."""

    traces: dict[int, Trace]

    def at(self, micro_batch: int) -> Trace:
        """Exact at the traced batches; between them the peak is at most a little too high, since
        it is the largest of several straight lines."""
        low = max(batch for batch in self.traces if batch <= micro_batch)
        high = min(batch for batch in self.traces if batch >= micro_batch)
        share = (micro_batch - low) / (high - low) if high > low else 0.0
        return _between(self.traces[low], self.traces[high], share)


def deep_trace(
    config: RunConfig,
    depth: int,
    numerics: Numerics,
    policy: str,
    micro_batch: int,
    out_features: int,
) -> Trace:
    """The trace of the recipe's `depth` blocks, from two shallow ones where that is shorter."""
    if policy == "first_k":  # no pattern to extend
        return fake_trace(config, numerics, policy, micro_batch, out_features)
    period = config.engine.checkpoint_every_k if policy == "every_k" else 1
    # As deep in the pattern as the whole, with a whole period at either end and a block between.
    shallow = 2 * period + 1 + (depth - 2 * period - 1) % period
    if 2 * shallow + period >= depth:
        return fake_trace(config, numerics, policy, micro_batch, out_features)
    first, second = (
        fake_trace(_of_depth(config, d), numerics, policy, micro_batch, out_features)
        for d in (shallow, shallow + period)
    )
    return _extended(first, second, period, depth)


def _of_depth(config: RunConfig, depth: int) -> RunConfig:
    return replace(config, model=replace(config.model, depth=depth))


def _extended(first: Trace, second: Trace, period: int, deep: int) -> Trace:
    """The trace of `deep` blocks; `second` is one period deeper than `first`.

    Blocks near the ends lie as those of the traces; between them the bytes run straight.
    """
    depth = len(first.done)
    half, periods = depth // 2, (deep - depth) / period

    def blocks(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
        ends = _lines(a, b[:half] + b[len(b) - depth + half :], periods)
        return _filled(ends[:half], ends[half:], period, deep)

    return Trace(
        saved=_line(first.saved, second.saved, periods),
        logits=_line(first.logits, second.logits, periods),
        forward_peak=_line(first.forward_peak, second.forward_peak, periods),
        outer_peak=_line(first.outer_peak, second.outer_peak, periods),
        block_peaks=blocks(first.block_peaks, second.block_peaks),
        done=tuple((place + 1) / deep for place in range(deep)),
        outer=_gradients(first.outer, second.outer, periods),
        block_lives=blocks(first.block_lives, second.block_lives),
    )


def _filled(
    early: tuple[int, ...], late: tuple[int, ...], period: int, deep: int
) -> tuple[int, ...]:
    """Values of `deep` blocks from those at both ends; each between them lies on the line through
    its likes, a whole number of periods away, in the period next to it at either end."""
    begin = deep - len(late)
    middle = []
    for place in range(len(early), begin):
        before = len(early) - period + (place - len(early)) % period
        after = begin + (place - begin) % period
        share = (place - before) / (after - before)
        middle.append(_line(early[before], late[after - begin], share))
    return (*early, *middle, *late)


def _between(low: Trace, high: Trace, share: float) -> Trace:
    return Trace(
        saved=_line(low.saved, high.saved, share),
        logits=_line(low.logits, high.logits, share),
        forward_peak=_line(low.forward_peak, high.forward_peak, share),
        outer_peak=_line(low.outer_peak, high.outer_peak, share),
        block_peaks=_lines(low.block_peaks, high.block_peaks, share),
        done=low.done,
        outer=_gradients(low.outer, high.outer, share),
        block_lives=_lines(low.block_lives, high.block_lives, share),
    )


def _gradients(
    first: tuple[Gradient, ...], second: tuple[Gradient, ...], share: float
) -> tuple[Gradient, ...]:
    return tuple(
        Gradient(a.num_values, _line(a.peak, b.peak, share), _line(a.live, b.live, share))
        for a, b in zip(first, second, strict=True)
    )


def _lines(first: tuple[int, ...], second: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(_line(a, b, share) for a, b in zip(first, second, strict=True))


def _line(first: float, second: float, share: float) -> int:
    return round(first + (second - first) * share)
