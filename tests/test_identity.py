"""A fresh ControlNet changes no bit of the base's output: not in any setting, number format, memory layout or device.

The bases are random, never fresh: behind the zero convolution that ends a fresh UNet, any control changes nothing.
Each test also shows that the same control with weights does change the output.
"""

import itertools
import random

import pytest
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from minicnet.controlnet import ControlledBlock, ControlNet, freeze
from minicnet.unet import ResBlock, SelfAttention, UNet

DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()


class Setting:
    """A random base, a few fresh ControlNets for it, inputs, conditions and strengths, all a function of the seed."""

    def __init__(self, seed, randomised, **fixed):
        draw = random.Random(seed)
        generator = torch.Generator().manual_seed(seed)
        multipliers = draw.choice([(1,), (2,), (1, 2), (2, 1), (1, 1, 2), (3, 1, 2)])
        settings = dict(in_channels=draw.choice([1, 2, 3]), num_labels=draw.choice([1, 3, 10]),
                        channels=draw.choice([8, 16, 24]), multipliers=multipliers, blocks=draw.choice([1, 1, 2]),
                        patch=draw.choice([1, 2, 4]))
        settings.update(fixed)
        self.base = freeze(randomised(UNet(**settings), std=draw.choice([0.05, 0.2, 0.5]), seed=seed))
        multiple = self.base.encoder.multiple
        B, H, W = draw.randrange(1, 6), multiple * draw.randrange(1, 4), multiple * draw.randrange(1, 4)
        if B * H * W == multiple**2:  # torch's GroupNorm refuses a single value per group
            B = 2
        self.x_t = draw.choice([1, 100]) * torch.randn(B, settings["in_channels"], H, W, generator=generator)
        self.t = torch.randint(1000, (B,), generator=generator)
        self.label = torch.randint(settings["num_labels"] + 1, (B,), generator=generator)
        self.nets, self.conditions, self.strengths = [], [], []
        for _ in range(draw.randrange(1, 4)):
            K = draw.choice([1, 2, 3])
            self.nets.append(ControlNet(self.base, K).train(draw.random() < 0.5))
            gray = torch.rand(B, K, H, W, generator=generator)
            self.conditions.append(draw.choice([gray, (gray < 0.3).float(), 0 * gray, gray**0]))
            self.strengths.append(draw.choice([0, 1, -1, 0.3, 1e30, torch.rand(B, 1, 1, 1, generator=generator)]))

    def to(self, **changes):
        """The same on another device, in another number format or memory layout."""
        floats = {name: value for name, value in changes.items() if name != "memory_format"}
        self.base, self.nets = self.base.to(**changes), [net.to(**changes) for net in self.nets]
        self.x_t, self.conditions = self.x_t.to(**changes), [condition.to(**changes) for condition in self.conditions]
        self.strengths = [s.to(**floats) if torch.is_tensor(s) else s for s in self.strengths]
        if "device" in changes:
            self.t, self.label = self.t.to(changes["device"]), self.label.to(changes["device"])
        return self

    def plain(self):
        return self.base(self.x_t, self.t, self.label)

    def controls(self):
        """What each net says to its own condition, in its own strength."""
        return [strength * net(self.x_t, self.t, self.label, condition)
                for net, condition, strength in zip(self.nets, self.conditions, self.strengths)]

    def controlled(self):
        return self.base(self.x_t, self.t, self.label, control=sum(self.controls()))

    def wake(self, randomised):
        """Random weights for the first net, and strength 1."""
        randomised(self.nets[0], std=0.3)
        self.strengths[0] = 1

    def __repr__(self):
        return f"{self.base.settings}, x_t {tuple(self.x_t.shape)}, strengths {self.strengths}"


def holds(setting, randomised, wake=True):
    """Asserts the identity, and that it does not hold because there was nothing to see."""
    plain = setting.plain()
    assert plain.isfinite().all() and plain.std() > 0, setting
    assert torch.equal(setting.controlled(), plain), setting
    if wake:
        setting.wake(randomised)
        assert not torch.equal(setting.controlled(), plain), setting


