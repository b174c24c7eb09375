"""Bytes of parameters, gradients and optimizer states on a rank: ZeRO's arithmetic.

`zero_states` is the table of Rajbhandari et al. 2020 (arXiv 1910.02054, figure 1). What DeepSpeed
0.19.8 keeps beyond it was counted in real runs (`benchmarks/memory.py`): stage 1 in bf16
accumulates whole gradients in fp32 beside the bf16 ones and shards neither; masters are kept in
fp32 training too; stages 2 and 3 accumulate their shard of the gradient in fp32.
"""

from dataclasses import dataclass

FP32 = 4
BF16 = 2
MOMENTS = 8  # Adam's two, in fp32


@dataclass(frozen=True)
class States:
    """Bytes on a rank."""

    parameters: float
    masters: float
    gradients: float
    optimizer: float
    ema: float

    @property
    def total(self) -> float:
        """All of them."""
        return self.parameters + self.masters + self.gradients + self.optimizer + self.ema


def zero_states(
    num_params: int,
    ranks: int,
    stage: int,
    *,
    parameter: int = BF16,
    gradient: int = BF16,
    master: int = FP32,
    ema: int = 0,
) -> States:
    """What a rank holds at a ZeRO stage (0: no sharding); the keywords are bytes a parameter."""
    mine = num_params / ranks
    return States(
        parameters=parameter * (mine if stage >= 3 else num_params),
        masters=master * (mine if stage >= 1 else num_params),
        gradients=gradient * (mine if stage >= 2 else num_params),
        optimizer=MOMENTS * (mine if stage >= 1 else num_params),
        ema=ema * (mine if stage >= 1 else num_params),
    )


def engine_states(
    num_params: int, ranks: int, stage: int | None, precision: str, *, has_ema: bool
) -> States:
    """What our engines hold while a step runs; `stage` None: plain PyTorch, in fp32."""
    ema = FP32 if has_ema else 0
    if stage is None:
        return zero_states(num_params, 1, 0, parameter=FP32, gradient=FP32, master=0, ema=ema)
    working = BF16 if precision == "bf16" else FP32
    # Stage 1: gradients in the working type, and whole fp32 accumulators where that is bf16.
    kept = FP32 + BF16 if precision == "bf16" else FP32
    gradient = kept if stage == 1 else FP32
    return zero_states(num_params, ranks, stage, parameter=working, gradient=gradient, ema=ema)


def late_gradients(gradients: float, stage: int | None, precision: str, accumulation: int) -> float:
    """The bytes of gradients that are not there before the first backward of a step.

    Stage 3's buffer is always there, and stage 1's fp32 accumulators in bf16, four bytes of six.
    From the second micro-batch on all are.
    """
    if stage == 3 or accumulation > 1:
        return 0.0
    return gradients * BF16 / (FP32 + BF16) if stage == 1 and precision == "bf16" else gradients
