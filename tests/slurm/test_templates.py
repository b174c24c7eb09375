"""The batch scripts as they stand: Slurm takes them, bash explains them, nothing is run as code."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL
from slurm_fixture import assert_one_line

from supmim_scale.config import load_config, recipe_names
from supmim_scale.jobs import templates
from supmim_scale.jobs.submit import template_of

SCRIPTS = sorted(path for path in ROOT.glob("slurm/*.sh") if path.stem not in templates.SHARED)
TRAINING = ["vitb14_in1k", "vitl_in21k", "vith_in21k", "vitg_in21k", "vitg_jft"]
GIVEN = {*TRAINING, "scaling_study", "scaling_fit", "throughput", "memory", "prepare_in21k"}


def bash(*arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        ["bash", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
        env={**clean, "SUPMIM_PYTHON": sys.executable, **environment},
    )


@pytest.fixture(scope="module")
def large_slurm():
    """As many nodes as the largest template asks for, of its size."""
    from slurm_fixture import started

    yield from started(nodes=32, gpus=8, cpus=192)


def test_the_promised_templates_are_there():
    assert {path.stem for path in SCRIPTS} == GIVEN


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_bash_can_read_it(script):
    assert bash("-n", script).returncode == 0


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_slurm_would_take_it_as_it_stands(large_slurm, script):
    done = large_slurm.command("sbatch", "--test-only", script, check=False)
    assert done.returncode == 0, done.stderr
    assert "to start at" in done.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_heads_are_alike_and_one_srun_follows(script):
    head, text = templates.options_of(script.read_text()), script.read_text()
    assert head["job-name"] == script.stem
    assert {"nodes", "cpus-per-task", "time", "requeue", "open-mode"} <= head.keys()
    assert head["output"] == ("%x_%A_%a.log" if script.stem == "scaling_study" else "%x_%j.log")
    assert len(re.findall(r"^srun ", text, re.MULTILINE)) == 1
    if script.stem in TRAINING:
        assert head["signal"] == "USR1@300"
        assert head["ntasks-per-node"] == head["gpus-per-node"]


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_fits_the_nodes_of_its_template(name):
    from supmim_scale.jobs.submit import require_shape

    if name != "smoke":
        head = templates.options_of(template_of(name).read_text())
        require_shape(load_config(name), head)


def test_started_by_bash_it_says_what_would_be_submitted_and_run():
    done = bash("slurm/vitl_in21k.sh", "optim.lr=1e-3")
    assert done.returncode == 0
    assert "sbatch slurm/vitl_in21k.sh" in done.stdout
    assert "--nodes=4" in done.stdout
    assert re.search(r"train vitl16_in21k input.root=\S+imagenet-21k .*optim.lr=1e-3", done.stdout)


def test_here_it_trains_on_this_machine(shards, tmp_path):
    done = bash(
        "slurm/vitl_in21k.sh",
        "--here",
        "smoke",
        *SMALL,
        f"input.root={shards}",
        SUPMIM_RUNS=str(tmp_path / "runs"),
    )
    assert done.returncode == 0, done.stderr
    assert "step 4/4" in done.stdout
    assert "zero3" in done.stdout
    (run,) = (tmp_path / "runs").iterdir()
    assert (run / "weights").is_dir()


def test_class_folders_are_prepared_in_one_go(tmp_path):
    from PIL import Image

    for split in ("train", "val"):
        for label in ("n1", "n2"):
            (tmp_path / "images" / split / label).mkdir(parents=True)
            Image.new("RGB", (16, 16)).save(tmp_path / "images" / split / label / "a.jpg")
    done = bash(
        "slurm/prepare_in21k.sh",
        "--here",
        "--images",
        tmp_path / "images",
        "data.classes=null",
        f"input.root={tmp_path}/shards",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "shards").glob("*/*.tar"))) == 2
    assert (tmp_path / "shards/verify_train/report.json").is_file()


FAKES = {  # as in a job that stopped and saved, to the end of the script
    "srun": "exit 75",
    "squeue": "echo RUNNING",
    "scontrol": """case $2 in
        hostnames) echo localhost ;; job) echo "   StdOut=/dev/null" ;; *) exit 1 ;;
    esac""",
    "sleep": "exit 0",
}


def in_job(folder, *words, **environment):
    """A template as slurmd starts it, with commands of Slurm's that only pretend."""
    for name, body in FAKES.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    job = {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "x",
        "SLURM_JOB_NODELIST": "localhost",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "PATH": f"{folder}:{os.environ['PATH']}",
    }
    start = 'SLURM_TASK_PID=$$ exec bash "$@"'
    return bash("-c", start, "_", *words, **job | environment)


