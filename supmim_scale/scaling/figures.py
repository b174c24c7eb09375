"""The figures of an analysis: loss against compute, iso-FLOP curves, sizes, residuals, errors."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from supmim_scale.errors import UserError
from supmim_scale.files.progress import progress
from supmim_scale.scaling.analysis import Analysis
from supmim_scale.scaling.arms import Gap
from supmim_scale.scaling.budget import frontier, frontier_band
from supmim_scale.scaling.laws import Array
from supmim_scale.scaling.points import Points
from supmim_scale.scaling.style import (
    COLOURS,
    GREY,
    MARKERS,
    house_style,
    log_axis,
    save,
    tick_text,
    ticks,
)

FLOPS = "training compute, FLOPs"
_TEX = {
    "power": r"$A\,C^{-\alpha}$",
    "power_floor": r"$A\,C^{-\alpha} + E$",
    "saturating": r"$a\,(C + d)^{-b} + c$",
    "parametric": r"$E + A\,N^{-\alpha} + B\,D^{-\beta}$",
    "broken": r"$a_0 + b\,C^{-c_0}\,(1 + (C/d_1)^{1/f_1})^{-c_1 f_1}$",
}
_BEYOND = 10.0  # how far a law is drawn beyond the most expensive point


def plot_figures(
    analyses: Sequence[Analysis], gaps: Sequence[Gap], folder: Path
) -> dict[str, Path]:
    """Write every figure that the columns allow; captions and the SVGs' paths."""
    jobs: list[tuple[str, str, Callable[[], Figure | None]]] = []
    for analysis in analyses:
        arm = f"{analysis.arm}_" if len(analyses) > 1 else ""
        of = f"{analysis.arm}: " if len(analyses) > 1 else ""
        jobs += [(arm + name, of + text, partial(draw, analysis)) for name, text, draw in _FIGURES]
    for gap in gaps:
        caption = f"{gap.other} against {gap.baseline}"
        jobs.append((f"gap_{gap.other}", caption, partial(gap_figure, analyses, gap)))
    made = {}
    with house_style(), progress("figures", len(jobs), "figure") as bar:
        for name, caption, make in jobs:
            figure = make()
            if figure is not None:
                made[caption] = save(figure, folder, re.sub(r"\W+", "_", name))
            bar.update()
    return made


def figure_named(name: str, analysis: Analysis) -> Figure:
    """One of an analysis's figures. Raises `UserError` for another name, or where the table lacks
    what it shows."""
    makers = {own: make for own, _, make in _FIGURES}
    if name not in makers:
        raise UserError("figure", f"'{name}'", f"one of {', '.join(makers)}", "choose one")
    with house_style():
        figure = makers[name](analysis)
    if figure is None:
        raise UserError(
            "figure", f"nothing to show of {name}", "a table with its columns", "another"
        )
    return figure


def compute_figure(analysis: Analysis) -> Figure | None:
    """The metric against compute, with the law's frontier and its band, ten times beyond."""
    points = analysis.points
    if not len(points.compute):
        return None
    figure = Figure()
    axes = figure.subplots()
    _points_by_size(axes, analysis)
    _law_and_band(axes, analysis, COLOURS[1], "compute-optimal law")
    costliest = points.compute.max()
    axes.axvline(costliest, color=GREY, linewidth=0.8, linestyle=":")
    axes.annotate(
        "most expensive run",
        (costliest, 1),
        xycoords=("data", "axes fraction"),
        fontsize=8,
        color=GREY,
        xytext=(3, -9),
        textcoords="offset points",
    )
    spread = np.append(points.compute, costliest * _BEYOND)
    lowest = frontier(analysis.fit, spread, analysis.factor).min()
    log_axis(axes, "x", spread)
    log_axis(axes, "y", np.append(points.metric, lowest), unit="plain")
    axes.set(xlabel=FLOPS, ylabel=points.metric_name, title=_TEX[analysis.fit.law.name])
    axes.legend()
    return figure


def _points_by_size(axes: Axes, analysis: Analysis) -> None:
    points = analysis.points
    if not len(points.params):
        axes.plot(points.compute, points.metric, "o", color=COLOURS[0], alpha=0.7, label="runs")
        return
    dots = axes.scatter(
        points.compute, points.metric, c=np.log10(points.params), s=22, cmap="cividis", label="runs"
    )
    bar = axes.figure.colorbar(dots, ax=axes, pad=0.01)
    low, high = np.log10(points.params.min()), np.log10(points.params.max())
    marks = ticks(10**low, 10**high)
    bar.set_ticks([float(np.log10(mark)) for mark in marks])
    bar.set_ticklabels([tick_text(mark, "si") for mark in marks])
    bar.set_label("parameters")


