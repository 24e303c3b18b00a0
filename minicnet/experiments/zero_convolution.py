"""Zero convolutions (the paper's section 4.2 and Fig. 8): what are they for, and what is the copy of the encoder for?

Three nets are trained on edges, with the same base, seeds, batches, learning rates and number of steps:

    zero        ControlNet as it is
    gaussian    ControlNet whose zero convolutions, the condition encoder's last one included, start from
                N(0, 1 / in_channels), with biases of zero: harmful noise reaches the base from the first step
    lite        ControlNet-lite: nothing is copied; one 3x3 convolution stands for each block, with zero convolutions

and draw the same noise under four kinds of prompt: none ("", no guidance), insufficient ("a digit"), conflicting ("a
five" over a three's edges), and perfect ("a three"). Before any training: how much does a net change the base's
held-out loss, and its images?

Unlike the paper, which shows images and counts nothing, we measure. Its main text does not say how its Gaussians
are scaled, nor of what size the convolutions of ControlNet-lite are.
"""

import statistics

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ConditionEncoder, Control, ControlNet, controlled, freeze, zero_conv
from minicnet.evaluation import label_accuracy
from minicnet.experiments.lab import (
    across_seeds,
    clearly_better,
    control_eps,
    in_figures,
    main,
    mean,
    mean_and_deviation,
    prompts_of,
)
from minicnet.experiments.plots import grouped_bars, lines_of_images
from minicnet.unet import Downsample
from minicnet.words import DIGITS, tokenize

BASE = "digits"
CLAIM = ("Zero convolutions keep harmful noise out: with Gaussian-initialised ones the result falls to about the level "
         "of ControlNet-lite (section 4.2, Fig. 8).")
PROMPTS = ("none", "insufficient", "conflicting", "perfect")
BETTER = {"edge_f1": 1, "label_accuracy": 1, "frechet": -1}  # 1: more is better


def gaussian_control(unet):
    """A ControlNet whose zero convolutions are ordinary ones: weights from N(0, 1 / in_channels), biases zero."""
    net = ControlNet(unet)
    for conv in (net.condition_encoder[-1], *net.zero_skips, net.zero_middle):
        nn.init.normal_(conv.weight, std=conv.in_channels**-0.5)
    return net


class ControlNetLite(nn.Module):
    """One convolution where ControlNet has a copied block, so it knows neither what the base knows, nor t, nor words.

    Each is fed by the one before, the first by the hint and a new convolution of x_t. Called as a ControlNet is.
    """

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        encoder = unet.encoder
        widths, self.patch = encoder.skip_channels, encoder.patch
        self.condition_encoder = ConditionEncoder(condition_channels, encoder.channels, encoder.patch)
        self.conv_in = nn.Conv2d(encoder.in_channels * encoder.patch**2, encoder.channels, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(width, next_width, 3, stride=2 if isinstance(stage[0], Downsample) else 1, padding=1)
            for stage, width, next_width in zip(encoder.stages, widths, widths[1:]))
        self.middle = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.zero_skips = nn.ModuleList(zero_conv(width) for width in widths)
        self.zero_middle = zero_conv(widths[-1])

    def encode(self, condition):
        return self.condition_encoder(condition)

    def forward(self, x_t, t, prompt, hint):
        h = self.conv_in(F.pixel_unshuffle(x_t, self.patch)) + hint
        skips = [h]
        for conv in self.stages:
            h = F.silu(conv(h))
            skips.append(h)
        middle = F.silu(self.middle(h))
        return Control([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))


VARIANTS = {"zero": ControlNet, "gaussian": gaussian_control, "lite": ControlNetLite}


def untrained(lab, variant, seed):
    """The net with the weights that its training starts from."""
    torch.manual_seed(seed)
    return freeze(VARIANTS[variant](lab.unet).to(lab.device))


def trained(lab, variant, seed):
    if variant == "zero":
        return lab.edge_control(seed)
    eps_model = control_eps(lambda net: (lab.unet, net), canny)
    return lab.trained(f"edges-{variant}", seed, lambda: VARIANTS[variant](lab.unet), eps_model)[0]


def rival(labels):
    """The digits that conflicting prompts name instead of the right ones: a five instead of a three."""
    return (labels + 2) % len(DIGITS)


def prompted(kind, labels):
    """The prompts (B, L) of that kind for images of the digits `labels` (B,), and the guidance."""
    texts = {"none": "", "insufficient": "a digit"}
    if kind in texts:
        return tokenize([texts[kind]] * len(labels)).to(labels.device), 1.0 if kind == "none" else 2.0
    return prompts_of(rival(labels) if kind == "conflicting" else labels), 2.0


def draw(lab, nets, kind, seed, count):
    """The first `count` test images' edges, drawn by the base under one net, or under none."""
    edges, (prompt, guidance) = canny(lab.test_images[:count]), prompted(kind, lab.test_labels[:count])
    return lab.draw(prompt, [(net, edges, 1) for net in nets], seed=seed, guidance=guidance)


