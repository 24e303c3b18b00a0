"""The figures, made from stored results alone: differences with their intervals, and samples."""

import base64

import numpy as np
import torch
from matplotlib.figure import Figure

from minicnet.conditions import CONDITIONS
from minicnet.experiments.claim import Same, title
from minicnet.experiments.measures import MEASURES
from minicnet.figures import show_images

COLOURS = {True: "tab:green", False: "tab:red", None: "tab:gray"}  # a test holds, fails, is open


def usual(claim, result):
    """Draw the first testbed: differences with intervals above, and samples of all arms below."""
    testbed, found = next(iter(result["testbeds"].items()))
    samples = given(claim, found["samples"]) | {
        claim.titles[name]: decoded(images) for name, images in found["samples"].items()
        if images["shape"][0]}
    groups = {}
    for outcome in claim.judge(found["arms"])[1]:
        groups.setdefault(outcome.test.measure, []).append(outcome)
    heights = [0.5 * len(claim.tests) + 0.6 * len(groups), 0.7 * len(samples) + 0.4]
    fig = Figure(figsize=(10, sum(heights)), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=heights)
    axes = top.subplots(len(groups), 1, squeeze=False,
                        height_ratios=[len(outcomes) for outcomes in groups.values()])[:, 0]
    for ax, (measure, outcomes) in zip(axes, groups.items()):
        pairs = ([title(name, claim.titles) for name in (o.test.ours, o.test.theirs)]
                 for o in outcomes)
        forest(ax, outcomes, [f"{ours}\nminus {theirs}" for ours, theirs in pairs],
               f"difference in {MEASURES[measure].title}")
    if samples:
        show_rows(bottom.subplots(), samples, f"{testbed}: every arm from the same noise")
    return fig


def forest(ax, outcomes, names, xlabel):
    """Draw outcomes with their names: a line for each test, the difference and its interval."""
    for place, outcome in enumerate(outcomes):
        test, colour = outcome.test, COLOURS[outcome.holds]
        ax.plot([outcome.difference.low, outcome.difference.high], [place, place], color=colour)
        ax.plot(outcome.difference.by, place, "o", color=colour)
        margins = [-test.within, test.within] if isinstance(test, Same) else (
            [-test.by if MEASURES[test.measure].less else test.by])
        ax.vlines(margins, place - 0.3, place + 0.3, color="black", linestyle=":")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(outcomes)), names, fontsize=9)
    ax.set_ylim(len(outcomes) - 0.5, -0.5)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.grid(alpha=0.3, axis="x")


def decoded(samples):
    """Return stored images as a tensor (N, 3, H, W) in [-1, 1]."""
    pixels = np.frombuffer(base64.b64decode(samples["pixels"]), np.uint8)
    images = torch.tensor(pixels.reshape(samples["shape"])).float() / 127.5 - 1
    return images.expand(-1, 3, -1, -1)


def given(claim, samples):
    """Return {name: conditions (N, 3, H, W) in [-1, 1]}, computed again from the real images.

    Nothing where no real images are stored, or where arms were given the conditions of others.
    """
    real = [name for name, arm in claim.arms.items() if arm.real]
    if not real or any(arm.labels or arm.style for arm in claim.arms.values()):
        return {}
    images = decoded(samples[real[0]])
    return {f"given: {name}": (CONDITIONS[name](images) * 2 - 1).expand(-1, 3, -1, -1)
            for name in claim.conditions}


def sheet(ax, arms, heading):
    """Draw stored samples, a line for each arm. arms: {name: samples}."""
    show_rows(ax, {name: decoded(samples) for name, samples in arms.items()}, heading)


def show_rows(ax, rows, heading):
    """Draw rows of images, as many columns as all have. rows: {name: images (N, 3, H, W)}."""
    count = min(map(len, rows.values()))
    show_images(ax, torch.stack([images[:count] for images in rows.values()]), rows)
    ax.set_anchor("E")  # what is left of the width goes to the names of the arms
    ax.set_title(heading, fontsize=10)


def curves(ax, lines, heading, xlabel):
    """Draw stored curves: lines {name: table (T, N)}, the mean thick and each training thin."""
    for i, (label, table) in enumerate(lines.items()):
        ax.plot(np.transpose(table), color=f"C{i}", linewidth=0.6, alpha=0.5)
        ax.plot(np.mean(table, 0), color=f"C{i}", linewidth=2, label=label)
    ax.set_title(heading, fontsize=10)
    ax.set_xlabel(xlabel, fontsize=9)
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8)
