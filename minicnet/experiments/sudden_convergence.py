"""Sudden convergence (the paper's Fig. 4): does a ControlNet start to follow its condition all at once?

The same noise, edges and prompts are drawn every few training steps, for three seeds. When does edge-F1 rise, and is
the rise short against the training, and against the time before it? Beside it, what the loss says: how much worse the
edges of another image are. (The warm-up of the learning rate ends at step 41, and the averaged weights, which are
looked at, lag behind by some tens of steps.)
"""

from functools import partial

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, controlled
from minicnet.evaluation import edge_f1
from minicnet.experiments.lab import control_eps, main
from minicnet.experiments.plots import lines_of_images

BASE = "digits"
CLAIM = "The model does not learn the control gradually: it starts to follow the condition abruptly (Fig. 4)."


def watched(lab, seed):
    """The history of a control for edges, with a look at it every few steps."""
    edges, few = canny(lab.test_images), slice(0, 32)

    def look(net):
        drawn = lab.draw(lab.test_prompts[few], [(net, edges[few], 1)], guidance=1.0)
        right, shuffled = (lab.heldout(controlled(lab.unet, [(net, given, 1)])) for given in (edges, edges.roll(1, 0)))
        return {"heldout_loss": right, "gap": shuffled - right, "edge_f1": edge_f1(drawn, edges[few]),
                "drawn": (drawn[:8] * 127.5 + 127.5).round().to("cpu", torch.uint8)}

    eps_model = control_eps(lambda net: (lab.unet, net), canny)
    return lab.trained("edges-watched", seed, partial(ControlNet, lab.unet), eps_model, look=look)[1]


def run(lab):
    for seed in lab.seeds:
        lab.row(f"edges-{seed}", lambda seed: summary(watched(lab, seed)), seed)


def summary(history):
    """The curves, and between which steps edge-F1 went from 10% to 90% of its rise."""
    steps, f1 = [row["step"] for row in history], [row["edge_f1"] for row in history]
    low, high = f1[0], max(f1)

    def reached(share):
        return next(step for step, value in zip(steps, f1) if value >= low + share * (high - low))

    begins, ends = reached(0.1), reached(0.9)
    return {"steps": steps, "edge_f1": f1, "gap": [row["gap"] for row in history], "begins": begins, "ends": ends,
            "width": (ends - begins) / steps[-1]}


def verdict(rows):
    # A gradual rise, straight from the first step to the last, would take 80% of the training from 10% to 90%.
    widths = [row["width"] for row in rows.values()]
    spans = ", ".join(f"{row['begins']} to {row['ends']}" for row in rows.values())
    steps = next(iter(rows.values()))["steps"][-1]
    rise = min(max(row["edge_f1"]) - row["edge_f1"][0] for row in rows.values())
    if rise < 0.05:
        return "not reproduced", f"edge-F1 rose by no more than {rise:.3f}: the control did not set in"
    # And nothing must happen before it, for at least as long: a curve that rises at once and levels off is not sudden.
    waits = all(row["begins"] >= row["ends"] - row["begins"] for row in rows.values())
    word = "reproduced" if max(widths) <= 0.2 and waits else "mixed" if min(widths) <= 0.4 else "not reproduced"
    return word, (f"edge-F1 went from 10% to 90% of its rise within steps {spans} of {steps} (one span per seed): "
                  f"{min(widths):.0%} to {max(widths):.0%} of the training, where a steady rise would take 80%")


def figure(rows, lab):
    fig = Figure(figsize=(11, 6.4), layout="constrained")
    grid = fig.add_gridspec(2, 2, height_ratios=[1, 1.1])
    left, right, strip = (fig.add_subplot(cell) for cell in (grid[0, 0], grid[0, 1], grid[1, :]))
    for key, row in rows.items():
        left.plot(row["steps"], row["edge_f1"], marker=".", markersize=3, label=f"seed {key.rpartition('-')[2]}")
        right.plot(row["steps"], row["gap"])
        left.axvspan(row["begins"], row["ends"], color="tab:gray", alpha=0.1)
    left.set(xlabel="training step", ylabel="edge-F1", title="Following the edges (shaded: 10% to 90% of the rise)")
    right.set(xlabel="training step", ylabel="difference in held-out loss", title="What another image's edges cost")
    left.legend(fontsize=8)
    for ax in (left, right):
        ax.grid(alpha=0.3)
    history = watched(lab, lab.seeds[0])
    rows_shown = [row for row in history if row["step"] <= 2 * rows[f"edges-{lab.seeds[0]}"]["ends"]]
    rows_shown = rows_shown[:: max(1, len(rows_shown) // 12)][:14]
    columns = {"edges": canny(lab.test_images[:8]).cpu() * 2 - 1,
               **{str(row["step"]): row["drawn"] / 127.5 - 1 for row in rows_shown}}
    lines = {" " * i: [images[i : i + 1] for images in columns.values()] for i in range(len(columns["edges"]))}
    lines_of_images(strip, lines, columns, f"The same noise, seed {lab.seeds[0]}")
    strip.set_xlabel("training step")
    return fig


if __name__ == "__main__":
    main("sudden_convergence")
