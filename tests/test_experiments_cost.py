"""What the experiment on cost counts, against counts by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, controlled, freeze, trainable_copy
from minicnet.experiments import cost
from minicnet.experiments.cost import saved_bytes
from minicnet.unet import UNet
from minicnet.words import tokenize


def saved(net):
    """What a loss saves of 4 images of 3 channels, 5 x 5 pixels."""
    return saved_bytes(lambda x: net(x).square().mean(), [torch.randn(4, 3, 5, 5)], [net])


IMAGES = 4 * 3 * 5 * 5 * 4  # bytes
CONV = nn.Conv2d(3, 3, 1)


def more(*layers):
    """How much more `saved` counts when layers follow a convolution that trains."""
    return tuple(a - b for a, b in zip(saved(nn.Sequential(CONV, *layers)), saved(CONV)))


def test_each_storage_is_counted_once_and_weights_are_not():
    twice = nn.Sequential(nn.SiLU())
    twice.forward = lambda x: F.silu(x) + F.silu(x)
    assert more(nn.SiLU()) == more(twice) == more(CONV) == (IMAGES, 0)  # the input of silu, and of the convolution


def test_torch_saves_the_input_of_a_frozen_convolution_and_we_say_so():
    frozen = freeze(nn.Conv2d(3, 3, 3, padding=1))
    assert more(frozen) == (IMAGES, IMAGES)
    assert saved(nn.Sequential(frozen, CONV)) == saved(CONV)  # no gradient flows through it
    assert more(nn.Sigmoid(), frozen) == (IMAGES, 0)  # the sigmoid needs its output, too


def test_the_frozen_convolutions_of_a_control_step_are_those_of_the_decoder(randomised):
    locked, inputs = freeze(randomised(UNet(channels=8))), []
    x_t, t, prompt, net = torch.rand(2, 1, 28, 28), torch.tensor([3, 700]), tokenize(["a six", ""]), ControlNet(locked)
    for conv in (module for module in locked.decoder.modules() if isinstance(module, nn.Conv2d)):
        conv.register_forward_hook(lambda conv, x, y: inputs.append(x[0].nbytes))
    needless = saved_bytes(controlled(locked, [(net, canny(x_t), 1)]), [x_t, t, prompt], [net, locked])[1]
    assert 0.5 * sum(inputs) < needless <= sum(inputs)
    base = trainable_copy(locked)
    assert saved_bytes(base, [x_t, t, prompt], [base])[1] == 0


def test_actions_take_turns_and_the_first_round_does_not_count():
    calls = []
    seconds = cost.in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, 2, torch.device("cpu"))
    assert calls == ["a", "b"] * 3 and [len(values) for values in seconds.values()] == [2, 2]


def rows_of(time, memory):
    more = {"arithmetic": 1.01, "trained parameters": 0.51, "drawing under 1": 1.4, "drawing under 2": 1.8,
            "control memory": 40.0, f"control {cost.NEEDLESS}": 6.0}
    return {f"cpu-{seed}": {**more, "time": time + noise, "memory": memory}
            for seed, noise in enumerate((-0.01, 0.0, 0.01))}


@pytest.mark.parametrize("time, memory, word", [
    (1.34, 1.23, "reproduced"), (1.45, 1.13, "reproduced"), (1.05, 0.85, "not reproduced"),
    (1.30, 0.85, "mixed"), (1.60, 1.23, "mixed"), (1.10, 1.50, "not reproduced")])
def test_the_verdict_comes_from_the_rows(time, memory, word):
    found, why = cost.verdict(rows_of(time, memory))
    assert found == word and "Of the control step's 40 MB, 6 are inputs" in why
    assert f"takes {time:.2f} ± 0.01 times as long as a base step (the paper: 1.34), and {memory:.2f} ± 0.00" in why
    assert "Drawing takes 1.40 ± 0.00 times as long under one control, 1.80 ± 0.00 under two" in why
