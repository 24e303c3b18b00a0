"""A fresh ControlNet changes no bit of the base's output: not in any setting, number format, memory layout or device.

The bases are random, never fresh: behind the zero convolution that ends a fresh UNet, any control changes nothing.
Each test also shows that the same control with weights does change the output.
"""

import contextlib
import random

import pytest
import torch

from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.unet import UNet
from minicnet.words import LENGTH, VOCABULARY

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()
each_device = pytest.mark.parametrize("device", DEVICES)


class Setting:
    """A random base, inputs, and a few fresh ControlNets with conditions and strengths, all a function of the seed."""

    def __init__(self, seed, randomised, device, **changes):
        draw = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        settings = dict(in_channels=draw.choice([1, 2, 3]), channels=draw.choice([8, 8, 16]),
                        multipliers=draw.choice([(1,), (2,), (1, 2), (2, 1), (1, 1, 2), (3, 1, 2)]),
                        blocks=draw.choice([1, 1, 2]), patch=draw.choice([1, 2, 4]))
        base = freeze(randomised(UNet(**settings), std=draw.choice([0.05, 0.2, 0.5]), seed=seed))
        multiple = base.encoder.multiple
        B, H, W = draw.randrange(1, 6), multiple * draw.randrange(1, 4), multiple * draw.randrange(1, 4)
        if B * H * W == multiple**2:  # torch's GroupNorm refuses a single value per group
            B = 2
        self.base = base.to(device, **changes)
        x_t = draw.choice([1, 100]) * torch.randn(B, settings["in_channels"], H, W, generator=generator)
        tokens = torch.randint(len(VOCABULARY), (B, LENGTH), generator=generator)
        said = torch.arange(LENGTH) < torch.randint(LENGTH + 1, (B, 1), generator=generator)
        t = torch.randint(1000, (B,), generator=generator)
        self.inputs = x_t.to(device, **changes), t.to(device), (tokens * said).to(device)
        self.controls = []
        for _ in range(draw.randrange(1, 4)):
            K = draw.choice([1, 2, 3])
            gray = torch.rand(B, K, H, W, generator=generator)
            condition = draw.choice([gray, (gray < 0.3).float(), 0 * gray, gray**0])
            net = ControlNet(base, K).train(draw.random() < 0.5)
            strength = draw.choice([0, 1, -1, 0.3, 1e30, torch.rand(B, 1, 1, 1, generator=generator)])
            if torch.is_tensor(strength):
                strength = strength.to(device, changes.get("dtype"))
            self.controls.append((net.to(device, **changes), condition.to(device, **changes), strength))
        self.about = f"seed {seed}, {settings}, x_t {tuple(x_t.shape)}, {changes}"

    def check(self, randomised, wake):
        """Asserts the identity, and, if asked, that it holds no more once the first net has weights."""
        plain = self.base(*self.inputs)
        assert plain.isfinite().all() and plain.std() > 0, self.about
        assert torch.equal(controlled(self.base, self.controls)(*self.inputs), plain), self.about
        if wake:
            (net, condition, _), *others = self.controls
            others = [(randomised(net, std=0.3), condition, 1), *others]
            assert not torch.equal(controlled(self.base, others)(*self.inputs), plain), self.about


@each_device
@pytest.mark.parametrize("seeds, changes", [
    (range(15), {}),
    (range(30, 34), {"dtype": torch.float64}),
    (range(40, 44), {"memory_format": torch.channels_last}),
], ids=["float32", "float64", "channels_last"])
def test_a_fresh_control_changes_no_bit_of_any_base(randomised, device, seeds, changes):
    for seed in seeds:
        Setting(seed, randomised, device, **changes).check(randomised, wake=seed % 3 == 0)


@each_device
def test_nor_does_it_under_autocast_even_if_only_one_of_the_two_is_computed_so(randomised, device):
    for seed in range(50, 53):
        setting = Setting(seed, randomised, device)
        for base_rounded, control_rounded in [(True, True), (True, False), (False, True)]:
            rounding = torch.autocast(device, torch.bfloat16)
            with rounding if control_rounded else contextlib.nullcontext():
                control = sum(scale * net(*setting.inputs, condition) for net, condition, scale in setting.controls)
            with rounding if base_rounded else contextlib.nullcontext():
                plain = setting.base(*setting.inputs)
                assert torch.equal(setting.base(*setting.inputs, control=control), plain), setting.about
