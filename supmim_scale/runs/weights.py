"""Which weights of a run are its last, and which its best."""

import json
import shutil
from pathlib import Path

from supmim_scale.errors import UserError
from supmim_scale.files.whole import whole_file, write_whole


def last_weights(run_dir: Path, *, raw: bool = False) -> Path:
    """The newest weights of a run, averaged ones before raw ones of the same step; `raw`: the
    newest that are no average. Raises `UserError` where there are none."""
    files = sorted((run_dir / "weights").glob("step-*.safetensors"), key=lambda p: p.stem)
    files = [path for path in files if not (raw and path.stem.endswith("-ema"))]
    if not files:
        raise UserError(
            str(run_dir),
            "no weights/step-*.safetensors",
            "a run that saved weights",
            "train first, or name a file with --weights",
        )
    return files[-1]


def keep_best(run_dir: Path, weights: Path, metric: str, value: float, steps_done: int) -> bool:
    """Keep `weights` as `weights/best.safetensors`, and say so in `best.json`, if `value` is above
    what is there of the same metric and an earlier step; whether it was. What a run kept beyond
    the checkpoint that it went on from is none of its own."""
    note, best = run_dir / "best.json", run_dir / "weights" / "best.safetensors"
    kept = json.loads(note.read_text()) if note.exists() else {}
    is_earlier = kept.get("metric") == metric and kept["steps_done"] < steps_done
    if is_earlier and kept["value"] >= value:
        return False
    with whole_file(best) as part:
        shutil.copy2(weights, part)
    facts = {"metric": metric, "value": value, "steps_done": steps_done, "weights": weights.name}
    write_whole(note, json.dumps(facts) + "\n")
    return True
