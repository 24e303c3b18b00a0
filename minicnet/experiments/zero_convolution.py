"""Zero convolutions (the paper's section 4.2 and Fig. 8): what are they for, and what is the copy of the encoder for?

Three nets are trained on edges, with the same base, seeds, batches, learning rate and number of steps:

    zero        ControlNet as it is
    gaussian    ControlNet whose zero convolutions, the condition encoder's last one included, start from
                N(0, 1 / in_channels), with biases of zero: harmful noise reaches the base from the first step
    lite        ControlNet-lite: nothing is copied; one 3x3 convolution stands for each block, with zero convolutions

and draw the same noise under four kinds of prompt: none (the null label, no guidance), insufficient (halfway between
the embeddings of the right label and of one other), conflicting (that other label), and perfect (the right label).
Before any training: how much does a net change the base's held-out loss, and its images?

Unlike the paper, which shows images and counts nothing, we measure; labels stand for prompts. Its main text
does not say how its Gaussians are scaled, nor of what size the convolutions of ControlNet-lite are.
"""

import copy
import statistics

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ConditionEncoder, Control, ControlNet, freeze, zero_conv
from minicnet.evaluation import label_accuracy
from minicnet.experiments.lab import across_seeds, clearly_better, control_eps, controlled, main, mean, spread
from minicnet.unet import Downsample

BASE = "digits"
CLAIM = ("Zero convolutions keep harmful noise out: with Gaussian-initialised ones the result falls to about the level "
         "of ControlNet-lite (section 4.2, Fig. 8).")
VARIANTS = {"zero": "tab:blue", "gaussian": "tab:orange", "lite": "tab:green"}
PROMPTS = ("none", "insufficient", "conflicting", "perfect")
BETTER = {"edge_f1": 1, "label_accuracy": 1, "frechet": -1}  # 1: more is better


def gaussian_control(unet):
    """A ControlNet whose zero convolutions are ordinary ones: weights from N(0, 1 / in_channels), biases zero."""
    net = ControlNet(unet)
    for conv in (net.condition_encoder[-1], *net.zero_skips, net.zero_middle):
        nn.init.normal_(conv.weight, std=conv.in_channels**-0.5)
    return net


class ControlNetLite(nn.Module):
    """One convolution where ControlNet has a copied block, so it knows neither what the base knows, nor t, nor label.

    Each is fed by the one before, the first by the hint and a new convolution of x_t. Called as a ControlNet is.
    """

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        encoder = unet.encoder
        widths, self.patch = encoder.skip_channels, encoder.patch
        self.condition_encoder = ConditionEncoder(condition_channels, encoder.channels, encoder.patch)
        self.conv_in = nn.Conv2d(encoder.in_channels * encoder.patch**2, encoder.channels, 3, padding=1)
        self.stages = nn.ModuleList(
            nn.Conv2d(width, next_width, 3, stride=2 if isinstance(stage, Downsample) else 1, padding=1)
            for stage, width, next_width in zip(encoder.stages, widths, widths[1:]))
        self.middle = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.zero_skips = nn.ModuleList(zero_conv(width) for width in widths)
        self.zero_middle = zero_conv(widths[-1])

    def forward(self, x_t, t, label, condition):
        h = self.conv_in(F.pixel_unshuffle(x_t, self.patch)) + self.condition_encoder(condition)
        skips = [h]
        for conv in self.stages:
            h = F.silu(conv(h))
            skips.append(h)
        middle = F.silu(self.middle(h))
        return Control([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))


MAKE = {"zero": ControlNet, "gaussian": gaussian_control, "lite": ControlNetLite}


def untrained(lab, variant, seed):
    """The net with the weights that its training starts from."""
    torch.manual_seed(seed)
    return freeze(MAKE[variant](lab.unet).to(lab.device))


def trained(lab, variant, seed):
    if variant == "zero":
        return lab.edge_control(seed)
    return lab.trained(f"edges-{variant}", seed, lambda: MAKE[variant](lab.unet), control_eps(lab.unet, canny))[0]


