"""DeepSpeed's JSON: what the file may say, and what the recipe adds to it.

A number has one source. Keys that follow from the recipe are refused in the file, with the
recipe key to set instead.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from supmim_scale.errors import UserError

OWNED_KEYS = {
    "train_batch_size": "optim.global_batch",
    "train_micro_batch_size_per_gpu": "engine.micro_batch",
    "gradient_accumulation_steps": "optim.global_batch and engine.micro_batch",
    "gradient_clipping": "optim.clip_grad_norm",
    "optimizer": "the optim section",
    "scheduler": "optim.schedule",
    "bf16": "engine.precision",
    "fp16": "engine.precision",
    "amp": "engine.precision",
    "data_types": "engine.precision",
    "activation_checkpointing": "engine.activation_checkpointing",
    "steps_per_print": "log.every",
    "tensorboard": "the log section",
    "zero_allow_untested_optimizer": "the optim section",
    "zero_force_ds_cpu_optimizer": "the optim section",
}


_VIT_B_BLOCK = 7_087_872  # parameters of a block of width 768


def find_ds_config(name: str) -> Path:
    """Path of a name in `ds_configs/` (source tree or installation) or of a JSON file."""
    source, installed = Path(__file__).resolve().parents[2], Path(sys.prefix) / "share/supmim_scale"
    folders = [source / "ds_configs", installed / "ds_configs"]
    named = name if name.endswith(".json") else f"{name}.json"
    candidates = [Path(name)] if name.endswith(".json") else [f / named for f in folders]
    for path in candidates:
        if path.is_file():
            return path
    known = sorted({p.stem for folder in folders for p in folder.glob("*.json")})
    expected = f"{', '.join(known)} or the path of a .json"
    raise UserError("engine.ds_config", f"no file {candidates[0]}", expected, "check the name")


def load_ds_config(name: str) -> dict[str, Any]:
    """The file's content. Raises `UserError` for keys that we own, `"auto"`, and stage 0."""
    path = find_ds_config(name)
    try:
        content = json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise UserError(str(path), str(error), "a JSON object", "fix the file") from None
    if not isinstance(content, dict):
        raise UserError(str(path), type(content).__name__, "a JSON object", "fix the file")
    for key, ours in OWNED_KEYS.items():
        if key in content:
            raise UserError(
                f"{path}: {key}",
                json.dumps(content[key]),
                "the recipe to say it",
                f"delete the key and set {ours}",
            )
    for where in _autos(content):
        raise UserError(
            f"{path}: {where}",
            '"auto"',
            "a value (only Hugging Face's Trainer fills in auto)",
            "write the value or delete the key",
        )
    stage = content.get("zero_optimization", {}).get("stage")
    if stage not in (1, 2, 3):
        raise UserError(
            f"{path}: zero_optimization.stage",
            json.dumps(stage),
            "1, 2 or 3",
            "set it, or set engine.kind=plain for one process without sharding",
        )
    return content


def complete_ds_config(
    content: dict[str, Any],
    *,
    micro_batch: int,
    accumulation: int,
    precision: str,
    policy: str,
    clip_grad_norm: float,
    block_params: int,
) -> dict[str, Any]:
    """The file's content with the recipe's numbers and, for stages 2 and 3, knobs sized to the
    block.

    DeepSpeed's default of 1e9 live parameters keeps a ViT-g whole on every rank (DeepSpeed
    issue 1302); four blocks are enough to compute in one and fetch the next two together (with
    two, what is prefetched is thrown away again). Its default reduction bucket of 5e8 elements is
    a GiB in bf16, twice that in stage 3. Below a ViT-B's size the floor keeps collectives few.
    The file's own values win.

    Selective checkpointing needs `memory_efficient_linear` off: DeepSpeed's linear (installed for
    any model since its pull request 8189) adds the bias in place to a product that is kept, so
    that recomputation would add it twice and the gradients would be wrong without a word.
    """
    zero = dict(content["zero_optimization"])
    block_params = max(block_params, _VIT_B_BLOCK)
    if zero["stage"] > 1:
        zero = {"reduce_bucket_size": 4 * block_params} | zero
    if zero["stage"] == 3:
        if policy == "selective":
            if zero.get("memory_efficient_linear"):
                raise UserError(
                    "engine.ds_config: zero_optimization.memory_efficient_linear",
                    "true with selective checkpointing, whose gradients it makes wrong",
                    "false, or another engine.activation_checkpointing",
                    "delete the key",
                )
            zero["memory_efficient_linear"] = False
        zero = {
            "stage3_max_live_parameters": 4 * block_params,
            "stage3_max_reuse_distance": 4 * block_params,
            "stage3_prefetch_bucket_size": 2 * block_params,
        } | zero
    return {
        **content,
        "zero_optimization": zero,
        "train_micro_batch_size_per_gpu": micro_batch,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": clip_grad_norm,
        "bf16": {"enabled": precision == "bf16"},
        "data_types": {"grad_accum_dtype": "fp32"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31 - 1,
    }


def _autos(value: Any, where: str = "") -> Iterator[str]:
    """Paths of every `"auto"` in nested JSON."""
    if value == "auto":
        yield where
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _autos(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from _autos(inner, f"{where}[{place}]")
