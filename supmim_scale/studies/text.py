"""A study's runs as a table for people: size, data, compute, hours."""

from collections.abc import Sequence

from supmim_scale.studies.cost import RunCost, costs
from supmim_scale.studies.design import Design, DesignedRun
from supmim_scale.units import si


def plan_text(design: Design) -> str:
    """A line a run, and what all take together; what branching saves."""
    found = costs(design)
    heads = ["run", "params", "images", "FLOPs", "own", *(["GPU-hours"] if found else [])]
    rows = [heads]
    for place, one in enumerate(design.runs):
        sizes = (one.params, one.images, one.train_flops, one.own_flops)
        row = [one.run.name, *map(si, sizes)]
        rows.append([*row, f"{found[place].gpu_hours:.2f}"] if found else row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    ]
    return "\n".join([*lines, *_totals(design.runs, found), _law(design)])


def _totals(runs: Sequence[DesignedRun], found: Sequence[RunCost] | None) -> list[str]:
    own, whole = sum(one.own_flops for one in runs), sum(one.train_flops for one in runs)
    lines = [f"together {si(own, 'FLOP')}"]
    if own < whole:
        lines.append(
            f"branching saves {1 - own / whole:.0%} of {si(whole, 'FLOP')}: longer runs "
            "continue from where shorter ones cooled down"
        )
    if found:
        hours, prices = sum(one.gpu_hours for one in found), [one.usd for one in found]
        cost = sum(price for price in prices if price is not None)
        money = f", {cost:,.0f} USD" if None not in prices else ""
        lines.append(f"{hours:,.1f} GPU-hours{money}, steps alone (supmim-scale plan: assumptions)")
    else:
        lines.append("for GPU-hours, write cluster: {gpu: h100}")
    return lines


def _law(design: Design) -> str:
    if design.law is None:
        return "no law is named, so coverage is not checked"
    return f"the {design.law} law: these sizes and lengths can identify it, noise permitting"