def rival(label, labels=10):
    """The other candidate of an insufficient prompt. Labels come in pairs, so that a pair does not tell which is right:
    0 or 5, 1 or 6, 2 or 7, 3 or 8, 4 or 9."""
    return (label + labels // 2) % labels


def with_pairs(net):
    """A copy of a UNet or ControlNet with ten labels more: null_label + 1 + k is halfway between k and its rival.

    The mean of two embeddings is shorter than either, which no network has seen: the base alone then draws speckle. So
    it is made as long as they are on average. Then the base draws the one or the other, or something between, on paper
    that is not quite black, which makes the Frechet distances of this prompt large for all variants.
    """
    if isinstance(net, ControlNetLite):
        return net
    net = copy.deepcopy(net)
    weight, labels = net.encoder.label.weight, net.encoder.num_labels  # (labels + 1, E): the last is the null label's
    halfway = (weight[:labels] + weight[rival(torch.arange(labels), labels)]) / 2
    length = weight[:labels].norm(dim=1, keepdim=True)
    halfway = halfway * (length + length[rival(torch.arange(labels), labels)]) / 2 / halfway.norm(dim=1, keepdim=True)
    net.encoder.label = nn.Embedding.from_pretrained(torch.cat([weight, halfway]))
    net.encoder.num_labels += labels
    return net


def prompted(lab, prompt, label):
    """The labels (B,) to draw with, for images whose right ones are `label`, and the guidance."""
    null = lab.unet.null_label
    return {"none": torch.full_like(label, null), "insufficient": null + 1 + label, "conflicting": rival(label),
            "perfect": label}[prompt], 1.0 if prompt == "none" else 2.0


def draw(lab, nets, prompt, seed, count):
    """The first `count` test images' edges, drawn by the base under one net, or under none."""
    edges, (label, guidance) = canny(lab.test_images[:count]), prompted(lab, prompt, lab.test_labels[:count])
    eps_model = controlled(with_pairs(lab.unet), *(with_pairs(net) for net in nets))
    return lab.draw(eps_model, label, *[edges] * len(nets), seed=seed, guidance=guidance)


def run(lab):
    edges, label, count = canny(lab.test_images), lab.test_labels, len(lab.test_images)

    def measures(nets, prompt, seed):
        images = draw(lab, nets, prompt, seed, count)
        return {**lab.score(images, label, edges), "rival": label_accuracy(lab.classifier, images, rival(label))}

    def jump(variant, seed):
        net, few = untrained(lab, variant, seed), min(count, 32)
        base, start = (controlled(lab.unet, *nets) for nets in ((), (net,)))
        loss = lab.heldout(lambda x_t, t: start(x_t, t, label, edges)) - lab.heldout(lambda x_t, t: base(x_t, t, label))
        before, after = (draw(lab, nets, "none", seed, few) for nets in ((), (net,)))
        return {"loss_change": loss, "pixel_change": (after - before).abs().mean().item()}

    for prompt in PROMPTS:  # what the base alone does, of one seed: the floor of edge-F1
        lab.row(f"base, {prompt}-{lab.seeds[0]}", lambda prompt=prompt: measures((), prompt, lab.seeds[0]))
    for seed in lab.seeds:
        for variant in VARIANTS:
            lab.row(f"{variant}, start-{seed}", lambda variant=variant, seed=seed: jump(variant, seed))
            net = trained(lab, variant, seed)
            for prompt in PROMPTS:
                lab.row(f"{variant}, {prompt}-{seed}",
                        lambda net=net, prompt=prompt, seed=seed: measures((net,), prompt, seed))


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
        texts.append(f"{words} " + ", ".join(f"{statistics.mean(v):.3f} ± {statistics.stdev(v):.3f}" for v in values))
    harmless = not any(across_seeds(rows, "zero, start", "loss_change"))
    harmful = min(across_seeds(rows, "gaussian, start", "loss_change")) > 0
    as_claimed = harmless and harmful and leads.count(1) >= 2 and -1 not in leads and all(fallen)
    word = "reproduced" if as_claimed else "mixed" if 1 in leads else "not reproduced"
    start = [spread(rows, f"{variant}, start", "loss_change") for variant in ("zero", "gaussian")]
    return word, (f"before training, zero convolutions add {start[0]} to the base's loss, Gaussian ones {start[1]}"
                  f"; after it, over the four prompts (zero, Gaussian, lite): {'; '.join(texts)}")


def figure(rows, lab):
    fig = Figure(figsize=(12, 7.6), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1, 1.15])
    titles = "edge-F1", "Share read as the digit of the edges", "Frechet distance (less is better)"
    for i, (name, title) in enumerate(zip(BETTER, titles)):
        ax = fig.add_subplot(grid[0, i])
        for j, (variant, colour) in enumerate(VARIANTS.items()):
            values = [across_seeds(rows, f"{variant}, {prompt}", name) for prompt in PROMPTS]
            places = [k + 0.26 * (j - 1) for k in range(len(PROMPTS))]
            ax.bar(places, [statistics.mean(v) for v in values], 0.24, color=colour, alpha=0.7, label=variant)
            for place, v in zip(places, values):
                ax.plot([place] * len(v), v, "k.", markersize=4)
        floor = [mean(rows, f"base, {prompt}", name) for prompt in PROMPTS]
        ax.hlines(floor, [k - 0.4 for k in range(4)], [k + 0.4 for k in range(4)], color="black", linestyle="--",
                  label="base alone")
        ax.set_xticks(range(len(PROMPTS)), PROMPTS, fontsize=8)
        ax.set_title(title)
        ax.grid(alpha=0.3, axis="y")
        if name == "edge_f1":
            ax.set_ylim(bottom=0.5)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=8, ncols=4, loc="outside upper center")
    strip, few, seed = fig.add_subplot(grid[1, :]), 4, lab.seeds[0]
    lines = [[canny(lab.test_images[:few]) * 2 - 1] * 5]
    for nets in [(), *((variant,) for variant in VARIANTS)]:
        start, ready = ([make(lab, variant, seed) for variant in nets] for make in (untrained, trained))
        lines.append([draw(lab, start, "none", seed, few), *(draw(lab, ready, p, seed, few) for p in PROMPTS)])
    groups = [[F.pad(torch.cat(list(x[:, 0]), dim=1), (2, 2, 1, 1)) for x in line] for line in lines]  # gray between
    picture = torch.cat([torch.cat(line, dim=1) for line in groups]).cpu()
    strip.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    height, width = groups[0][0].shape
    strip.set_yticks([height * (i + 0.5) for i in range(5)], ["edges", "base alone", *VARIANTS])
    strip.set_xticks([width * (i + 0.5) for i in range(5)], ["before training", *(f"prompt: {p}" for p in PROMPTS)])
    strip.tick_params(length=0)
    strip.set_title(f"Each column from the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("zero_convolution")
