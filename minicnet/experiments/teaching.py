"""Three ways to teach a trained base edges:

    control       ControlNet: the base is locked
    unlocked      ControlNet, and the base's decoder trains too (sd_locked=False in the authors' code)
    finetuned     all of the base trains; the edges are more channels of its input (concatenated.py)

Data and the order of batches are the same for all. Rates and lengths are not (TRIALS).
"""

import copy

from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.experiments.concatenated import ConcatenatedUNet, ConditionItself
from minicnet.experiments.lab import control_eps


class Unlocked(nn.Module):
    """A ControlNet and a copy of its base in which the decoder trains, and nothing else."""

    def __init__(self, unet):
        super().__init__()
        self.control_net = ControlNet(unet)
        self.unet = freeze(copy.deepcopy(unet))
        self.unet.decoder.requires_grad_(True)


WAYS = {"control": "ControlNet", "unlocked": "decoder unlocked", "finetuned": "all fine-tuned"}
TRIALS = {f"rate {rate:g}, {length}": (rate, parts) for rate in (1, 0.3, 0.1)
          for length, parts in {"all steps": 1, "a third": 3}.items()}  # fine-tuning gets what suits it best


def parts(lab, way, net):
    """The base to draw with, and what controls it, of a network that was taught in one of the WAYS."""
    return {"control": lambda: (lab.unet, net), "unlocked": lambda: (net.unet, net.control_net),
            "finetuned": lambda: (net, ConditionItself())}[way]()


def taught(lab, way, data, seed, images, prompts, trial):
    """The base to draw with, and what controls it, after training for edges in one of the WAYS. Both are frozen.

    data: a name for images (N, C, H, W) and prompts (N, V, L). trial: which of the TRIALS says rate and length; all
    steps are half of the usual ones.
    """
    make = {"control": ControlNet, "unlocked": Unlocked, "finetuned": ConcatenatedUNet}[way]
    rate, length = TRIALS[trial]
    steps = max(1, lab.steps // 2 // length)
    net, _ = lab.trained(f"{way}-{data}-{rate:g}-{steps}", seed, lambda: make(lab.unet),
                         control_eps(lambda net: parts(lab, way, net), canny), images, prompts, steps=steps, rate=rate)
    return parts(lab, way, net)


def chosen(rows, way, measure):
    """The trial that a way is trained by, made of rows "TRIAL-0": of fine-tuning that with most in the measure.

    With the decoder unlocked it is of the same rate, with all steps; a control has the usual rate and all steps.
    """
    best = max(TRIALS, key=lambda trial: rows[f"{trial}-0"][measure])
    return {"control": "rate 1, all steps", "unlocked": best.replace("a third", "all steps"), "finetuned": best}[way]
