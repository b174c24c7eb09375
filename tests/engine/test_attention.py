import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention
from torch.profiler import ProfilerActivity, profile

from supmim_scale.build.model import attention_shapes, encoder_geometry, mask_spec, target_features
from supmim_scale.config import load_config
from supmim_scale.engine.attention import attention_kernel, resolve_attention
from supmim_scale.errors import UserError

CPU, SHAPES = torch.device("cpu"), [(2, 2, 36, 36, 16), (2, 2, 1, 18, 16)]


def operators(name):
    """Names of the operators that attention runs as inside."""
    q = torch.randn(2, 2, 16, 32)
    with profile(activities=[ProfilerActivity.CPU]) as seen, attention_kernel(name):
        scaled_dot_product_attention(q, q, q)
    return {event.key for event in seen.key_averages()}


def test_the_fastest_is_the_one_with_the_least_time_among_those_that_run_here():
    name, seconds = resolve_attention("fastest", SHAPES, torch.float32, CPU)
    assert set(seconds) == {"flash", "math"}
    assert seconds[name] == min(seconds.values())


def test_the_named_kernel_is_the_one_that_runs():
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" in operators("flash")
    assert "aten::_scaled_dot_product_attention_math" in operators("math")


def test_torchs_own_choice_costs_no_measurement():
    assert resolve_attention("torch", SHAPES, torch.float32, CPU) == ("torch", {})


def test_a_kernel_that_the_device_has_not_is_refused():
    with pytest.raises(UserError, match=r"engine.attention: found cudnn.*fastest"):
        resolve_attention("cudnn", SHAPES, torch.float32, CPU)


@pytest.mark.parametrize(
    "option",
    [
        "mim.layout=clean_and_masked",
        "mim.layout=clean_and_masked_tokens",
        "mim.layout=masked_only",
        "model.pool=map",
        "mim.weight=0",
    ],
)
def test_the_shapes_are_those_that_the_model_runs(option, monkeypatch):
    config = load_config("smoke", [option, "engine.micro_batch=2"])
    ran = set()

    def spy(q, k, v, **options):
        ran.add((2, q.shape[1], q.shape[2], k.shape[2], q.shape[3]))
        return scaled_dot_product_attention(q, k, v, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", spy)
    from supmim_scale.planner.trace import fake_arguments, meta_model

    features = target_features(config)
    model = meta_model(config, features)
    spec = mask_spec(config, encoder_geometry(config).grid)
    with torch.device("meta"):
        model(*fake_arguments(config, spec, 2, features))
    assert ran == set(attention_shapes(config, 2))
