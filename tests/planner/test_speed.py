"""Time: FLOPs over a share of the peak, ZeRO's volumes over bandwidths."""

from dataclasses import replace

import pytest
from small_models import small

from supmim_scale.build.model import joint_shape
from supmim_scale.hardware.gpus import gpu_of_device
from supmim_scale.models.flops import step_flops
from supmim_scale.planner import cluster_of, find_gpu
from supmim_scale.planner.cluster import Collective, collective_s, network_bytes_per_s
from supmim_scale.planner.cost import planned_steps, run_cost
from supmim_scale.planner.plan import weak_scaling
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.planner.speed import Assumed, step_time
from supmim_scale.planner.traffic import traffic

RECIPE = ["engine.kind=deepspeed", "engine.precision=bf16", "optim.global_batch=64"]


def planned(*overrides, nodes=2):
    """(what is computed once, setting, cluster of eight GPUs a node, FLOP shape)."""
    config = small(*RECIPE, *overrides)
    plan, cluster = RecipeMemory(config), cluster_of("h100", nodes, 8)
    shape = joint_shape(config, plan.out_features)
    return plan, plan.setting(config, cluster.ranks), cluster, shape


def test_compute_is_exact_flops_over_the_stated_share_of_the_peak():
    plan, setting, cluster, shape = planned("engine.activation_checkpointing=full")
    step = step_time(setting, cluster, plan.size, shape, Assumed(mfu=0.5))
    flops = step_flops(shape, "full").hardware
    assert step.compute_s == pytest.approx(4 * flops / (0.5 * 989.4e12), rel=1e-12)


@pytest.mark.parametrize(
    ("overrides", "volumes"),
    [
        # In whole sets of parameters: gradients are all-reduced, twice a reduce-scatter.
        (["engine.ds_config=zero1", "engine.micro_batch=2"], [2, 1]),
        (["engine.ds_config=zero2", "engine.micro_batch=2"], [2 * 2, 1]),
        # The ZeRO paper's three, with one pass of the encoder and one micro-batch.
        (["engine.ds_config=zero3", "mim.layout=masked_only"], [1, 1, 1]),
    ],
    ids=["stage 1", "stage 2, two micro-batches", "stage 3"],
)
def test_volumes_are_those_of_zero(overrides, volumes):
    plan, setting, _, _ = planned(*overrides)
    whole = 2 * plan.size.num_params
    assert [c.num_bytes * c.times / whole for c in traffic(setting, plan.size)] == volumes


def test_a_second_pass_of_the_encoder_gathers_nothing_again():
    plan, setting, _, _ = planned("engine.ds_config=zero3")
    forward = traffic(setting, plan.size)[0]
    assert forward.num_bytes == 2 * plan.size.num_params


def test_zero_plus_plus_quarters_what_leaves_the_node():
    # Wang et al. 2023 (arXiv 2306.10209): 3 M becomes 0.5 M + 0 + 0.25 M.
    plan, setting, cluster, _ = planned("engine.ds_config=zero3", "mim.layout=masked_only")
    sharding = replace(
        setting.sharding, second_shard=8, quantized_weights=True, quantized_gradients=True
    )
    both = (traffic(s, plan.size) for s in (setting, replace(setting, sharding=sharding)))
    usual, less = (sum(collective_s(c, cluster)[1] for c in sent) for sent in both)
    assert less / usual == pytest.approx(0.75 / 3)


def test_a_collective_moves_all_but_its_own_part():
    cluster = cluster_of("h100", 4, 8, "8x400G")
    link, network = collective_s(Collective("all-gather", 32e9, 1), cluster)
    assert link == pytest.approx(32e9 * 31 / 32 / 450e9)
    assert network == pytest.approx(32e9 * 3 / 4 / 400e9)
    assert collective_s(Collective("all-gather", 32e9, 1), cluster_of("h100", 1, 1)) == (0, 0)


def test_network_text_is_ports_times_speed():
    assert network_bytes_per_s("400G", 8) == network_bytes_per_s("8x400G", 8) == 400e9
    assert network_bytes_per_s("1x100G", 8) == 12.5e9


def test_stage_3_hides_communication_that_stage_1_shows():
    shown = {}
    for stage in ("zero1", "zero3"):
        plan, setting, cluster, shape = planned(f"engine.ds_config={stage}")
        step = step_time(setting, cluster, plan.size, shape, Assumed(mfu=1e-6))
        assert step.communication_s > 0
        shown[stage] = step.exposed_s
    assert shown["zero1"] > shown["zero3"] == 0


def test_a_slow_network_binds_when_gpus_grow():
    plan, setting, _, shape = planned("engine.ds_config=zero3")
    slow = cluster_of("h100", 1, 8, "1x1G")
    rows = weak_scaling(setting, slow, plan, shape, Assumed())
    assert [row.gpus for row in rows] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert rows[-1].step.binds == "network"
    assert rows[-1].efficiency < rows[0].efficiency == 1


def test_slow_decoding_makes_the_gpu_wait():
    plan, setting, cluster, shape = planned()
    step = step_time(setting, cluster, plan.size, shape, Assumed(decoded_per_s=1.0))
    assert step.binds == "data"
    assert step.total_s == pytest.approx(4.0)


def test_a_run_costs_its_steps_at_the_stated_price():
    plan, setting, cluster, shape = planned()
    step = step_time(setting, cluster, plan.size, shape, Assumed(decoded_per_s=1.0))
    cost = run_cost(setting.config, cluster, step, 900, 2.0)
    assert cost.gpu_hours == pytest.approx(16)
    assert (cost.usd, cost.energy_kwh) == pytest.approx((32, 16 * 0.7))
    assert run_cost(setting.config, cluster, step, 900, None).usd is None


def test_steps_follow_epochs_where_the_sets_size_is_known():
    epochs = small("optim.steps=null", "optim.epochs=2", "optim.global_batch=64")
    assert planned_steps(epochs, None) is None
    assert planned_steps(epochs, 640) == 20
    known = replace(epochs, data=replace(epochs.data, name="imagenet-1k"))
    assert planned_steps(known, None) == round(2 * 1_281_167 / 64)


def test_a_gpu_is_found_by_the_name_that_torch_gives_it():
    for name, theirs in {
        "a100-40": "NVIDIA A100-SXM4-40GB",
        "a100": "NVIDIA A100-SXM4-80GB",
        "h100": "NVIDIA H100 80GB HBM3",
        "h200": "NVIDIA H200",
    }.items():
        assert gpu_of_device(theirs) == find_gpu(name)
    assert gpu_of_device("Voodoo 2") is None


def test_dense_bf16_peaks_are_the_datasheets():
    """NVIDIA's A100 datasheet (2021); H100's and H200's (2023, 2024), which quote sparsity."""
    assert find_gpu("a100").bf16_flops_per_s == 312e12
    assert find_gpu("h100").bf16_flops_per_s == find_gpu("h200").bf16_flops_per_s == 1978.8e12 / 2
