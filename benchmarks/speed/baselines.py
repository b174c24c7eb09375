"""What a user would run without this project: plain PyTorch and timm, written as they would be.

None of it uses our models, losses or engines. Weights and batch are the same, so the losses must
be too. `by_hand` has the products of our step and no more; `two_forwards` calls the model twice on
whole images, as SimMIM (Xie et al. 2022, arXiv 2111.09886) does beside a clean pass; `timm_*` is
timm's training step (train.py of 1.0.31), for classification alone.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from benchmarks.rows.ranks import Job
from benchmarks.speed.batches import CODES, fixed_batch
from benchmarks.speed.steps import LR, Step, joint_model
from supmim_scale.build.model import encoder_arguments, joint_shape
from supmim_scale.config import RunConfig
from supmim_scale.engine.settings import resolve_precision
from supmim_scale.launch.world import World
from supmim_scale.models.flops import JointShape, StepFlops, step_flops
from supmim_scale.models.torchvision_ops import declare_missing_ops

declare_missing_ops()

import timm  # noqa: E402
from timm.loss import LabelSmoothingCrossEntropy  # noqa: E402
from timm.models.vision_transformer import Block  # noqa: E402
from timm.optim import create_optimizer_v2, param_groups_weight_decay  # noqa: E402
from timm.utils import dispatch_clip_grad  # noqa: E402

TOKENS = ("encoder.pos_embed", "encoder.cls_token", "mask_token", "decoder_pos_embed")


class HandWritten(nn.Module):
    """A timm ViT with a class head and a small decoder of timm's blocks; both losses in forward."""

    def __init__(self, config: RunConfig, *, drops: bool) -> None:
        super().__init__()
        name, arguments = encoder_arguments(config)
        self.encoder = timm.create_model(name, **arguments)
        self.drops, self.smoothing = drops, config.loss.label_smoothing
        width = self.encoder.embed_dim
        heads = width // 64 if width % 64 == 0 else 1
        patches = self.encoder.patch_embed.num_patches
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, patches, width)) if drops else None
        self.decoder_embed = nn.Linear(width, width)
        depth = config.model.decoder_depth
        self.decoder_blocks = nn.Sequential(
            *(Block(width, heads, qkv_bias=True) for _ in range(depth))
        )
        self.decoder_norm = nn.LayerNorm(width, eps=1e-6)
        self.decoder_pred = nn.Linear(width, CODES)

    def forward(
        self,
        images: Tensor,
        labels: Tensor,
        keep: Tensor,
        masked: Tensor,
        mask: Tensor,
        codes: Tensor,
    ) -> Tensor:
        """The sum of both losses."""
        if self.drops:
            features, decoded = self.forward_once_embedded(images, keep)
        else:
            features, decoded = self.forward_twice(images, mask)
        logits = self.encoder.forward_head(features)
        class_loss = F.cross_entropy(logits.float(), labels, label_smoothing=self.smoothing)
        index = masked.unsqueeze(-1).expand(-1, -1, decoded.shape[-1])
        predicted = self.decoder_pred(self.decoder_norm(decoded.gather(1, index)))
        wanted = codes.gather(1, masked)
        return class_loss + F.cross_entropy(predicted.float().flatten(0, 1), wanted.flatten())

    def forward_once_embedded(self, images: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
        """MAE's second pass: only visible patches, gaps filled before the decoder."""
        encoder, prefix = self.encoder, self.encoder.num_prefix_tokens
        tokens = encoder._pos_embed(encoder.patch_embed(images))
        clean = encoder.norm(encoder.blocks(tokens))
        index = keep.unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
        visible = torch.cat([tokens[:, :prefix], tokens[:, prefix:].gather(1, index)], dim=1)
        hidden = self.decoder_embed(encoder.norm(encoder.blocks(visible))[:, prefix:])
        gaps = self.mask_token.to(hidden.dtype).expand(len(images), tokens.shape[1] - prefix, -1)
        filled = gaps.scatter(1, index, hidden)
        return clean, self.decoder_blocks(filled + self.decoder_pos_embed)

    def forward_twice(self, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """SimMIM's second pass: every position, mask tokens where patches are hidden."""
        encoder = self.encoder
        clean = encoder.forward_features(images)
        patches = encoder.patch_embed(images)
        patches = torch.where(mask.unsqueeze(-1), self.mask_token.to(patches.dtype), patches)
        hidden = encoder.norm(encoder.blocks(encoder._pos_embed(patches)))
        hidden = self.decoder_embed(hidden[:, encoder.num_prefix_tokens :])
        return clean, self.decoder_blocks(hidden)


def hand_step(config: RunConfig, world: World, *, drops: bool, is_fused: bool = True) -> Step:
    """Collective: the hand-written joint step; under DDP where there are several ranks."""
    layout = "clean_and_masked" if drops else "clean_and_masked_tokens"
    config = replace(config, mim=replace(config.mim, layout=layout))
    batch = fixed_batch(config, world, config.optim.global_batch // world.world_size)
    model = HandWritten(config, drops=drops)
    model.load_state_dict(_renamed(joint_model(config).state_dict()))
    model.to(world.device).train()
    groups = param_groups_weight_decay(model, config.optim.weight_decay, TOKENS)
    optimizer = torch.optim.AdamW(
        groups,
        lr=LR,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
        fused=is_fused or None,
    )
    module: nn.Module = DistributedDataParallel(model) if world.world_size > 1 else model
    masks = batch.masks
    arguments = (
        batch.images_BCHW,
        batch.labels_B,
        masks.keep_BV,
        masks.masked_BM,
        masks.mask_BN,
        batch.codes_BN,
    )

    def forward_backward() -> Tensor:
        with _autocast(config, world):
            loss: Tensor = module(*arguments)
        loss.backward()
        return loss.detach()

    def apply() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), config.optim.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    shape = joint_shape(config, CODES)
    flops = step_flops(shape) if drops else _embedded_twice(shape)
    return Step(module, forward_backward, apply, flops, config.optim.global_batch)


def timm_step(config: RunConfig, world: World, *, compiles: bool) -> Step:
    """timm's step of classification: autocast, label smoothing, clipping, AdamW, one process."""
    config = replace(config, mim=replace(config.mim, weight=0.0))
    batch = fixed_batch(config, world, config.optim.global_batch)
    name, arguments = encoder_arguments(config)
    model = timm.create_model(name, **arguments)
    model.load_state_dict(joint_model(config).encoder.state_dict())
    model.to(world.device).train()
    optimizer = create_optimizer_v2(
        model,
        opt="adamw",
        lr=LR,
        weight_decay=config.optim.weight_decay,
        betas=(config.optim.beta1, config.optim.beta2),
        eps=config.optim.eps,
    )
    loss_fn = LabelSmoothingCrossEntropy(config.loss.label_smoothing)
    module: nn.Module = torch.compile(model) if compiles else model  # type: ignore[assignment]

    def forward_backward() -> Tensor:
        with _autocast(config, world):
            loss: Tensor = loss_fn(module(batch.images_BCHW), batch.labels_B)
        loss.backward()
        return loss.detach()

    def apply() -> None:
        dispatch_clip_grad(model.parameters(), value=config.optim.clip_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    flops = step_flops(joint_shape(config, CODES))
    return Step(module, forward_backward, apply, flops, config.optim.global_batch)


# What a row's `engine` may name beside ours: the layout its loss agrees with, and how it is made.
BASELINES: dict[str, tuple[str, Callable[[RunConfig, World], Step]]] = {
    "by_hand": ("clean_and_masked", lambda c, w: hand_step(c, w, drops=True)),
    "two_forwards": ("clean_and_masked_tokens", lambda c, w: hand_step(c, w, drops=False)),
    "timm": ("classification", lambda c, w: timm_step(c, w, compiles=False)),
    "timm_compiled": ("classification", lambda c, w: timm_step(c, w, compiles=True)),
}
# Beside them, what a pair may name.
SIDES: dict[str, Callable[[RunConfig, World], Step]] = {
    **{name: build for name, (_, build) in BASELINES.items()},
    "by_hand_unfused": lambda c, w: hand_step(c, w, drops=True, is_fused=False),
}
SHARDED = ("two_forwards",)  # baselines that run under DDP on several ranks


def baseline_step(name: str, config: RunConfig, world: World) -> Step:
    """Collective: a baseline on the recipe's model and batch."""
    return BASELINES[name][1](config, world)


def ranks_of(job: Job) -> int:
    """Processes that a job runs in: plain PyTorch and timm take the whole batch in one."""
    baseline = job.get("baseline")
    return job["ranks"] if job["stage"] or baseline in SHARDED else 1


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The joint model's weights under the names above."""
    names = {
        "decoder.embed": "decoder_embed",
        "decoder.blocks": "decoder_blocks",
        "decoder.norm": "decoder_norm",
        "decoder.predict": "decoder_pred",
        "decoder.mask_token": "mask_token",
        "decoder.pos_embed": "decoder_pos_embed",
    }
    found = {}
    for name, value in state.items():
        old = next((old for old in names if name.startswith(old)), None)
        found[name.replace(old, names[old]) if old else name] = value
    return found


def _autocast(config: RunConfig, world: World) -> Any:
    is_bf16 = resolve_precision(config.engine.precision, world.device) == "bf16"
    return torch.autocast(world.device.type, torch.bfloat16, enabled=is_bf16)


def _embedded_twice(shape: JointShape) -> StepFlops:
    """Two whole passes of which each embeds the patches itself, which ours does once."""
    flops = step_flops(shape)
    embedding = 2 * shape.num_patches * shape.width * 3 * shape.patch_size**2
    return replace(flops, forward=flops.forward + embedding, backward=flops.backward + embedding)