def _law_and_band(axes: Axes, analysis: Analysis, colour: str, label: str) -> None:
    compute = analysis.points.compute
    grid = np.geomspace(compute.min(), compute.max() * _BEYOND, 80)
    axes.plot(grid, frontier(analysis.fit, grid, analysis.factor), color=colour, label=label)
    if analysis.replicates:
        band = frontier_band(analysis.replicates, grid, analysis.factor)
        axes.fill_between(grid, *band, color=colour, alpha=0.2, linewidth=0, label="90 % interval")


def iso_flop_figure(analysis: Analysis) -> Figure | None:
    """The metric against size at every budget, with parabolas and their minima."""
    found = [a for a in analysis.allocations if a.approach == 2]
    if not found:
        return None
    points, rungs = analysis.points, found[0].rungs
    figure = Figure()
    axes = figure.subplots()
    shades = np.linspace(0.05, 0.85, len(rungs))
    for i, (rung, shade) in enumerate(zip(rungs, shades, strict=True)):
        members = list(rung.members)
        colour = _cividis(shade)
        n = points.params[members]
        axes.plot(
            n,
            points.metric[members],
            MARKERS[i % len(MARKERS)],
            color=colour,
            markersize=4,
            label=f"{rung.compute:.2g}",
        )
        grid = np.geomspace(n.min(), n.max(), 60)
        axes.plot(grid, np.polyval(rung.parabola or (), np.log(grid)), color=colour, linewidth=1.2)
        axes.plot(
            rung.params,
            rung.metric,
            "*",
            color=COLOURS[1],
            markersize=11,
            zorder=3,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    axes.plot([], [], "*", color=COLOURS[1], markersize=9, label="minimum")
    members = [i for rung in rungs for i in rung.members]
    log_axis(axes, "x", points.params[members], unit="si")
    log_axis(axes, "y", points.metric[members], unit="plain")
    axes.set(xlabel="parameters", ylabel=points.metric_name, title="runs of equal compute")
    axes.legend(title="FLOPs", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _cividis(share: float) -> tuple[float, ...]:
    return tuple(colormaps["cividis"](share))


def optimum_figure(analysis: Analysis) -> Figure | None:
    """Compute-optimal sizes and samples against compute, an approach a colour."""
    if not analysis.allocations:
        return None
    points = analysis.points
    grid = np.geomspace(points.compute.min(), points.compute.max() * _BEYOND, 60)
    figure = Figure(figsize=(6.4, 7.2))
    for axes, which in zip(figure.subplots(2, 1), (0, 1), strict=True):
        drawn = []
        for i, allocation in enumerate(analysis.allocations):
            curve = allocation.curve(grid)[which]
            label = f"approach {allocation.approach}: {'ab'[which]} = "
            label += f"{allocation.exponents[which]:.2f}"
            axes.plot(grid, curve, color=COLOURS[i], label=label)
            ends = [allocation.size_intervals(c) for c in grid]
            if ends[0]:
                low, high = np.array([pair[which] for pair in ends if pair]).T
                axes.fill_between(grid, low, high, color=COLOURS[i], alpha=0.15, linewidth=0)
            at = [(r.compute, (r.params, r.data)[which]) for r in allocation.rungs]
            if at:
                axes.plot(*np.array(at).T, MARKERS[i], color=COLOURS[i], markersize=4)
            drawn.append(curve)
        log_axis(axes, "x", grid)
        log_axis(axes, "y", np.concatenate(drawn), unit="si")
        what = ("parameters", "samples or tokens")[which]
        axes.set(xlabel=FLOPS, ylabel=f"compute-optimal {what}")
        axes.legend()
    return figure


def residual_figure(analysis: Analysis) -> Figure:
    """Measured over predicted, less one, against what the points cost."""
    fit, points = analysis.fit, analysis.points
    x = _cost(points)
    figure = Figure()
    axes = figure.subplots()
    percent = 100 * np.expm1(fit.residuals)
    axes.axhspan(
        -200 * fit.sigma,
        200 * fit.sigma,
        color=COLOURS[5],
        alpha=0.2,
        linewidth=0,
        label="two standard deviations",
    )
    axes.axhline(0, color=GREY, linewidth=0.8)
    axes.plot(x, percent, "o", color=COLOURS[0], alpha=0.7, markersize=4, label="runs")
    log_axis(axes, "x", x)
    axes.set(
        xlabel=_cost_label(points),
        ylabel=f"{points.metric_name}: measured over law, %",
        title=f"residuals of {_TEX[fit.law.name]}",
    )
    axes.legend()
    return figure


def extrapolation_figure(analysis: Analysis) -> Figure | None:
    """Errors of every law on the held-out points, with its fit on the cheap ones in pale."""
    if not analysis.held:
        return None
    figure = Figure()
    axes = figure.subplots()
    cheap, held_out = analysis.held[0].fit.points, analysis.held[0].held_out
    axes.axhline(0, color=GREY, linewidth=0.8)
    for i, held in enumerate(analysis.held):
        fitted = 100 * np.expm1(-held.fit.residuals)
        axes.plot(_cost(cheap), fitted, MARKERS[i], color=COLOURS[i], markersize=3, alpha=0.25)
        axes.plot(
            _cost(held_out),
            100 * held.errors,
            MARKERS[i],
            color=COLOURS[i],
            alpha=0.9,
            label=f"{held.fit.law.name}: {held.rms:.2%}",
        )
    edge = float(np.sqrt(_cost(cheap).max() * _cost(held_out).min()))
    axes.axvline(edge, color=GREY, linestyle=":", linewidth=0.8)
    axes.annotate(
        "predicted",
        (edge, 0),
        xycoords=("data", "axes fraction"),
        fontsize=8,
        color=GREY,
        xytext=(3, 4),
        textcoords="offset points",
    )
    axes.annotate(
        "fitted",
        (edge, 0),
        xycoords=("data", "axes fraction"),
        fontsize=8,
        ha="right",
        color=GREY,
        xytext=(-3, 4),
        textcoords="offset points",
    )
    worst = 100 * max(float(np.abs(held.errors).max()) for held in analysis.held)
    axes.set_ylim(-1.5 * worst, 1.5 * worst)
    log_axis(axes, "x", _cost(analysis.points))
    axes.set(
        xlabel=_cost_label(held_out),
        ylabel=f"{held_out.metric_name}: predicted over measured, %",
        title=f"fitted on {len(cheap)} runs, tested on the {len(held_out)} most expensive",
    )
    axes.legend(title="root mean square")
    return figure


def _cost(points: Points) -> Array:
    return points.compute if len(points.compute) else points.params * points.data


def _cost_label(points: Points) -> str:
    return FLOPS if len(points.compute) else "parameters x samples"


def running_figure(analysis: Analysis) -> Figure | None:
    """How the runs ran: the share of time that waited for input, and MFU where it is known."""
    points = analysis.points
    found = [
        (name, values)
        for name, values in (("data wait", points.data_wait), ("MFU", points.mfu))
        if len(values)
    ]
    if not found:
        return None
    figure = Figure(figsize=(6.4, 2.8 * len(found)))
    for axes, (name, values) in zip(
        figure.subplots(len(found), squeeze=False).flat, found, strict=True
    ):
        axes.plot(_cost(points), 100 * values, "o", color=COLOURS[0], alpha=0.7)
        log_axis(axes, "x", _cost(points))
        axes.set(xlabel=_cost_label(points), ylabel=f"{name}, %", ylim=(0, None))
    return figure


def gap_figure(analyses: Sequence[Analysis], gap: Gap) -> Figure:
    """Both arms with their bands, and the gap below them."""
    figure = Figure(figsize=(6.4, 5.6))
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    pair = {a.arm: a for a in analyses if a.arm in (gap.baseline, gap.other)}
    for i, name in enumerate((gap.baseline, gap.other)):
        analysis = pair[name]
        points = analysis.points
        upper.plot(points.compute, points.metric, MARKERS[i], color=COLOURS[i], alpha=0.7)
        _law_and_band(upper, analysis, COLOURS[i], name)
    compute = np.concatenate([a.points.compute for a in pair.values()])
    metric = np.concatenate([a.points.metric for a in pair.values()])
    log_axis(upper, "y", metric, unit="plain")
    upper.set(ylabel=analyses[0].points.metric_name, title=f"{gap.other} against {gap.baseline}")
    handles, labels = upper.get_legend_handles_labels()
    kept = [i for i, label in enumerate(labels) if label not in labels[:i]]
    kept.sort(key=lambda i: labels[i] not in (gap.baseline, gap.other))
    upper.legend([handles[i] for i in kept], [labels[i] for i in kept])
    lower.axhline(0, color=GREY, linewidth=0.8)
    lower.plot(gap.compute, gap.gap, color=COLOURS[2])
    if gap.low is not None and gap.high is not None:
        lower.fill_between(gap.compute, gap.low, gap.high, color=COLOURS[2], alpha=0.2, linewidth=0)
    log_axis(lower, "x", np.append(compute, compute.max() * 2))
    lower.set(xlabel=FLOPS, ylabel="gap, 90 % interval")
    return figure


_FIGURES: tuple[tuple[str, str, Callable[[Analysis], Figure | None]], ...] = (
    ("compute", "what compute buys", compute_figure),
    ("iso_flop", "iso-FLOP curves", iso_flop_figure),
    ("optimum", "compute-optimal sizes", optimum_figure),
    ("residuals", "residuals", residual_figure),
    ("extrapolation", "held-out prediction", extrapolation_figure),
    ("running", "how the runs ran", running_figure),
)
