"""Tables of throughput.py's rows."""

from typing import Any

from benchmarks.rows.pages import Row, markdown_table, percent, seconds
from supmim_scale.units import gib, si

# What a GPU must show: executed bf16 MFU by model, and ratios by pair.
MFU_BOUNDS = {"vit_l14": 0.50, "vit_h14": 0.52, "vit_g14": 0.53}
PAIR_BOUNDS = {
    "timm": "at least 1.20",
    "timm_compiled": "at least 1.05",
    "two_forwards": "at least 1.25",
    "stage3": "at most 1.10",
}
SAME = ("model", "layout", "policy", "micro_batch", "world_size", "image_size", "overrides")


def table(rows: list[Row]) -> str:
    """Rows as a Markdown table, with what its null columns lack."""
    heads = [
        "model",
        "layout",
        "engine",
        "recompute",
        "batch a rank",
        "ranks",
        "precision",
        "images/s",
        "a rank",
        "x plain",
        "step median",
        "p95",
        "forward",
        "backward",
        "optimizer",
        "collectives",
        "data wait",
        "FLOP/s",
        "of the roof",
        "MFU",
        "HFU",
        "peak memory",
        "reserved",
        "attention",
        "loss",
    ]
    lines = [_line(row) for row in rows if row["kind"] == "row"]
    reasons = {
        row.get(name)
        for row in rows
        for name in ("mfu_reason", "data_wait_reason", "memory_reason")
    } - {None}
    notes = [f"Null: {reason}." for reason in sorted(reasons)]
    failed = [f"- {line_of(row)}" for row in rows if "error" in row]
    return "\n".join([markdown_table(heads, lines), "", *notes, *failed])


def _line(row: Row) -> list[str]:
    words = [word.partition(".")[2] for word in row["overrides"]]
    policy = " ".join([row["policy"], *words, *fed_by(row)])
    names = [row["model"], row["layout"], row["engine"], policy]
    if "error" in row:
        return [*names, *["" for _ in range(20)], "failed"]
    ratio = f"{row['ratio_to_plain']:.2f}" if row["ratio_to_plain"] else "-"
    shares = (percent(row[name]) for name in ("roof_share", "mfu", "hfu"))
    reserved = row["peak_reserved_bytes"]
    return [
        *names,
        str(row["micro_batch"]),
        str(row["world_size"]),
        row["precision"],
        f"{row['images_per_s']:.2f}",
        f"{row['images_per_s_per_rank']:.2f}",
        ratio,
        *(
            seconds(row[f"{name}_s"])
            for name in (
                "step_time_median",
                "step_time_p95",
                "forward",
                "backward",
                "optimizer",
                "communication",
            )
        ),
        "null" if row["data_wait_s"] is None else seconds(row["data_wait_s"]),
        si(row["achieved_flops_per_s"]).strip(),
        *shares,
        gib(row["peak_memory_bytes"]),
        gib(reserved) if reserved else "null",
        attention_name(row),
        f"{row['loss']:.5f}",
    ]


def attention_name(row: Row) -> str:
    """The forward's operator or kernel, as the profiler named it."""
    names = [name for name in row["attention"] if "backward" not in name.lower()]
    short = [name.removeprefix("aten::").partition("(")[0][:60] for name in names]
    return ", ".join(short) or "none seen"


def pair_table(rows: list[Row]) -> str:
    """Pairs as a Markdown table."""
    heads = [
        "pair",
        "model",
        "engine",
        "recompute",
        "precision",
        "images",
        "ratio",
        "interval",
        "bound",
        "verdict",
        "loss gap",
        "rounds",
        "first, a step",
        "second, a step",
    ]
    lines = []
    for row in rows:
        names = [row.get("what", row["pair"]), row["model"], row["engine"], row["policy"]]
        if "error" in row:
            lines.append([*names, "", "", "", "", "", f"error: {row['error']}", "", "", "", ""])
            continue
        bound = f"{row['bound']:.2f}" if row["bound"] else "-"
        lines.append(
            [
                *names,
                row["precision"],
                str(row["images"]),
                f"{row['ratio']:.3f}",
                f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}",
                bound,
                verdict_of(row),
                f"{row['loss_gap']:.1e}",
                f"{row['rounds']} x {row['steps_a_round']}",
                seconds(row["first_s"]),
                seconds(row["second_s"]),
            ]
        )
    return markdown_table(heads, lines)


