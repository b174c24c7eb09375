"""A study as a job array on a real Slurm; submission that refuses what cannot work."""

import csv

import pytest
import yaml
from conftest import ROOT, assert_refused, command
from slurm_fixture import PIXELS, assert_one_line, curve, rows

SHAPE = ["--sbatch=--ntasks-per-node=1", "--sbatch=--cpus-per-task=3", "--gpus-per-node=0"]


@pytest.fixture
def study(jobs):
    """Six runs of which the fifth starts from weights that are not there yet."""
    pairs = dict(word.split("=", 1) for word in jobs.smoke[1:] if word != PIXELS)
    runs = {f"seed{i}": {"seed": i} for i in range(6)}
    runs["seed4"]["model.init_from"] = str(jobs.folder / "weights.safetensors")
    tree = {
        "name": "seeds",
        "recipe": "smoke",
        "runs": runs,
        "overrides": {**pairs, "optim.steps": 3},
    }
    path = jobs.folder / "study.yaml"
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return path


def test_one_run_fails_the_others_finish_and_it_alone_is_resumed(jobs, study):
    said = jobs.command("study", "submit", study, "--limit", 2, *SHAPE).stdout
    array, fit = said.split("job array ")[1].split(":")[0], said.split("then job ")[1].split()[0]
    assert f"job array {array}: 6 runs" in said
    assert jobs.facts(array)["ArrayTaskThrottle"] == "2"
    states = [jobs.end_of(f"{array}_{i}")["JobState"] for i in range(6)]
    assert states == ["COMPLETED"] * 4 + ["FAILED", "COMPLETED"]
    assert jobs.end_of(fit)["JobState"] == "COMPLETED", jobs.log(fit)
    folder = jobs.runs / "seeds"
    assert "left out: seed4: FAILED (error: " in jobs.log(fit)
    with open(folder / "runs.csv") as file:
        table = list(csv.DictReader(file))
    assert [row["run"] for row in table] == ["seed0", "seed1", "seed2", "seed3", "seed5"]
    assert [row["seed"] for row in table] == ["0", "1", "2", "3", "5"]
    assert all(int(row["samples_seen"]) == 24 for row in table)

    lines = jobs.command("jobs", folder).stdout.splitlines()
    failed = next(place for place, line in enumerate(lines) if line.startswith("seed4"))
    assert "FAILED" in lines[failed]
    assert "error: " in lines[failed + 1]
    assert "weights.safetensors" in lines[failed + 1]
    assert sum("COMPLETED" in line for line in lines) == 5
    assert "3/3" in lines[1]

    again = jobs.command("study", "submit", study, *SHAPE, check=False)
    assert_refused(again, "submitted before", "study resume")
    (jobs.folder / "weights.safetensors").write_bytes(
        next((folder / "seed0/weights").glob("*.safetensors")).read_bytes()
    )
    said = jobs.command("study", "resume", study, *SHAPE).stdout
    second = said.split("job array ")[1].split(":")[0]
    assert f"job array {second}: 1 runs" in said
    assert jobs.end_of(f"{second}_4")["JobState"] == "COMPLETED", jobs.log(second)
    assert len(rows(folder / "seed0", "start")) == 1
    assert "nothing to submit" in jobs.command("study", "resume", study, *SHAPE).stdout
    assert jobs.command("jobs", folder).stdout.count("COMPLETED") == 6


