"""Masks found again: what the control is held against, and the verdict on rows that are made up."""

from types import SimpleNamespace

import pytest
import torch

from minicnet.conditions import mask
from minicnet.controlnet import controlled, freeze
from minicnet.digits import draw_digits
from minicnet.experiments import reconstruction
from minicnet.unet import UNet
from minicnet.words import tokenize


@pytest.fixture
def lab(randomised):
    """A lab that trains for no step at all."""
    return SimpleNamespace(unet=freeze(randomised(UNet(channels=8))),
                           trained=lambda name, seed, make, eps_model, **options: (freeze(make()), []))


def test_controls_start_from_the_base_and_the_model_from_scratch_does_not(lab):
    images = draw_digits(2)[0]
    x = images, torch.tensor([3, 900]), tokenize(["a three", ""])
    base = lab.unet(*x)
    for method in ("control", "lite", "scratch"):
        unet, control = reconstruction.trained(lab, method, 0)
        assert torch.equal(controlled(unet, [(control, mask(images), 1)])(*x), base) == (method != "scratch")
    assert reconstruction.trained(lab, "base", 0) == (lab.unet, None)


def rows_of(**good):
    return {f"{name}-{seed}": {"mask_iou": iou, "mask_iou_blocks": [iou - 0.01, iou + 0.01 * i]} for seed in range(3)
            for i, name in enumerate((*reconstruction.NAMES, "real")) for iou in [good.get(name, 0.4)]}


@pytest.mark.parametrize("good, word", [
    (dict(control=0.95, lite=0.9, scratch=0.8), "reproduced"), (dict(control=0.9, lite=0.9, scratch=0.8), "mixed"),
    (dict(control=0.9, lite=0.8, scratch=0.95), "mixed"), (dict(control=0.8, lite=0.9, scratch=0.9), "not reproduced")])
def test_control_reconstructs_best_only_if_it_is_clearly_above_both_others(good, word):
    assert reconstruction.verdict(rows_of(**good))[0] == word
