"""How many images does a control need (the paper's section 4.5, Fig. 10)? Not many, it says, and more are better.

ControlNets for edges are trained on 100, 1,000, 10,000 and all images of the training set, and measured on edges of
test images. Beside them, the other way to teach a base a condition: all of it fine-tuned, on the same images, with the
edges as more channels of its input (concatenated.py). Both see the same batches, steps and learning rates.

The paper trains on 1k, 50k and 3m images and shows pictures. Training is short here: it draws 200 batches of 32 images,
so that of 10,000 hardly one is seen twice, and 100 are seen 64 times each. The images are drawn without guidance.
"""

import statistics

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, controlled
from minicnet.experiments.concatenated import ConcatenatedUNet, ConditionItself
from minicnet.experiments.lab import across_seeds, clearly_better, control_eps, in_figures, main, mean, prompts_of
from minicnet.experiments.plots import lines_of_images

BASE = "digits"
CLAIM = "Training a ControlNet does not collapse with 1,000 images, and gains with more (section 4.5, Fig. 10)."
SIZES = {"100": 100, "1000": 1000, "10000": 10_000, "all": None}
METHODS = {"control": "ControlNet", "finetuned": "whole base fine-tuned"}


def trained(lab, method, size, seed):
    """A base and its control after training on so many images, and the first of these images and their prompts."""
    make, parts = {"control": (ControlNet, lambda net: (lab.unet, net)),
                   "finetuned": (ConcatenatedUNet, lambda net: (net, ConditionItself()))}[method]
    order = torch.randperm(len(lab.train_images), generator=torch.Generator().manual_seed(seed))
    few = order[: SIZES[size]].to(lab.device)
    net, _ = lab.trained(f"{method}-on-{size}", seed, lambda: make(lab.unet), control_eps(parts, canny),
                         lab.train_images[few], lab.train_prompts[few], steps=lab.steps // 2)
    shown = few[: lab.images]
    return *parts(net), lab.train_images[shown], prompts_of(lab.train_labels[shown])


def run(lab):
    edges = canny(lab.test_images)

    def measured(method, size, seed):
        unet, control, shown_images, shown_prompts = trained(lab, method, size, seed)
        drawn = lab.draw(lab.test_prompts, [(control, edges, 1)], unet=unet, seed=seed, guidance=1.0)
        loss, loss_shown = (lab.heldout(controlled(unet, [(control, canny(images), 1)]), images, prompt)
                            for images, prompt in ((lab.test_images, lab.test_prompts), (shown_images, shown_prompts)))
        return {**lab.score(drawn, lab.test_labels, edges), "loss": loss, "loss_shown": loss_shown}

    def floor(seed):
        return lab.score(lab.draw(lab.test_prompts, seed=seed, guidance=1.0), lab.test_labels, edges)

    for seed in lab.seeds:
        lab.row(f"base-{seed}", floor, seed)
        for size in SIZES:
            for method in METHODS:
                lab.row(f"{method} {size}-{seed}", measured, method, size, seed)


def verdict(rows):
    # No collapse: with 1,000 images the control has at least 80% of what all images add to the base's edge-F1, and
    # labels are read as well, within 0.1. A gain: one of more than twice its standard deviation over the seeds.
    floor, few, all_ = (mean(rows, start, "edge_f1") for start in ("base", "control 1000", "control all"))
    read, read_all = (mean(rows, start, "label_accuracy") for start in ("control 1000", "control all"))
    learned = all_ - floor > 0.05
    holds = learned and few - floor >= 0.8 * (all_ - floor) and read >= read_all - 0.1
    few_seeds, all_seeds = (across_seeds(rows, start, "edge_f1") for start in ("control 1000", "control all"))
    gains = [b - a for a, b in zip(few_seeds, all_seeds, strict=True)]
    gained = clearly_better(all_seeds, few_seeds)
    word = "reproduced" if holds and gained else "mixed" if holds else "not reproduced"
    f1 = {method: ", ".join(in_figures(rows, f"{method} {size}", "edge_f1") for size in SIZES) for method in METHODS}
    collapse = "do not collapse" if holds else "collapse" if learned else "tell nothing, as no training worked"
    return word, (f"edge-F1 with {', '.join(SIZES)} images: {f1['control']} (base alone {floor:.3f}); the whole base "
                  f"fine-tuned: {f1['finetuned']}. 1,000 images {collapse}; "
                  f"all add {statistics.mean(gains):+.3f} ± {statistics.stdev(gains):.3f}")


def figure(rows, lab):
    fig = Figure(figsize=(12, 7.2), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.25])
    sizes = [SIZES[size] or len(lab.train_images) for size in SIZES]
    gap = {key: {**row, "gap": row["loss"] - row["loss_shown"]} for key, row in rows.items() if "loss" in row}
    titles = {"edge_f1": "edge-F1", "label_accuracy": "label accuracy", "frechet": "Frechet distance (less is better)",
              "gap": "loss on test images above that\non the images trained on"}
    for ax, (name, title) in zip(top.subplots(1, len(titles)), titles.items()):
        for method, words in METHODS.items():
            values = [across_seeds(gap, f"{method} {size}", name) for size in SIZES]
            ax.errorbar(sizes, [statistics.mean(v) for v in values], [statistics.stdev(v) for v in values],
                        marker="o", markersize=4, capsize=3, label=words)
        ax.axhline(0 if name == "gap" else mean(rows, "base", name), color="tab:gray", linestyle="--",
                   label=None if name == "gap" else "base alone")
        ax.set(xscale="log", xlabel="images trained on")
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        if name == "edge_f1":
            ax.legend(fontsize=8)
    few, seed = slice(0, 10), lab.seeds[0]
    prompt, edges = lab.test_prompts[few], canny(lab.test_images[few])
    for ax, (method, words) in zip(bottom.subplots(1, 2), METHODS.items()):
        lines = {"edges": [edges * 2 - 1], "base alone": [lab.draw(prompt, seed=seed, guidance=1.0)]}
        for size in SIZES:
            unet, control, *_ = trained(lab, method, size, seed)
            lines[f"{size} images"] = [lab.draw(prompt, [(control, edges, 1)], unet=unet, seed=seed, guidance=1.0)]
        lines_of_images(ax, lines, [""], f"{words}: the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("data_size")