def test_words_and_variables_are_never_run_as_code(tmp_path):
    bait, index = f"$(touch {tmp_path}/bait)", f"a[$(touch {tmp_path}/bait)]"
    done = bash("slurm/vitl_in21k.sh", f"log.run_dir={bait}", f"`touch {tmp_path}/bait`", bait)
    assert "$(touch" in done.stdout
    names = (
        "SLURM_JOB_ID",
        "SLURM_JOB_NODELIST",
        "SLURM_RESTART_COUNT",
        "SLURM_CPUS_PER_TASK",
        "SLURM_JOB_NAME",
        "SUPMIM_GPU",
        "SUPMIM_MASTER_ADDR",
    )
    baited = dict.fromkeys(names, index)
    run = tmp_path / "run"
    run.mkdir()
    (run / "starts").write_text(f"none {index}\n")
    done = in_job(tmp_path, "slurm/vitl_in21k.sh", f"log.run_dir={run}", bait, **baited)
    assert "srun ended with 75" in done.stdout, done.stdout + done.stderr
    (tmp_path / "manifest.tsv").write_text(f"run\tsmoke\tseed={bait}\n")
    study = ["slurm/scaling_study.sh", tmp_path / "manifest.tsv"]
    done = in_job(tmp_path, *study, **baited, SLURM_ARRAY_TASK_ID="0", SLURM_ARRAY_JOB_ID=index)
    assert "srun ended with 75" in done.stdout, done.stdout + done.stderr
    assert_one_line(
        in_job(tmp_path, *study, SLURM_ARRAY_TASK_ID=index, SLURM_ARRAY_JOB_ID="1").stderr,
        "found no array",
    )
    for name in ("SUPMIM_IDLE_STARTS", "SUPMIM_REQUEUE_CRASHED"):
        done = in_job(tmp_path, "slurm/vitl_in21k.sh", f"log.run_dir={run}", **{name: index})
        assert done.returncode == 2
        assert_one_line(done.stderr, name)
    assert not (tmp_path / "bait").exists()


@pytest.mark.parametrize(
    ("code", "leaves", "state", "ends", "says"),
    [
        (75, "stopped", "RUNNING", 75, "requeued"),
        (139, "stopped", "RUNNING", 139, "requeued"),  # a rank that crashed in its teardown
        (75, None, "RUNNING", 75, "not requeued: the run did not stop in order"),
        (137, None, "RUNNING", 137, "not requeued: the run did not stop in order"),
        (2, None, "RUNNING", 2, "not requeued: a mistake"),
        (143, "mistake", "RUNNING", 2, "not requeued: a mistake"),  # beside a rank cut short
        (75, "stopped", "COMPLETING", 75, "not requeued here: the job is COMPLETING"),
        (75, "stopped", "", 75, "not requeued here: the job is gone"),
        (0, None, "RUNNING", 0, "done"),
    ],
)
def test_what_is_requeued(tmp_path, monkeypatch, code, leaves, state, ends, says):
    run = tmp_path / "run"
    monkeypatch.setitem(FAKES, "srun", f"touch '{run}/{leaves or 'nothing'}'; exit {code}")
    monkeypatch.setitem(FAKES, "squeue", f"echo {state}")
    told = tmp_path / "told"
    monkeypatch.setitem(
        FAKES, "scontrol", FAKES["scontrol"].replace("*) exit 1", f"*) echo $* >> {told}")
    )
    done = in_job(tmp_path, "slurm/vitl_in21k.sh", f"log.run_dir={run}")
    assert done.returncode == ends, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].endswith(says) or says in done.stdout.splitlines()[-1]
    assert told.exists() == (says == "requeued")


def test_a_shell_inside_some_other_job_is_not_taken_for_a_batch_script():
    done = bash("slurm/vitl_in21k.sh", SLURM_JOB_ID="7", SLURM_TASK_PID="1")
    assert done.returncode == 0
    assert "would submit" in done.stdout


def test_the_sites_settings_can_be_sourced_in_a_fresh_shell():
    asked = 'source slurm/site.sh; echo "$SUPMIM_HOME $SUPMIM_PYTHON $SUPMIM_RUNS"'
    done = subprocess.run(
        ["bash", "-c", asked],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.stdout == f"{ROOT} {ROOT}/.venv/bin/python {ROOT}/runs\n"


def test_a_site_that_talks_and_reads_unset_variables_does_no_harm(tmp_path):
    """As module systems do."""
    copy = tmp_path / "check out"
    shutil.copytree(ROOT / "slurm", copy / "slurm")
    with open(copy / "slurm/site.sh", "a") as file:
        file.write('echo "Loading cuda"; : $NOT_SET\n')
    words = bash(copy / "slurm/vitl_in21k.sh", "--words", SUPMIM_RUNS="/a b").stdout.splitlines()
    assert words[0] == "vitl16_in21k"
    assert words[1] == f"input.root={copy}/datasets/imagenet-21k"
    assert words[2].startswith("log.run_dir=/a b/vitl_in21k_")


def test_outside_the_checkout_one_line_says_what_to_do(tmp_path):
    copy = shutil.copy(ROOT / "slurm/vitl_in21k.sh", tmp_path)
    done = bash(copy, SLURM_SUBMIT_DIR=str(tmp_path))
    assert done.returncode == 2
    assert done.stderr.startswith("error: found no slurm/site.sh")


def test_a_rendered_script_differs_in_its_options_alone():
    text = templates.find_template("vitl_in21k").read_text()
    new = templates.rendered(
        text, {"nodes": "8", "qos": "high", "exclusive": "", "output": "/a b/%j.log"}
    )
    before, after = text.splitlines(), new.splitlines()
    assert [line for line in before if line not in after] == [
        "#SBATCH --nodes=4",
        "#SBATCH --output=%x_%j.log",
    ]
    assert [line for line in after if line not in before] == [
        "#SBATCH --nodes=8",
        '#SBATCH --output="/a b/%j.log"',
        "#SBATCH --qos=high",
        "#SBATCH --exclusive",
    ]
    assert templates.options_of(new)["output"] == "/a b/%j.log"
