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


def rows_of(device, time, memory):
    more = {f"{kind} {unit}": 1.0 for kind in ("base", "control")
            for unit in (*cost.UNITS.values(), *cost.PARTS, cost.NEEDLESS)}
    more |= {f"drawing, {n} controls, guidance {w}": 10.0 + 5 * n for n in range(3) for w in (1, 2)}
    return {f"{device}-{seed}": {**more, "time": time + noise, "memory": memory, "arithmetic": 1.01,
                                 "trained parameters": 0.51, "control MB": 40.0, "batch_size": 32,
                                 f"control {cost.NEEDLESS}": 6.0, f"base {cost.NEEDLESS}": 0.0}
            for seed, noise in enumerate((-0.01, 0.0, 0.01))}


@pytest.mark.parametrize("time, memory, word", [
    (1.34, 1.23, "reproduced"), (1.45, 1.13, "reproduced"), (1.05, 0.85, "not reproduced"),
    (1.30, 0.85, "not reproduced"), (1.60, 1.23, "not reproduced"), (1.34, 1.50, "not reproduced")])
def test_the_verdict_comes_from_the_rows(time, memory, word):
    found, why = cost.verdict(rows_of("cpu", time, memory))
    assert found == word and "Of the control's 40 MB, 6 are inputs" in why
    assert f"time {time:.2f} ± 0.01, memory {memory:.2f} ± 0.00" in why
    for value, name, paper in ((time, "time", 1.34), (memory, "memory", 1.23)):
        how = "within 0.15 of" if abs(value - paper) <= 0.15 else "less than" if value < paper else "more than"
        assert f"{how} the paper's {paper} in {name}" in why


def test_the_table_holds_ratios_beside_those_of_the_paper():
    rows = [" ".join(line.split()) for line in cost.table(rows_of("cpu", 1.0, 1.0)).splitlines()]
    for row in ("a training step of 32 images, cpu base control ratio paper", "time, ms 1.00 1.00 1.00 1.34",
                "memory, MB 1.00 40.00 40.00 1.23", f"{cost.NEEDLESS}, MB 0.00 6.00",
                "guidance 2 10.00 15.00 (1.50) 20.00 (2.00)"):
        assert row in rows
