#!/usr/bin/env python3
"""Faults into real ZeRO-3 runs: what is repeated, what is lost, how long it takes to go on.

    python benchmarks/resilience.py                  the whole catalogue; under an hour on a CPU
    python benchmarks/resilience.py --kill-all 2 --kill-one 2 --in-save 2 --signals 2

A run is trained once without a fault. The same recipe is then trained in another folder, and over
and over killed, signalled and started again until every fault has had its turn; at its end every
logged loss must be that of the first run, to the last bit. The stall of saving is measured side by
side on a larger model. Rows go to a JSON-lines file, a table to the terminal.
"""

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

import psutil

from benchmarks.faults.stall import Row, stall
from supmim_scale.data.synth import SynthSpec, write_synthetic
from supmim_scale.launch.provenance import provenance
from supmim_scale.runs.checkpoints import newest_whole

RESULTS = Path(__file__).parents[1] / "results" / "resilience.jsonl"
ROOT = Path(__file__).resolve().parents[2]
SMALL = [
    "model.width=32",
    "model.depth=2",
    "model.heads=2",
    "mim.codebook_size=16",
    "mim.codebook_images=64",
    "optim.global_batch=8",
    "optim.warmup_steps=1",
    "log.every=1",
    "checkpoint.every=3",
    "augment.mixup_alpha=0.8",
    "engine.precision=fp32",
]
START_S, STEP_S = 180.0, 120.0  # longer than that without a step is a hang
KILL_ALL, KILL_ONE, IN_SAVE = "SIGKILL, all ranks", "SIGKILL, one rank", "SIGKILL in a save"
SIGNALS = {"SIGTERM": signal.SIGTERM, "SIGUSR1": signal.SIGUSR1}


def main() -> int:
    """Run the catalogue and print the table."""
    arguments = parse_arguments()
    rng = random.Random(arguments.seed)
    faults = [KILL_ALL] * arguments.kill_all + [KILL_ONE] * arguments.kill_one
    faults += [IN_SAVE] * arguments.in_save
    faults += [name for i in range(arguments.signals) for name in [list(SIGNALS)[i % 2]]]
    rng.shuffle(faults)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        if faults:
            rows += chaos(Path(folder), faults, arguments, rng)
        if arguments.stall_model:
            rows.append(stall(Path(folder), arguments.stall_model))
    stamp = {"measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds")}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with open(arguments.out, "a") as file:
        for row in rows:
            file.write(json.dumps({**row, **stamp, **provenance()}) + "\n")
    print(table(rows))
    return 0 if all(row["outcome"] == "as promised" for row in rows) else 1


