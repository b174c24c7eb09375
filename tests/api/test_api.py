"""The Python API, as its page shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
import torch
from conftest import ROOT, SMALL
from torch import distributed as dist

import supmim_scale as sm
from supmim_scale.build.model import recipe_encoder
from supmim_scale.models.weights import load_encoder as fill
from supmim_scale.runs.weights import last_weights

PAGE = ROOT / "docs/api.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
SUPERVISED = ["mim.weight=0", "engine.kind=plain", *SMALL]


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """A process that no launcher has started, before and after."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(matplotlib, "get_backend", lambda: "agg")
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


def test_the_page_runs_from_its_first_block_to_its_last(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/small").symlink_to(shards)
    told = {}
    for block in BLOCKS:
        exec(compile(block, str(PAGE), "exec"), told)
    shown = capsys.readouterr().out
    assert "<recipe: vit_ti16 at 48 px on synth" in shown
    assert "command line: optim.lr: found 'fast'" in shown
    assert "runs/small: finished" in shown
    assert (tmp_path / "exported/model.safetensors").exists()
    assert (tmp_path / "law.png").stat().st_size > 10_000


def test_the_page_names_every_function():
    for name in sm.__all__:
        assert f"sm.{name}" in PAGE.read_text(), name


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, supmim_scale; print(sorted({'torch', 'numpy', 'yaml'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = sm.trian
    assert set(sm.__all__) <= set(dir(sm))


def test_building_a_model_leaves_the_global_random_state_alone():
    recipe = sm.load_recipe("smoke", SMALL)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one = sm.build_model(recipe).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    other = sm.build_model(recipe).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_features_are_what_the_encoder_gives_on_the_recipes_own_views(shards, tmp_path):
    recipe = sm.load_recipe(
        "smoke", [f"input.root={shards}", f"log.run_dir={tmp_path / 'run'}", *SUPERVISED]
    )
    outcome = sm.train(recipe)
    assert outcome.is_finished
    data = sm.open_data(recipe, "val")
    encoder = recipe_encoder(recipe).eval()
    fill(encoder, last_weights(tmp_path / "run"))
    (batch,) = sm.batches(data, recipe, batch=len(data))
    with torch.no_grad():
        tokens = encoder.forward_features(batch.images_BCHW)
        wanted = encoder.forward_head(tokens, pre_logits=True)
    found = sm.features(sm.load_encoder(outcome.run_dir), data, batch=7)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert torch.equal(sm.labels(data), batch.labels_BL)


def test_training_views_are_those_of_a_run(shards):
    recipe = sm.load_recipe("smoke", [f"input.root={shards}", *SMALL])
    data = sm.open_data(recipe)
    one, other = (next(sm.batches(data, recipe, batch=8, views="train")) for _ in range(2))
    assert torch.equal(one.images_BCHW, other.images_BCHW)
    assert len(set(one.ids_B.tolist())) == 8


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: sm.open_data(sm.load_recipe("smoke"), "test"), "train or val"),
        (lambda: sm.step_inputs(sm.load_recipe("smoke"), None), "mim.target=pixel"),
        (lambda: sm.load_encoder("nowhere/at/all"), "no such file or folder"),
        (lambda: sm.plan(sm.load_recipe("smoke"), gpu="abacus"), "abacus"),
        (lambda: sm.evaluate("nowhere", knn=True, knn_k=0), "--knn-k"),
        (lambda: sm.evaluate("nowhere", probe=True, probe_solver="magic"), "lbfgs or sgd"),
        (lambda: sm.read_log("nowhere"), "no log.jsonl"),
    ],
)
def test_a_mistake_is_the_commands_one_line(call, words):
    with pytest.raises(sm.UserError, match=re.escape(words)):
        call()


def test_laws_predict_and_draw_by_arm():
    rows = [
        {"train_flops": 10 ** (15 + k / 4), "error": scale * 10 ** (-k / 20), "objective": arm}
        for k in range(10)
        for arm, scale in (("supervised", 0.5), ("both", 0.45))
    ]
    laws = sm.fit_law(rows, metric="error", law="power", bootstrap=0)
    gap = laws.predict(compute=1e17, arm="both") / laws.predict(compute=1e17, arm="supervised")
    assert gap == pytest.approx(0.9, rel=1e-3)
    with pytest.raises(sm.UserError, match="one of both, supervised"):
        laws.predict(compute=1e17)
    with pytest.raises(sm.UserError, match="one of compute"):
        laws.figure("shape", arm="both")
    assert "power" in repr(laws)
    assert laws.figure("residuals", arm="both").axes


def test_the_example_runs_on_a_small_run(shards, tmp_path):
    recipe = sm.load_recipe(
        "smoke", [f"input.root={shards}", f"log.run_dir={tmp_path / 'run'}", *SUPERVISED]
    )
    sm.train(recipe)
    done = subprocess.run(
        [sys.executable, ROOT / "examples/features_and_laws.py", tmp_path / "run", tmp_path],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(ROOT),
        env={**os.environ, "MPLBACKEND": "agg"},
    )
    assert "have the query's class" in done.stdout
    assert (tmp_path / "neighbours.png").stat().st_size > 5_000
