"""One arm's points, all the way: fit, intervals, influence, held-out errors, sizes, budgets."""

from collections.abc import Sequence
from dataclasses import dataclass

from supmim_scale.errors import UserError
from supmim_scale.scaling.bootstrap import Replicates, bootstrap
from supmim_scale.scaling.budget import Purchase, buy
from supmim_scale.scaling.chinchilla import (
    Allocation,
    approach_1,
    approach_2,
    approach_3,
    first_few,
    flops_factor,
)
from supmim_scale.scaling.fit import Fit, fit_law
from supmim_scale.scaling.holdout import HELD_OUT_SHARE, HeldOut, compare
from supmim_scale.scaling.identify import require_identifiable, require_identified, unsure
from supmim_scale.scaling.influence import Decisive, decisive_points
from supmim_scale.scaling.laws import LAWS, Law, find_law
from supmim_scale.scaling.points import Points

_BEYOND = (1.0, 10.0)  # of the most expensive point: the default budgets
_SPREAD = 1.5  # a factor over which C / (N D) may vary before sizes by C = K N D mislead


@dataclass(frozen=True)
class Options:
    """What to do with points. `law` None: parametric where there are sizes and data, else a
    power law with a floor. `num_bootstrap` 0: no intervals."""

    law: str | None = None
    num_bootstrap: int = 200
    held_out_share: float = HELD_OUT_SHARE
    delta: float | None = None
    seed: int = 0
    budgets: tuple[float, ...] = ()
    only_frontier: bool = False  # leave out runs that a cheaper one beats


@dataclass(frozen=True)
class Analysis:
    """What one arm's points say, and what they do not. `factor` is K of C = K N D."""

    fit: Fit
    replicates: Replicates | None
    held: list[HeldOut]
    allocations: list[Allocation]
    purchases: list[Purchase]
    decisive: list[Decisive]
    factor: float
    notes: list[str]

    @property
    def points(self) -> Points:
        """What was fitted."""
        return self.fit.points

    @property
    def arm(self) -> str:
        """The arm's name; empty where the table has none."""
        return self.points.arms[0]


def analyse(points: Points, options: Options, *, shown: bool = False) -> Analysis:
    """Fit one arm's points. Raises `UserError` where they cannot identify the law."""
    points = points.frontier() if options.only_frontier else points
    law = find_law(options.law) if options.law else _default_law(points)
    require_identifiable(law, points)
    fit = fit_law(law, points, delta=options.delta, seed=options.seed)
    require_identified(fit)
    num = options.num_bootstrap
    replicates = bootstrap(fit, num, seed=options.seed, shown=shown) if num else None
    held, notes = _held_out(points, options)
    factor, more = _factor(points)
    allocations, refused = _allocations(fit, replicates, factor, options)
    return Analysis(
        fit,
        replicates,
        held,
        allocations,
        _purchases(fit, replicates, allocations, factor, options.budgets),
        decisive_points(fit),
        factor,
        unsure(fit) + notes + more + refused,
    )


def analyse_arms(points: Points, options: Options, *, shown: bool = False) -> list[Analysis]:
    """An analysis of every arm of the table. Raises `UserError` that names the arm."""
    found = []
    for name in points.arm_names:
        try:
            found.append(analyse(points.arm(name), options, shown=shown))
        except UserError as error:
            where = f"{name}, {error.where}" if name else error.where
            raise UserError(where, error.found, error.expected, error.fix) from None
    return found


def _default_law(points: Points) -> Law:
    has_sizes = len(points.params) and len(points.data)
    return LAWS["parametric" if has_sizes else "power_floor"]


def _held_out(points: Points, options: Options) -> tuple[list[HeldOut], list[str]]:
    """Every law that the columns allow, by its error on the held-out points."""
    if not options.held_out_share:
        return [], []
    laws = [law for law in LAWS.values() if all(len(getattr(points, n)) for n in law.inputs)]
    held, refused = compare(laws, points, options.held_out_share, seed=options.seed)
    return held, [f"not held out: {error}" for error in refused.values()]


def _factor(points: Points) -> tuple[float, list[str]]:
    """K of C = K N D, and a warning where it is no constant."""
    if not all(len(c) for c in (points.params, points.data, points.compute)):
        return 1.0, []
    factor, spread = flops_factor(points)
    if spread < _SPREAD:
        return factor, []
    return factor, [
        f"C / (N D) varies by a factor {spread:.3g}: sizes by approach 3 take its median, "
        f"{factor:.3g}"
    ]


def _allocations(
    fit: Fit, replicates: Replicates | None, factor: float, options: Options
) -> tuple[list[Allocation], list[str]]:
    """The approaches that the columns allow, and why the others do not."""
    points = fit.points
    if not all(len(c) for c in (points.params, points.data, points.compute)):
        return [], []
    found, refused = [], []
    for approach in (approach_1, approach_2):
        try:
            found.append(approach(points, options.num_bootstrap, seed=options.seed))
            if left_out := first_few(found[-1].left_out):
                refused.append(f"approach {found[-1].approach} leaves out {left_out}")
        except UserError as error:
            refused.append(str(error))
    if fit.law.name == "parametric":
        found.append(approach_3(fit, replicates, factor))
    return found, refused


def _purchases(
    fit: Fit,
    replicates: Replicates | None,
    allocations: Sequence[Allocation],
    factor: float,
    budgets: Sequence[float],
) -> list[Purchase]:
    if not len(fit.points.compute):
        return []
    costliest = float(fit.points.compute.max())
    budgets = budgets or [costliest * beyond for beyond in _BEYOND]
    # Approach 3 where there is one, else parabolas, else the best runs.
    allocation = allocations[-1] if allocations else None
    return [buy(fit, replicates, allocation, factor, budget) for budget in budgets]
