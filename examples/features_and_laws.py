"""From a trained run to features, neighbours and a law, in cells.

    python examples/features_and_laws.py RUN_DIR [OUT]

RUN_DIR is the folder of a finished run, `runs/smoke` say (`supmim-scale train smoke --ranks 2`).
Pictures go to OUT, by default this folder's `out/`. In an editor that knows `# %%` each cell can be
run by itself.
"""

# %% The run: its recipe, its held-out images, its encoder
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import supmim_scale as sm

run_dir = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/smoke")
out = Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent / "out"
out.mkdir(parents=True, exist_ok=True)

recipe = sm.load_recipe(str(run_dir / "recipe.yaml"))
data = sm.open_data(recipe, "val")
encoder = sm.load_encoder(run_dir)
print(recipe, data, type(encoder).__name__, sep="\n")

# %% Features of every held-out image, and the nearest neighbours of some
features = torch.nn.functional.normalize(sm.features(encoder, data), dim=1)
labels = sm.labels(data)[:, 0]
similarity = features @ features.T
similarity.fill_diagonal_(-1)
nearest = similarity.topk(5, dim=1).indices
agreement = (labels[nearest] == labels[:, None]).float().mean()
print(f"of five neighbours {agreement:.0%} have the query's class")

# %% A picture: queries on the left, their neighbours beside them
batch = next(sm.batches(data, recipe, batch=len(data)))
pixels = (batch.images_BCHW * recipe.data.std + recipe.data.mean).clamp(0, 1).permute(0, 2, 3, 1)
queries = torch.linspace(0, len(data) - 1, 6).long().tolist()
figure, axes = plt.subplots(len(queries), 6, figsize=(6, len(queries)), layout="constrained")
for row, query in zip(axes, queries, strict=True):
    for axis, image in zip(row, [query, *nearest[query].tolist()], strict=True):
        axis.imshow(pixels[image])
        axis.set_xticks([])
        axis.set_yticks([])
        right = "tab:green" if labels[image] == labels[query] else "tab:red"
        for edge in axis.spines.values():
            edge.set(color="black" if image == query else right, linewidth=2)
axes[0][0].set_title("query", fontsize=8)
axes[0][1].set_title("nearest", fontsize=8)
figure.savefig(out / "neighbours.png", dpi=120)

# %% The run's own curve: loss against training FLOPs, and a law through it
(start, *_) = sm.read_log(run_dir, "start")
flops = start["train_flops_per_image"] * start["global_batch"]
curve = [
    {"train_flops": row["steps_done"] * flops, "loss": row["loss"]}
    for row in sm.read_log(run_dir, "train")
]
try:
    laws = sm.fit_law(curve, metric="loss", law="power", bootstrap=50)
    print(laws)
    laws.figure("compute").savefig(out / "law.png", dpi=120)
except sm.UserError as error:  # a short run cannot tell a law
    print(f"no law: {error}")
