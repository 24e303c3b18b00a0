"""Zero convolutions (the paper's section 4.2 and Fig. 8): what are they for, and what is the copy of the encoder for?

Three nets are trained on edges, with the same base, seeds, batches, learning rates and number of steps:

    zero        ControlNet as it is
    gaussian    ControlNet whose zero convolutions, the condition encoder's last one included, start from
                N(0, 1 / in_channels), with biases of zero: harmful noise reaches the base from the first step
    lite        ControlNet-lite: nothing is copied; one 3x3 convolution stands for each block, with zero convolutions

They draw the same noise under four kinds of prompt: none (""), insufficient ("a digit"), conflicting ("a five" over a
three's edges), and perfect ("a three"). There is no guidance, which would strengthen the prompts. What counts is the
digit that the images show: is it that of the edges?

The paper shows images and counts nothing. Its main text does not say how its Gaussians are scaled, nor of what size the
convolutions of ControlNet-lite are.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ConditionEncoder, Control, ControlNet, controlled, freeze, zero_conv
from minicnet.experiments.judging import across_seeds, in_figures, interval, mean
from minicnet.experiments.lab import main, prompts_of
from minicnet.experiments.plots import grouped_bars, lines_of_images
from minicnet.unet import Downsample
from minicnet.words import DIGITS, tokenize

BASE = "digits"
CLAIM = ("With Gaussian-initialised convolutions in place of zero ones, a ControlNet falls to about the level of "
         "ControlNet-lite, which fails where prompts are insufficient or missing (section 4.2, Fig. 8).")
WHY_HERE = ("Edges of a digit mostly say which digit it is, as the images without a prompt show. Edges of a photograph "
            "may say less, and there a copy that knows what things look like may help more. The base here has 0.7 "
            "million parameters, Stable Diffusion's 860 million.")
PROMPTS = ("none", "insufficient", "conflicting", "perfect")


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
    return lab.trained_control(f"edges-{variant}", seed, lambda: VARIANTS[variant](lab.unet))[0]


def prompted(kind, labels):
    """The prompts (B, L) of that kind for images of the digits `labels` (B,)."""
    if kind in ("conflicting", "perfect"):
        return prompts_of((labels + 2) % len(DIGITS) if kind == "conflicting" else labels)
    return tokenize(["" if kind == "none" else "a digit"] * len(labels)).to(labels.device)


def draw(lab, nets, kind, seed, count=None):
    """The first `count` test images' edges, drawn by the base under one net, or under none."""
    edges, prompt = canny(lab.test_images[:count]), prompted(kind, lab.test_labels[:count])
    return lab.draw(prompt, [(net, edges, 1) for net in nets], seed=seed, guidance=1.0)


def run(lab):
    edges = canny(lab.test_images)

    def harm(variant, seed):
        controls = [(untrained(lab, variant, seed), edges, 1)]
        before, after = (lab.heldout(controlled(lab.unet, some)) for some in ([], controls))
        return {"loss_change": after - before}

    def measured(nets, kind, seed):
        return lab.score(draw(lab, nets, kind, seed), lab.test_labels, edges)

    for kind in PROMPTS:  # the floor: what the base alone does, of one seed
        lab.row(f"base, {kind}-{lab.seeds[0]}", measured, [], kind, lab.seeds[0])
    for seed in lab.seeds:
        for variant in VARIANTS:
            lab.row(f"{variant}, start-{seed}", harm, variant, seed)
            net = trained(lab, variant, seed)
            for kind in PROMPTS:
                lab.row(f"{variant}, {kind}-{seed}", measured, [net], kind, seed)


def verdict(rows):
    """One verdict for each prompt, by the share of images that show the digit of the edges. An imperfect prompt is as
    in Fig. 8 if `zero` is clearly above both others, and `gaussian` is nearer to `lite` than to `zero`; the perfect
    one if all three are within 0.02. Reproduced if all four are, and if before training only `gaussian` does harm; not
    reproduced if no imperfect one is."""
    as_claimed, texts = {}, []
    for kind in PROMPTS:
        zero, gaussian, lite = (mean(rows, f"{variant}, {kind}", "label_accuracy") for variant in VARIANTS)
        above = {other: interval(rows, f"zero, {kind}", f"{other}, {kind}", "label_accuracy")
                 for other in ("gaussian", "lite")}
        if kind == "perfect":
            as_claimed[kind] = max(zero, gaussian, lite) - min(zero, gaussian, lite) <= 0.02
        else:
            as_claimed[kind] = (min(lead.low for lead in above.values()) > 0
                                and abs(gaussian - lite) < abs(gaussian - zero))
        leads = ", ".join(f"{lead} against {other}" for other, lead in above.items())
        texts.append(f"Prompt {kind}: {zero:.3f} with zero convolutions, {leads}; "
                     f"{'' if as_claimed[kind] else 'not '}as in Fig. 8")
    harmless = not any(across_seeds(rows, "zero, start", "loss_change"))
    harmful = min(across_seeds(rows, "gaussian, start", "loss_change")) > 0
    imperfect = any(as_claimed[kind] for kind in PROMPTS[:3])
    word = ("reproduced" if harmless and harmful and all(as_claimed.values()) else
            "mixed" if imperfect else "not reproduced")
    return word, (f"before training, zero convolutions add {in_figures(rows, 'zero, start', 'loss_change')} to the "
                  f"base's held-out loss, Gaussian ones {in_figures(rows, 'gaussian, start', 'loss_change')}. After "
                  f"it, so many images show the digit of the edges. {'. '.join(texts)}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 7), layout="constrained")
    grid = fig.add_gridspec(2, 2, height_ratios=[1, 1.3])
    measures = {"label_accuracy": "Share of images that show the digit of the edges", "edge_f1": "edge-F1"}
    for i, (name, title) in enumerate(measures.items()):
        ax = fig.add_subplot(grid[0, i])
        grouped_bars(ax, PROMPTS, {variant: [across_seeds(rows, f"{variant}, {kind}", name) for kind in PROMPTS]
                                   for variant in VARIANTS}, title)
        floor = [mean(rows, f"base, {kind}", name) for kind in PROMPTS]
        ax.hlines(floor, [k - 0.4 for k in range(4)], [k + 0.4 for k in range(4)], color="black", linestyle="--",
                  label="base alone")
    ax.set_ylim(bottom=0.5)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=9, ncols=4, loc="outside upper center")
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
