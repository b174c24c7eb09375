"""Laws and their text: one call from runs, a table or rows to fits, figures and a page."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from supmim_scale.errors import UserError
from supmim_scale.files.checksums import sha256_of
from supmim_scale.scaling.analysis import Analysis, Options, analyse_arms
from supmim_scale.scaling.arms import Gap, gaps_of
from supmim_scale.scaling.budget import frontier
from supmim_scale.scaling.columns import Columns, Row, read_rows, to_points
from supmim_scale.scaling.points import Points
from supmim_scale.scaling.runs import find_runs, run_row
from supmim_scale.scaling.text import as_dict, as_text, gap_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Source = Sequence[Path | Row]


@dataclass(frozen=True, repr=False)
class Laws:
    """What was fitted: an analysis of every arm, and the gaps between arms. `inputs` are digests
    of the files by name, `seed` that of starts and bootstrap."""

    analyses: Sequence[Analysis]
    gaps: Sequence[Gap]
    inputs: Mapping[str, str]
    seed: int

    def summary(self) -> str:
        """Parameters with intervals, held-out errors, optima, what budgets would buy, gaps."""
        return "\n".join([*map(as_text, self.analyses), *map(gap_text, self.gaps)])

    def predict(
        self,
        *,
        compute: float | None = None,
        params: float | None = None,
        data: float | None = None,
        arm: str | None = None,
    ) -> float:
        """The metric at a budget of `compute` FLOPs, or at a size and data of the parametric law.

        Raises `UserError` where the law does not know what is given, or `arm` is none of several.
        """
        analysis = self._arm(arm)
        fit, given = analysis.fit, {"compute": compute, "params": params, "data": data}
        names = [name for name, value in given.items() if value is not None]
        if names == ["compute"]:
            return float(frontier(fit, np.array([compute]), analysis.factor)[0])
        if set(names) != set(fit.law.inputs):
            expected = f"compute, or {' and '.join(fit.law.inputs)}"
            raise UserError(
                "predict", " and ".join(names) or "nothing", expected, f"a {fit.law.name} law"
            )
        inputs = np.array([[given[name] for name in fit.law.inputs]], dtype=np.float64)
        return float(fit.predict(inputs)[0])

    def figure(self, name: str = "compute", arm: str | None = None) -> "Figure":
        """A figure by its name: compute, iso_flop, optimum, residuals, extrapolation, running.

        Raises `UserError` for another name, or where the table lacks what it shows.
        """
        from supmim_scale.scaling.figures import figure_named

        return figure_named(name, self._arm(arm))

    def write(self, out: Path) -> Path:
        """Write `fit.json` into a folder."""
        path = out / "fit.json"
        facts = {
            "inputs": dict(self.inputs),
            "seed": self.seed,
            "arms": [as_dict(analysis) for analysis in self.analyses],
            "gaps": [gap_text(gap) for gap in self.gaps],
        }
        path.write_text(json.dumps(facts, indent=2) + "\n")
        return path

    def report(self, out: Path, *, title: str, manifest: str = "") -> tuple[Path, int]:
        """Write `report.html` and every figure as PNG, PDF and SVG; the page, and how many figures.

        `manifest`: the study's text, shown in the page.
        """
        from supmim_scale.scaling.figures import plot_figures
        from supmim_scale.scaling.page import write_page

        figures = plot_figures(self.analyses, self.gaps, out)
        page = write_page(
            self.analyses,
            self.gaps,
            figures,
            out / "report.html",
            title=title,
            inputs=self.inputs,
            seed=self.seed,
            manifest=manifest,
        )
        return page, len(figures)

    def __repr__(self) -> str:
        """The law of each arm, with its parameters."""
        laws = [
            f"{a.arm + ': ' if a.arm else ''}{a.fit.law.name} "
            + ", ".join(f"{name} {value:.4g}" for name, value in a.fit.values.items())
            + f" ({len(a.points)} points)"
            for a in self.analyses
        ]
        return f"<laws: {'; '.join(laws)}>"

    def _arm(self, arm: str | None) -> Analysis:
        names = [analysis.arm for analysis in self.analyses]
        if arm is None and len(names) == 1:
            return self.analyses[0]
        if arm not in names:
            found = "no arm" if arm is None else f"'{arm}'"
            raise UserError("arm", found, f"one of {', '.join(names)}", "name it by arm=")
        return self.analyses[names.index(arm)]


def fit_source(
    source: Source, columns: Mapping[str, Any], options: Options, *, shown: bool = False
) -> Laws:
    """Fit every arm of a table (CSV or Parquet), of folders of runs, or of rows.

    `columns`: those of `Columns` that are not its defaults. `shown`: with progress. Raises
    `UserError`.
    """
    _require_sane(options, columns.get("flops_factor"))
    points, inputs = _read(source, columns)
    analyses = analyse_arms(points, options, shown=shown)
    return Laws(analyses, gaps_of(analyses), inputs, options.seed)


def _read(source: Source, columns: Mapping[str, Any]) -> tuple[Points, dict[str, str]]:
    """The points, and the SHA-256 of the table or of every run's log."""
    paths = [one for one in source if isinstance(one, Path)]
    rows = [one for one in source if not isinstance(one, Path)]
    if rows:
        numbered = [{**row, "row": place} for place, row in enumerate(rows, 1)]
        return to_points(numbered, Columns(**columns), "rows"), {}
    if len(paths) == 1 and not paths[0].is_dir():
        points = to_points(read_rows(paths[0]), Columns(**columns), str(paths[0]))
        return points, {paths[0].name: sha256_of(paths[0])}
    runs = find_runs(paths)
    found = [run_row(run, place) for place, run in enumerate(runs, 1)]
    points = to_points(found, Columns(**{"metric": "error", **columns}), "runs")
    return points, {f"{run.name}/log.jsonl": sha256_of(run / "log.jsonl") for run in runs}


def _require_sane(options: Options, factor: float | None) -> None:
    """Raise `UserError` for numbers that mean nothing."""
    budgets, delta = options.budgets or (1.0,), options.delta
    share = options.held_out_share
    for option, value, is_sane, expected in (
        ("--bootstrap", options.num_bootstrap, options.num_bootstrap >= 0, "0 or more"),
        ("--hold-out", share, 0 <= share < 1, "a share, 0 to below 1"),
        ("--budget", budgets, all(0 < b < math.inf for b in budgets), "FLOPs above 0"),
        ("--delta", delta, delta is None or 0 < delta < math.inf, "a number above 0"),
        ("--flops-factor", factor, factor is None or 0 < factor < math.inf, "above 0"),
        ("--seed", options.seed, options.seed >= 0, "0 or more"),
    ):
        if not is_sane:
            raise UserError(option, str(value), expected, f"change {option}")
