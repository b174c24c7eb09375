"""Stopping and going on, as users do it: the same run, whatever the ranks and the stage."""

import json
import os
import shutil
import signal
import time

import forked
import pytest
import torch
from conftest import SMALL, assert_refused, command
from safetensors.torch import load_file, save_file

from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config
from supmim_scale.models.weights import start_from
from supmim_scale.runs.folder import lock

RECIPE = [
    "train",
    "smoke",
    *SMALL,
    "optim.global_batch=12",
    "optim.steps=9",
    "log.every=1",
    "augment.mixup_alpha=0.8",
    "checkpoint.every=2",
]
ONE_STEP = "checkpoint.time_budget_s=0.01"


def rows(run_dir, kind="train"):
    found = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    return [row for row in found if row["kind"] == kind]


def curve(run_dir):
    return [(row["steps_done"], row["loss"], row["grad_norm"]) for row in rows(run_dir)]


@pytest.fixture(scope="module")
def plain(shards, tmp_path_factory):
    """The uninterrupted run in plain PyTorch."""
    run_dir = tmp_path_factory.mktemp("plain") / "run"
    command(*RECIPE, f"input.root={shards}", f"log.run_dir={run_dir}", "engine.kind=plain")
    return run_dir


def test_a_run_goes_on_with_other_ranks_under_other_stages(plain, shards, tmp_path):
    """2 ranks ZeRO-3, 1 ZeRO-3, 3 ZeRO-1, 2 ZeRO-2, plain PyTorch, 2 ZeRO-3 with offload, a step
    each; then to the end."""
    run_dir = tmp_path / "run"
    starts = [
        ("2", "zero3"),
        ("1", "zero3"),
        ("3", "zero1"),
        ("2", "zero2"),
        (None, None),
        ("2", "zero3_offload"),
    ]
    for number, (ranks, stage) in enumerate(starts, start=1):
        how = ["--ranks", ranks, f"engine.ds_config={stage}"] if ranks else ["engine.kind=plain"]
        done = command(
            *RECIPE, *how, f"input.root={shards}", f"log.run_dir={run_dir}", ONE_STEP, check=False
        )
        assert done.returncode == 75, done.stdout + done.stderr
        assert f"stopped after step {number}" in done.stdout
    command(*RECIPE, "--ranks", 3, f"input.root={shards}", f"log.run_dir={run_dir}")
    ours, theirs = curve(run_dir), curve(plain)
    assert [step for step, _, _ in ours] == list(range(1, 10))
    for a, b in zip(ours, theirs, strict=True):
        assert a == pytest.approx(b, abs=1e-5)
    assert rows(run_dir, "eval")[-1]["top1"] == rows(plain, "eval")[-1]["top1"]


