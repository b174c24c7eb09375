"""The batch scripts as they stand: Slurm takes them, bash explains them, nothing is run as code."""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL

from supmim_scale.cluster import templates
from supmim_scale.cluster.submission import template_of
from supmim_scale.config import load_config, recipe_names

SCRIPTS = sorted(path for path in ROOT.glob("slurm/*.sh") if path.stem not in templates.SHARED)
TRAINING = ["vitb14_in1k", "vitl_in21k", "vith_in21k", "vitg_in21k", "vitg_jft"]
GIVEN = {*TRAINING, "scaling_study", "scaling_fit", "throughput", "memory", "prepare_in21k"}


def bash(*arguments, **environment):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("SLURM")}
    return subprocess.run(
        ["bash", *map(str, arguments)], capture_output=True, text=True, cwd=ROOT, check=False,
        env={**clean, "SUPMIM_PYTHON": sys.executable, **environment},
    )  # fmt: skip


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
    from supmim_scale.cluster.submission import require_shape

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
    done = bash("slurm/vitl_in21k.sh", "--here", "smoke", *SMALL, f"input.root={shards}",
                SUPMIM_RUNS=str(tmp_path / "runs"))  # fmt: skip
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
    done = bash("slurm/prepare_in21k.sh", "--here", "--images", tmp_path / "images",
                "data.classes=null", f"input.root={tmp_path}/shards")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "shards").glob("*/*.tar"))) == 2
    assert (tmp_path / "shards/verify_train/report.json").is_file()


def test_words_and_variables_are_never_run_as_code(tmp_path):
    bait = f"$(touch {tmp_path}/bait)"
    index = f"a[$(touch {tmp_path}/bait)]"
    bash("slurm/vitl_in21k.sh", f"log.run_dir={bait}", f"`touch {tmp_path}/bait`", bait)
    job = {"SLURM_JOB_ID": index, "SLURM_JOB_NODELIST": bait, "SLURM_SUBMIT_DIR": str(ROOT),
           "SLURM_ARRAY_TASK_ID": index, "SLURM_ARRAY_JOB_ID": bait, "SLURM_RESTART_COUNT": index,
           "SUPMIM_IDLE_REQUEUES": index, "SUPMIM_RUNS": bait, "SLURM_CPUS_PER_TASK": index,
           "PATH": f"{tmp_path}:{os.environ['PATH']}"}  # fmt: skip
    # As in a job that stopped and saved, to the end of the script.
    (tmp_path / "srun").write_text("#!/bin/sh\nexit 75\n")
    (tmp_path / "squeue").write_text("#!/bin/sh\necho RUNNING\n")
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexit 1\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "stopped").write_text("after step 1\n")
    (run / "idle_requeues").write_text(index)
    for name in ("srun", "squeue", "scontrol"):
        (tmp_path / name).chmod(0o755)
    (tmp_path / "manifest.tsv").write_text(f"run\tsmoke\tseed={bait}\n")
    clean = {k: v for k, v in job.items() if k not in ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_JOB_ID")}
    done = bash("slurm/vitl_in21k.sh", f"log.run_dir={run}", **clean)
    assert "srun ended with 75" in done.stdout, done.stderr
    bash("slurm/scaling_study.sh", tmp_path / "manifest.tsv", **job)
    bash("slurm/scaling_study.sh", tmp_path / "manifest.tsv", **job | {"SLURM_ARRAY_TASK_ID": "0"})
    assert not (tmp_path / "bait").exists()


def test_outside_the_checkout_one_line_says_what_to_do(tmp_path):
    done = bash(ROOT / "slurm/vitl_in21k.sh", SLURM_SUBMIT_DIR=str(tmp_path), SLURM_JOB_ID="1")
    assert done.returncode == 2
    assert done.stderr.startswith("error: found no slurm/site.sh")


def test_a_rendered_script_differs_in_its_options_alone():
    text = templates.find_template("vitl_in21k").read_text()
    new = templates.rendered(text, {"nodes": "8", "qos": "high", "exclusive": ""})
    before, after = text.splitlines(), new.splitlines()
    assert [line for line in before if line not in after] == ["#SBATCH --nodes=4"]
    assert [line for line in after if line not in before] == [
        "#SBATCH --nodes=8", "#SBATCH --qos=high", "#SBATCH --exclusive"
    ]  # fmt: skip
