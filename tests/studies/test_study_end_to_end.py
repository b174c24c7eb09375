"""Twelve real runs over three sizes and four lengths, killed and stopped on the way, to a page."""

import csv
import json
import os
import re
import signal
import time

import forked
import pytest
import yaml
from conftest import ROOT, SMALL, assert_refused, command

LEFT_OUT = (
    "optim.steps",
    "optim.warmup_steps",
    "optim.global_batch",
    "log.every",
    "model.width",
    "model.heads",
)


@pytest.fixture
def study(shards, tmp_path):
    """The shipped study in a shorter form."""
    tree = yaml.safe_load((ROOT / "slurm/smoke_study.yaml").read_text())
    small = dict(word.split("=", 1) for word in SMALL)
    tree["overrides"] |= {k: v for k, v in small.items() if k not in LEFT_OUT}
    tree["overrides"] |= {
        "input.root": str(shards),
        "optim.global_batch": 8,
        "log.every": 2,
        "optim.warmup_steps": 2,
        "optim.cooldown_steps": 4,
        "checkpoint.every": 2,
    }
    tree["images"] = [64, 128, 256, 512]
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    return tmp_path / "study.yaml"


def started(study):
    """`study run` in a process group of its own."""
    with open(study.with_suffix(".log"), "ab") as log:
        return forked.start(
            ["-m", "supmim_scale", "study", "run", study, "--ranks", "1"],
            stdout=log,
            stderr=log,
            env={**os.environ, "SUPMIM_RUNS": str(study.parent)},
        )


def wait_for_steps(run, steps, process):
    deadline = time.time() + 300
    while steps_of(run) < steps:
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)


def steps_of(run):
    path = run / "log.jsonl"
    return path.read_text().count('"train"') if path.exists() else 0


def starts_of(run):
    rows = map(json.loads, (run / "log.jsonl").read_text().splitlines())
    return [row["steps_done"] for row in rows if row["kind"] == "start"]


def test_a_study_from_its_file_to_its_page(study):
    folder = study.parent / "smoke_laws"
    killed = started(study)
    wait_for_steps(folder / "w64_images128", 3, killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    stopped = started(study)
    wait_for_steps(folder / "w64_images256", 3, stopped)
    os.killpg(stopped.pid, signal.SIGTERM)
    assert stopped.wait(timeout=120) == 75
    assert started(study).wait(timeout=900) == 0, study.with_suffix(".log").read_text()[-3000:]

    for run in ("w64_images128", "w64_images256"):
        first, second = starts_of(folder / run)
        assert second > first  # on from a checkpoint of its own
    assert len(starts_of(folder / "w32_images512")) == 1

    words = {"SUPMIM_RUNS": str(study.parent)}
    said = command("study", "status", study, **words).stdout
    assert said.count("COMPLETED") == 12
    said = command("study", "report", folder, "--bootstrap", "20", **words).stdout
    assert "left out" not in said
    with open(folder / "runs.csv") as file:
        rows = list(csv.DictReader(file))
    assert len({row["params"] for row in rows}) == 3
    assert sorted(int(row["samples_seen"]) for row in rows) == sorted([64, 128, 256, 512] * 3)
    flops = [float(row["train_flops"]) for row in rows]
    assert flops == sorted(flops)
    (arm,) = json.loads((folder / "report/fit.json").read_text())["arms"]
    assert (arm["law"], arm["metric"], arm["points"]) == ("power", "class_loss", 12)
    page = (folder / "report/report.html").read_text()
    assert "smoke_laws" in page
    assert "images:" in page  # the study itself
    assert re.findall(r'(?:src|href)="https?:', page) == []  # opens without a network
    # A branched run did its own steps alone.
    assert starts_of(folder / "w32_images512") == [28]

    (folder / "w32_images64/log.jsonl").write_text("")
    last = folder / "w128_images512/log.jsonl"
    diverged = [json.loads(line) for line in last.read_text().splitlines()]
    diverged[-2]["loss"] = 1e9
    last.write_text("".join(json.dumps(row) + "\n" for row in diverged))
    drifted = folder / "w64_images256/log.jsonl"
    drifted.write_text(drifted.read_text().replace('"digest": "', '"digest": "0'))
    said = command("study", "collect", folder, **words).stdout
    assert "left out: w32_images64: UNFINISHED" in said
    assert "left out: w128_images512: diverged: loss 1e+09" in said
    assert "left out: w64_images256: drifted" in said


def test_a_design_that_no_law_can_be_told_from_is_refused_with_what_is_missing(tmp_path):
    """The six of the refusals of fits are tested there; here, that a study asks them."""
    size = {"w32": {"model.width": 32, "model.heads": 2}, "w64": {"model.width": 64}}
    wide = {"w256": {"model.width": 256}}
    base = {
        "name": "s",
        "recipe": "smoke",
        "law": "parametric",
        "overrides": {"optim.warmup_steps": 1},
    }
    cases = [
        ({"sizes": size | wide, "images": [640, 1280]}, ["2 distinct data", "missing"]),
        ({"sizes": size, "images": [640, 1280, 2560, 5120]}, ["2 distinct params", "missing"]),
        (
            {"sizes": size | {"w48": {"model.width": 48}}, "images": [640, 1280, 2560, 5120]},
            ["params over a factor", "missing"],
        ),
        (
            {
                "sizes": {
                    **size,
                    **wide,
                    "w128": {"model.width": 128},
                    "w96": {"model.width": 96},
                    "w48": {"model.width": 48},
                },
                "images_per_param": [0.05],
            },
            ["params and data on one line", "missing"],
        ),
        ({"images": [640, 1280], "law": "power"}, ["power", "missing"]),
        ({"images": [640, 6400], "law": "saturating"}, ["saturating", "missing"]),
    ]
    for change, expected in cases:
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(base | change, sort_keys=False))
        done = command("study", "plan", tmp_path / "study.yaml", check=False)
        assert_refused(done, *expected, "law: null")


