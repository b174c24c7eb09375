"""k-NN and the best weights while a run trains, on a schedule of their own."""

import json
import time

import pytest
import torch
from conftest import SMALL
from eval_fixture import ALONE

from supmim_scale.config import load_config
from supmim_scale.errors import UserError
from supmim_scale.evaluation.while_training import online_knn
from supmim_scale.launch.signals import Stopper
from supmim_scale.models.weights import read_weights, save_weights
from supmim_scale.runs.weights import keep_best
from supmim_scale.training.build import build_run
from supmim_scale.training.loop import train
from supmim_scale.training.meters import StepClock
from supmim_scale.training.resume import Start

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = [*SMALL, "engine.kind=plain", "engine.activation_checkpointing=none", "mim.target=pixel"]


def rows(folder, kind):
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def trained(folder, shards, *words):
    config = load_config("smoke", [*PLAIN, f"input.root={shards}", *words])
    run = build_run(config, ALONE, folder, Start())
    figures = train(run, Stopper())
    run.held.close()
    return figures


def test_knn_has_its_own_schedule_and_changes_no_step(shards, tmp_path):
    last = trained(
        tmp_path / "with",
        shards,
        "log.knn_every=3",
        "log.knn_images=40",
        "log.best=knn_top1",
        "log.eval_every=2",
    )
    trained(tmp_path / "without", shards)
    knn = rows(tmp_path / "with", "knn")
    assert [(row["steps_done"], row["images"]) for row in knn] == [(3, 33), (4, 33)]
    assert last["eval_knn_top1"] == knn[-1]["knn_top1"]
    assert [row["steps_done"] for row in rows(tmp_path / "with", "eval")] == [2, 4]
    for a, b in zip(*(rows(tmp_path / name, "train") for name in ("with", "without")), strict=True):
        assert (a["loss"], a["grad_norm"]) == (b["loss"], b["grad_norm"])
    best = json.loads((tmp_path / "with/best.json").read_text())
    highest = max(knn, key=lambda row: row["knn_top1"])  # the first of equals
    assert (best["steps_done"], best["value"]) == (highest["steps_done"], highest["knn_top1"])
    _, facts = read_weights(tmp_path / "with/weights/best.safetensors")
    assert facts["steps_done"] == str(highest["steps_done"])


def test_evaluation_is_left_out_of_the_throughput_clock(shards, tmp_path, monkeypatch):
    pauses, knn = [], online_knn

    def slow(*arguments):
        time.sleep(0.3)
        return knn(*arguments)

    monkeypatch.setattr("supmim_scale.training.loop.online_knn", slow)
    monkeypatch.setattr(StepClock, "paused", lambda _, seconds: pauses.append(seconds))
    trained(tmp_path / "run", shards, "log.knn_every=3", "log.knn_images=20")
    assert [seconds > 0.3 for seconds in pauses] == [False, False, True, True]  # one a step


def test_the_best_is_replaced_by_a_better_one_alone(tmp_path):
    for step, value, is_kept in (
        (1, 0.5, True),
        (2, 0.4, False),
        (3, 0.5, False),
        (4, 0.9, True),
        (3, 0.6, True),
        (4, 0.5, False),  # the run went on from a checkpoint of step 2
    ):
        path = tmp_path / f"weights/step-{step}.safetensors"
        save_weights({"x": torch.full((1,), float(step))}, path, {})
        assert keep_best(tmp_path, path, "top1", value, step) == is_kept
    tensors, _ = read_weights(tmp_path / "weights/best.safetensors")
    assert tensors["x"].item() == 3


def test_a_best_without_a_schedule_is_refused():
    with pytest.raises(UserError, match=r"log\.best.*log\.knn_every"):
        load_config("smoke", ["log.best=knn_top1"])
    with pytest.raises(UserError, match=r"log\.knn_every"):
        load_config("smoke", ["log.knn_every=5", "loss.kind=none"])
