import subprocess
import sys
from importlib import metadata

import pytest
from conftest import ROOT

from supmim_scale.engine.ds_config import complete_ds_config, load_ds_config
from supmim_scale.errors import UserError


def complete(name, **changes):
    values = {
        "micro_batch": 4,
        "accumulation": 2,
        "precision": "bf16",
        "policy": "full",
        "clip_grad_norm": 1.0,
        "block_params": 25 * 10**6,
    }
    return complete_ds_config(load_ds_config(name), **{**values, **changes})


def test_the_recipes_numbers_are_the_only_source():
    whole = complete("zero1")
    assert whole["train_micro_batch_size_per_gpu"] == 4
    assert whole["gradient_accumulation_steps"] == 2
    assert whole["gradient_clipping"] == 1.0
    assert whole["bf16"] == {"enabled": True}
    assert whole["data_types"] == {"grad_accum_dtype": "fp32"}


def test_stage_3_holds_a_few_blocks_and_not_the_model():
    """DeepSpeed's default of 1e9 live parameters would keep a ViT-g whole on every rank."""
    zero = complete("zero3")["zero_optimization"]
    assert zero["stage3_max_live_parameters"] == 10**8
    assert zero["stage3_prefetch_bucket_size"] == 5 * 10**7
    second = complete("zero2")["zero_optimization"]
    assert "stage3_max_live_parameters" not in second
    assert zero["reduce_bucket_size"] == second["reduce_bucket_size"] == 10**8
    assert zero["stage3_max_reuse_distance"] == 10**8
    assert "reduce_bucket_size" not in complete("zero1")["zero_optimization"]
    small = complete("zero3", block_params=1000)["zero_optimization"]
    assert small["stage3_prefetch_bucket_size"] == 2 * (12 * 768**2 + 13 * 768)  # a ViT-B's block


def test_the_files_own_knobs_win(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"stage": 3, "stage3_max_live_parameters": 7}}')
    assert complete(str(path))["zero_optimization"]["stage3_max_live_parameters"] == 7


@pytest.mark.parametrize(("policy", "expected"), [("selective", False), ("full", None)])
def test_selective_checkpointing_keeps_torchs_linear(policy, expected):
    zero = complete("zero3", policy=policy)["zero_optimization"]
    assert zero.get("memory_efficient_linear") is expected


def test_a_file_that_asks_for_wrong_gradients_is_refused(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"stage": 3, "memory_efficient_linear": true}}')
    with pytest.raises(UserError, match=r"memory_efficient_linear.*selective.*delete the key"):
        complete(str(path), policy="selective")
    assert complete(str(path))["zero_optimization"]["memory_efficient_linear"] is True


def test_a_cpu_start_compiles_nothing():
    """The shared-memory extension and the CPU Adam cost half a minute each when cold."""
    code = (
        "import supmim_scale.engine.zero, deepspeed;"
        "assert deepspeed.ops.__compatible_ops__['deepspeed_shm_comm'] is False"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert complete("zero3_offload")["zero_force_ds_cpu_optimizer"] is False


def test_deepspeed_is_of_the_minor_version_whose_optimizers_are_read():
    """Tested with 0.19.8. `engine/zero.py` reads masters where 0.19 keeps them; setup.cfg
    admits no other, and another is admitted when tests/engine pass with it."""
    assert metadata.version("deepspeed").split(".")[:2] == ["0", "19"]
    assert "deepspeed >= 0.19.8, < 0.20" in (ROOT / "setup.cfg").read_text()