def run(lab):
    edges, labels, count = canny(lab.test_images), lab.test_labels, len(lab.test_images)

    def measured(variant, kind, seed):
        nets = [] if variant == "base" else [trained(lab, variant, seed)]
        images = draw(lab, nets, kind, seed, count)
        return {**lab.score(images, labels, edges), "rival": label_accuracy(lab.classifier, images, rival(labels))}

    def jump(variant, seed):
        net, few = untrained(lab, variant, seed), min(count, 32)
        before, after = (draw(lab, nets, "none", seed, few) for nets in ((), (net,)))
        loss_before, loss_after = (lab.heldout(controlled(lab.unet, controls)) for controls in ([], [(net, edges, 1)]))
        return {"loss_change": loss_after - loss_before, "pixel_change": (after - before).abs().mean().item()}

    for kind in PROMPTS:  # what the base alone does, of one seed: the floor of edge-F1
        lab.row(f"base, {kind}-{lab.seeds[0]}", measured, "base", kind, lab.seeds[0])
    for seed in lab.seeds:
        for variant in VARIANTS:
            lab.row(f"{variant}, start-{seed}", jump, variant, seed)
            for kind in PROMPTS:
                lab.row(f"{variant}, {kind}-{seed}", measured, variant, kind, seed)


def over_prompts(rows, variant, name):
    """The mean over the four prompts, of each seed."""
    return [statistics.mean(values)
            for values in zip(*(across_seeds(rows, f"{variant}, {prompt}", name) for prompt in PROMPTS))]


def verdict(rows):
    """Reproduced if zero convolutions start at the base and Gaussian ones worse, and after training Gaussian ones are
    clearly worse by two of three measures at least, better by none, and, where they are worse, nearer to lite than to
    zero. Not reproduced if they are clearly worse by no measure."""
    leads, fallen, texts = [], [], []
    for name, sign in BETTER.items():
        zero, gaussian, lite = values = [over_prompts(rows, variant, name) for variant in VARIANTS]
        leads.append(clearly_better(zero, gaussian, sign) - clearly_better(gaussian, zero, sign))
        if leads[-1] == 1:
            to_zero, to_lite = (abs(statistics.mean(gaussian) - statistics.mean(other)) for other in (zero, lite))
            fallen.append(to_lite < to_zero)
        words = {"edge_f1": "edge-F1", "label_accuracy": "label accuracy", "frechet": "Frechet distance"}[name]
        texts.append(f"{words} " + ", ".join(map(mean_and_deviation, values)))
    harmless = not any(across_seeds(rows, "zero, start", "loss_change"))
    harmful = min(across_seeds(rows, "gaussian, start", "loss_change")) > 0
    as_claimed = harmless and harmful and leads.count(1) >= 2 and -1 not in leads and all(fallen)
    word = "reproduced" if as_claimed else "mixed" if 1 in leads else "not reproduced"
    start = [in_figures(rows, f"{variant}, start", "loss_change") for variant in ("zero", "gaussian")]
    return word, (f"before training, zero convolutions add {start[0]} to the base's loss, Gaussian ones {start[1]}"
                  f"; after it, over the four prompts (zero, Gaussian, lite): {'; '.join(texts)}")


def figure(rows, lab):
    fig = Figure(figsize=(12, 7.6), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1, 1.15])
    titles = "edge-F1", "Share read as the digit of the edges", "Frechet distance (less is better)"
    for i, (name, title) in enumerate(zip(BETTER, titles)):
        ax = fig.add_subplot(grid[0, i])
        grouped_bars(ax, PROMPTS, {variant: [across_seeds(rows, f"{variant}, {prompt}", name) for prompt in PROMPTS]
                                   for variant in VARIANTS}, title)
        floor = [mean(rows, f"base, {prompt}", name) for prompt in PROMPTS]
        ax.hlines(floor, [k - 0.4 for k in range(4)], [k + 0.4 for k in range(4)], color="black", linestyle="--",
                  label="base alone")
        if name == "edge_f1":
            ax.set_ylim(bottom=0.5)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    strip, few, seed = fig.add_subplot(grid[1, :]), 4, lab.seeds[0]
    lines = {"edges": [canny(lab.test_images[:few]) * 2 - 1] * 5}
    for name in ("base alone", *VARIANTS):
        start, ready = ([] if name == "base alone" else [make(lab, name, seed)] for make in (untrained, trained))
        lines[name] = [draw(lab, start, "none", seed, few), *(draw(lab, ready, kind, seed, few) for kind in PROMPTS)]
    lines_of_images(strip, lines, ["before training", *(f"prompt: {kind}" for kind in PROMPTS)],
                    f"Each column from the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("zero_convolution")
