"""Exact FLOPs of the joint training step, from shapes alone.

A multiply-add counts 2. Matrix products, attention and the patch convolution are counted, as
`torch.utils.flop_counter.FlopCounterMode` does on the meta device; a test holds the two equal.
Norms, softmax, activations, losses, targets and the optimizer are not counted.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class JointShape:
    """Everything that the FLOPs of a training step depend on; widths and counts per image."""

    width: int
    depth: int
    mlp: int
    patch_size: int
    num_patches: int
    num_prefix_tokens: int
    num_classes: int
    pool: str = "avg"
    drop_path: float = 0.0
    kept_of: int | None = None  # micro-batch whose kept samples alone are computed; None: all are
    layout: str | None = None  # None: the supervised baseline
    num_visible: int = 0
    num_predicted: int = 0
    decoder_width: int = 0
    decoder_depth: int = 0
    out_features: int = 0


@dataclass(frozen=True)
class StepFlops:
    """FLOPs per image."""

    forward: int
    backward: int
    recompute: int

    @property
    def model(self) -> int:
        """Forward and backward: what MFU counts."""
        return self.forward + self.backward

    @property
    def hardware(self) -> int:
        """Recomputation included: what HFU counts."""
        return self.forward + self.backward + self.recompute


@dataclass(frozen=True)
class _Block:
    """A transformer block over `tokens` tokens."""

    tokens: int
    width: int
    mlp: int
    drop_path: float = 0.0
    kept: float = 1.0  # share of samples that are computed

    @property
    def linear(self) -> int:
        return 2 * self.tokens * self.width * (4 * self.width + 2 * self.mlp)

    @property
    def attention(self) -> int:
        """Scores and their product with the values."""
        return 4 * self.tokens**2 * self.width

    @property
    def forward(self) -> int:
        return round(self.kept * (self.linear + self.attention))

    @property
    def recompute(self) -> int:
        """Non-reentrant checkpointing stops once the last saved tensor is there again: the last
        matmul is not redone, unless drop path follows it and saves its mask or its samples."""
        last_matmul = 2 * self.tokens * self.width * self.mlp
        return self.forward if self.drop_path else self.forward - last_matmul


def step_flops(shape: JointShape, policy: str = "none", every_k: int = 2) -> StepFlops:
    """FLOPs of one image's training step under an activation checkpointing policy.

    Backward is twice forward, except for the patch convolution: images take no gradient.
    """
    patch_embed = 2 * shape.num_patches * shape.width * 3 * shape.patch_size**2
    stacks = [*_encoder_passes(shape), _decoder_blocks(shape)]
    rest = _head(shape) + _decoder_linears(shape)
    blocks = sum(block.forward for stack in stacks for block in stack)
    recompute = sum(
        block.recompute
        for stack in stacks
        for index, block in enumerate(stack)
        if is_checkpointed(index, policy, every_k)
    )
    return StepFlops(
        forward=patch_embed + blocks + rest,
        backward=patch_embed + 2 * (blocks + rest),
        recompute=0 if policy == "selective" else recompute,
    )


def is_checkpointed(index: int, policy: str, every_k: int) -> bool:
    """Whether block `index` of a stack is recomputed under `policy`."""
    if policy == "first_k":
        return index < every_k
    return policy in ("full", "selective") or (
        policy == "every_k" and index % every_k == every_k - 1
    )


def _encoder_passes(shape: JointShape) -> list[list[_Block]]:
    """The blocks of each encoder pass."""
    patches = [shape.num_patches]
    if shape.layout in ("clean_and_masked", "clean_and_masked_tokens"):
        drops = shape.layout == "clean_and_masked"
        patches.append(shape.num_visible if drops else shape.num_patches)
    joined = len(patches) if len(set(patches)) == 1 else 1  # passes of one shape are one batch
    rates = [_drop_path_at(index, shape) for index in range(shape.depth)]
    return [
        [
            _Block(
                shape.num_prefix_tokens + count,
                shape.width,
                shape.mlp,
                drop_path=rate,
                kept=_kept_share(shape, rate, joined),
            )
            for rate in rates
        ]
        for count in patches
    ]


def _kept_share(shape: JointShape, rate: float, joined: int) -> float:
    if shape.kept_of is None or not rate:
        return 1.0
    samples = joined * shape.kept_of
    return kept_samples(samples, rate) / samples


def kept_samples(micro_batch: int, rate: float) -> int:
    """Samples that a branch with this drop path is computed on, where it is on the kept alone."""
    return max(1, round(micro_batch * (1 - rate)))


def _head(shape: JointShape) -> int:
    head = 2 * shape.width * shape.num_classes
    if shape.pool != "map":
        return head
    tokens = shape.num_prefix_tokens + shape.num_patches
    query_and_projection = 2 * 2 * shape.width**2
    keys_and_values = 2 * tokens * shape.width * 2 * shape.width
    attention = 4 * tokens * shape.width
    mlp = 2 * 2 * shape.width * shape.mlp
    return head + query_and_projection + keys_and_values + attention + mlp


def _decoder_blocks(shape: JointShape) -> list[_Block]:
    if shape.layout is None:
        return []
    block = _Block(shape.num_patches, shape.decoder_width, 4 * shape.decoder_width)
    return [block] * shape.decoder_depth


def _decoder_linears(shape: JointShape) -> int:
    """Embedding of the encoder's tokens and prediction of the masked patches."""
    if shape.layout is None:
        return 0
    tokens = shape.num_visible if shape.layout == "clean_and_masked" else shape.num_patches
    embed = 2 * tokens * shape.width * shape.decoder_width
    return embed + 2 * shape.num_predicted * shape.decoder_width * shape.out_features


def _drop_path_at(index: int, shape: JointShape) -> float:
    """timm raises the rate linearly from 0 at the first block."""
    return shape.drop_path * index / max(1, shape.depth - 1)
