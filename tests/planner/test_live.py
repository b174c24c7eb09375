"""Live bytes by hand, and DeepSpeed's defaults as it has them."""

from dataclasses import replace

import torch

from supmim_scale.config import load_config
from supmim_scale.planner.live import LiveBytes, is_logits_of, storages_bytes
from supmim_scale.planner.sharding import ModelSize, Sharding, sharding_of


def test_storages_count_once_from_the_operation_that_made_them_until_they_are_gone():
    given = torch.zeros(100)
    live = LiveBytes(is_logits_of(2, 5))
    live.ignore([given])
    assert (live.live, live.peak, live.apart) == (0, 0, 0)
    with live:
        a = given + 1  # 400 bytes
        view = a.view(10, 10)
        assert (live.live, live.peak) == (400, 400)
        logits = torch.ones(2, 5)  # 40, set apart
        pair = torch.ones(3).double().frexp()  # 24 bytes of values, 12 of exponents
        assert (live.apart, live.live) == (40, 400 + 40 + 24 + 12)
        del pair
        assert live.live == 440
        assert live.peak >= 440 + 36
        assert live.restart_peak() >= 476
        assert live.peak == 440
        del a
        assert live.live == 440  # a view holds it
        assert sorted(live.storages().values()) == [(40, True), (400, False)]
        del view
        assert (live.live, live.apart, live.peak) == (40, 40, 440)
        del logits
        given.add_(1)
    assert (live.live, live.apart, live.storages()) == (0, 0, {})
    assert live.operations > 4


def test_without_a_choice_nothing_is_set_apart_and_what_is_no_tensor_is_passed_over():
    live = LiveBytes()
    with live:
        kept = torch.ones(4)
        values, places = torch.ones(2, 3).max(dim=1)
        assert kept.sum().item() == 4
    assert live.live == 16 + values.nbytes + places.nbytes
    assert live.apart == 0


def test_a_storage_behind_two_tensors_has_its_bytes_once():
    whole = torch.zeros(8)
    assert storages_bytes([whole, whole[2:], torch.zeros(3, dtype=torch.float64)]) == 32 + 24


def test_defaults_are_deepspeeds():
    """A file without these keys runs with what DeepSpeed has for them."""
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = DeepSpeedZeroConfig(stage=1)
    config = load_config("smoke", ["engine.ds_config=zero1"])
    size = ModelSize(1000, 100, 800, (500, 400, 90, 10))
    ours = sharding_of(config, size, 4, 1, "fp32")
    assert ours.reduce_bucket == theirs.reduce_bucket_size
    assert ours.persistence == theirs.param_persistence_threshold
    assert ours.second_shard == theirs.zero_hpz_partition_size
    assert not ours.offloads_optimizer
    assert not ours.offloads_parameters


def test_plain_pytorch_shards_nothing_and_a_files_bucket_is_taken_but_by_bf16s_stage_1(tmp_path):
    size = ModelSize(1000, 100, 800, (500, 400, 90, 10))
    plain = load_config("smoke", ["engine.kind=plain"])
    nothing = Sharding(None, "fp32", 0, False, 0, 0, 0, False, False, 1, False, False)
    assert sharding_of(plain, size, 4, 1, "fp32") == nothing
    path = tmp_path / "mine.json"
    path.write_text('{"zero_optimization": {"stage": 1, "reduce_bucket_size": 70}}')
    config = load_config("smoke", [f"engine.ds_config={path}"])
    found = [sharding_of(config, size, 4, 1, precision) for precision in ("fp32", "bf16")]
    assert [one.reduce_bucket for one in found] == [70, 500_000_000]
    assert [one.working for one in found] == [4, 2]
    assert found[0].bucket_bytes == 4 * 70
    assert replace(found[0], overlaps=True).bucket_bytes == 2 * 4 * 70
    assert replace(found[0], overlaps=True, stage=3).bucket_bytes == 4 * 70
