"""Which sizes and how much data a study's runs cover, and whether they can identify a law."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from supmim_scale.errors import UserError
from supmim_scale.scaling.identify import require_identifiable
from supmim_scale.scaling.laws import find_law
from supmim_scale.scaling.points import Points, make_points
from supmim_scale.scaling.style import COLOURS, GREY, MARKERS, house_style, log_axis, save
from supmim_scale.studies.design import Design
from supmim_scale.units import si

_RUNGS = 5  # lines of equal compute in the picture


def require_coverage(design: Design) -> None:
    """Raise `UserError`, with the missing rungs, where the law that a study names could not be
    identified from its runs. Does nothing if it names none."""
    if design.law is None:
        return
    law, points = find_law(design.law), design_points(design)
    for arm in points.arm_names:
        try:
            require_identifiable(law, points.arm(arm))
        except UserError as error:
            of_arm = f" of {arm}" if arm else ""
            fix = f"{error.fix}; or law: null, to train the runs all the same"
            raise UserError(f"{error.where}{of_arm}", error.found, error.expected, fix) from None


def design_points(design: Design) -> Points:
    """The runs as points without a result."""
    runs = design.runs
    return make_points(
        np.ones(len(runs)),
        params=np.array([one.params for one in runs], float),
        data=np.array([one.images for one in runs], float),
        compute=np.array([one.train_flops for one in runs], float),
        arms=tuple(one.arm for one in runs),
        labels=tuple(one.run.name for one in runs),
    )


def plot_coverage(design: Design, folder: Path) -> Path:
    """The runs in the plane of size and data, with lines of equal compute of the costliest arm; the
    PNG's path."""
    points = design_points(design)
    with house_style():
        figure = Figure()
        axes = figure.subplots()
        costliest = max(points.arm_names, key=lambda arm: points.arm(arm).compute.sum())
        _draw_compute(axes, points.arm(costliest))
        for place, arm in enumerate(points.arm_names):
            mine = points.arm(arm)
            shift = 1 + 0.03 * place  # arms lie on the same points
            marker, colour = MARKERS[place % len(MARKERS)], COLOURS[place % len(COLOURS)]
            axes.plot(
                mine.params * shift,
                mine.data,
                marker,
                markersize=6,
                color=colour,
                label=arm or "runs",
                alpha=0.8,
            )
        log_axis(axes, "x", points.params, unit="si")
        log_axis(axes, "y", points.data, unit="si")
        axes.set(
            xlabel="parameters of the encoder",
            ylabel="images seen",
            title=f"{design.name}: {len(points)} runs",
        )
        if len(points.arm_names) > 1:
            axes.legend()
        return save(figure, folder, "coverage").with_suffix(".png")


def _draw_compute(axes, points: Points) -> None:  # type: ignore[no-untyped-def]
    """Where size and data cost the same, from the FLOPs of a parameter and an image."""
    low, high = points.compute.min(), points.compute.max()
    sizes = np.geomspace(points.params.min(), points.params.max(), 60)
    order = np.argsort(points.params)
    per_image = np.log(points.compute / points.data)[order]
    flops = np.exp(np.interp(np.log(sizes), np.log(points.params[order]), per_image))
    for rung in np.geomspace(low, high, _RUNGS)[1:-1]:
        line = rung / flops
        axes.plot(sizes, line, color=GREY, linewidth=0.8, linestyle=":", zorder=0)
        label = f"{si(float(f'{rung:.1e}'), 'FLOP')}"
        axes.annotate(
            label,
            (sizes[30], line[30]),
            fontsize=8,
            color=GREY,
            ha="center",
            xytext=(0, 4),
            textcoords="offset points",
            annotation_clip=True,
        )
