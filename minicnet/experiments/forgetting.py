"""Does fine-tuning forget what the locked base keeps (the paper's sections 1 and 3.1)?

The base knows ten digits. It is taught edges with images of three of them only, with their captions, and then asked
for the other seven: with their edges, and without any. Three ways to teach it, with the same batches, steps and rates:

    control       ControlNet: the base is locked
    unlocked      ControlNet, and the base's decoder is trained too, as with sd_locked=False in the official code
                  (which advises a lower learning rate then; here it stays, so that only the lock differs)
    finetuned     all of the base, the edges being more channels of its input (concatenated.py)

Without edges means strength 0, which for fine-tuning is an empty edge map: it has never seen one. So the digits shown
are asked for without edges, too: if they come out badly as well, drawing without edges is forgotten, and not just the
seven digits. The base alone is the row to compare with: same prompts, same noise. The paper argues with pictures and
with users' preferences; it has no such experiment. Images are drawn without guidance.
"""

import copy

import torch
from matplotlib.figure import Figure
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.experiments.concatenated import ConcatenatedUNet, ConditionItself
from minicnet.experiments.lab import across_seeds, clearly_better, control_eps, in_figures, main, mean, prompts_of
from minicnet.experiments.plots import grouped_bars, lines_of_images

BASE = "digits"
CLAIM = ("Fine-tuning a base directly on narrow data forgets; with ControlNet the base keeps what it knows (sections "
         "1, 3.1).")
SHOWN = (0, 1, 2)  # the digits that training shows
METHODS = {"control": "ControlNet", "unlocked": "decoder unlocked", "finetuned": "all fine-tuned"}


class Unlocked(nn.Module):
    """A ControlNet and a copy of its base in which the decoder trains, and nothing else."""

    def __init__(self, unet):
        super().__init__()
        self.control_net = ControlNet(unet)
        self.unet = freeze(copy.deepcopy(unet))
        self.unet.decoder.requires_grad_(True)


def parts(lab, method, net):
    """The base to draw with, and what controls it."""
    return {"control": lambda: (lab.unet, net), "unlocked": lambda: (net.unet, net.control_net),
            "finetuned": lambda: (net, ConditionItself())}[method]()


def trained(lab, method, seed):
    make = {"control": ControlNet, "unlocked": Unlocked, "finetuned": ConcatenatedUNet}[method]
    eps_model = control_eps(lambda net: parts(lab, method, net), canny)
    few = shown(lab.train_labels)
    net, _ = lab.trained(f"{method}-on-digits-{''.join(map(str, SHOWN))}", seed, lambda: make(lab.unet), eps_model,
                         lab.train_images[few], lab.train_prompts[few])
    return parts(lab, method, net)


def shown(labels):
    return torch.isin(labels, torch.tensor(SHOWN, device=labels.device))


def run(lab):
    old = shown(lab.reference_labels)
    others, labels = lab.reference_images[~old], lab.reference_labels[~old]
    few, few_labels = others[: lab.images], labels[: lab.images]  # digits that training does not show
    known, known_labels = (x[old][: lab.images // 2] for x in (lab.reference_images, lab.reference_labels))

    def measured(method, seed):
        unet, control = (lab.unet, None) if method == "base" else trained(lab, method, seed)

        def score(start, images, labels, strength):
            edges = canny(images)
            controls = [(control, edges, strength)] if control else []
            drawn = lab.draw(prompts_of(labels), controls, unet=unet, seed=seed, guidance=1.0)
            scores = lab.score(drawn, labels, edges, reference=others)
            return {f"{start}_{name}": value for name, value in scores.items()}

        row = {**score("without", few, few_labels, 0), **score("shown_without", known, known_labels, 0)}
        if control:
            row |= {**score("with", few, few_labels, 1), **score("shown_with", known, known_labels, 1)}
        return {name: value for name, value in row.items() if not (name.startswith("shown") and "frechet" in name)}

    for seed in lab.seeds:
        for method in ("base", *METHODS):
            lab.row(f"{method}-{seed}", measured, method, seed)


def better(rows, a, b, *names):
    """In how many of these measures a is clearly better than b, less those in which it is clearly worse."""
    points = 0
    for name in names:
        ours, theirs = across_seeds(rows, a, name), across_seeds(rows, b, name)
        sign = -1 if name.endswith("frechet") else 1
        points += clearly_better(ours, theirs, sign) - clearly_better(theirs, ours, sign)
    return points


def verdict(rows):
    # Forgotten is what is drawn worse without edges by at least a tenth of the digits, and worse by as much than with
    # the digits shown: or it is drawing without edges that was forgotten. The base keeps all of it by construction.
    # And with edges the control must draw what was not shown better.
    def lost(name):
        return mean(rows, "base", name) - mean(rows, "finetuned", name)

    forgets = (lost("without_label_accuracy") >= 0.1
               and lost("without_label_accuracy") - lost("shown_without_label_accuracy") >= 0.1)
    ahead = better(rows, "control", "finetuned", "with_edge_f1", "with_label_accuracy", "with_frechet") > 0
    word = "reproduced" if forgets and ahead else "mixed" if forgets or ahead else "not reproduced"

    def texts(name, *methods):
        return ", ".join(in_figures(rows, method, name) for method in methods or METHODS)

    return word, (f"label accuracy on seven digits not shown (ControlNet, decoder unlocked, all fine-tuned), without "
                  f"edges: {texts('without_label_accuracy')} (base {texts('without_label_accuracy', 'base')}); with "
                  f"edges: {texts('with_label_accuracy')}, edge-F1 {texts('with_edge_f1')}. Shown digits without edges "
                  f"(all fine-tuned): {texts('shown_without_label_accuracy', 'finetuned')}")


def figure(rows, lab):
    fig = Figure(figsize=(11, 6.8), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.15])
    top.suptitle("Digits that training did not show", fontsize=11)
    titles = {"edge_f1": "edge-F1", "label_accuracy": "label accuracy", "frechet": "Frechet distance (less is better)"}
    for ax, (name, title) in zip(top.subplots(1, 3), titles.items()):
        grouped_bars(ax, METHODS.values(), {f"{kind} edges": [across_seeds(rows, method, f"{kind}_{name}")
                                                              for method in METHODS] for kind in ("with", "without")},
                     title)
        ax.axhline(mean(rows, "base", f"without_{name}"), color="tab:gray", linestyle="--", label="base, without edges")
    top.legend(*top.axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    seed, other = lab.seeds[0], ~shown(lab.test_labels)
    prompt, edges = lab.test_prompts[other][:8], canny(lab.test_images[other][:8])
    for ax, kind in zip(bottom.subplots(1, 2), ("with", "without")):
        lines = {"edges": edges * 2 - 1} if kind == "with" else {"base": lab.draw(prompt, seed=seed, guidance=1.0)}
        for method, words in METHODS.items():
            unet, control = trained(lab, method, seed)
            controls = [(control, edges, kind == "with")]
            lines[words] = lab.draw(prompt, controls, unet=unet, seed=seed, guidance=1.0)
        lines_of_images(ax, {name: [images] for name, images in lines.items()}, [""],
                        f"{kind} edges: the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("forgetting")
