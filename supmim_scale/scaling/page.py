"""One HTML page of an analysis: figures inside it, tables, versions, digests; needs no network."""

import platform
import re
from collections.abc import Mapping, Sequence
from html import escape
from importlib import metadata
from pathlib import Path

from supmim_scale import __version__
from supmim_scale.scaling.analysis import Analysis
from supmim_scale.scaling.arms import Gap
from supmim_scale.scaling.text import (
    allocation_table,
    gap_text,
    held_table,
    parameter_table,
    purchase_table,
)

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
       max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
h3 { font-size: 1rem; margin: 1.6rem 0 0.3rem; }
figure { margin: 1.2rem 0; } figcaption { color: #555; font-size: 0.9rem; }
figure svg { width: 100%; height: auto; display: block; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.25rem 0.9rem 0.25rem 0; border-bottom: 1px solid #eee;
         vertical-align: top; }
dt { color: #555; font-size: 0.9rem; margin-top: 0.4rem; } dd { margin: 0; }
th { color: #555; font-weight: 600; }
.note { border-left: 3px solid #d55e00; padding-left: 0.7rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; font-size: 0.85rem; background: #f6f6f6; padding: 0.6rem; }
code { font-size: 0.85rem; overflow-wrap: anywhere; }
"""


def write_page(
    analyses: Sequence[Analysis],
    gaps: Sequence[Gap],
    figures: Mapping[str, Path],
    path: Path,
    *,
    title: str,
    inputs: Mapping[str, str],
    seed: int,
    manifest: str = "",
) -> Path:
    """Write the page; `figures` are SVG files by caption, `inputs` digests by name, `manifest` the
    study's text."""
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>Scaling laws: {escape(title)}</h1>",
        *(_section(analysis) for analysis in analyses),
        *_gaps(gaps),
        "<h2>Figures</h2>",
        *(_figure(caption, svg) for caption, svg in figures.items()),
        *([f"<h2>The study</h2><pre>{escape(manifest)}</pre>"] if manifest else []),
        _origins(inputs, seed),
        "</body></html>",
    ]
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")
    return path


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """An HTML table that scrolls sideways where it is too wide."""
    head = "".join(f"<th>{escape(word)}</th>" for word in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _section(analysis: Analysis) -> str:
    fit, draws = analysis.fit, analysis.replicates
    how = f"{len(draws.thetas)} bootstrap replicates" if draws else "no bootstrap"
    parts = [
        f"<h2>{escape(analysis.arm or 'The fit')}</h2>",
        f"<p>{escape(fit.law.name)}: {escape(fit.law.formula)} ({escape(fit.law.source)}), "
        f"{len(fit.points)} points, residuals {fit.sigma:.2%}, "
        f"{fit.starts_agreeing} of {fit.starts} starts agree, {how}.</p>",
        table(("parameter", "value", "90 % interval"), parameter_table(analysis)),
    ]
    for title, heads, rows in (
        ("Held out", ("law", "error", "mean", "held-out points"), held_table(analysis)),
        ("Compute-optimal: N grows as C^a, D as C^b", ("by", "a", "b"), allocation_table(analysis)),
        (
            "What a budget would buy",
            ("FLOPs", "x the most expensive run", fit.points.metric_name, "N", "D"),
            purchase_table(analysis),
        ),
    ):
        if rows:
            parts += [f"<h3>{escape(title)}</h3>", table(heads, rows)]
    notes = [*map(str, analysis.decisive), *analysis.notes]
    parts += [f'<p class="note">{escape(note)}</p>' for note in notes]
    return "\n".join(parts)


def _gaps(gaps: Sequence[Gap]) -> list[str]:
    if not gaps:
        return []
    return ["<h2>Side by side</h2>", *(f"<p>{escape(gap_text(gap))}</p>" for gap in gaps)]


def _figure(caption: str, path: Path) -> str:
    """An SVG without its XML head, sized by the page."""
    text = path.read_text(encoding="utf-8")
    svg = text[text.index("<svg") :]
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1, flags=re.S)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1, flags=re.S)
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\1{path.stem}-", svg)  # one page, many figures
    label = f'<svg role="img" aria-label="{escape(caption)}"'
    svg = svg.replace("<svg", label, 1)
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _origins(inputs: Mapping[str, str], seed: int) -> str:
    versions = {"supmim_scale": __version__, "Python": platform.python_version()}
    versions |= {name: metadata.version(name) for name in ("numpy", "scipy", "matplotlib")}
    rows = [
        *((f"SHA-256 of {name}", digest) for name, digest in inputs.items()),
        ("seed", str(seed)),
        *versions.items(),
    ]
    cells = "".join(
        f"<dt>{escape(name)}</dt><dd><code>{escape(value)}</code></dd>" for name, value in rows
    )
    return f"<h2>Where it came from</h2><dl>{cells}</dl>"
