"""Does the recipe fit on the cluster: what `submit` asks before it submits."""

from dataclasses import dataclass

from supmim_scale.config import RunConfig
from supmim_scale.hardware.gpus import Gpu, find_gpu
from supmim_scale.planner.memory import Memory
from supmim_scale.planner.setting import RecipeMemory, Setting
from supmim_scale.units import gib

# Of a GPU's memory for the CUDA context, NCCL, workspaces and fragmentation: our choice, not
# measured.
RESERVE = 0.10


@dataclass(frozen=True)
class Verdict:
    """Whether a rank's peak stays below what the GPU has to give; `line` says it to people."""

    fits: bool
    peak_bytes: int
    limit_bytes: int
    line: str


def fits(
    config: RunConfig, gpu: str | Gpu, nodes: int, gpus_per_node: int, *, reserve: float = RESERVE
) -> Verdict:
    """Does the recipe fit. Raises `UserError` for an unknown GPU or batches that do not divide."""
    card = find_gpu(gpu) if isinstance(gpu, str) else gpu
    setting = RecipeMemory(config).setting(config, nodes * gpus_per_node)
    return verdict_of(setting, card, reserve)


def verdict_of(setting: Setting, gpu: Gpu, reserve: float = RESERVE) -> Verdict:
    """The verdict on a setting."""
    peak, limit = round(setting.memory.peak), limit_bytes(gpu, reserve)
    does_fit = peak <= limit
    word = "fits" if does_fit else "does not fit"
    line = (
        f"{word}: {setting.name} needs {gib(peak)} of the {gib(limit)} that {gpu.name} has to "
        f"give; the largest part is {largest_kind(setting.memory)}"
    )
    return Verdict(does_fit, peak, limit, line)


def limit_bytes(gpu: Gpu, reserve: float = RESERVE) -> int:
    """Bytes that a GPU has to give once the reserve is kept free."""
    return round(gpu.memory_bytes * (1 - reserve))


def largest_kind(memory: Memory) -> str:
    """The kind that takes the most, with its size."""
    kinds = memory.by_kind()
    name = max(kinds, key=lambda kind: kinds[kind])
    return f"{name.replace('_', ' ')}, {gib(kinds[name])}"
