"""What ZeRO sends in a step.

Volumes: Rajbhandari et al. 2020 (arXiv 1910.02054, section 7): gradients and parameters each once
at stages 1 and 2, parameters twice and gradients once at stage 3. DeepSpeed 0.19.8 differs, by
its source: stages 1 and 2 all-reduce gradients where a reduce-scatter would do (twice the bytes),
stage 2 in every micro-step. At stage 3 a block is gathered once forward and once backward, whatever
the number of the encoder's passes, and not once more for recomputation (counted in runs of two
ranks, `tests/engine/test_gathers.py`; the few blocks that are still there when forward turns into
backward are not gathered again, which this leaves out).
ZeRO++ (Wang et al. 2023, arXiv 2306.10209): qwZ gathers 8-bit weights, hpZ gathers for backward
inside a node, qgZ reduces 4-bit gradients.
"""

from supmim_scale.planner.cluster import Collective
from supmim_scale.planner.setting import Setting
from supmim_scale.planner.sharding import ModelSize
from supmim_scale.planner.states import BF16, FP32

_INT8, _INT4 = 1.0, 0.5


def traffic(setting: Setting, size: ModelSize) -> list[Collective]:
    """A step's collectives."""
    sharding = setting.sharding
    if sharding.stage is None:
        return []
    width = BF16 if sharding.precision == "bf16" else FP32
    whole = float(width * size.num_params)
    if sharding.stage < 3:
        times = setting.accumulation if sharding.stage == 2 else 1
        return [
            Collective("all-reduce of gradients", whole, 2 * times),
            Collective("all-gather of parameters", whole, 1),
        ]
    weights = size.num_params * (_INT8 if sharding.quantized_weights else width)
    gradients = size.num_params * (_INT4 if sharding.quantized_gradients else width)
    times, has_hpz = setting.accumulation, sharding.second_shard > 1
    return [
        Collective("all-gather for forward", weights, times),
        Collective("all-gather for backward", weights, times, in_node=has_hpz),
        Collective("reduce-scatter of gradients", gradients, times),
    ]
