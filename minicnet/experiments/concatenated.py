"""What ControlNet is compared with: two other ways to teach a base a condition, which leave less of it locked, or none.

    unlocked     ControlNet, and the base's decoder trains too (sd_locked=False in the official code)
    finetuned    the whole base trains; the condition is more channels of its input

The first convolution of `finetuned` gets input channels for the condition, whose weights start at zero. So training
starts from the base here too (up to rounding: the sums are longer). Data and batches are those of the control.
"""

import copy

import torch
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze, trainable_copy
from minicnet.experiments.lab import control_eps


class ConcatenatedUNet(nn.Module):
    """A trainable copy of a UNet whose first convolution also reads a condition. It is called as a UNet is.

    unet: the base, trained; it is neither changed nor kept. condition_channels: 1 for edges.
    """

    def __init__(self, unet, condition_channels=1):
        super().__init__()
        self.unet = trainable_copy(unet)
        encoder, narrow = self.unet.encoder, self.unet.encoder.conv_in
        more = condition_channels * encoder.patch**2
        wide = nn.Conv2d(narrow.in_channels + more, narrow.out_channels, narrow.kernel_size, padding=narrow.padding)
        wide.to(narrow.weight.device)
        with torch.no_grad():  # pixel_unshuffle keeps the pixels of a channel together: those of x_t come first
            wide.weight[:, : narrow.in_channels] = narrow.weight
            wide.weight[:, narrow.in_channels :] = 0
            wide.bias.copy_(narrow.bias)
        encoder.conv_in = wide
        encoder.in_channels += condition_channels

    def forward(self, x_t, t, prompt, control):
        """UNet.forward, with the condition itself, (B, condition_channels, H, W), in the place of a Control.

        The encoder reads it beside x_t. The share of x_t that is added in the end remains one of x_t alone.
        """
        skips, middle, emb, words = self.unet.encoder(torch.cat([x_t, control], dim=1), t, prompt)
        return self.unet.decoder(skips, middle, emb, words) + self.unet.share(emb)[:, :, None, None] * x_t


class ConditionItself:
    """Stands where `controlled` wants a ControlNet, and hands the condition on to a base that reads it itself."""

    def encode(self, condition):
        return condition

    def __call__(self, x_t, t, prompt, hint):
        return hint


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


def chosen(rows, way):
    """The trial that a way is trained by, made of rows "TRIAL-0": of fine-tuning that with the least loss.

    With the decoder unlocked it is of the same rate, with all steps; a control has the usual rate and all steps.
    """
    best = min(TRIALS, key=lambda trial: rows[f"{trial}-0"]["loss"])
    return {"control": "rate 1, all steps", "unlocked": best.replace("a third", "all steps"), "finetuned": best}[way]
