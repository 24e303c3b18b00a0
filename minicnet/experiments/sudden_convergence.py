"""Sudden convergence (section 3.3, Fig. 4): does control take hold all at once?

The same noise and edges are drawn every few steps of training, and the held-out loss is computed
beside it. Fine-tuning, which has no zero convolutions, is the null that decides. Gaussian
convolutions and ControlNeXt, whose cross normalisation is said to need no such moment, are shown
beside it.
All weights are as training leaves them, without averages.

The jump is the largest part of the whole rise of strict edge-F1 that happens in 8% of the training.
An even rise would have a jump of 8%, and the rule asks for three times as much. The onset is the
step at which half of the rise is reached.
"""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from minicnet.conditions import canny
from minicnet.controlnet import Conditioning
from minicnet.experiments.claim import Arm, Better, Claim, Fit, Headroom, Use, main
from minicnet.experiments.measures import MEASURES, as_measures
from minicnet.experiments.networks import GAUSSIAN, Concatenated, ControlNeXt
from minicnet.experiments.plots import curves, sheet

EVALUATIONS = 25
JUMP = 2  # evaluations, which are 8% of the training
CURVES = {"strict_f1": "f1_curve", "frechet": "frechet_curve", "loss": "loss_curve"}


def rise(curve, steps):
    """Return the step at which half of a curve's rise is reached, and its jump, in [0, 1]."""
    reached = np.maximum.accumulate(curve)
    way = (reached - reached[0]) / max(reached[-1] - reached[0], 1e-9)
    onset = np.interp(0.5, way + 1e-9 * np.arange(len(way)), steps)
    return onset, max(way[JUMP:] - way[:-JUMP])


@as_measures({
    "jump": "largest part of the rise within 8% of the training", "onset": "step of the onset",
    "worst": "highest Frechet distance on the way minus the base's",
    "f1_curve": "strict edge-F1", "frechet_curve": "Frechet distance",
    "loss_curve": "held-out loss"}, less=("onset", "worst"))
def watched(drawn):
    """Train the arm, and draw and measure every few steps, from step 0 on."""
    trainer, steps = drawn.lab.trainer(drawn.arm.controls[0].control, drawn.seed)
    drawn.unet, drawn.controls = drawn.lab.unet, []
    base_frechet = float(np.mean(MEASURES["frechet"].compute(drawn)))
    drawn.unet, control = drawn.lab.parts(trainer.net)
    drawn.controls = [Conditioning(control, canny(drawn.real))]
    every = max(1, steps // EVALUATIONS)
    at, shown, found = range(0, steps + 1, every), [], {curve: [] for curve in CURVES.values()}
    for step in at:
        trainer.net.eval()
        drawn.images = drawn.draw(1000)
        for measure, curve in CURVES.items():
            found[curve].append(float(np.mean(MEASURES[measure].compute(drawn))))
        shown.append(drawn.images[:1])
        trainer.net.train()
        for _ in range(every if step < at[-1] else 0):
            trainer.step()
    drawn.images = torch.cat(shown[:: max(1, len(shown) // 8)])
    onset, jump = rise(found["f1_curve"], at)
    return {"jump": [jump], "onset": [onset], **found,
            "worst": [max(found["frechet_curve"]) - base_frechet]}


def picture(claim, result):
    """Curves of the first testbed, and one image at successive steps of training."""
    testbed, found = next(iter(result["testbeds"].items()))
    fig = Figure(figsize=(10, 7), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1.2, 1])
    for i, measure in enumerate(CURVES.values()):
        lines = {claim.titles[name]: one[measure] for name, one in found["arms"].items()}
        ax = fig.add_subplot(grid[0, i])
        curves(ax, lines, MEASURES[measure].title, "share of the training")
        ax.xaxis.set_major_formatter(PercentFormatter(EVALUATIONS))
    samples = {claim.titles[name]: images for name, images in found["samples"].items()}
    sheet(fig.add_subplot(grid[1, :]), samples, f"{testbed}: one image as training proceeds")
    return fig


CLAIM = Claim(
    short="Control sets in abruptly, and images stay good meanwhile",
    quote="We observe that the model does not gradually learn the control conditions but abruptly "
          "succeeds in following the input conditioning image",
    source="section 3.3, Fig. 4", whose="the paper", dated="2026-11-30",
    testbeds=(("digits", "adamw"), ("digits", "muon"), ("cifar10", "adamw")),
    arms={
        "zero": Arm("zero convolutions", (Use(Fit()),)),
        "gaussian": Arm("Gaussian convolutions", (Use(Fit(GAUSSIAN[1.0])),)),
        "finetuned": Arm("fine-tuned", (Use(Fit(Concatenated)),)),
        "next": Arm("ControlNeXt", (Use(Fit(ControlNeXt)),)),
    },
    tests=(Better("zero", 0.24, "jump"), Better("zero", "finetuned", "jump", by=0.05),
           Better("zero", 2.0, "worst", side=True)),
    headroom={"jump": Headroom("finetuned", None, bad="finetuned")},
    measures=("onset", *CURVES.values()), trainings=9, images=64, picture=picture,
    amendments=("on 2026-11-30, after a measurement of three trainings, whose verdict was *mixed*. "
                "The width of the rise was measured, and both of its tests failed: fine-tuning's "
                "rise was the narrower one, by 0.60 (0.23 to 1.15). It counts the slow refinement "
                "after the jump, which goes on to the end of the training. Fine-tuning was named "
                "as the arm that the measure must find worse, and good images on the way, the only "
                "test that held, became a side condition. The verdict was then *cannot tell*.",
                "on 2026-11-30, after the same three trainings. The jump replaces the width, and "
                "was chosen after we had seen their curves, so only new trainings can refute it. "
                "Six new ones alone exceed 0.24 by 0.053 (0.030 to 0.080), and fine-tuning by "
                "0.101 (0.077 to 0.131); three of them were added because the first three alone "
                "left 0.24 open. The Frechet distance is counted from the base's, and was counted "
                "from each arm's own start."),
    why="On digits, Gaussian convolutions jump less, though not by much (0.25, and 0.30 with zero "
        "ones; under Muon 0.34 and 0.44). A smooth curve that levels off may reach 0.24, too. On "
        "CIFAR-10 strict edge-F1 rises by only 0.13, and the onset of Gaussian convolutions means "
        "little, because their first images, spoiled as they are, have a higher edge-F1 than those "
        "of most of the training; the comparison with fine-tuning says most there. Images do get "
        "worse there on the way, with zero convolutions least: by a Frechet distance of 7.0, where "
        "ControlNeXt has 8.8, fine-tuning 12.8 and Gaussian convolutions 66. On digits, the curves "
        "also show a wait: under AdamW, zero convolutions follow nothing for an eighth of the "
        "training. Under Muon every arm takes fewer steps to rise (zero convolutions 66 to the "
        "onset, and 128 under AdamW), and fine-tuning jumps nearly as much as they do (0.39 and "
        "0.44). The paper's example follows from step 6,133 on, at a rate a hundredth of ours. In "
        "the table, edge-F1, Frechet distance and loss are averages over the training.",
)

if __name__ == "__main__":
    main("sudden_convergence")
