"""The pairs of steps that `throughput.py --paired` compares."""

from dataclasses import dataclass
from pathlib import Path

DS_CONFIGS = Path(__file__).parent  # where a side's engine.ds_config=NAME.json lies


@dataclass(frozen=True)
class Pair:
    """Two steps to compare: `time` of A over time of B, or `speed`, which is its inverse.

    A side is [zeroN:]LAYOUT [key=value ...] of our step, or the name of a baseline. `bound`: the
    most a time, the least a speed may be; None: nothing is promised here. `per_flop`: divided by
    the ratio of FLOPs. `same_loss`: both learn the same.
    """

    first: str
    second: str
    kind: str
    what: str
    bound_cpu: float | None = None
    bound_gpu: float | None = None
    per_flop: bool = False
    same_loss: bool = True


PAIRS = {
    "by_hand": Pair(
        "clean_and_masked", "by_hand", "time", "our joint step / plain PyTorch by hand", 1.05, 1.05
    ),
    "classification": Pair(
        "clean_and_masked",
        "classification",
        "time",
        "joint / classification, / ratio of FLOPs",
        1.10,
        1.10,
        per_flop=True,
        same_loss=False,
    ),
    "timm": Pair(
        "classification",
        "timm",
        "speed",
        "our classification step, x timm's eager step",
        bound_gpu=1.20,
    ),
    "timm_compiled": Pair(
        "classification",
        "timm_compiled",
        "speed",
        "our classification step, x timm's compiled step",
        bound_gpu=1.05,
    ),
    "two_forwards": Pair(
        "clean_and_masked",
        "two_forwards",
        "speed",
        "our joint step, x plain PyTorch with two whole forwards",
        bound_gpu=1.25,
        same_loss=False,
    ),
    "stage3": Pair(
        "zero3:clean_and_masked",
        "zero1:clean_and_masked",
        "time",
        "ZeRO-3 / ZeRO-1 on one rank",
        bound_gpu=1.10,
    ),
}
USUAL_ON_CPU = ["by_hand", "classification", "timm", "two_forwards"]
DROP_PATH = "clean_and_masked model.drop_path=0.4"
FULL = "clean_and_masked engine.activation_checkpointing=full"


def _change(after: str, before: str, what: str, *, same_loss: bool = True) -> Pair:
    return Pair(after, before, "speed", what, same_loss=same_loss)


# What each part of the step brings: with it, x without it.
CHANGES = {
    "joined": _change(
        "clean_and_masked_tokens",
        "two_forwards",
        "both passes in one encoder call, x two calls by hand",
    ),
    "dropped": _change(
        "clean_and_masked",
        "clean_and_masked_tokens",
        "masked patches dropped, x kept as mask tokens",
        same_loss=False,
    ),
    "fused": _change("by_hand", "by_hand_unfused", "fused AdamW, x torch's default one"),
    "kept_drop_path": _change(
        f"{DROP_PATH} model.drop_path_kept=true",
        DROP_PATH,
        "drop path 0.4 on kept samples alone, x on all",
        same_loss=False,
    ),
    "attention": _change(
        "clean_and_masked engine.attention=fastest",
        "clean_and_masked engine.attention=math",
        "the attention kernel measured fastest, x the plain products",
    ),
    "compile": _change(
        "clean_and_masked engine.compile=true", "clean_and_masked", "compiled blocks, x eager ones"
    ),
    "selective": _change(
        "clean_and_masked engine.activation_checkpointing=selective",
        FULL,
        "selective recomputation, x full",
    ),
    "first_k": _change(
        "clean_and_masked engine.activation_checkpointing=first_k engine.checkpoint_every_k=6",
        FULL,
        "six blocks recomputed, x all",
    ),
    "knobs": _change(
        "zero3:clean_and_masked",
        "zero3:clean_and_masked engine.ds_config=zero3_defaults.json",
        "ZeRO-3 sized to the block, x DeepSpeed's defaults, one rank",
    ),
    "masters": _change(
        "zero1:clean_and_masked engine.precision=bf16",
        "clean_and_masked engine.precision=bf16",
        "bf16 parameters with fp32 masters, x fp32 ones under autocast",
        same_loss=False,
    ),
    "tiles": _change(
        "clean_and_masked",
        "clean_and_masked model.class_token=true",
        "whole attention tiles, x one token more",
        same_loss=False,
    ),
    "fp8": _change(
        "clean_and_masked engine.compile=true engine.fp8=linears",
        "clean_and_masked engine.compile=true",
        "fp8 products, x bf16, both compiled",
        same_loss=False,
    ),
    "fp8_emulated": _change(
        "clean_and_masked engine.fp8=emulated",
        "clean_and_masked",
        "fp8 emulated, for its loss, x without",
        same_loss=False,
    ),
}
ON_GPU_ALONE, ON_CPU_ALONE = ("fp8", "tiles"), ("fp8_emulated",)
ALL = PAIRS | CHANGES


def usual_pairs(*, is_gpu: bool) -> list[str]:
    """Pairs that run where none is named: against baselines; compiled and sharded ones on a GPU."""
    return list(PAIRS) if is_gpu else USUAL_ON_CPU


def changes(*, is_gpu: bool) -> list[str]:
    """What `--paired changes` stands for on this device."""
    elsewhere = ON_CPU_ALONE if is_gpu else ON_GPU_ALONE
    return [name for name in CHANGES if name not in elsewhere]
