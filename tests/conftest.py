"""What several test files share."""

import pytest
import torch
from torch import nn


def pytest_addoption(parser):
    parser.addoption("--autocast", choices=["on", "off"], help="pretend that this CPU has bf16 instructions, or not")


def pytest_configure(config):
    if choice := config.getoption("--autocast"):
        torch.cpu.get_capabilities = lambda: {"avx512_bf16": choice == "on"}


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def randomised():
    """randomised(module): the module, with every parameter drawn from a normal distribution.

    A fresh UNet ends in a convolution of zeros, behind which all outputs are the same and all gradients are zero:
    nothing could be told apart, and every test of a control would pass.
    """

    def draw(module, std=0.2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=std, generator=generator)
        return module

    return draw


@pytest.fixture
def unet(randomised):
    """A small base with random weights, frozen."""
    from minicnet.controlnet import freeze  # not above: where these files do not work, tests of others still do
    from minicnet.unet import UNet

    return freeze(randomised(UNet(channels=8, multipliers=(1,))))


@pytest.fixture
def nets(randomised, unet):
    """Two ControlNets for it, with random weights, too."""
    from minicnet.controlnet import ControlNet, freeze

    return [freeze(randomised(ControlNet(unet), seed=seed)) for seed in (1, 2)]
