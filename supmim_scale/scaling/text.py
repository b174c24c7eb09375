"""An analysis as lines for a terminal, and as plain values for JSON."""

from typing import Any

from supmim_scale.scaling.analysis import Analysis
from supmim_scale.scaling.arms import Gap
from supmim_scale.scaling.bootstrap import LEVEL

Interval = tuple[float, float]


def as_text(analysis: Analysis) -> str:
    """What a terminal shows."""
    fit = analysis.fit
    head = f"{analysis.arm + ': ' if analysis.arm else ''}{fit.law.name}, {fit.law.formula}"
    lines = [
        head,
        f"  {len(fit.points)} points, {fit.points.metric_name}; residuals {fit.sigma:.2%}; "
        f"{fit.starts_agreeing} of {fit.starts} starts agree",
        *(f"  {row}" for row in _parameter_rows(analysis)),
    ]
    for title, rows in (
        ("held out, fitted on the cheaper runs", _held_rows(analysis)),
        ("compute-optimal, N ~ C^a, D ~ C^b", _allocation_rows(analysis)),
        ("what a budget would buy", _purchase_rows(analysis)),
    ):
        if rows:
            lines += [f"  {title}", *(f"    {row}" for row in rows)]
    lines += [f"  note: {text}" for text in (*map(str, analysis.decisive), *analysis.notes)]
    return "\n".join(lines)


def gap_text(gap: Gap) -> str:
    """The gap at the highest compute that both arms have."""
    band = "" if gap.low is None or gap.high is None else interval((gap.low[-1], gap.high[-1]))
    return (
        f"{gap.baseline} less {gap.other}: {number(float(gap.gap[-1]))} {band} at "
        f"{gap.compute[-1]:.3g} FLOPs (above 0: {gap.other} is better)"
    )


def as_dict(analysis: Analysis) -> dict[str, Any]:
    """What `fit.json` holds of an arm."""
    fit, draws = analysis.fit, analysis.replicates
    return {
        "arm": analysis.arm,
        "law": fit.law.name,
        "formula": fit.law.formula,
        "law_source": fit.law.source,
        "points": len(fit.points),
        "clusters": int(fit.points.clusters.max()) + 1,
        "metric": fit.points.metric_name,
        "huber_delta": fit.delta,
        "objective": fit.objective,
        "starts": fit.starts,
        "starts_agreeing": fit.starts_agreeing,
        "residual_sigma": fit.sigma,
        "parameters": fit.values,
        "level": LEVEL if draws else None,
        "bootstrap": len(draws.thetas) if draws else 0,
        "intervals": draws.intervals() if draws else None,
        "covariance": draws.covariance().tolist() if draws else None,
        "residuals": dict(zip(fit.points.labels, fit.residuals.tolist(), strict=True)),
        "held_out": [
            {
                "law": held.fit.law.name,
                "dear_points": len(held.held_out),
                "rms": held.rms,
                "bias": held.bias,
                "parameters": held.fit.values,
            }
            for held in analysis.held
        ],
        "compute_optimal": [
            {
                "approach": a.approach,
                "exponents": a.exponents,
                "exponent_intervals": a.exponent_intervals(),
                "left_out": a.left_out,
            }
            for a in analysis.allocations
        ],
        "budgets": [vars(purchase) for purchase in analysis.purchases],
        "decisive_points": [vars(decisive) for decisive in analysis.decisive],
        "notes": analysis.notes,
    }


def parameter_table(analysis: Analysis) -> list[list[str]]:
    """Name, value, interval of each parameter."""
    intervals = analysis.replicates.intervals() if analysis.replicates else {}
    return [
        [name, number(value), interval(intervals.get(name))]
        for name, value in analysis.fit.values.items()
    ]


def held_table(analysis: Analysis) -> list[list[str]]:
    """Law, root mean square and mean error on the held-out points."""
    return [
        [held.fit.law.name, f"{held.rms:.2%}", f"{held.bias:+.2%}", str(len(held.held_out))]
        for held in analysis.held
    ]


def allocation_table(analysis: Analysis) -> list[list[str]]:
    """Approach, a and b with intervals."""
    rows = []
    for allocation in analysis.allocations:
        (a, b), ends = allocation.exponents, allocation.exponent_intervals() or (None, None)
        rows.append(
            [
                f"approach {allocation.approach}",
                with_interval(a, ends[0]),
                with_interval(b, ends[1]),
            ]
        )
    return rows


def purchase_table(analysis: Analysis) -> list[list[str]]:
    """Budget, how far beyond the most expensive run, metric, N and D with intervals."""
    return [
        [
            f"{p.compute:.3g}",
            f"{p.beyond:.3g}",
            with_interval(p.metric, p.metric_interval),
            with_interval(p.params, p.params_interval),
            with_interval(p.data, p.data_interval),
        ]
        for p in analysis.purchases
    ]


def number(value: float | None) -> str:
    """Four digits, plain where it reads well; a floor of almost nothing is 0."""
    if value is None:
        return "-"
    if abs(value) < 1e-4:
        return "0" if abs(value) < 1e-5 else f"{value:.1e}"
    return f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3g}"


def interval(ends: Interval | None) -> str:
    """`[low, high]`, or nothing."""
    return f"[{number(ends[0])}, {number(ends[1])}]" if ends else ""


def with_interval(value: float | None, ends: Interval | None) -> str:
    """`value [low, high]`."""
    return f"{number(value)} {interval(ends)}".rstrip()


def _parameter_rows(analysis: Analysis) -> list[str]:
    level = f"  {LEVEL:.0%} interval" if analysis.replicates else ""
    rows = [f"{name:6} {value:>10}  {ends}" for name, value, ends in parameter_table(analysis)]
    return [f"{'':6} {'value':>10}{level}", *rows]


def _held_rows(analysis: Analysis) -> list[str]:
    rows = held_table(analysis)
    return [
        f"{law:12} error {rms:>7}, mean {mean:>7}, {n} held-out points"
        for law, rms, mean, n in rows
    ]


def _allocation_rows(analysis: Analysis) -> list[str]:
    return [f"{name}  a {a}  b {b}" for name, a, b in allocation_table(analysis)]


def _purchase_rows(analysis: Analysis) -> list[str]:
    rows = []
    for budget, beyond, metric, n, d in purchase_table(analysis):
        sizes = "" if n == "-" else f"  N {n}  D {d}"
        rows.append(f"{budget} FLOPs ({beyond}x the most expensive run): {metric}{sizes}")
    return rows
