"""A rival (T2I-Adapter, Mou et al. 2023, arXiv 2302.08453): must a control run at each step, or is once enough?

ControlNet reads x_t, t and the prompt, so it runs beside the base at each step of drawing. An adapter reads nothing but
the condition: it runs once for an image, and adds the same residuals at each step. Two are trained on edges, with the
seeds, batches and number of steps of ControlNet:

    adapter     a small network of residual blocks, as in that paper
    copy once   ControlNet's own copy of the encoder, given nothing but the condition: what does it cost, by itself,
                to run but once?

Unlike those of that paper, they add to what the decoder gets, as ControlNet does, and not to what the encoder goes on
with; and they end in zero convolutions, so that training starts from the base.
"""

import statistics
import time

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from minicnet.conditions import canny
from minicnet.controlnet import Control, ControlNet, zero_conv
from minicnet.experiments.judging import across_seeds, interval, mean
from minicnet.experiments.lab import main
from minicnet.experiments.plots import grouped_bars, lines_of_images
from minicnet.unet import Downsample, ResBlock

BASE = "digits"
CLAIM = ("Not of the paper: an adapter that runs once for the whole of drawing, and not at each step, controls as well "
         "as ControlNet (T2I-Adapter, Mou et al. 2023).")
WHY_HERE = ("A digit's edges leave little open. Where a condition leaves more open, it may matter more what is drawn "
            "already, which an adapter does not see.")
CHEAP = 1.1  # drawing costs at most so many times the base's arithmetic
AS_WELL = 0.01  # edge-F1 is at most so much below ControlNet's


class Hint(Control):
    """Residuals that are there before the first step, in the place where `controlled` has an encoded condition."""

    def __len__(self):
        return len(self.middle)

    def repeat(self, *times):
        return Hint([skip.repeat(*times) for skip in self.skips], self.middle.repeat(*times))


class Adapter(nn.Module):
    """A residual block for each stage of the base's encoder, and one for its middle. Called as a ControlNet is."""

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        encoder = unet.encoder
        widths, self.patch = encoder.skip_channels, encoder.patch
        self.conv_in = nn.Conv2d(condition_channels * self.patch**2, widths[0], 3, padding=1)
        self.stages = nn.ModuleList(
            Downsample(width) if isinstance(stage[0], Downsample) else ResBlock(width, next_width, emb_channels=1)
            for stage, width, next_width in zip(encoder.stages, widths, widths[1:]))
        self.middle = ResBlock(widths[-1], widths[-1], emb_channels=1)
        self.zero_skips = nn.ModuleList(zero_conv(width) for width in widths)
        self.zero_middle = zero_conv(widths[-1])

    def encode(self, condition):
        """All that an adapter does: condition (B, condition_channels, H, W) -> Hint."""
        constant = condition.new_ones(len(condition), 1)  # in the place of timestep and prompt
        skips = [self.conv_in(F.pixel_unshuffle(condition, self.patch))]
        for stage in self.stages:
            skips.append(stage(skips[-1], constant))
        middle = self.middle(skips[-1], constant)
        return Hint([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))

    def forward(self, x_t, t, prompt, hint):
        return hint


class CopyOnce(ControlNet):
    """A ControlNet that sees no x_t, and always t = 0 and the null prompt, so that it can run once."""

    def encode(self, condition):
        t = torch.zeros(len(condition), dtype=torch.int64, device=condition.device)
        skips, middle = self.encoder.rest(super().encode(condition), *self.encoder.embed(t, t[:, None]))
        return Hint([zero(skip) for zero, skip in zip(self.zero_skips, skips)], self.zero_middle(middle))

    def forward(self, x_t, t, prompt, hint):
        return hint


NETS = {"ControlNet": ControlNet, "adapter": Adapter, "copy once": CopyOnce}
VARIANTS = ("base", *NETS)


def trained(lab, name, seed):
    if name == "ControlNet":
        return lab.edge_control(seed)
    return lab.trained_control(name, seed, lambda: NETS[name](lab.unet))[0]


def controls_of(lab, name, seed, count=None):
    """The net of that name with the first test images' edges; nothing for the base alone."""
    return [] if name == "base" else [(trained(lab, name, seed), canny(lab.test_images[:count]), 1)]


