import pytest
import torch

from supmim_scale.build.model import recipe_model
from supmim_scale.config import load_config
from supmim_scale.engine.fp8 import use_fp8_linears
from supmim_scale.errors import UserError

CPU = torch.device("cpu")


def test_every_linear_of_the_blocks_is_converted_and_no_parameter_renamed():
    model = recipe_model(load_config("smoke", []), 64)
    names = dict(model.named_parameters())
    count = use_fp8_linears(model.block_lists(), "emulated", CPU)
    assert count == 4 * sum(len(stack) for stack in model.block_lists())
    assert all(param is names[name] for name, param in model.named_parameters())
    assert type(model.encoder.head) is torch.nn.Linear


def test_a_device_without_fp8_is_refused():
    model = recipe_model(load_config("smoke", []), 64)
    with pytest.raises(UserError, match=r"engine.fp8: found linears on cpu.*emulated"):
        use_fp8_linears(model.block_lists(), "linears", CPU)
