"""Images/s of the input path beside PyTorch's DataLoader and webdataset, and what limits it.

    python benchmarks/dataloader.py                      half an hour on two cores
    python benchmarks/dataloader.py --kinds loader --cores 1 --repeats 1 --seconds 1

Loaders are compared by cores: every run is a process pinned to that many, with as many DALI
threads or DataLoader workers. All read the same JPEGs, from the page cache, into batches in host
memory (with the mixed decoder, on the GPU). A round runs every variant once; ratios are taken
within a round. Rows go to a JSON-lines file; dataloader_report.py makes tables and a picture.
"""

import argparse
import itertools
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib import metadata
from pathlib import Path

import torch
from tfrecord import TFRecordWriter

from benchmarks.input.report import markdown
from benchmarks.input.rows import fed, headline, loader_name, summary
from benchmarks.input.tasks import HEIGHT, PATTERNS, TASKS, WIDTH, Job, Row, set_facts
from supmim_scale.build.model import joint_shape
from supmim_scale.config import load_config
from supmim_scale.data.dataset import Dataset, open_dataset
from supmim_scale.data.readers import SampleLayout
from supmim_scale.data.synth import SynthSpec, write_synthetic
from supmim_scale.errors import EXIT_USER_ERROR, UserError
from supmim_scale.hardware.gpus import find_gpu
from supmim_scale.launch.provenance import provenance
from supmim_scale.models.flops import step_flops
from supmim_scale.units import duration

SCRIPT = str(Path(__file__).parents[1] / "dataloader.py")  # what workers are started with
KINDS = ("loader", "stage", "feeds", "training", "memory")
FED = ("vitl14_in21k", "vith14_in21k", "vitg14_in21k")
FED_GPU, FED_MFU, CODES = "h100", 0.5, 1024
TIMEOUT_S = 1800
PACKAGES = ("torchvision", "webdataset", "pillow", "tfrecord")


