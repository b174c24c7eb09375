import numpy as np
import pytest
import torch

from supmim_scale.build.model import mask_spec, recipe_model
from supmim_scale.config import load_config
from supmim_scale.config.experiment import OptimConfig
from supmim_scale.models.joint import LAYOUTS
from supmim_scale.models.losses import class_loss, class_targets, mim_loss
from supmim_scale.models.masking import draw_masks
from supmim_scale.models.optim import parameter_groups
from supmim_scale.models.targets import PixelTarget

TINY = ["model.width=32", "model.depth=2", "model.heads=2", "mim.target=pixel"]


def build(*overrides):
    return recipe_model(load_config("smoke", [*TINY, *overrides]), 192)


def batch(*overrides, size=4):
    config = load_config("smoke", [*TINY, *overrides])
    images = torch.randn(size, 3, 48, 48, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(size)[:, None]
    targets = class_targets(labels, 16, config.loss.kind, 0.1)
    ids = np.arange(size)
    masks = draw_masks(mask_spec(config, 6), 0, np.zeros_like(ids), ids)
    return images, targets, masks, PixelTarget(8)(images)


def gradients(model, *arguments):
    torch.manual_seed(7)  # drop path
    model(*arguments).loss.backward()
    return {name: param.grad for name, param in model.named_parameters()}


@pytest.mark.parametrize("extra", [[], ["mask.ratio_max=0.9"], ["model.class_token=true"]])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_parameter_gets_a_gradient_in_every_forward(layout, extra):
    """Under ZeRO-3 one without would silently keep the gradient of the step before."""
    options = [f"mim.layout={layout}", *extra]
    found = gradients(build(*options), *batch(*options))
    assert [name for name, grad in found.items() if grad is None] == []


def test_norms_have_the_epsilon_of_timms_vision_transformers():
    norms = [module for module in build().modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * 2 + 2 * 2 + 2  # two blocks each, and a norm at the end of each stack
    assert {norm.eps for norm in norms} == {1e-6}


def test_weight_zero_starts_from_the_same_weights_without_a_decoder():
    joint, baseline = build(), build("mim.weight=0")
    assert baseline.decoder is None
    weights = dict(joint.named_parameters())
    for name, param in baseline.named_parameters():
        assert torch.equal(param, weights[name])


@pytest.mark.parametrize(
    ("layout", "tolerance"), [("clean_and_masked", 0.0), ("clean_and_masked_tokens", 1e-6)]
)
def test_loss_weight_zero_gives_the_baselines_gradients(layout, tolerance):
    """A decoder in the graph with weight 0.0 changes no bit of the classification path; where
    both passes are one batch, sums over it are rounded otherwise."""
    options = [f"mim.layout={layout}"]
    joint, baseline = build(*options), build(*options, "mim.weight=0")
    joint.mim_weight = 0.0
    arguments = batch(*options)
    found = gradients(joint.train(), *arguments)
    expected = gradients(baseline.train(), *arguments[:2])
    for name, grad in expected.items():
        gap = (found[name] - grad).abs().max() / grad.abs().max().clamp(min=1e-12)
        assert gap <= tolerance, name


def test_the_clean_layouts_classify_the_clean_image():
    images, targets, masks, patches = batch()
    for layout in LAYOUTS:
        model = build(f"mim.layout={layout}").eval()
        logits = model(images, targets, masks, patches).logits_BK
        sees_all = torch.equal(logits, model.encoder(images))
        assert sees_all == (layout != "masked_only")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_hidden_pixels_do_not_reach_the_prediction(layout):
    images, targets, masks, patches = batch()
    model = build(f"mim.layout={layout}").eval()
    hidden = masks.mask_BN.view(-1, 1, 6, 6).repeat_interleave(8, 2).repeat_interleave(8, 3)
    other = torch.where(hidden, torch.randn_like(images), images)
    before = model(images, targets, masks, patches).pred_BMP
    assert torch.equal(before, model(other, targets, masks, patches).pred_BMP)


def test_softmax_targets_share_labels_and_sigmoid_targets_do_not():
    labels = torch.tensor([[1, 3], [2, -1]])
    assert class_targets(labels, 4, "softmax", 0.0).tolist() == [[0, 0.5, 0, 0.5], [0, 0, 1, 0]]
    assert class_targets(labels, 4, "sigmoid", 0.0).tolist() == [[0, 1, 0, 1], [0, 0, 1, 0]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sigmoid", [[0.1, 0.9, 0.1, 0.9], [0.05, 0.05, 0.85, 0.05], [0, 0, 0, 0]]),
        ("softmax", [[0.05, 0.45, 0.05, 0.45], [0.05, 0.05, 0.85, 0.05], [0, 0, 0, 0]]),
    ],
)
def test_smoothing_moves_a_share_of_a_rows_sum_over_all_classes(kind, expected):
    """A fifth of two labels, of one, and of none, over four classes."""
    labels = torch.tensor([[1, 3], [2, -1], [-1, -1]])
    found = class_targets(labels, 4, kind, 0.2)
    assert torch.allclose(found, torch.tensor(expected), atol=1e-7)


def test_a_label_given_twice_counts_once():
    labels = torch.tensor([[1, 1, 2]])
    assert class_targets(labels, 4, "sigmoid", 0.0).tolist() == [[0, 1, 1, 0]]
    assert class_targets(labels, 4, "softmax", 0.0).tolist() == [[0, 0.5, 0.5, 0]]


def test_the_pixel_loss_is_the_mean_squared_error_of_an_image_first():
    """By hand: patches of (9 + 1) / 2 = 5 and (16 + 4) / 2 = 10 with weights 1/4 and 3/4, and
    of (0 + 1) / 2 alone."""
    pred = torch.tensor([[[3.0, -1.0], [4.0, 0.0]], [[7.0, 2.0], [9.0, 9.0]]])
    target = torch.tensor([[[0.0, 0.0], [0.0, 2.0]], [[7.0, 1.0], [0.0, 0.0]]])
    weight = torch.tensor([[0.25, 0.75], [1.0, 0.0]])
    expected = ((0.25 * 5 + 0.75 * 10) + 0.5) / 2
    assert mim_loss(pred, target, weight).item() == pytest.approx(expected, rel=1e-6)


def test_without_labels_the_loss_is_zero_and_the_head_stays_in_the_graph():
    logits = torch.randn(3, 5, requires_grad=True)
    loss = class_loss(logits, torch.zeros(3, 5), "none")
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.tolist() == torch.zeros(3, 5).tolist()


def test_the_losses_are_torchs():
    logits, labels = torch.randn(5, 9), torch.randint(9, (5,))
    ours = class_loss(logits, class_targets(labels[:, None], 9, "softmax", 0.1), "softmax")
    torchs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1)
    assert ours.item() == pytest.approx(torchs.item(), rel=1e-6)
    hot = torch.nn.functional.one_hot(labels, 9).float()
    ours = class_loss(logits, class_targets(labels[:, None], 9, "sigmoid", 0.0), "sigmoid")
    torchs = torch.nn.functional.binary_cross_entropy_with_logits(logits, hot) * 9
    assert ours.item() == pytest.approx(torchs.item(), rel=1e-6)


