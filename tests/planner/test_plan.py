"""The command as users see it, and the verdict that submitting asks for."""

import json

import pytest
from small_models import small

from benchmarks.plans.past_errors import RESULTS, errors_in
from supmim_scale import planner
from supmim_scale.cli.main import main
from supmim_scale.config import load_config
from supmim_scale.errors import UserError
from supmim_scale.hardware.gpus import find_gpu
from supmim_scale.planner.past_errors import past_errors

GPU = """\
mine:
  memory_bytes: 16.0e+9
  bf16_flops_per_s: 100.0e+12
  memory_bytes_per_s: 500.0e+9
  link_bytes_per_s: 32.0e+9
  tdp_watts: 200
  source: the box it came in
"""
SMOKE = ["smoke", "model.depth=2", "optim.global_batch=64", "--gpu", "a100"]


def test_a_plan_answers_every_question(capsys, tmp_path):
    out = tmp_path / "plan.json"
    assert main(["plan", *SMOKE, "--price", "2", "--explain", "--json", str(out)]) == 0
    text = capsys.readouterr().out
    for words in (
        "fits: zero",
        "peak",
        "images/s",
        "communication exposed",
        "GPU-hours",
        "kWh",
        "USD",
        "what fits, fastest first",
        "<- the recipe",
        "weak scaling",
        "1,024",
        "assumed",
        "error so far",
        "the arithmetic",
        "all-gather",
    ):
        assert words in text
    facts = json.loads(out.read_text())
    assert facts["fits"]
    assert facts["peak_bytes"] < facts["limit_bytes"] == round(0.9 * 80e9)
    assert facts["weak_scaling"][-1]["gpus"] == 1024


def test_without_a_price_there_is_no_cost(capsys):
    assert main(["plan", *SMOKE]) == 0
    text = capsys.readouterr().out
    assert "kWh" in text
    assert "USD" not in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--gpu", "h10"], ["--gpu", "did you mean h100"]),
        (["--gpu", "/nowhere.yaml"], ["/nowhere.yaml"]),
        (["--network", "fast"], ["--network", "8x400G"]),
        (["--network", "0x400G"], ["--network"]),
        (["--nodes", "0"], ["--nodes"]),
        (["--nodes", "3"], ["optim.global_batch", "multiple"]),
        (["--mfu", "45"], ["--mfu", "share"]),
        (["--price", "0"], ["--price"]),
        (["engine.kind=plain", "--gpus-per-node", "2"], ["engine.kind", "one"]),
        (["--json", "/nowhere/plan.json"], ["--json"]),
    ],
    ids=lambda words: " ".join(words),
)
def test_a_mistake_is_told_in_one_line(words, told, capsys):
    assert main(["plan", *SMOKE, *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert all(word in line for word in told), line


def test_a_gpu_of_ones_own_is_taken_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GPU)
    assert find_gpu(str(path)).memory_bytes == 16e9


@pytest.mark.parametrize(
    "broken",
    [
        GPU.replace("  tdp_watts: 200\n", ""),
        GPU.replace("16.0e+9", "16e9"),
        GPU.replace("the box it came in", "''"),
        GPU + GPU.replace("mine", "other"),
        "mine: 3\n",
    ],
    ids=["a figure missing", "text for a number", "no source", "two GPUs", "no figures"],
)
def test_a_file_of_a_gpu_that_lacks_something_is_refused(broken, tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(broken)
    with pytest.raises(UserError, match=r"mine\.yaml"):
        find_gpu(str(path))


def test_a_verdict_says_what_does_not_fit_and_why(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(GPU.replace("16.0e+9", "16.0e+6"))
    config = small("engine.kind=deepspeed", "optim.global_batch=64")
    verdict = planner.fits(config, str(path), 1, 8)
    assert not verdict.fits
    assert verdict.peak_bytes > verdict.limit_bytes == 14_400_000
    assert "does not fit" in verdict.line
    assert "largest part is buckets" in verdict.line


@pytest.mark.parametrize("recipe", ["vitl16_in21k", "vitg14_in21k"])
def test_packaged_recipes_fit_the_hardware_they_are_meant_for(recipe):
    nodes = 8 if "g14" in recipe else 4
    assert planner.fits(load_config(recipe), "h100", nodes, 8).fits


def test_parameters_are_counted_as_published():
    # timm's vit_giant_patch14_224 with 21,841 classes: 1042.0 M, without a class token and with
    # the decoder's two blocks on top.
    plan = planner.setting.RecipeMemory(load_config("vitg14_in21k", ["mim.weight=0"]))
    assert plan.size.num_params == pytest.approx(1042.0e6, rel=1e-4)


def test_the_error_so_far_is_read_from_rows_of_the_step_as_it_is(tmp_path):
    assert errors_in(tmp_path).lines()[0] == "peak memory on a GPU: not measured yet"
    memory = {"accelerator": "cpu", "peak_error": -0.02}
    speed = [
        {"kind": "row", "planned_error": -0.07, "overrides": []},
        {"kind": "row", "planned_error": 0.5, "overrides": ["engine.compile=true"]},
        {"kind": "row", "planned_error": None, "overrides": []},
        {"kind": "pair"},
    ]
    for name, rows in (("memory_cpu", [memory]), ("throughput_gpu", speed)):
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text)
    lines = errors_in(tmp_path).lines()
    assert "2.0% at most" in lines[1]
    assert lines[2] == "images/s on a GPU: off by 7.0% in the median of 1 runs, 7.0% at most"
    (tmp_path / "memory_cpu.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match=r"memory_cpu\.jsonl"):
        errors_in(tmp_path)


def test_an_installed_package_tells_the_errors_of_all_committed_rows():
    """`python benchmarks/past_errors.py` collects them."""
    assert past_errors() == errors_in(RESULTS)
