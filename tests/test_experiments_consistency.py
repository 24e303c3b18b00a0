"""The consistency loss: its gradient is the one that it should be, it is measured on another grid, and its verdict."""

from types import SimpleNamespace

import pytest
import torch

from minicnet.conditions import colour
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.experiments import consistency
from minicnet.experiments.consistency import grid, moved_error, moved_grid
from minicnet.unet import UNet
from minicnet.words import tokenize


def test_the_condition_is_made_of_the_grid():
    x_0 = torch.rand(2, 3, 28, 28) * 2 - 1
    corners = colour(x_0)[..., [0, 0, -1, -1], [0, -1, 0, -1]]
    torch.testing.assert_close(corners, grid(x_0)[..., [0, 0, -1, -1], [0, -1, 0, -1]])


def test_what_pleases_the_grid_alone_does_not_please_the_moved_one():
    images = torch.rand(2, 3, 28, 28) * 2 - 1
    turned = images.clone()
    turned[..., 7:14, 7:14] = images[..., 7:14, 7:14].flip(-1)  # within one cell
    torch.testing.assert_close(grid(turned), grid(images))
    assert moved_error(turned, images) > 0 == moved_error(images, images)
    torch.testing.assert_close(moved_grid(images)[..., 2, 2], ((images[..., 17:24, 17:24] + 1) / 2).mean((-1, -2)))


@pytest.mark.parametrize("longest", [200, 800])
def test_the_gradient_is_that_of_both_losses(randomised, longest):
    unet = freeze(randomised(UNet(in_channels=3, channels=8, multipliers=(1,))))
    lab, net = SimpleNamespace(unet=unet, schedule=NoiseSchedule.cosine(1000)), randomised(ControlNet(unet, 3))
    x_0, eps, t = torch.rand(3, 3, 8, 8) * 2 - 1, torch.randn(3, 3, 8, 8), torch.tensor([100, 500, 900])
    prompt, x_t = tokenize(["a red three", "", "a five"]), lab.schedule.add_noise(x_0, eps, t)

    guess = controlled(unet, [(net, colour(x_0), 1)])(x_t, t, prompt)
    seen = grid(lab.schedule.predict_x0(x_t, guess, t)[: 1 if longest == 200 else 2])
    second = consistency.WEIGHT * (seen - grid(x_0[: len(seen)])).square().mean((1, 2, 3)).sum() / 3
    expected = torch.autograd.grad((guess - eps).square().mean() + second, list(net.parameters()))

    guess = consistency.consistent(lab, longest)(net, x_0, prompt)(x_t, t)
    (guess - eps).square().mean().backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-5)


def rows_of(short, long, accuracy=0.0):
    """Rows in which feedback up to 200 and up to 800 lowers the error on the moved grid by so much."""
    rows = {}
    for name, gain in {"base": -0.3, "before": 0, "plain": 0, "up to 200": short, "up to 800": long}.items():
        for seed in (0, 1):
            values = {"moved": 0.08 - gain, "own": 0.05, "frechet": 9.0,
                      "label_accuracy": 0.9 + accuracy * name.startswith("up")}
            rows[f"{name}-{seed}"] = values | {f"{measure}_blocks": [value - 0.01, value + 0.01]
                                               for measure, value in values.items()}
    return rows


@pytest.mark.parametrize("short, long, accuracy, word", [
    (0.03, 0.03, 0, "reproduced"), (0.03, 0, 0, "reproduced"), (0, 0.03, 0, "mixed"), (0, 0, 0, "not reproduced"),
    (0.03, 0.03, -0.2, "not reproduced"), (-0.03, -0.03, 0, "not reproduced")])
def test_feedback_must_help_on_the_other_grid_and_cost_no_label(short, long, accuracy, word):
    found, why = consistency.verdict(rows_of(short, long, accuracy))
    assert found == word and f"{-short:+.4f}" in why and f"{-long:+.4f}" in why
