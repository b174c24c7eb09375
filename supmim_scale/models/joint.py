"""The joint step: one forward that gives the classification loss and the MIM loss."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from supmim_scale.config.experiment import LossConfig, MimConfig, ModelConfig
from supmim_scale.models.blocks import join_passes
from supmim_scale.models.decoder import Decoder
from supmim_scale.models.drop_path import compute_kept_samples
from supmim_scale.models.encoder import VisionTransformer, encode, geometry, take
from supmim_scale.models.losses import class_loss, mim_loss
from supmim_scale.models.masking import Masks

LAYOUTS = ("clean_and_masked", "clean_and_masked_tokens", "masked_only")


class JointOutput(NamedTuple):
    """`loss` carries the graph; the rest is detached."""

    loss: Tensor
    class_loss: Tensor
    mim_loss: Tensor
    logits_BK: Tensor
    pred_BMP: Tensor | None


class JointModel(nn.Module):
    """Encoder with its head and, unless it is the supervised baseline, a decoder.

    Every trainable parameter takes part in every forward: under ZeRO-3 a parameter that gets no
    gradient in a micro-step would silently keep the one before. Built without a decoder
    (`mim.weight` 0) the classification path is the same to the bit.
    """

    def __init__(
        self,
        encoder: VisionTransformer,
        decoder: Decoder | None,
        loss: LossConfig,
        mim: MimConfig,
        *,
        uses_mask_token: bool,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        self.layout, self.loss_kind, self.mim_weight = mim.layout, loss.kind, mim.weight
        for stack in self.block_lists():
            join_passes(stack)
        self.mask_token: nn.Parameter | None = None
        if decoder is not None and uses_mask_token:
            self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.embed_dim))
            nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        images_BCHW: Tensor,
        class_targets_BK: Tensor,
        masks: Masks | None = None,
        patch_targets: Tensor | None = None,
    ) -> JointOutput:
        """Losses of a micro-batch.

        `patch_targets`: (B, N) code ids or (B, N, P) values, for all patches; needed with a
        decoder, as are `masks`.
        """
        if self.decoder is None or masks is None or patch_targets is None:
            assert self.decoder is None, "a model with a decoder needs masks and patch targets"
            patches_BND = self._embed(images_BCHW)
            (tokens_BND,) = encode(self.encoder, (patches_BND, None))
            logits_BK = self.encoder.forward_head(tokens_BND)
            loss = class_loss(logits_BK, class_targets_BK, self.loss_kind)
            return JointOutput(loss, loss.detach(), loss.new_zeros(()), logits_BK.detach(), None)

        patches_BND = self._embed(images_BCHW)
        keep_BV = masks.keep_BV if self.layout == "clean_and_masked" else None
        clean, masked = (patches_BND, None), (self._hide(patches_BND, masks), keep_BV)
        passes = (masked,) if self.layout == "masked_only" else (clean, masked)
        tokens = encode(self.encoder, *passes)  # of the classes first, of the masked pass last

        logits_BK = self.encoder.forward_head(tokens[0])
        tokens_BVD = tokens[-1][:, self.encoder.num_prefix_tokens :]
        pred_BMP = self.decoder(tokens_BVD, keep_BV, masks.masked_BM)

        supervised = class_loss(logits_BK, class_targets_BK, self.loss_kind)
        wanted = _pick(patch_targets, masks.masked_BM)
        reconstruction = mim_loss(pred_BMP, wanted, masks.weight_BM)
        return JointOutput(
            supervised + self.mim_weight * reconstruction,
            supervised.detach(),
            reconstruction.detach(),
            logits_BK.detach(),
            pred_BMP.detach(),
        )

    def block_lists(self) -> list[nn.Sequential]:
        """The stacks of transformer blocks, for activation checkpointing."""
        stacks = [self.encoder.blocks]
        return stacks if self.decoder is None else [*stacks, self.decoder.blocks]

    def _embed(self, images_BCHW: Tensor) -> Tensor:
        """Patch embedding, done once for both passes."""
        dtype = self.encoder.patch_embed.proj.weight.dtype
        return self.encoder.patch_embed(images_BCHW.to(dtype))  # type: ignore[no-any-return]

    def _hide(self, patches_BND: Tensor, masks: Masks) -> Tensor:
        if self.mask_token is None:
            return patches_BND
        token = self.mask_token.to(patches_BND.dtype)
        return torch.where(masks.mask_BN.unsqueeze(-1), token, patches_BND)


def build_joint(
    encoder: VisionTransformer,
    model: ModelConfig,
    loss: LossConfig,
    mim: MimConfig,
    *,
    out_features: int,
    drawn_ratio: bool,
) -> JointModel:
    """The joint model around an encoder; the decoder is initialised after it, so that the
    encoder of the supervised baseline (`mim.weight` 0) starts from the same weights.

    `out_features`: values predicted a patch. `drawn_ratio`: samples mask different shares, so some
    masked patches reach the encoder.
    """
    decoder = None
    drops = mim.layout == "clean_and_masked"
    if mim.weight:
        shape = geometry(encoder)
        width = model.decoder_width or shape.width
        decoder = Decoder(
            shape.num_patches,
            shape.width,
            width,
            model.decoder_depth,
            model.decoder_heads or default_heads(width),
            out_features,
            fills_gaps=drops,
        )
    joint = JointModel(encoder, decoder, loss, mim, uses_mask_token=drawn_ratio or not drops)
    if model.drop_path_kept:
        compute_kept_samples(encoder)
    return joint


def default_heads(width: int) -> int:
    """Heads of a decoder of this width: 64 wide, or one where that does not divide."""
    return width // 64 if width % 64 == 0 else 1


def no_decay_names(model: nn.Module) -> set[str]:
    """Parameters without weight decay: one-dimensional ones, tokens and positions.

    To be called before anything partitions the parameters: a ZeRO-3 shard has shape (0,).
    """
    tokens = ("cls_token", "reg_token", "pos_embed", "mask_token")
    return {
        name
        for name, param in model.named_parameters()
        if param.ndim <= 1 or name.rpartition(".")[2] in tokens
    }


def depth_of(name: str, num_blocks: int) -> int:
    """Layers between parameter `name` and the encoder's input: 0 for the embedding, i + 1 for
    block i, `num_blocks` + 1 for the norm, the head and the decoder (which sits on top)."""
    parts = name.split(".")
    if parts[0] != "encoder":
        return 0 if parts[0] == "mask_token" else num_blocks + 1
    if parts[1] == "blocks":
        return int(parts[2]) + 1
    first = ("patch_embed", "pos_embed", "cls_token", "reg_token", "norm_pre")
    return 0 if parts[1] in first else num_blocks + 1


def is_head(name: str) -> bool:
    """Whether `name` belongs to the classification head."""
    return name.startswith("encoder.head.")


def _pick(targets: Tensor, masked_BM: Tensor) -> Tensor:
    return targets.gather(1, masked_BM) if targets.dim() == 2 else take(targets, masked_BM)
