"""A few steps under each ZeRO stage on two real ranks; a state goes from one to another."""

import json

import pytest
from conftest import run_ranks

FP32, BF16 = 1e-5, 2e-2  # of losses
DERIVED = 1e-4
STAGES = ("zero1", "zero2", "zero3")
HANDED_ON = ("zero1 to zero3", "zero2 to zero1", "zero3 to zero2", "plain to zero2")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    out = tmp_path_factory.mktemp("stages") / "out.json"
    run_ranks("tests/stages_worker.py", out)
    return json.loads(out.read_text())


def same(a, b, tolerance):
    """Sums of tensors; a bias of keys has gradient zero but for rounding, a full step of Adam."""
    names = [name for name in b if not name.endswith("qkv.bias")]
    assert a.keys() == b.keys()
    return all(abs(a[n] - b[n]) <= tolerance * max(1.0, abs(b[n])) for n in names)


def finite(values):
    """But for the step that is skipped."""
    return values[:1] + values[2:]


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_does_the_steps_of_plain_pytorch(found, stage):
    ours, plain = found[f"{stage} fp32"], found["plain"]
    assert finite(ours["losses"]) == pytest.approx(finite(plain["losses"]), abs=FP32)
    assert finite(ours["norms"]) == pytest.approx(finite(plain["norms"]), abs=DERIVED)
    assert same(ours["weights"], plain["weights"], DERIVED)
    assert same(ours["ema"], plain["ema"], DERIVED)
    assert ours["ema"] != ours["weights"]
    assert ours["applied"] == plain["applied"] == [1, 1, 2, 3, 4, 5]
    assert ours["counters"] == plain["counters"]
    assert plain["counters"] == {"applied_steps": 5, "skipped_steps": 1, "adam_steps": 5}


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_in_bf16_follows_it_and_skips_the_same_step(found, stage):
    ours, plain = found[f"{stage} bf16"], found["plain"]
    assert finite(ours["losses"]) == pytest.approx(finite(plain["losses"]), rel=BF16)
    assert ours["applied"] == plain["applied"]


@pytest.mark.parametrize("name", HANDED_ON)
def test_a_state_goes_on_under_another_stage_as_it_would_have_under_its_own(found, name):
    giver = name.partition(" to ")[0]
    own = found[giver if giver == "plain" else f"{giver} fp32"]
    ours = found[name]
    assert ours["restored"] == {"applied_steps": 2, "skipped_steps": 1, "adam_steps": 2}
    assert ours["losses"] == pytest.approx(own["losses"][3:], abs=FP32)
    assert ours["norms"] == pytest.approx(own["norms"][3:], abs=DERIVED)
    assert ours["applied"] == own["applied"][3:]
    assert ours["counters"] == own["counters"]
    assert same(ours["weights"], own["weights"], DERIVED)
    assert same(ours["ema"], own["ema"], DERIVED)
