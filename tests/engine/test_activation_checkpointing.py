import numpy as np
import pytest
import torch

from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import load_config
from supmim_scale.engine.activation_checkpointing import apply_activation_checkpointing
from supmim_scale.models.joint import LAYOUTS
from supmim_scale.models.losses import class_targets
from supmim_scale.models.masking import draw_masks
from supmim_scale.models.targets import PixelTarget

POLICIES = {"none": 0, "full": 6, "every_k": 3, "first_k": 4, "selective": 6}


def gradients(layout, policy):
    options = ["model.width=32", "model.heads=2", "model.depth=4", "model.drop_path=0.4"]
    config = load_config("smoke", [*options, f"mim.layout={layout}", "mim.target=pixel"])
    model = recipe_model(config, 192).train()
    names = list(model.state_dict())
    count = apply_activation_checkpointing(model.block_lists(), policy, 2)
    assert list(model.state_dict()) == names
    assert count == POLICIES[policy]
    images = torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    ids = np.arange(4)
    masks = draw_masks(mask_spec(config, 6), 0, np.zeros_like(ids), ids)
    targets = class_targets(torch.arange(4)[:, None], 16, "softmax", 0.0)
    torch.manual_seed(1)
    model(images, targets, masks, PixelTarget(8)(images)).loss.backward()
    return {name: param.grad for name, param in model.named_parameters()}


@pytest.mark.parametrize("policy", [policy for policy in POLICIES if policy != "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_recomputation_changes_no_bit_of_the_gradient_drop_path_included(layout, policy):
    expected = gradients(layout, "none")
    for name, grad in gradients(layout, policy).items():
        assert torch.equal(grad, expected[name]), name