def test_a_recipe_is_submitted_as_it_is_shown(jobs):
    words = [
        "submit",
        *jobs.smoke,
        "optim.steps=2",
        "--nodes",
        2,
        "--gpus-per-node=1",
        "--sbatch=--cpus-per-task=3",
    ]
    shown = jobs.command(*words, "--dry-run").stdout
    assert "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n#SBATCH --gpus-per-node=1" in shown
    assert not jobs.runs.exists()
    said = jobs.command(*words).stdout
    job = said.split()[1].rstrip(",")
    table = jobs.command("jobs").stdout
    assert job in table
    assert jobs.end_of(job)["JobState"] == "COMPLETED", jobs.log(job)
    (run,) = jobs.runs.iterdir()
    named = shown.split("--job-name=")[1].split("\n")[0]  # after the second it was shown in
    script = shown.partition("\n")[2].replace(named, run.name)
    assert (run / "job.sh").read_text() == script
    assert "2/2" in jobs.command("jobs").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["vitl61_in21k"], ["recipe", "vitl16_in21k"]),
        (["smoke", "optim.lr=fast"], ["optim.lr"]),
        (["smoke", "input.root=/nowhere"], ["input.root", "no folder /nowhere"]),
        (["smoke", "--gpus-per-node=8"], ["sbatch: found", "change the sbatch options"]),
        (["smoke", "--sbatch=--cpus-per-task=1"], ["--cpus-per-task", "input.threads"]),
        (["smoke", "--sbatch=--ntasks-per-node=3"], ["--ntasks-per-node", "a task a GPU"]),
        (["smoke", "--nodes=3", "--gpus-per-node=1"], ["global_batch"]),
        (["smoke", "--sbatch=-p high"], ["--sbatch", "--name=value"]),
        (["smoke", "--sbatch=--partition=nowhere"], ["sbatch", "partition"]),
        (["smoke", "log.run_dir=/proc/run"], ["run folder"]),
        (["smoke", "log.run_dir=/tmp/a%b"], ["run folder", "no %"]),
    ],
)
def test_what_cannot_work_is_refused_before_it_is_queued(jobs, words, expected):
    own = [word for word in jobs.smoke[1:] if not word.startswith(("engine.device", "input.root"))]
    data = [] if any("input.root" in w for w in words) else [f"input.root={jobs.shards}"]
    defaults = ["--nodes=1", "--gpus-per-node=2", "--sbatch=--cpus-per-task=3"]
    done = jobs.command("submit", words[0], *own, *data, *defaults, *words[1:], check=False)
    assert_refused(done, *expected)
    assert jobs.slurm.command("squeue", "-h").stdout == ""


def test_the_planner_is_asked_before_a_job_is_queued(jobs):
    """g/14's smaller brother on a card of 40 GB, all activations kept."""
    greedy = [
        "submit",
        "vitl16_in21k",
        "--nodes=1",
        "--gpus-per-node=8",
        "--unchecked-data",
        "engine.activation_checkpointing=none",
        "engine.micro_batch=512",
    ]
    done = jobs.command(*greedy, "--gpu", "a100-40", check=False)
    assert_refused(done, "planner", "does not fit", "--unplanned")
    done = jobs.command(*greedy, "--gpu", "a1000", check=False)
    assert_refused(done, "a1000")
    done = jobs.command(*greedy, check=False, SUPMIM_GPU="")
    assert "not asked whether it fits" in done.stdout
    assert_refused(done, "sbatch")  # this cluster's nodes are smaller
    assert not jobs.runs.exists()


def test_runs_that_branch_off_come_in_waves_and_learn_what_one_long_run_learns(jobs, tmp_path):
    """The second array waits for the first; the longer run begins where the shorter cooled down."""
    pairs = dict(word.split("=", 1) for word in jobs.smoke[1:] if word != PIXELS)
    del pairs["optim.steps"]
    pairs |= {"optim.schedule": "wsd", "optim.cooldown_steps": 2}
    tree = {"name": "branches", "recipe": "smoke", "overrides": pairs, "images": [40, 64]}
    (jobs.folder / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    said = jobs.command("study", "submit", jobs.folder / "study.yaml", *SHAPE).stdout
    first, second = (part.split(":")[0] for part in said.split("job array ")[1:])
    alone = tmp_path / "alone"
    overrides = [f"{key}={value}" for key, value in pairs.items()]
    command(
        "train", "smoke", *overrides, "optim.steps=8", "engine.kind=plain", f"log.run_dir={alone}"
    )
    states = [jobs.end_of(job)["JobState"] for job in (f"{first}_0", f"{second}_1")]
    assert states == ["COMPLETED", "COMPLETED"], jobs.log(first) + jobs.log(second)
    short, long = jobs.runs / "branches/images40", jobs.runs / "branches/images64"
    assert [step for step, _, _ in curve(long)] == [4, 5, 6, 7, 8]
    whole = curve(short)[:3] + curve(long)
    for a, b in zip(whole, curve(alone), strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_an_array_longer_than_its_manifest_says_so(jobs):
    jobs.runs.mkdir()
    (jobs.runs / "manifest.tsv").write_text("a\tsmoke\n")
    job = jobs.sbatch(
        "--nodes=1",
        "--ntasks-per-node=1",
        "--gpus-per-node=0",
        "--array=3",
        str(ROOT / "slurm/scaling_study.sh"),
        str(jobs.runs / "manifest.tsv"),
    )
    assert jobs.end_of(f"{job}_3")["ExitCode"] == "2:0"
    assert_one_line(jobs.log(job), "no line for element 3")
