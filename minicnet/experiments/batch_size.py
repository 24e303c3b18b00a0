"""Batch size (the training notes of ControlNet's authors): larger batches, or more steps after sudden convergence?

Three nets are trained on edges, from the same base and on equally many images: in many small batches, or in few large
ones, so few that training ends soon after the net starts to follow. Learning rates are the same at any batch size; they
fall to zero over each training, however many steps it has. Then all draw the same edges from the same noise, with the
digit for a prompt and without guidance.

In one seed, edge-F1 of a few images is looked at through the training: does the net start to follow at a certain step,
whatever the batch, as the notes say?
"""

from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.evaluation import edge_f1
from minicnet.experiments.judging import across_seeds, clearly_better, interval, mean
from minicnet.experiments.lab import main
from minicnet.experiments.plots import grouped_bars, lines_of_images

BASE = "digits"
CLAIM = ("Sudden convergence comes at a certain step, so for as many images a larger batch up to it is usually better "
         "than more steps after it (docs/train.md of the authors' code; not in the paper).")
WHY_HERE = ("There, it comes after 3,000 to 7,000 steps of four images, at AdamW's rate of 1e-5. Here it comes after "
            "tens of steps of Muon, whose length does not depend on the gradient's.")
SIZES = {"small": 1 / 2, "usual": 1, "large": 2}  # times lab.batch_size
SHARE = 2 / 3  # of the images that other experiments train on, so that large batches end soon after the net sets in


def trained(lab, size, seed):
    """The net after training in batches of that size, its history, and {"steps", "batch_size"}."""
    batch_size, few = max(1, int(SIZES[size] * lab.batch_size)), slice(0, 24)
    own = {"steps": max(1, int(SHARE * lab.steps * lab.batch_size) // batch_size), "batch_size": batch_size}
    edges = canny(lab.test_images[few])

    def look(net):
        return {"edge_f1": edge_f1(lab.draw(lab.test_prompts[few], [(net, edges, 1)], guidance=1.0), edges)}

    looks = {"look": look, "looks": 20} if seed == lab.seeds[0] else {}
    return *lab.trained_control(size, seed, **own, **looks), own


def draw(lab, net, seed, count=None):
    """The first test images' edges and prompts, drawn under the net."""
    return lab.draw(lab.test_prompts[:count], [(net, canny(lab.test_images[:count]), 1)], seed=seed, guidance=1.0)


def run(lab):
    edges = canny(lab.test_images)

    def measured(size, seed):
        net, history, own = trained(lab, size, seed)
        curve = {"seen": [row["step"] for row in history], "curve": [row["edge_f1"] for row in history]} \
            if seed == lab.seeds[0] else {}
        return {**lab.score(draw(lab, net, seed), lab.test_labels, edges), **own, **curve}

    for seed in lab.seeds:
        for size in SIZES:
            lab.row(f"{size}-{seed}", measured, size, seed)


def watched(rows, size):
    """The row of the seed that was looked at through the training."""
    return next(row for key, row in rows.items() if key.startswith(size) and "curve" in row)


def sets_in(row):
    """The first step, of those looked at, by which edge-F1 had made half of its rise."""
    middle = (row["curve"][0] + max(row["curve"])) / 2
    return next(step for step, value in zip(row["seen"], row["curve"]) if value >= middle)


def verdict(rows):
    """Reproduced if large batches are clearly better than small ones by edge-F1 and by Frechet distance; mixed if by
    one of them, and not clearly worse by the other; else not reproduced."""
    f1, over_usual = (interval(rows, "large", other, "edge_f1") for other in ("small", "usual"))
    large, small = (across_seeds(rows, size, "frechet") for size in ("large", "small"))
    leads = [(f1.low > 0) - (f1.high < 0), clearly_better(large, small, -1) - clearly_better(small, large, -1)]
    word = {2: "reproduced", 1: "mixed"}.get(sum(leads), "not reproduced")

    def of_all(name, digits):
        return ", ".join(f"{mean(rows, size, name):.{digits}f}" for size in SIZES)

    runs = [watched(rows, size) for size in SIZES]
    return word, (
        f"after {', '.join('{steps} steps of {batch_size}'.format(**row) for row in runs)} images, edge-F1 was "
        f"{of_all('edge_f1', 3)}, and the Frechet distance {of_all('frechet', 1)}. The largest batch instead of the "
        f"smallest changed edge-F1 by {f1}, instead of the middle one by {over_usual}. Half of its rise "
        f"was over by step {', '.join(str(sets_in(row)) for row in runs)}, in the one seed looked at")


def figure(rows, lab):
    fig, seed, few = Figure(figsize=(10, 6), layout="constrained"), lab.seeds[0], 14
    grid, runs = fig.add_gridspec(2, 3), {size: watched(rows, size) for size in SIZES}
    names = [f"{row['steps']} steps\nof {row['batch_size']}" for row in runs.values()]
    for i, (name, title) in enumerate({"edge_f1": "edge-F1", "frechet": "Frechet distance (less is better)"}.items()):
        ax = fig.add_subplot(grid[0, i])
        grouped_bars(ax, names, {"": [across_seeds(rows, size, name) for size in SIZES]}, title)
        if name == "edge_f1":
            ax.set_ylim(bottom=0.5)
    ax = fig.add_subplot(grid[0, 2])
    for row in runs.values():
        ax.plot([max(1, step) for step in row["seen"]], row["curve"], marker=".", label=f"batch {row['batch_size']}")
    ax.set(xscale="log", xlabel="training step")
    ax.xaxis.set_major_formatter("{x:g}")
    ax.set_title(f"edge-F1 in training, seed {seed}", fontsize=10)
    ax.legend(fontsize=9)
    ax.grid(alpha=0.3)
    lines = {"edges": [canny(lab.test_images[:few]) * 2 - 1],
             **{name: [draw(lab, trained(lab, size, seed)[0], seed, few)] for name, size in zip(names, SIZES)}}
    lines_of_images(fig.add_subplot(grid[1, :]), lines, [""], f"Each column from the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("batch_size")
