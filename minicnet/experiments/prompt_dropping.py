"""Dropped prompts (the paper's section 3.3): does a ControlNet that trains without prompts read more off the condition?

Three nets are trained on edges, with the same base, seeds, batches and number of steps. Of their prompts 0, 50 or 100%
are replaced by the empty one. Then they draw the same edges from the same noise, without a prompt, and under a
conflicting one, "a five" over a three's edges. A classifier says which digit it sees: that of the edges, or that of the
prompt.

The paper drops 50%, and shows no other share. One prompt in five of ours says less than the whole caption, and half of
those do not name the digit. So at 0%, too, the nets have seen prompts that leave the digit to the edges.
"""

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.evaluation import label_accuracy
from minicnet.experiments.judging import across_seeds, interval, mean
from minicnet.experiments.lab import main, prompts_of
from minicnet.experiments.plots import grouped_bars, lines_of_images

BASE = "digits"
CLAIM = ("Replacing half of the training prompts by empty strings increases ControlNet's ability to recognise what the "
         "condition shows, in the prompt's stead (section 3.3, where it is not measured).")
WHY_HERE = ("A digit's edges say all that its prompt could say: which digit it is. Where edges are ambiguous, prompts "
            "may be missed more.")
SHARES = {"0%": 0.0, "50%": 0.5, "100%": 1.0}
PROMPTS = ("no prompt", "conflicting")


def trained(lab, share, seed):
    if SHARES[share] == lab.drop_prompts:
        return lab.edge_control(seed)
    return lab.trained_control(f"edges-{share}", seed, drop_prompts=SHARES[share])[0]


def rival(labels):
    """The digits that conflicting prompts name: a five instead of a three."""
    return (labels + 2) % 10


def draw(lab, share, kind, seed, count=None):
    """The first test images' edges, drawn under the net of that share, or by the base alone."""
    edges, labels = canny(lab.test_images[:count]), lab.test_labels[:count]
    controls = [] if share == "base" else [(trained(lab, share, seed), edges, 1)]
    if kind == "no prompt":
        return lab.draw(torch.zeros_like(prompts_of(labels)), controls, seed=seed, guidance=1.0)
    return lab.draw(prompts_of(rival(labels)), controls, seed=seed)


def run(lab):
    edges, labels = canny(lab.test_images), lab.test_labels

    def read_as_rival(images, labels):
        return label_accuracy(lab.classifier, images, rival(labels))

    def measured(share, kind, seed):
        images = draw(lab, share, kind, seed)
        return {**lab.score(images, labels, edges), "rival": read_as_rival(images, labels)}

    for kind in PROMPTS:  # what the base does alone, of one seed: the floor
        lab.row(f"base, {kind}-{lab.seeds[0]}", measured, "base", kind, lab.seeds[0])
    for seed in lab.seeds:
        for share in SHARES:
            for kind in PROMPTS:
                lab.row(f"{share}, {kind}-{seed}", measured, share, kind, seed)


def verdict(rows):
    """Reproduced if images without a prompt are read as the edges' digit clearly more often when 50% was dropped than
    when nothing was. Mixed if so only under conflicting prompts, or if only edge-F1 without a prompt is higher."""
    def gain(kind, measure, ours="50%", theirs="0%"):
        return interval(rows, f"{ours}, {kind}", f"{theirs}, {kind}", measure)

    def of_all(kind, measure):
        return ", ".join(f"{mean(rows, f'{share}, {kind}', measure):.3f}" for share in SHARES)

    alone, conflicting = (gain(kind, "label_accuracy") for kind in PROMPTS)
    f1 = gain("no prompt", "edge_f1")
    word = "reproduced" if alone.low > 0 else "mixed" if max(conflicting.low, f1.low) > 0 else "not reproduced"
    return word, (
        f"without a prompt, {of_all('no prompt', 'label_accuracy')} of the images were read as the edges' digit, with "
        "0, 50 and 100% of the training prompts dropped (base alone: "
        f"{mean(rows, 'base, no prompt', 'label_accuracy'):.3f}). Dropping half instead of none changed that by "
        f"{alone}, all instead of half by {gain('no prompt', 'label_accuracy', '100%', '50%')}. Under a conflicting "
        f"prompt, {of_all('conflicting', 'label_accuracy')} were read as the edges' digit, half instead of none: "
        f"{conflicting}; and {of_all('conflicting', 'rival')} as the prompt's. Edge-F1 without a prompt was "
        f"{of_all('no prompt', 'edge_f1')}, half instead of none: {f1}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 6), layout="constrained")
    grid = fig.add_gridspec(2, 3)
    titles = {"label_accuracy": "Read as the edges' digit", "rival": "Read as the prompt's digit", "edge_f1": "edge-F1"}
    for i, (name, title) in enumerate(titles.items()):
        ax, kinds = fig.add_subplot(grid[0, i]), PROMPTS[1:] if name == "rival" else PROMPTS
        grouped_bars(ax, kinds, {f"{share} dropped": [across_seeds(rows, f"{share}, {kind}", name) for kind in kinds]
                                 for share in SHARES}, title)
        for k, kind in enumerate(kinds):
            ax.hlines(mean(rows, f"base, {kind}", name), k - 0.4, k + 0.4, color="black", linestyle="--",
                      label=None if k else "base alone")
    ax.set_ylim(bottom=0.5)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=9, ncols=4, loc="outside upper center")
    strip, few, seed = fig.add_subplot(grid[1, :]), 7, lab.seeds[0]
    lines = {"edges": [canny(lab.test_images[:few]) * 2 - 1] * len(PROMPTS),
             **{f"{share} dropped": [draw(lab, share, kind, seed, few) for kind in PROMPTS] for share in SHARES}}
    lines_of_images(strip, lines, ["no prompt", 'conflicting prompt ("a five" over a three)'],
                    f"Each column from the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("prompt_dropping")
