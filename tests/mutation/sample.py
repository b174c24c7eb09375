"""Put sampled faults into the core's lines, one at a time, and report which the tests notice.

    python tests/mutation/sample.py --count 150 --seed 0

Works on copies of the tree. A row a fault goes to the JSON lines of `--out`; a run that was ended
goes on from there. Opt-in: about ten seconds a fault and worker.
"""

import argparse
import hashlib
import json
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from cover import COVERED, files_of, source_of
from forks import ROOT, TestRun, copy_tree, warm_up
from operators import Mutant, mutants

Row = dict[str, Any]
Drawn = tuple[str, Mutant]
_QUICK_S, _SLOW_S = 240.0, 900.0  # after which a run with a fault counts as hanging


def sampled(count: int, seed: int, only: Sequence[str] = ()) -> list[Drawn]:
    """Faults of `count` lines of the core, each line as likely, one fault of each."""
    lines: dict[tuple[str, int], list[Mutant]] = {}
    for module in sorted(COVERED):
        if not only or module in only:
            for mutant in mutants((ROOT / source_of(module)).read_text()):
                lines.setdefault((module, mutant.line), []).append(mutant)
    rng = random.Random(seed)
    places = rng.sample(sorted(lines), min(count, len(lines)))
    return [(module, rng.choice(lines[module, line])) for module, line in places]


def key_of(module: str, mutant: Mutant) -> str:
    """Of a fault in a source file: another text is another fault."""
    return hashlib.sha256(f"{module}\n{mutant.source}".encode()).hexdigest()[:12]


@dataclass
class Slot:
    """A copy of the tree, and what is tried in it."""

    tree: Path
    steps: Iterator[TestRun] | None = None
    run: TestRun | None = None
    row: Row | None = None


def table_of(rows: Sequence[Row]) -> str:
    """Killed, survived and timed out by module, with the share that the tests noticed."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        counts.setdefault(row["module"], Counter())[row["outcome"]] += 1
    total = sum(counts.values(), Counter[str]())
    lines = [f"{'module':36s} killed  timed out  survived"]
    for name, count in [*sorted(counts.items()), ("all", total)]:
        lines.append(
            f"{name:36s} {count['killed']:6d} {count['timed out']:10d} {count['survived']:9d}"
        )
    noticed, tried = total["killed"] + total["timed out"], sum(total.values())
    lines.append(f"noticed {noticed} of {tried}, {noticed / max(1, tried):.1%}")
    lines += [
        f"survived: {source_of(row['module'])}:{row['line']}: {row['kind']}: "
        f"{' '.join(row['before'].split())} -> {row['after']}"
        for row in rows
        if row["outcome"] == "survived"
    ]
    return "\n".join(lines)


class Trial:
    """The rows of a sample, over some copies of the tree."""

    def __init__(
        self, drawn: list[Drawn], out: Path, folder: Path, workers: int, only_quick: bool = False
    ) -> None:
        self._drawn, self._out, self._only_quick = drawn, out, only_quick
        known = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
        self._rows = {row["key"]: row for row in known}
        self._passes: set[str] = set()  # tests that have been seen to pass without a fault
        self._clean = copy_tree(folder / "clean")
        self._slots = [Slot(copy_tree(folder / f"tree{number}")) for number in range(workers)]

    @property
    def rows(self) -> list[Row]:
        """Of the faults that have been tried, in the order of the sample."""
        keys = [key_of(*drawn) for drawn in self._drawn]
        return [self._rows[key] for key in keys if key in self._rows]

    def run(self) -> None:
        """Try what has no row yet."""
        waiting = [drawn for drawn in self._drawn if key_of(*drawn) not in self._rows]
        try:
            while waiting or any(slot.run for slot in self._slots):
                for slot in self._slots:
                    if slot.run is None and waiting:
                        self._begin(slot, *waiting.pop(0))
                    elif slot.run is not None:
                        self._look(slot)
                time.sleep(0.05)
        finally:
            for slot in self._slots:
                if slot.run:
                    slot.run.kill()

    def _begin(self, slot: Slot, module: str, mutant: Mutant) -> None:
        path = slot.tree / source_of(module)
        path.write_text(mutant.source)
        slot.row = {
            "key": key_of(module, mutant),
            "module": module,
            "line": mutant.line,
            "kind": mutant.kind,
            "before": mutant.before,
            "after": mutant.after,
            "started": time.time(),
        }
        slot.steps = self._steps(slot.tree, module)
        slot.run = next(slot.steps).start()

    def _steps(self, tree: Path, module: str) -> Iterator[TestRun]:
        quick, slow = files_of(module)
        yield TestRun(tree, quick, _QUICK_S)
        if slow and not self._only_quick:
            yield TestRun(tree, slow, _SLOW_S)

    def _look(self, slot: Slot) -> None:
        """Note the outcome of a run that is over, or go on to the slow tests."""
        assert slot.run is not None
        assert slot.row is not None
        assert slot.steps is not None
        outcome = slot.run.poll()
        if outcome is None:
            return
        following = next(slot.steps, None) if outcome == "passed" else None
        if following is not None:
            slot.run = following.start()
            return
        names = {"passed": "survived", "failed": "killed", "timed out": "timed out"}
        row, slot.row, slot.run = slot.row, None, None
        row |= {"outcome": names[outcome], "seconds": round(time.time() - row.pop("started"), 1)}
        if outcome == "failed":
            row["by"] = self._killer(slot.tree)
        module = row["module"]
        (slot.tree / source_of(module)).write_text((ROOT / source_of(module)).read_text())
        self._rows[row["key"]] = row
        with open(self._out, "a") as file:
            file.write(json.dumps(row) + "\n")
        self._told(row)

    def _killer(self, tree: Path) -> str:
        """The test that failed. Raises `SystemExit` where it fails without a fault, too."""
        log = (tree / "log.txt").read_text()
        found = re.search(r"^(FAILED|ERROR) (\S+?\.py)(::\S+)?", log, re.MULTILINE)
        if found is None:
            return "pytest itself"  # a fault that no test could be collected with
        name = found[2] + re.sub(r"\[.*", "", found[3] or "")
        if name not in self._passes:
            run = TestRun(self._clean, [name], _SLOW_S).start()
            while (outcome := run.poll()) is None:
                time.sleep(0.05)
            if outcome != "passed":
                raise SystemExit(
                    f"{name}: {outcome} without a fault\n{run.log.read_text()[-2000:]}"
                )
            self._passes.add(name)
        return name

    def _told(self, row: Row) -> None:
        done = len(self.rows)
        print(
            f"{done}/{len(self._drawn)} {row['outcome']:9s} {row['seconds']:6.1f} s  "
            f"{source_of(row['module'])}:{row['line']} {row['kind']}",
            flush=True,
        )


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """The script; returns the rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=150, help="lines with a fault")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1, help="faults tried at once")
    parser.add_argument("--out", type=Path, default=Path("mutation.jsonl"), help="rows")
    parser.add_argument("--quick", action="store_true", help="leave the slow tests out")
    parser.add_argument("--only", nargs="*", default=(), help="modules, as data/order")
    given = parser.parse_args(arguments)
    warm_up()
    with tempfile.TemporaryDirectory() as folder:
        drawn = sampled(given.count, given.seed, given.only)
        trial = Trial(drawn, given.out, Path(folder), given.workers, given.quick)
        trial.run()
    print(table_of(trial.rows))
    return trial.rows


if __name__ == "__main__":
    main()
