"""Pages that are made of rows: tables, and text between markers of a file that says more."""

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]

BEGIN, END = "<!-- rows: made by a script, not by hand -->", "<!-- end of rows -->"
# Okabe & Ito 2008, and one more.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#999999")
COLORS += ("#000000", "#44AA99")


def read_rows(path: Path, names: tuple[str, ...]) -> list[Row]:
    """The latest row of every value of the name columns."""
    rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    return list({json.dumps([row.get(name) for name in names]): row for row in rows}.values())


def write_page(page: Path, text: str) -> None:
    """Put `text` between the markers of `page`, which is made if it is missing."""
    before = page.read_text() if page.exists() else ""
    page.write_text(between_markers(before, text))


def between_markers(page: str, text: str) -> str:
    """`page` with `text` between its markers, or at its end where it has none."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        before, after = (f"{page.rstrip()}\n\n" if page.strip() else ""), "\n"
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def markdown_table(heads: list[str], lines: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def origin_line(rows: list[Row]) -> str:
    """Where, when and with which versions rows were measured."""
    last = max(rows, key=lambda row: row.get("measured_at", ""))
    commits = ", ".join(sorted({str(row["commit"])[:12] for row in rows if "commit" in row}))
    versions = ", ".join(f"{name} {word}" for name, word in last.get("versions", {}).items())
    gpus = f"{last['device_count']} x " if last.get("device_count") else ""
    return (
        f"{gpus}{last.get('device')}, {last.get('host_cpus')} host cores; until "
        f"{last.get('measured_at')}; commit {commits}; {versions}."
    )


def percent(value: float | None) -> str:
    """A share, or null."""
    return "null" if value is None else f"{value:.1%}"


def seconds(value: float | None) -> str:
    """A time, or null."""
    return "null" if value is None else f"{value:.3f} s"


def mib(num_bytes: float) -> str:
    """Bytes as a number of MiB."""
    return f"{num_bytes / 2**20:.1f}"
