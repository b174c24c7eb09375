"""Small recipes, and their step on real tensors."""

import torch

from supmim_scale.build.model import mask_spec, recipe_model, target_features
from supmim_scale.config import load_config
from supmim_scale.engine.activation_checkpointing import apply_activation_checkpointing
from supmim_scale.models.encoder import geometry
from supmim_scale.planner.trace import Numerics, fake_arguments, fake_trace, trace

FP32 = Numerics(torch.float32)


def small(*overrides):
    """A ViT of four narrow blocks with some drop path."""
    own = ["model.width=32", "model.heads=2", "model.depth=4", "model.drop_path=0.2"]
    return load_config("smoke", [*own, "mim.codebook_size=16", *overrides])


def real_model(config, policy):
    """The joint model on the CPU, with its policy."""
    model = recipe_model(config, target_features(config)).train()
    apply_activation_checkpointing(model.block_lists(), policy, config.engine.checkpoint_every_k)
    return model


def real_arguments(config, model, micro_batch):
    """Arguments of a forward, on the CPU."""
    spec = mask_spec(config, geometry(model.encoder).grid)
    arguments = fake_arguments(config, spec, micro_batch, target_features(config))
    for tensor in arguments[:2]:
        tensor.normal_()
    return arguments


def real_trace(config, policy, micro_batch, numerics=FP32):
    """Live bytes of a step that is computed."""
    model = real_model(config, policy).to(numerics.dtype)
    return trace(model, real_arguments(config, model, micro_batch), numerics, policy)


def faked(config, policy, micro_batch, numerics=FP32):
    """Live bytes of a step that is not."""
    return fake_trace(config, numerics, policy, micro_batch, target_features(config))