def parse_arguments() -> argparse.Namespace:
    """How often each fault is injected."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kill-all", type=int, default=35)
    parser.add_argument("--kill-one", type=int, default=35)
    parser.add_argument("--in-save", type=int, default=30)
    parser.add_argument("--signals", type=int, default=30, help="SIGTERM and SIGUSR1 in turn")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument(
        "--stall-model", default="vit_l16", help="of about 300 M parameters; '': none"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    return parser.parse_args()


@dataclass
class Outcome:
    """One fault: steps done before it, steps gone on from, what the job said, seconds to go on."""

    fault: str
    before: int
    resumed: int
    code: int
    ended_s: float
    recovery_s: float

    @property
    def repeated(self) -> int:
        """Steps done a second time."""
        return self.before - self.resumed


def chaos(
    folder: Path, faults: list[str], arguments: argparse.Namespace, rng: random.Random
) -> list[Row]:
    """A run under all the faults, beside one without; a row a fault."""
    write_synthetic(folder / "data", SynthSpec(num_train=96, num_val=16, shard_size=32), workers=2)
    steps = 6 * len(faults) + 12
    recipe = [*SMALL, f"input.root={folder / 'data'}", f"optim.steps={steps}"]
    calm = Job(folder / "calm", recipe, arguments.ranks)
    calm.start()
    calm.wait(STEP_S * steps)
    print(f"{steps} steps without a fault; now with {len(faults)}", flush=True)
    job, found, started = Job(folder / "chaos", recipe, arguments.ranks), [], time.time()
    job.start()
    job.wait_for_step(1, START_S)
    for number, fault in enumerate(faults, start=1):
        found.append(inject(job, fault, rng))
        one, left = found[-1], (time.time() - started) / number * (len(faults) - number)
        print(
            f"[{number}/{len(faults)}, {left:.0f} s left] {fault}: step {one.before}, on from "
            f"{one.resumed}, code {one.code}, {one.recovery_s:.1f} s",
            flush=True,
        )
    job.wait(STEP_S * steps)
    is_same = losses(calm.run_dir) == losses(job.run_dir)
    every = int(next(word for word in SMALL if "checkpoint.every" in word).split("=")[1])
    return [
        summarise(name, [one for one in found if one.fault == name], every, is_same)
        for name in dict.fromkeys(sorted(faults))
    ]


class Job:
    """A run started as a user starts it, in a process group of its own."""

    def __init__(self, run_dir: Path, recipe: list[str], ranks: int) -> None:
        self.run_dir = run_dir
        self._command = [
            sys.executable,
            "-m",
            "supmim_scale",
            "train",
            "smoke",
            "--ranks",
            str(ranks),
            *recipe,
            f"log.run_dir={run_dir}",
        ]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, or start it again."""
        with open(self.run_dir.with_suffix(".txt"), "ab") as out:
            self.process = subprocess.Popen(
                self._command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True
            )

    def wait(self, seconds: float) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(timeout=seconds)

    def ranks(self) -> list[psutil.Process]:
        """The processes of the ranks."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def steps_done(self) -> int:
        """The last logged step."""
        done = [row["steps_done"] for row in training_rows(self.run_dir)]
        return done[-1] if done else 0

    def wait_for_step(self, step: int, seconds: float) -> None:
        """Wait until a step is logged. Raises where the job ends or hangs before."""
        assert self.process is not None
        deadline = time.time() + seconds
        while self.steps_done() < step:
            if self.process.poll() is not None or time.time() > deadline:
                words = self.run_dir.with_suffix(".txt").read_text()[-2000:]
                raise RuntimeError(f"no step {step}: code {self.process.poll()}\n{words}")
            time.sleep(0.02)


def inject(job: Job, fault: str, rng: random.Random) -> Outcome:
    """Let the job get on a little, do it harm, start it again, and see it go on."""
    job.wait_for_step(job.steps_done() + rng.randint(1, 5), STEP_S)
    time.sleep(rng.uniform(0, 0.2))
    began = time.time()
    harm(job, fault, rng)
    code = job.wait(STEP_S)
    ended = time.time()
    before = job.steps_done()
    checkpoint, _ = newest_whole(job.run_dir / "checkpoints")
    resumed = checkpoint.steps_done if checkpoint else 0
    job.start()
    wait_for_cut(job, before, resumed)
    job.wait_for_step(resumed + 1, START_S)
    return Outcome(fault, before, resumed, code, ended - began, time.time() - ended)


def wait_for_cut(job: Job, before: int, resumed: int) -> None:
    """Until the new start has taken back the log to its checkpoint."""
    deadline = time.time() + START_S
    while before > resumed and job.steps_done() > resumed and time.time() < deadline:
        time.sleep(0.02)


def harm(job: Job, fault: str, rng: random.Random) -> None:
    """The fault itself."""
    assert job.process is not None
    if fault in SIGNALS:
        job.process.send_signal(SIGNALS[fault])
    elif fault == KILL_ONE:
        rng.choice(job.ranks()).kill()
    else:
        if fault == IN_SAVE:
            wait_for_save(job, rng)
        os.killpg(job.process.pid, signal.SIGKILL)


def wait_for_save(job: Job, rng: random.Random) -> None:
    """Until a checkpoint is being written, and a moment on."""
    deadline = time.time() + STEP_S
    while not any((job.run_dir / "checkpoints").glob("*.part")) and time.time() < deadline:
        time.sleep(0.0005)
    time.sleep(rng.uniform(0, 0.03))


def summarise(fault: str, found: list[Outcome], every: int, is_same: bool) -> Row:
    """A row of the table."""
    repeated = [one.repeated for one in found]
    if fault in SIGNALS:
        is_kept = all(one.code == 75 and one.repeated == 0 for one in found)
    else:
        # At most the steps since the last checkpoint, and one that was still being written.
        is_kept = all(one.code != 0 and one.repeated <= 2 * every for one in found)
    return {
        "kind": "fault",
        "fault": fault,
        "times": len(found),
        "outcome": "as promised" if is_kept and is_same else "broken",
        "steps_between_checkpoints": every,
        "steps_repeated_most": max(repeated),
        "steps_repeated_median": statistics.median(repeated),
        "exit_codes": sorted({one.code for one in found}),
        "end_of_job_s_median": statistics.median(one.ended_s for one in found),
        "recovery_s_median": statistics.median(one.recovery_s for one in found),
        "recovery_s_most": max(one.recovery_s for one in found),
        "losses_identical": is_same,
    }


def losses(run_dir: Path) -> list[tuple[int, float, float]]:
    """(step, loss, gradient norm) of every logged step."""
    return [(r["steps_done"], r["loss"], r["grad_norm"]) for r in training_rows(run_dir)]


def training_rows(run_dir: Path) -> list[Row]:
    """The training lines of a log, without one that is being written."""
    path = run_dir / "log.jsonl"
    rows = list(_parsed(path.read_text().splitlines())) if path.exists() else []
    return [row for row in rows if row["kind"] == "train"]


def _parsed(lines: list[str]) -> Iterator[Row]:
    for line in lines:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table."""
    lines = [
        "| fault | times | outcome | steps repeated (most) | losses identical | exit codes "
        "| job over after, median | going on after, median |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        name = f"| {row['fault']} | {row['times']} | {row['outcome']} |"
        if row["kind"] == "stall":
            waits = f"{row['stall_s']:.2f} s of {row['stall_s_synchronous']:.2f} s"
            lines.append(f"{name} stall {waits}: {row['stall_ratio_median']:.3f} | | | | |")
            continue
        repeated = f"{row['steps_repeated_most']} of {row['steps_between_checkpoints']}"
        codes = ", ".join(map(str, row["exit_codes"]))
        lines.append(
            f"{name} {repeated} | {row['losses_identical']} | {codes} "
            f"| {row['end_of_job_s_median']:.1f} s | {row['recovery_s_median']:.1f} s |"
        )
    return "\n".join(lines)