def main() -> int:
    """Measure everything asked for and print the tables."""
    arguments = parse_arguments()
    if arguments.worker:
        job = json.loads(arguments.worker)
        arguments.out.write_text(json.dumps(TASKS[job["task"]](job)))
        return 0
    try:
        facts = make_data(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    bench = Bench(arguments, facts)
    if "loader" in arguments.kinds:
        loader_rows(bench, arguments)
    if "feeds" in arguments.kinds:
        feeds_rows(bench, arguments)
    for name, job in single_jobs(arguments).items():
        bench.write({"kind": job["task"], "name": name, **job, **bench.measure(name, job)})
    print(markdown(bench.rows))
    return 1 if any("error" in row for row in bench.rows) else 0


def parse_arguments() -> argparse.Namespace:
    """Flags; the defaults fit the machine."""
    cores = len(os.sched_getaffinity(0))
    doubled = [2**i for i in range(cores.bit_length()) if 2**i < cores]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    add = parser.add_argument
    add("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    add("--data", type=Path, default=Path("datasets/bench_photos"), help="made if missing")
    add("--images", type=int, default=1024, help="images of --data")
    add("--cores", nargs="+", type=int, default=[*doubled, cores], help="counts to compare at")
    add("--readers", nargs="+", type=int, default=[2], help="our threads that fetch bytes")
    add("--augment", action="store_true", help="measure our loader with rand_augment too")
    add("--micro-batch", type=int, default=64)
    add("--repeats", type=int, default=5, help="rounds")
    add("--seconds", type=float, default=6.0, help="measured a run, or a stage and round")
    add("--training", action=argparse.BooleanOptionalAction, default=True)
    add("--smoke", type=Path, default=Path("datasets/smoke"), help="of --training; made if missing")
    add("--model-width", type=int, help="of --training; default: the smoke recipe's")
    add("--pairs", type=int, default=6, help="of --training: blocks of real and of cached batches")
    add("--steps", type=int, default=20, help="of --training: steps a block")
    add("--epochs", type=int, default=50, help="of the memory row")
    add("--out", type=Path, default=Path(__file__).parents[1] / "results" / "dataloader.jsonl")
    add("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.worker and max(arguments.cores) > cores:
        parser.error(f"--cores {max(arguments.cores)}: this process may use {cores}")
    if not arguments.training:
        arguments.kinds = [kind for kind in arguments.kinds if kind != "training"]
    return arguments


@dataclass
class Bench:
    """What every row holds, where rows go, and how far along the session is."""

    arguments: argparse.Namespace
    facts: Row
    rows: list[Row] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    done: int = 0

    def __post_init__(self) -> None:
        versions = {name: metadata.version(name) for name in PACKAGES}
        where = provenance()
        where["versions"] = {**where["versions"], **versions}  # type: ignore[dict-item]
        self.facts |= {"cpu_model": cpu_model(), **where}
        given = self.arguments
        runs = given.repeats * len(variants(given)) if "loader" in given.kinds else 0
        self.total = runs + len(single_jobs(given))

    def measure(self, name: str, job: Job) -> Row:
        """What a process of its own measures, or its error."""
        found = launch(job)
        self.done += 1
        elapsed = time.time() - self.started
        left = elapsed / self.done * (self.total - self.done)
        print(
            f"[{self.done}/{self.total}, {duration(elapsed)}, ETA {duration(left)}]"
            f" {name}: {headline(found)}",
            flush=True,
        )
        return found

    def write(self, row: Row) -> None:
        """Append a row to the file."""
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        whole = {**self.facts, **row, "measured_at": now}
        self.rows.append(whole)
        self.arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with open(self.arguments.out, "a") as file:
            file.write(json.dumps(whole) + "\n")


def launch(job: Job) -> Row:
    """Run a task in a process pinned to the job's cores."""
    cpus = sorted(os.sched_getaffinity(0))[: job["cores"]]
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "row.json"
        command = [sys.executable, SCRIPT, "--worker", json.dumps(job), "--out", str(out)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=environment,
                check=False,
                timeout=TIMEOUT_S,
                preexec_fn=partial(os.sched_setaffinity, 0, cpus),
            )
        except subprocess.TimeoutExpired:
            return {"error": f"no answer after {TIMEOUT_S} s"}
        if done.returncode or not out.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()]
            named = [line for line in lines if re.match(r"\s*[\w.]*(Error|Exception)\b: ", line)]
            reason = (named or lines or ["nothing said"])[-1].strip()
            return {"error": f"exit code {done.returncode}: {reason[:300]}"}
        return json.loads(out.read_text())  # type: ignore[no-any-return]


def make_data(arguments: argparse.Namespace) -> Row:
    """Photos-like JPEGs in every layout, once; their number and mean size."""
    workers = len(os.sched_getaffinity(0))
    spec = SynthSpec(WIDTH, HEIGHT, num_train=arguments.images, num_val=64, shard_size=128)
    write_synthetic(arguments.data, spec, workers)
    write_synthetic(arguments.data / "small", SynthSpec(num_train=96, num_val=16, shard_size=32), 1)
    if "training" in arguments.kinds and not arguments.smoke.exists():
        write_synthetic(arguments.smoke, SynthSpec(), workers)
    dataset = open_dataset(arguments.data, "train", SampleLayout())
    if not (arguments.data / "list.csv").exists():
        write_layouts(arguments.data, dataset)
    return set_facts(dataset)


def write_layouts(root: Path, dataset: Dataset) -> None:
    """The set as TFRecords, a folder a class, and last a list of that folder's files."""
    (root / "tfrecord").mkdir(exist_ok=True)
    listed, samples = ["path,label"], iter(range(len(dataset)))
    for number, size in enumerate(dataset.sizes.tolist()):
        writer = TFRecordWriter(str(root / "tfrecord" / f"train-{number:06d}.tfrecord"))
        for sample in itertools.islice(samples, size):
            encoded, label = dataset.read(sample).tobytes(), int(dataset.labels_of(sample)[0])
            features = {"image/encoded": (encoded, "byte"), "image/class/label": (label, "int")}
            writer.write(features)
            name = f"folder/{label:02d}/{sample:06d}.jpg"
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(encoded)
            listed.append(f"{name},{label}")
        writer.close()
    (root / "list.csv").write_text("\n".join(listed) + "\n")


def cpu_model() -> str:
    """The CPU's name; provenance names the GPU where there is one."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else "unknown"


def decoders() -> list[str]:
    """Our decoders that run here."""
    return ["cpu", "mixed"] if torch.cuda.is_available() else ["cpu"]


def variants(arguments: argparse.Namespace) -> list[Job]:
    """Every loader at every number of cores."""
    policies = ["none", "rand_augment"] if arguments.augment else ["none"]
    ours = [
        {"loader": "ours", "reader": reader, "decoder": decoder, "augment": policy, "readers": n}
        for reader, decoder, policy, n in itertools.product(
            PATTERNS, decoders(), policies, arguments.readers
        )
        if policy == "none" or reader == "webdataset"
    ]
    plain = {"decoder": "pil", "augment": "none"}
    theirs = [
        {"loader": "torch", "reader": "folder", **plain},
        {"loader": "webdataset", "reader": "webdataset", **plain},
    ]
    names = ("micro_batch", "seconds")
    shared = {name: getattr(arguments, name) for name in names} | {"data": str(arguments.data)}
    return [v | shared | {"cores": n} for n in sorted(set(arguments.cores)) for v in ours + theirs]


def single_jobs(arguments: argparse.Namespace) -> dict[str, Job]:
    """Measurements that repeat within their process, by name."""
    given = vars(arguments)
    jobs: dict[str, Job] = {
        f"stage {decoder} cores={cores}": {
            "task": "stage",
            "data": str(arguments.data),
            "decoder": decoder,
            "cores": cores,
            **{name: given[name] for name in ("repeats", "seconds")},
        }
        for decoder in decoders()
        for cores in sorted({1, max(arguments.cores)})
    }
    everything = {"cores": max(arguments.cores)}
    names = ("pairs", "steps", "model_width")
    jobs[f"training width={arguments.model_width or 'smoke'}"] = {
        "task": "training",
        "data": str(arguments.smoke),
        **everything,
        **{name: given[name] for name in names},
    }
    small = str(arguments.data / "small")
    jobs["memory"] = {"task": "memory", "data": small, "epochs": arguments.epochs, **everything}
    return {name: job for name, job in jobs.items() if job["task"] in arguments.kinds}


def loader_rows(bench: Bench, arguments: argparse.Namespace) -> None:
    """Rounds over all variants; a row a variant, and one a run so that nothing measured is lost."""
    jobs = {loader_name(job): job for job in variants(arguments)}
    runs: dict[str, list[Row]] = {name: [] for name in jobs}
    rng = random.Random(0)
    for number in range(1, arguments.repeats + 1):
        cores = rng.sample(sorted(set(arguments.cores)), len(set(arguments.cores)))
        names = rng.sample(list(jobs), len(jobs))
        for name in sorted(names, key=lambda n: cores.index(jobs[n]["cores"])):
            run = bench.measure(f"round {number}: {name}", jobs[name] | {"task": "loader"})
            runs[name].append(run)
            row_name = f"run {name} round={number}"
            bench.write({"kind": "run", "name": row_name, "round": number, **jobs[name], **run})
    for name, job in jobs.items():
        torch_name = next(
            n for n, j in jobs.items() if (j["loader"], j["cores"]) == ("torch", job["cores"])
        )
        row = {"kind": "loader", "name": f"loader {name}", "repeats": arguments.repeats, **job}
        bench.write(row | summary(runs[name], runs[torch_name]))


def feeds_rows(bench: Bench, arguments: argparse.Namespace) -> None:
    """H100s that the fastest of our loaders in this session feeds, a recipe a row."""
    found = [
        row
        for row in bench.rows
        if row["kind"] == "loader"
        and row["loader"] == "ours"
        and "error" not in row
        and row["augment"] == "none"
        and row["cores"] == max(arguments.cores)
    ]
    best = max(found, key=lambda row: row["images_per_s"], default=None)
    for recipe in FED:
        flops = step_flops(joint_shape(load_config(recipe), CODES)).model
        needed = FED_MFU * find_gpu(FED_GPU).bf16_flops_per_s / flops
        row = {
            "kind": "feeds",
            "name": f"feeds {recipe}",
            "recipe": recipe,
            "gpu": FED_GPU,
            "mfu": FED_MFU,
            "train_flops_per_image": flops,
            "needed_images_per_s_per_gpu": needed,
        }
        bench.write(row | (fed(best, needed) if best else {"error": "no loader row to go by"}))