@pytest.mark.parametrize("device", DEVICES)
def test_in_float32(randomised, device):
    for seed in range(80):
        holds(Setting(seed, randomised).to(device=device), randomised, wake=seed % 4 == 0)


@pytest.mark.parametrize("device", DEVICES)
def test_in_float64(randomised, device):
    for seed in range(200, 220):
        holds(Setting(seed, randomised).to(device=device, dtype=torch.float64), randomised, wake=seed % 4 == 0)


@pytest.mark.parametrize("device", DEVICES)
def test_in_channels_last(randomised, device):
    for seed in range(300, 320):
        setting = Setting(seed, randomised).to(device=device, memory_format=torch.channels_last)
        holds(setting, randomised, wake=seed % 4 == 0)


@pytest.mark.parametrize("device", DEVICES)
def test_under_bf16_autocast(randomised, device):
    """Also if only the control is computed so, or only the base."""
    for seed in range(400, 420):
        setting = Setting(seed, randomised).to(device=device)
        exact = setting.plain()
        with torch.autocast(device, torch.bfloat16):
            rounded = setting.plain()
            assert not torch.equal(rounded, exact), setting  # autocast was on
            controls = setting.controls()
            holds(setting, randomised, wake=False)
        assert torch.equal(setting.base(setting.x_t, setting.t, setting.label, control=sum(controls)), exact), setting
        controls = setting.controls()
        with torch.autocast(device, torch.bfloat16):
            controlled = setting.base(setting.x_t, setting.t, setting.label, control=sum(controls))
        assert torch.equal(controlled, rounded), setting


@pytest.mark.parametrize("device", DEVICES)
def test_with_the_base_in_half_precision(randomised, device):
    for seed in range(500, 510):
        holds(Setting(seed, randomised, patch=2).to(device=device, dtype=torch.bfloat16), randomised, wake=False)


@pytest.mark.parametrize("device", DEVICES)
def test_for_controlled_blocks(randomised, device):
    """Equation 2 on blocks of all sizes, of any condition and strength."""
    generator = torch.Generator().manual_seed(0)
    for channels, K, B, size, attention in itertools.product((8, 16, 24), (1, 5), (2, 4), (1, 2, 7), (False, True)):
        block = freeze(randomised(SelfAttention(channels) if attention else ResBlock(channels, channels, 12)))
        x, c = (torch.randn(B, n, size, size, generator=generator).to(device) for n in (channels, K))
        emb = torch.randn(B, 12, generator=generator).to(device)
        controlled = ControlledBlock(block.to(device), channels, K).to(device)
        for strength in (0, 1, -1e3):
            assert torch.equal(controlled(x, strength * c, emb), block(x, emb))
        randomised(controlled.zero_out)
        assert not torch.equal(controlled(x, c, emb), block(x, emb))


def test_in_distributed_data_parallel(randomised, tmp_path):
    """With one process: what is wrapped must be the same, not what many of them exchange."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'meet'}", rank=0, world_size=1)
    try:
        for seed in range(600, 605):
            setting = Setting(seed, randomised)
            setting.nets = [DistributedDataParallel(net) for net in setting.nets]
            holds(setting, randomised)
    finally:
        distributed.destroy_process_group()


def test_when_traced_by_torch_compile(randomised):
    """Base and control in one graph, whose operations then run as they are. (A backend that also fuses them, as the
    default one does, rounds the graph with a control differently from that without: no fault of the control's.)"""
    setting = Setting(701, randomised, channels=8, multipliers=(1, 2), blocks=1)  # small, for tracing is slow
    setting.nets = setting.nets[:1]
    plain = torch.compile(setting.plain, backend="aot_eager")()
    controlled = torch.compile(setting.controlled, backend="aot_eager")
    assert torch.equal(plain, setting.plain()) and torch.equal(controlled(), plain), setting
    setting.wake(randomised)
    assert not torch.equal(controlled(), plain), setting
