"""How long a step waits for a checkpoint."""

import shutil
import statistics
import time
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def stall(folder: Path, model: str) -> Row:
    """How long a step waits for a checkpoint, written in the background and not."""
    from supmim_scale.build.engine import engine_settings
    from supmim_scale.build.model import recipe_model
    from supmim_scale.config import load_config
    from supmim_scale.config.running import CheckpointConfig
    from supmim_scale.engine import build_engine
    from supmim_scale.launch.join import join_world, leave_world
    from supmim_scale.training.saver import Saver

    own = [f"model.{name}=null" for name in ("patch_size", "width", "depth", "heads")]
    config = load_config(
        "smoke",
        [
            *own,
            f"model.name={model}",
            "model.image_size=224",
            "model.decoder_width=null",
            "engine.kind=plain",
            "optim.ema_decay=0",
        ],
    )
    world = join_world()
    engine = build_engine(
        recipe_model(config, 1024), engine_settings(config, 1, 1, "fp32", "torch"), world
    )
    times: dict[bool, list[float]] = {False: [], True: []}
    for turn in range(6):
        in_background = turn % 2 == 1
        target = folder / f"stall{turn}"
        saver = Saver(target, world, CheckpointConfig(keep_last=1, in_background=in_background))
        began = time.perf_counter()
        saver.save(engine, {"steps_done": turn})
        times[in_background].append(time.perf_counter() - began)
        saver.finish()
        num_bytes = sum(path.stat().st_size for path in target.rglob("*.safetensors"))
        shutil.rmtree(target)
    leave_world(world)
    waits, behind = (statistics.median(times[key]) for key in (False, True))
    ratios = [b / a for a, b in zip(times[False], times[True], strict=True)]
    ratio = statistics.median(ratios)
    return {
        "kind": "stall",
        "fault": f"saving {model}, {num_bytes / 2**30:.2f} GiB",
        "times": len(ratios),
        "outcome": "as promised" if ratio <= 0.25 else "broken",
        "stall_s": behind,
        "stall_s_synchronous": waits,
        "stall_ratio_median": ratio,
        "stall_ratios": ratios,
    }