def test_the_mim_loss_does_not_depend_on_the_split_of_a_batch():
    pred, codes = torch.randn(6, 5, 7), torch.randint(7, (6, 5))
    weight = torch.rand(6, 5).softmax(dim=1)
    parts = [mim_loss(pred[i : i + 2], codes[i : i + 2], weight[i : i + 2]) for i in (0, 2, 4)]
    assert mim_loss(pred, codes, weight).item() == pytest.approx(sum(parts).item() / 3, rel=1e-6)


def test_groups_see_whole_parameters_and_spare_biases_norms_and_tokens():
    model = build("model.class_token=true", "mim.layout=clean_and_masked_tokens")
    optim = OptimConfig(1, 1.0, weight_decay=0.1, head_weight_decay=3.0, layer_decay=0.5)
    groups = parameter_groups(model, optim)
    decay = {n: g["weight_decay"] for g in groups for n in g["names"]}
    scale = {n: g["lr_scale"] for g in groups for n in g["names"]}
    for name, _ in model.named_parameters():
        plain = name.endswith("bias") or "norm" in name or "token" in name or "pos_embed" in name
        assert decay[name] == (0 if plain else 3.0 if name == "encoder.head.weight" else 0.1), name
    assert scale["encoder.head.weight"] == scale["decoder.predict.weight"] == 1
    assert scale["encoder.blocks.1.mlp.fc1.weight"] == 0.5
    assert scale["encoder.patch_embed.proj.weight"] == scale["encoder.pos_embed"] == 0.125
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
