"""ZeRO++ as a DeepSpeed file says it, against its paper: Wang et al. 2023 (arXiv 2306.10209)."""

import json

import pytest
from small_models import small

from supmim_scale.planner import cluster_of
from supmim_scale.planner.cluster import collective_s
from supmim_scale.planner.setting import RecipeMemory
from supmim_scale.planner.traffic import traffic

HPZ = {"zero_hpz_partition_size": 8}
QWZ = {"zero_quantized_weights": True}
QGZ = {"zero_quantized_gradients": True}
CLUSTER = cluster_of("h100", 2, 8)


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """(size, setting of a file of stage 3 with the keys), on two nodes of eight."""
    folder = tmp_path_factory.mktemp("ds")
    path = folder / "mine.json"
    config = small(
        "engine.kind=deepspeed",
        "engine.precision=bf16",
        "optim.global_batch=64",
        f"engine.ds_config={path}",
    )
    plan = RecipeMemory(config)

    def setting(*keys):
        zero = {"stage": 3}
        for more in keys:
            zero |= more
        path.write_text(json.dumps({"zero_optimization": zero}))
        return plan.setting(config, CLUSTER.ranks)

    return plan.size, setting


def network_s(setting, size):
    """Seconds on the network of the forward gather, the backward gather and the gradients."""
    return [collective_s(sent, CLUSTER)[1] for sent in traffic(setting, size)]


@pytest.mark.parametrize(
    ("keys", "shares"),
    [
        ([HPZ], [1, 0, 1]),  # backward gathers from the node's own copy
        ([QWZ], [1 / 2, 1 / 2, 1]),  # 8 bits for bf16's 16
        ([QGZ], [1, 1, 1 / 4]),  # 4 bits
        ([HPZ, QWZ, QGZ], [1 / 2, 0, 1 / 4]),  # the paper's 3 M to 0.75 M
    ],
    ids=["hpZ", "qwZ", "qgZ", "all"],
)
def test_a_files_keys_take_off_the_network_what_the_paper_says(plans, keys, shares):
    size, setting = plans
    usual, less = (network_s(s, size) for s in (setting(), setting(*keys)))
    assert min(usual) > 0
    assert [b / a for a, b in zip(usual, less, strict=True)] == pytest.approx(shares)


def test_the_backward_gather_of_hpz_stays_on_the_links_of_a_node(plans):
    size, setting = plans
    usual, inside = (traffic(s, size)[1] for s in (setting(), setting(HPZ)))
    assert inside.num_bytes == usual.num_bytes == 2 * size.num_params
    link, _ = collective_s(inside, CLUSTER)
    assert link == pytest.approx(inside.num_bytes * inside.times * 7 / 8 / 450e9)


def test_memory_grows_by_hpzs_second_shard_alone(plans):
    """An eighth of the bf16 weights; what is sent in fewer bits is kept as it was."""
    size, setting = plans
    usual, fewer_bits, every = (setting(*keys).memory for keys in ([], [QWZ, QGZ], [HPZ, QWZ, QGZ]))
    assert fewer_bits == usual
    assert every.gathered - usual.gathered == pytest.approx(2 * size.num_params / 8)
    assert every.peak - usual.peak == pytest.approx(2 * size.num_params / 8)
