"""A run that goes on from where a shorter one cooled down."""

import json

from conftest import SMALL, assert_refused, command

RECIPE = [
    "train",
    "smoke",
    *SMALL,
    "engine.kind=plain",
    "optim.schedule=rsqrt",
    "optim.cooldown_steps=3",
    "log.every=1",
    "checkpoint.every=2",
    "checkpoint.keep_last=1",
]


def curve(run_dir):
    lines = (run_dir / "log.jsonl").read_text().splitlines()
    rows = [row for row in map(json.loads, lines) if row["kind"] == "train"]
    return [(row["steps_done"], row["loss"], row["grad_norm"], row["lr"]) for row in rows]


def test_it_is_the_run_that_it_would_have_been_bit_for_bit(shards, tmp_path):
    recipe = [*RECIPE, f"input.root={shards}"]
    short, long, whole = (tmp_path / name for name in ("short", "long", "whole"))
    command(*recipe, "optim.steps=8", "checkpoint.before_cooldown=true", f"log.run_dir={short}")
    kept = {path.name for path in (short / "checkpoints").glob("step-*")}
    assert kept == {"step-00000005", "step-00000008"}
    command(*recipe, "optim.steps=12", f"log.run_dir={long}", "--branch-from", short)
    command(*recipe, "optim.steps=12", f"log.run_dir={whole}")
    assert curve(long) == curve(whole)[5:]
    assert curve(short)[:5] == curve(whole)[:5]
    # A second start goes on from its own checkpoint, not from the parent's.
    done = command(
        *recipe, "optim.steps=12", f"log.run_dir={long}", "--branch-from", short, check=False
    )
    assert_refused(done, "all 12 steps done")


def test_what_cannot_be_branched_off_is_one_line(shards, tmp_path):
    recipe = [*RECIPE, f"input.root={shards}", f"log.run_dir={tmp_path}/run"]
    done = command(*recipe, "--branch-from", tmp_path / "none", check=False)
    assert_refused(done, "--branch-from", "a run's folder")
    done = command(
        *recipe,
        "optim.schedule=cosine",
        "optim.cooldown_steps=0",
        "--branch-from",
        tmp_path / "none",
        check=False,
    )
    assert_refused(done, "--branch-from", "optim.schedule=cosine", "wsd or rsqrt")
    (tmp_path / "parent").mkdir()
    facts = {"recipe": {"optim": {"steps": 80, "cooldown_steps": 3}}}
    (tmp_path / "parent/run.json").write_text(json.dumps(facts))
    done = command(*recipe, "--branch-from", tmp_path / "parent", check=False)
    assert_refused(done, "optim.steps=4", "cools down before the parent does")
    facts = {"recipe": {"optim": {"steps": 8, "cooldown_steps": 3}}}
    (tmp_path / "parent/run.json").write_text(json.dumps(facts))
    done = command(*recipe, "optim.steps=12", "--branch-from", tmp_path / "parent", check=False)
    assert_refused(done, "no ", "step-00000005", "checkpoint.before_cooldown=true")
    done = command(
        *recipe, "optim.cooldown_steps=0", "checkpoint.before_cooldown=true", check=False
    )
    assert_refused(done, "checkpoint.before_cooldown", "optim.cooldown_steps above 0")