def test_hours_and_money_are_the_planners(tmp_path):
    from supmim_scale.planner import cluster_of
    from supmim_scale.planner.plan import make_plan
    from supmim_scale.planner.speed import Assumed
    from supmim_scale.studies.cost import costs
    from supmim_scale.studies.design import load_design

    tree = {
        "name": "s",
        "recipe": "smoke",
        "images": [6400, 12800],
        "overrides": {"optim.schedule": "wsd", "optim.cooldown_steps": 10},
        "cluster": {"gpu": "h100", "gpus_per_node": 8, "price": 2.5},
    }
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree))
    design = load_design(tmp_path / "study.yaml")
    first, second = costs(design)
    plan = make_plan(
        "smoke", design.runs[0].config, cluster_of("h100", 1, 8), Assumed(), usd_per_gpu_hour=2.5
    )
    assert first.gpu_hours == pytest.approx(plan.cost.gpu_hours)
    assert first.usd == pytest.approx(plan.cost.usd)
    # The second does what is left of it: 12800 less the 6400 - 10 x 64 that it shares.
    assert second.gpu_hours == pytest.approx(first.gpu_hours * (12800 - 5760) / 6400)


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        ({"gpu": "h1000"}, ["h1000", "h100"]),
        ({"gpus": "h100"}, ["cluster.gpus", "an unknown key"]),
        ({"gpu": "h100", "price": -1}, ["cluster.price", "above 0"]),
        ({"gpu": "h100", "mfu": 45}, ["cluster.mfu", "a share"]),
        ({"gpu": "h100", "nodes": "two"}, ["cluster", "whole numbers"]),
    ],
)
def test_a_wrong_cluster_is_one_line(tmp_path, cluster, expected):
    tree = {"name": "s", "recipe": "smoke", "images": [6400], "cluster": cluster}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(tree))
    done = command("study", "plan", tmp_path / "study.yaml", check=False)
    assert_refused(done, *expected)


def test_the_picture_of_the_plan_is_drawn(study):
    from PIL import Image

    said = command("study", "plan", study, "--out", study.parent / "plan").stdout
    assert "branching saves" in said
    with Image.open(study.parent / "plan/coverage.png") as picture:
        assert picture.size[0] > 500