def test_the_same_ranks_go_on_bit_for_bit_and_curves_have_no_doubles(shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train = [*RECIPE, "--ranks", 2, f"input.root={shards}", "log.every=3"]
    command(*train, f"log.run_dir={whole}")
    for _ in range(2):
        done = command(*train, f"log.run_dir={parts}", ONE_STEP, check=False)
        assert done.returncode == 75
    command(*train, f"log.run_dir={parts}")
    assert curve(parts) == curve(whole)  # a log line may average steps from before and after
    ours, theirs = (load_file(d / "weights/step-00000009-ema.safetensors") for d in (parts, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    events = EventAccumulator(str(parts / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 6, 9]


def group_of(pid):
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def started(run_dir, shards, *more):
    process = forked.start(
        [
            "-m",
            "supmim_scale",
            *RECIPE,
            "--ranks",
            2,
            "optim.steps=400",
            "optim.warmup_steps=1",
            f"input.root={shards}",
            f"log.run_dir={run_dir}",
            *more,
        ],
        stdout=forked.PIPE,
        stderr=forked.PIPE,
    )
    deadline = time.time() + 120
    while not (run_dir / "log.jsonl").exists() or len(rows(run_dir)) < 3:
        assert process.poll() is None, process.communicate()
        assert time.time() < deadline
        time.sleep(0.05)
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_the_step_in_hand_and_ends_with_75(shards, tmp_path, number):
    process = started(tmp_path / "run", shards)
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 75, out + err
    last = rows(tmp_path / "run")[-1]["steps_done"]
    assert f"stopped after step {last} ({number.name}), saved" in out
    assert (tmp_path / "run/checkpoints/latest").read_text() == f"step-{last:08d}\n"


def test_a_hanging_rank_ends_the_job_and_leaves_its_stacks(shards, tmp_path):
    import psutil

    process = started(tmp_path / "run", shards, "watch.hang_s=4")
    ranks = [pid for pid in psutil.pids() if pid != process.pid and group_of(pid) == process.pid]
    os.kill(max(ranks), signal.SIGSTOP)
    out, err = process.communicate(timeout=60)
    assert process.returncode not in (0, 75), out + err
    stacks = [path.read_text() for path in sorted((tmp_path / "run/stacks").iterdir())]
    assert any("train.py" in text and "Timeout" in text for text in stacks)


def test_another_recipe_does_not_go_on_with_a_run_unless_it_is_allowed(shards, tmp_path):
    train = [*RECIPE, f"input.root={shards}", f"log.run_dir={tmp_path}/run", "engine.kind=plain"]
    assert command(*train, ONE_STEP, check=False).returncode == 75
    done = command(*train, "optim.lr=0.5", "mask.ratio=0.25", check=False)
    assert_refused(
        done,
        "mask.ratio 0.25 (was 0.5)",
        "optim.lr 0.5 (was 0.002)",
        "--allow-drift mask.ratio --allow-drift optim.lr",
    )
    done = command(*train, "optim.lr=0.5", ONE_STEP, "--allow-drift", "optim.lr", check=False)
    assert done.returncode == 75, done.stderr


def test_a_folder_that_another_job_writes_in_is_refused(shards, tmp_path):
    held = lock(tmp_path / "run")
    done = command(
        *RECIPE,
        f"input.root={shards}",
        f"log.run_dir={tmp_path}/run",
        "engine.kind=plain",
        check=False,
    )
    assert_refused(done, "in use by process", "log.run_dir")
    held.close()


def test_a_folder_that_cannot_be_written_is_refused(shards):
    done = command(
        *RECIPE, f"input.root={shards}", "log.run_dir=/proc/run", "engine.kind=plain", check=False
    )
    assert_refused(done, "log.run_dir", "a writable folder")


def test_a_data_set_that_changed_is_refused(shards, tmp_path):
    shutil.copytree(shards, tmp_path / "data")
    train = [
        *RECIPE,
        f"input.root={tmp_path}/data",
        f"log.run_dir={tmp_path}/run",
        "engine.kind=plain",
    ]
    assert command(*train, ONE_STEP, check=False).returncode == 75
    for path in (tmp_path / "data/train").glob("train-000002.tar*"):
        path.unlink()
    assert_refused(command(*train, check=False), "data.train", "64 samples", "96 of digest")


@pytest.mark.parametrize("on_failure", ["stop", "continue"])
def test_a_full_disk_does_as_the_recipe_says(shards, tmp_path, on_failure):
    """A file where the checkpoints' folder should be stands for a disk that takes no more."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/checkpoints").write_text("in the way")
    done = command(
        *RECIPE,
        f"input.root={shards}",
        f"log.run_dir={tmp_path}/run",
        "engine.kind=plain",
        f"checkpoint.on_failure={on_failure}",
        check=False,
    )
    if on_failure == "stop":
        assert_refused(done, "checkpoint", "after step 2", "checkpoint.on_failure=continue")
    else:
        assert done.returncode == 0
        assert "no checkpoint after step 2" in done.stdout
        assert len(rows(tmp_path / "run")) == 9


def test_steps_that_stay_non_finite_stop_the_run_with_their_samples(shards, tmp_path):
    train = [*RECIPE, f"input.root={shards}", f"log.run_dir={tmp_path}/run", "engine.kind=plain"]
    done = command(
        *train, "optim.lr=1e30", "optim.clip_grad_norm=0", "watch.skipped_in_a_row=2", check=False
    )
    assert_refused(done, "3 skipped steps in a row", "rank 0", "class_loss")
    skipped = rows(tmp_path / "run", "skipped_step")
    assert [row["in_a_row"] for row in skipped] == [1, 2]
    assert "train/train-" in skipped[0]["non_finite"]["rank 0"]["samples"][0]


def test_a_spike_rolls_back_and_passes_the_samples_over(shards, tmp_path):
    """A loss that does not move, and so low a threshold that its noise is a spike."""
    train = [
        *RECIPE,
        f"input.root={shards}",
        f"log.run_dir={tmp_path}/run",
        "engine.kind=plain",
        "optim.steps=40",
        "optim.lr=1e-9",
        "watch.spike_sigmas=0.01",
        "watch.on_spike=rollback",
        "watch.rollbacks=1",
    ]
    done = command(*train, check=False)
    assert_refused(done, "after 1 rollbacks", "robust deviations")
    first, second = rows(tmp_path / "run", "spike")
    steps = [row["steps_done"] for row in rows(tmp_path / "run")]
    back = steps[steps.index(first["steps_done"]) + 1]
    assert back <= first["steps_done"]
    assert (back - 1) % 2 == 0  # the step after a checkpoint
    assert second["steps_done"] > 0


def joint(*overrides):
    config = load_config("smoke", [*SMALL, *overrides])
    return recipe_model(config, 16)


def test_a_new_run_starts_from_the_weights_of_another(plain, shards, tmp_path):
    weights = plain / "weights/step-00000009.safetensors"
    model = joint("seed=5")
    assert start_from(model, weights) == []
    given = load_file(weights)
    assert all(torch.equal(model.state_dict()[name], given[name]) for name in given)
    done = command(
        *RECIPE,
        f"input.root={shards}",
        f"log.run_dir={tmp_path}/run",
        "engine.kind=plain",
        f"model.init_from={weights}",
    )
    assert "left at random initialisation: none" in done.stdout
    assert rows(tmp_path / "run")[0]["loss"] < rows(plain)[0]["loss"]


def test_timms_weights_of_another_resolution_and_head_are_taken(tmp_path):
    """As timm itself builds and saves them, with a class token and its own norm after pooling."""
    import timm

    torch.manual_seed(3)
    theirs = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=96,
        num_classes=7,
        embed_dim=32,
        depth=2,
        num_heads=2,
        patch_size=8,
    )
    save_file(theirs.state_dict(), tmp_path / "model.safetensors")
    model = joint()
    left = start_from(model, tmp_path)
    assert {name for name in left if not name.startswith(("decoder.", "mask_token"))} == {
        "encoder.head.weight",
        "encoder.head.bias",
    }
    block = model.encoder.blocks[1].attn.qkv.weight
    assert torch.equal(block, theirs.blocks[1].attn.qkv.weight)
    from timm.layers import resample_abs_pos_embed

    expected = resample_abs_pos_embed(theirs.pos_embed[:, 1:], [6, 6], num_prefix_tokens=0)
    assert torch.equal(model.encoder.pos_embed, expected)


def test_weights_of_another_encoder_are_one_line(plain, tmp_path, capsys):
    from supmim_scale.errors import UserError

    weights = plain / "weights/step-00000009.safetensors"
    with pytest.raises(UserError, match=r"encoder\.\S+: found \[.*32.*\]; expected \[.*64.*\]"):
        start_from(joint("model.width=64"), weights)
    (tmp_path / "x.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a safetensors file"):
        start_from(joint(), tmp_path / "x.safetensors")
