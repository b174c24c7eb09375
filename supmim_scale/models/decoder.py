"""The shallow transformer decoder on top of the encoder; it is dropped at inference."""

import torch
from torch import Tensor, nn

from supmim_scale.models.encoder import Block


class Decoder(nn.Module):
    """Predicts `out_features` values (pixels or code logits) for asked-for patches.

    With `fills_gaps` it receives the visible patches only, puts a mask token and a position
    embedding where the others were (MAE); without, it receives all N tokens from the encoder,
    which had mask tokens and positions itself.
    """

    def __init__(
        self,
        num_patches: int,
        encoder_width: int,
        width: int,
        depth: int,
        heads: int,
        out_features: int,
        *,
        fills_gaps: bool,
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.blocks = nn.Sequential(*(Block(width, heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)  # timm's epsilon
        self.predict = nn.Linear(width, out_features)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width)) if fills_gaps else None
        self.pos_embed = nn.Parameter(torch.zeros(1, num_patches, width)) if fills_gaps else None
        self._init_weights()

    def forward(self, tokens_BVD: Tensor, keep_BV: Tensor | None, masked_BM: Tensor) -> Tensor:
        """(B, M, P) predictions at the positions `masked_BM`."""
        x_BNE = self.embed(tokens_BVD)
        if self.mask_token is not None and self.pos_embed is not None and keep_BV is not None:
            B, N, E = len(x_BNE), self.pos_embed.shape[1], x_BNE.shape[-1]
            gaps_BNE = self.mask_token.to(x_BNE.dtype).expand(B, N, E)
            x_BNE = gaps_BNE.scatter(1, keep_BV.unsqueeze(-1).expand(-1, -1, E), x_BNE)
            x_BNE = x_BNE + self.pos_embed
        x_BNE = self.blocks(x_BNE)
        x_BME = x_BNE.gather(1, masked_BM.unsqueeze(-1).expand(-1, -1, x_BNE.shape[-1]))
        return self.predict(self.norm(x_BME))  # type: ignore[no-any-return]

    def _init_weights(self) -> None:
        """The encoder's rule (truncated normal, std 0.02, zero biases), tokens alike."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        for token in (self.mask_token, self.pos_embed):
            if token is not None:
                nn.init.trunc_normal_(token, std=0.02)
