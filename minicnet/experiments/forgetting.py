"""Does fine-tuning forget what the locked base keeps (the paper's sections 1 and 3.1)?

The base knows ten digits. It is taught edges with images of three of them only, labels as well, and then asked for the
other seven: with their edges, and without any. Three ways to teach it, with the same batches, steps and learning rate:

    control       ControlNet: the base is locked
    unlocked      ControlNet, and the base's decoder is trained too, as with sd_locked=False in the official code
                  (which advises a lower learning rate then; here it stays, so that only the lock differs)
    finetuned     all of the base, the edges being more channels of its input (concatenated.py)

Without edges means strength 0; fine-tuning has no strength, and is given an empty edge map, which it has never seen. So
the digits shown are asked for without edges, too: if they come out badly as well, drawing without edges is forgotten,
and not just the seven digits. The base alone is the row to compare with: same labels, same noise. The paper argues with
pictures and with users' preferences; it has no such experiment. Images are drawn without guidance.
"""

import copy
import statistics

import torch
from matplotlib.figure import Figure
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.experiments.concatenated import ConcatenatedUNet
from minicnet.experiments.lab import across_seeds, clearly_better, controlled, main, mean, spread

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

    def forward(self, x_t, t, label, *conditions):
        return controlled(self.unet, *[self.control_net][: len(conditions)])(x_t, t, label, *conditions)


def models(lab, method, net):
    """Two eps_models of a trained net: (x_t, t, label, edges), and (x_t, t, label) that is shown no edges."""
    if method == "control":
        def strength_0(x_t, t, label):
            return lab.unet(x_t, t, label, control=0.0 * net(x_t, t, label, torch.zeros_like(x_t[:, :1])))

        return controlled(lab.unet, net), strength_0
    if method == "unlocked":
        return net, net
    return net, lambda x_t, t, label: net(x_t, t, label, torch.zeros_like(x_t[:, :1]))


def trained(lab, method, seed):
    make = {"control": ControlNet, "unlocked": Unlocked, "finetuned": ConcatenatedUNet}[method]

    def eps_model(net, x_0, label):
        edges = canny(x_0)
        return lambda x_t, t: models(lab, method, net)[0](x_t, t, label, edges)

    few = shown(lab.train_labels)
    name = f"{method}-on-digits-{''.join(map(str, SHOWN))}"
    return lab.trained(name, seed, lambda: make(lab.unet), eps_model, lab.train_images[few], lab.train_labels[few])[0]


def shown(labels):
    return torch.isin(labels, torch.tensor(SHOWN, device=labels.device))


def run(lab):
    old = shown(lab.reference_labels)
    others, labels = lab.reference_images[~old], lab.reference_labels[~old]
    few, few_labels = others[: lab.images], labels[: lab.images]  # digits that training does not show
    known, known_labels = (x[old][: lab.images // 2] for x in (lab.reference_images, lab.reference_labels))
    edges, known_edges = canny(few), canny(known)

    def measured(method, seed):
        def score(start, model, images, labels, *conditions):
            drawn = lab.draw(model, labels, *conditions, seed=seed, guidance=1.0)
            scores = lab.score(drawn, labels, canny(images), reference=others)
            return {f"{start}_{name}": value for name, value in scores.items()}

        following, alone = (None, lab.unet) if method == "base" else models(lab, method, trained(lab, method, seed))
        row = {**score("without", alone, few, few_labels), **score("shown_without", alone, known, known_labels)}
        if following:
            row |= {**score("with", following, few, few_labels, edges),
                    **score("shown_with", following, known, known_labels, known_edges)}
        return {name: value for name, value in row.items() if not (name.startswith("shown") and "frechet" in name)}

    for seed in lab.seeds:
        for method in ("base", *METHODS):
            lab.row(f"{method}-{seed}", lambda key=(method, seed): measured(*key))


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
        return ", ".join(spread(rows, method, name) for method in methods or METHODS)

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
        for shift, kind in ((-0.2, "with"), (0.2, "without")):
            values = [across_seeds(rows, method, f"{kind}_{name}") for method in METHODS]
            ax.bar([i + shift for i in range(len(METHODS))], [statistics.mean(v) for v in values], 0.38,
                   yerr=[statistics.stdev(v) for v in values], capsize=3, label=f"{kind} edges")
        ax.axhline(mean(rows, "base", f"without_{name}"), color="tab:gray", linestyle="--", label="base, without edges")
        ax.set_xticks(range(len(METHODS)), METHODS.values(), fontsize=8)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3, axis="y")
        ax.set_axisbelow(True)
    top.legend(*top.axes[0].get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside lower center")
    seed, other = lab.seeds[0], ~shown(lab.test_labels)
    labels, edges = lab.test_labels[other][:8], canny(lab.test_images[other][:8])
    nets = {method: models(lab, method, trained(lab, method, seed)) for method in METHODS}
    for ax, kind in zip(bottom.subplots(1, 2), ("with", "without")):
        base = lab.draw(lab.unet, labels, seed=seed, guidance=1.0)
        lines = {"edges": edges * 2 - 1} if kind == "with" else {"base": base}
        for method, (following, alone) in nets.items():
            model, *conditions = (following, edges) if kind == "with" else (alone,)
            lines[METHODS[method]] = lab.draw(model, labels, *conditions, seed=seed, guidance=1.0)
        picture = torch.cat([torch.cat(list(line[:, 0]), dim=1) for line in lines.values()])
        ax.imshow(picture.cpu(), cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
        side = len(picture) / len(lines)
        ax.set_yticks([side * (i + 0.5) for i in range(len(lines))], lines, fontsize=8)
        ax.set_xticks([])
        ax.set_title(f"{kind} edges: the same noise, seed {seed}", fontsize=10)
    return fig


if __name__ == "__main__":
    main("forgetting")