def verdict_of(row: Row) -> str:
    """PASS or FAIL, and whether the interval leaves a doubt."""
    if row["verdict"] is None:
        return row["verdict_reason"]  # type: ignore[no-any-return]
    return row["verdict"] + ("" if row["is_clear"] else " (the interval holds the bound)")


def shape_table(rows: list[Row]) -> str:
    """What the products of each model can reach by themselves."""
    heads = [
        "model",
        "precision",
        "images",
        "products alone",
        "of the roof",
        "of the peak",
        "costliest shape (b x m x k x n)",
        "its share of the roof",
    ]
    return markdown_table(
        heads,
        [
            [
                row["model"],
                row["precision"],
                str(row["micro_batch"]),
                si(row["products_flops_per_s"]) + "FLOP/s",
                percent(row["products_share_of_roof"]),
                percent(row["expected_mfu"]),
                row["slowest"]["shape"],
                percent(row["slowest"]["share_of_roof"]),
            ]
            for row in rows
        ],
    )


def gpu_table(rows: list[Row]) -> str:
    """Each promise of a GPU beside what was measured there."""
    lines = []
    on_gpu = [row for row in rows if row.get("device_count") and "error" not in row]
    steps = [
        row
        for row in on_gpu
        if row["kind"] == "row"
        and row["precision"] == "bf16"
        and not any("fp8" in word for word in row["overrides"])
        and row.get("data") is None
    ]
    products = {
        row["model"]: percent(row["expected_mfu"])
        for row in on_gpu
        if row["kind"] == "shapes" and row["expected_mfu"] is not None
    }
    for model, bound in MFU_BOUNDS.items():
        for engine in ("zero1", "zero3"):
            for what in ("none", "full"):
                mine = [
                    row
                    for row in steps
                    if row["hfu"]
                    and (row["model"], row["engine"], row["policy"]) == (model, engine, what)
                ]
                best = max((row["hfu"] for row in mine), default=None)
                name = f"{model}, {engine}, recompute {what}: executed FLOPs of the peak"
                lines.append(
                    [
                        name,
                        f"at least {bound:.0%}",
                        products.get(model, "not run: no GPU"),
                        _found(best, percent),
                    ]
                )
        alike = [
            first["images_per_s"] / third["images_per_s"]
            for first in steps
            for third in steps
            if (first["engine"], third["engine"]) == ("zero1", "zero3")
            and first["model"] == model
            and all(first[key] == third[key] for key in SAME)
        ]
        both = max(alike, default=None)
        lines.append(
            [
                f"{model}: ZeRO-3's step / ZeRO-1's on one rank",
                "at most 1.10",
                "",
                _found(both, _ratio),
            ]
        )
    errors = [
        row["planned_error"]
        for row in steps
        if row.get("planned_error") is not None and not row["overrides"]
    ]
    worst = max(errors, key=abs, default=None)
    lines.append(
        ["images/s that the planner says, largest error", "within 10 %", "", _found(worst, percent)]
    )
    for pair, bound_text in PAIR_BOUNDS.items():
        ratios = [row["ratio"] for row in on_gpu if row["kind"] == "pair" and row["pair"] == pair]
        last = ratios[-1] if ratios else None
        lines.append([f"pair {pair}", bound_text, "", _found(last, _ratio)])
    heads = ["figure", "wanted", "the model's products alone reach", "measured"]
    return markdown_table(heads, lines)


def line_of(row: Row) -> str:
    """A row for people."""
    name = " ".join(
        str(row[key])
        for key in ("pair", "model", "layout", "engine", "policy")
        if row.get(key) and not (key == "layout" and "pair" in row)
    )
    name += "".join(f" {word}" for word in row.get("overrides") or [])
    if "error" in row:
        return f"{name}: {row['error']}"
    if row["kind"] == "pair":
        bound = f", bound {row['bound']}: {verdict_of(row)}" if row["bound"] else ""
        spread = f"{row['ratio_low']:.3f} to {row['ratio_high']:.3f}"
        return f"{name}: {row['ratio']:.3f} ({spread}){bound}"
    return f"{name}: {row['images_per_s']:.2f} img/s, {percent(row['roof_share'])} of the roof"


def _found(value: float | None, form: Any) -> str:
    return "not run: no GPU" if value is None else form(value)


def _ratio(value: float) -> str:
    return f"{value:.3f}"


def fed_by(row: Row) -> list[str]:
    """What fed the step, where anything did."""
    return ["fed"] if row.get("data") else []