def draw(lab, name, seed, count=None):
    return lab.draw(lab.test_prompts[:count], controls_of(lab, name, seed, count), seed=seed)


def cost(lab, seed):
    """GFLOP and milliseconds per image of drawing a few. The variants take turns, and the fastest of five counts."""
    prompt = lab.test_prompts[:8]
    controls = {name: controls_of(lab, name, seed, len(prompt)) for name in VARIANTS}
    row, times = {}, {name: [] for name in VARIANTS}
    for name in VARIANTS:
        with FlopCounterMode(display=False) as counter:
            lab.draw(prompt, controls[name], seed=seed)
        row[f"{name}, arithmetic"] = counter.get_total_flops() / 1e9 / len(prompt)
    for _ in range(5):
        for name in VARIANTS:
            start = time.perf_counter()
            lab.draw(prompt, controls[name], seed=seed).cpu()
            times[name].append(time.perf_counter() - start)
    return row | {f"{name}, time": 1e3 * min(seconds) / len(prompt) for name, seconds in times.items()}


def run(lab):
    edges = canny(lab.test_images)

    def measured(name, seed):
        return lab.score(draw(lab, name, seed), lab.test_labels, edges)

    for seed in lab.seeds:
        for name in VARIANTS:
            lab.row(f"{name}-{seed}", measured, name, seed)
        lab.row(f"cost-{seed}", cost, lab, seed)


def ratios(rows, name, unit):
    """How many times the base's drawing that of a variant costs, seed by seed."""
    own, base = (across_seeds(rows, "cost", f"{variant}, {unit}") for variant in (name, "base"))
    return [a / b for a, b in zip(own, base)]


def verdict(rows):
    """Reproduced if drawing with the adapter takes at most CHEAP times the base's arithmetic, and edge-F1 is, the whole
    interval through, at most AS_WELL below ControlNet's. Mixed if one of these holds."""
    def lead(name, measure="edge_f1"):
        return interval(rows, name, "ControlNet", measure)

    def price(name):
        return "{:.2f} times the base's arithmetic and {:.2f} times its time".format(
            *(statistics.mean(ratios(rows, name, unit)) for unit in ("arithmetic", "time")))

    cheap = max(ratios(rows, "adapter", "arithmetic")) <= CHEAP
    as_well = interval(rows, "adapter", "ControlNet", "edge_f1").low >= -AS_WELL
    f1 = ", ".join(f"{name} {mean(rows, name, 'edge_f1'):.3f}" for name in VARIANTS)
    return ("not reproduced", "mixed", "reproduced")[cheap + as_well], (
        f"drawing took {price('adapter')} with an adapter, {price('ControlNet')} with ControlNet. Edge-F1 was "
        f"{f1}. The adapter's edge-F1 minus ControlNet's was {lead('adapter')}, that of the copy that runs once "
        f"{lead('copy once')}. In label accuracy, the adapter's difference was {lead('adapter', 'label_accuracy')}")


def figure(rows, lab):
    fig, seed, few = Figure(figsize=(10, 6), layout="constrained"), lab.seeds[0], 14
    grid = fig.add_gridspec(2, 3)
    for i, (name, title) in enumerate({"edge_f1": "edge-F1", "frechet": "Frechet distance (less is better)"}.items()):
        ax = fig.add_subplot(grid[0, i])
        grouped_bars(ax, VARIANTS, {"": [across_seeds(rows, variant, name) for variant in VARIANTS]}, title)
        if name == "edge_f1":
            ax.set_ylim(bottom=0.5)
    ax, units = fig.add_subplot(grid[0, 2]), ("arithmetic", "time")
    grouped_bars(ax, VARIANTS, {unit: [ratios(rows, name, unit) for name in VARIANTS] for unit in units},
                 "Cost of drawing, base = 1")
    ax.legend(fontsize=9, loc="upper right")
    lines = {"edges": [canny(lab.test_images[:few]) * 2 - 1],
             **{name: [draw(lab, name, seed, few)] for name in VARIANTS}}
    lines_of_images(fig.add_subplot(grid[1, :]), lines, [""], f"Each column from the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("adapter")
