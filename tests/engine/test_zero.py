"""DeepSpeed on two real ranks against plain PyTorch on one."""

import json

import pytest
from conftest import ROOT, run_ranks

from supmim_scale.models.joint import LAYOUTS

STAGES = {"zero1": "zero1", "zero2": "zero2", "zero3": "tests/ds/zero3_bare.json"}
POLICIES = ("none", "full", "every_k", "selective")
FP32, BF16, FP8 = 1e-5, 2e-2, 5e-2  # of losses
DERIVED = 1e-4  # of gradient norms and weights, where 12 steps of Adam enlarge rounding

# What a job trains, beside the plain run of the same options.
OPTIONS = {layout: [f"mim.layout={layout}"] for layout in LAYOUTS} | {
    "supervised": ["mim.weight=0"],
    "accumulated": ["engine.micro_batch=2", "optim.global_batch=16"],
    "drawn ratio": ["mask.ratio_max=0.9", "mask.ratio_mode=0.55"],
    "attention pooling": ["model.pool=map", "model.class_token=false"],
    "skipped step": ["poison=5"],
}


def job(name, *overrides):
    return f"{name}:{','.join(overrides)}"


@pytest.fixture(scope="session")
def sharded(tmp_path_factory):
    """Results of every 2-rank job, by name, from rank 0; and rank 1's masks."""
    jobs = [
        job(
            f"{layout}/{stage}/{policy}",
            *OPTIONS[layout],
            f"engine.ds_config={path}",
            f"engine.activation_checkpointing={policy}",
        )
        for layout in LAYOUTS
        for stage, path in STAGES.items()
        for policy in POLICIES
    ]
    jobs += [
        job(f"{name}/zero3/full", *OPTIONS[name], f"engine.ds_config={STAGES['zero3']}")
        for name in OPTIONS
        if name not in LAYOUTS
    ]
    jobs += [
        job(f"bf16/{stage}/full", f"engine.ds_config={path}", "engine.precision=bf16")
        for stage, path in STAGES.items()
    ]
    jobs += [job("fp8/zero3/full", f"engine.ds_config={STAGES['zero3']}", "engine.fp8=emulated")]
    jobs += [job("offload/zero3/full", "engine.ds_config=zero3_offload")]
    jobs += [
        job(
            "compiled/zero3/selective",
            f"engine.ds_config={STAGES['zero3']}",
            "engine.activation_checkpointing=selective",
            "engine.compile=true",
        )
    ]
    # Selective checkpointing in processes of its own: DeepSpeed's linear outlives an engine.
    selective = [name for name in jobs if "checkpointing=selective" in name]
    results = [{}, {}]
    for number, part in enumerate([selective, [name for name in jobs if name not in selective]]):
        out = tmp_path_factory.mktemp("sharded") / f"{number}.json"
        run_ranks("tests/zero_worker.py", out, *part)
        for rank, found in enumerate(results):
            found |= json.loads(out.with_name(f"{number}.json.{rank}").read_text())
    return results


@pytest.fixture(scope="session")
def plain(tmp_path_factory):
    """Results of the same options in one process without DeepSpeed or recomputation."""
    jobs = [
        job(name, *overrides, "engine.kind=plain", "engine.activation_checkpointing=none")
        for name, overrides in OPTIONS.items()
    ]
    out = tmp_path_factory.mktemp("plain") / "out.json"
    run_ranks("tests/zero_worker.py", out, *jobs, ranks=1)
    return json.loads(out.with_name("out.json.0").read_text())


def gap(found, expected, key):
    """Largest difference of a curve, or of a tensor's sum relative to its size.

    A bias of keys has gradient zero but for rounding, which Adam makes a full step of: attention's
    input biases are left out.
    """
    a, b = found[key], expected[key]
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        names = [n for n in b if not n.endswith(("qkv.bias", "kv.bias"))]
        return max(abs(a[n] - b[n]) / max(1.0, abs(b[n])) for n in names)
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_sharded_training_equals_plain_pytorch(sharded, plain, layout, stage, policy):
    found = sharded[0][f"{layout}/{stage}/{policy}"]
    assert gap(found, plain[layout], "losses") < FP32
    assert gap(found, plain[layout], "norms") < DERIVED
    assert gap(found, plain[layout], "weights") < DERIVED


@pytest.mark.parametrize("name", [n for n in OPTIONS if n not in (*LAYOUTS, "skipped step")])
def test_every_option_equals_plain_pytorch(sharded, plain, name):
    """Accumulation included: a stale gradient of the window before would show in the norm."""
    found = sharded[0][f"{name}/zero3/full"]
    assert gap(found, plain[name], "losses") < FP32
    assert gap(found, plain[name], "norms") < DERIVED


def test_offloading_to_the_host_changes_nothing(sharded, plain):
    found = sharded[0]["offload/zero3/full"]
    assert gap(found, plain["clean_and_masked"], "losses") < FP32


def test_compiled_blocks_change_nothing(sharded, plain):
    found = sharded[0]["compiled/zero3/selective"]
    assert gap(found, plain["clean_and_masked"], "losses") < FP32
    assert gap(found, plain["clean_and_masked"], "norms") < DERIVED
    assert found["graph_breaks"] == []
    assert found["graphs"] == 3  # of two passes of the encoder, and the decoder


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_follows_fp32(sharded, plain, stage):
    found, expected = sharded[0][f"bf16/{stage}/full"], plain["clean_and_masked"]
    assert gap(found, expected, "losses") < BF16 * expected["losses"][0]


def test_fp8_follows_fp32(sharded, plain):
    found, expected = sharded[0]["fp8/zero3/full"], plain["clean_and_masked"]
    assert 0 < gap(found, expected, "losses") < FP8 * expected["losses"][0]


def test_losses_fall(plain):
    for name in LAYOUTS:
        assert plain[name]["losses"][-1] < plain[name]["losses"][0] - 0.1


def test_the_initialisation_survives_partitioning(sharded):
    """zero.Init would give qkv weights of another deviation and biases that are not zero."""
    for name, found in sharded[0].items():
        tolerance = 2e-3 if name.startswith("bf16") else 0.0
        assert found["init_gap"] <= tolerance, name
        assert found["qkv_std"] == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize("stage", STAGES)
def test_the_moving_average_of_shards_is_the_average_of_the_whole(sharded, plain, stage):
    found = sharded[0][f"clean_and_masked/{stage}/full"]
    assert gap(found, plain["clean_and_masked"], "ema") < DERIVED
    assert found["ema"] != found["weights"]


def test_masks_are_the_same_for_one_and_two_ranks(sharded, plain):
    name = "clean_and_masked/zero3/full"
    both = sorted(sharded[0][name]["masks"] + sharded[1][name]["masks"])
    assert both == sorted(plain["clean_and_masked"]["masks"])
    assert len(both) == 96


def test_a_step_with_a_nan_is_skipped_counted_and_harms_nothing(sharded, plain):
    for found in (sharded[0]["skipped step/zero3/full"], plain["skipped step"]):
        assert (found["applied_steps"], found["skipped_steps"]) == (11, 1)
        losses = found["losses"][:5] + found["losses"][6:]
        assert all(loss == loss and loss < 10 for loss in losses)


def test_the_bare_file_really_shards_everything():
    """The matrix would prove less if parameters stayed whole on every rank."""
    zero = json.loads((ROOT / STAGES["zero3"]).read_text())["zero_optimization"]
    block = 12 * 32**2  # parameters of a block of the tests' width, but for biases and norms
    assert zero["stage3_param_persistence_threshold"] == 0
    assert block < zero["stage3_max_live_parameters"] < 2 * block
