"""What several test files share."""

import minicnet  # noqa: F401  before torch, because it sets GOMP_SPINCOUNT  # isort: skip

import pytest
import torch
from side_by_side import FILE, First, Second

# Networks here are so small that a second thread would only wait for the first one.
torch.set_num_threads(1)


def pytest_configure(config):
    config.pluginmanager.register((Second if FILE else First)(), "side by side")


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def randomised():
    """randomised(module) draws every parameter from a normal distribution. It returns the module.

    A fresh UNet ends in a convolution of zeros, behind which every output and every gradient is the
    same: nothing could be told apart, and every test of a control would pass.
    """

    def draw(module, std=0.2, seed=0):
        generator = torch.Generator().manual_seed(seed)
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, std=std, generator=generator)
        return module

    return draw


@pytest.fixture(scope="session")
def folders(tmp_path_factory, randomised):
    """The folders of some models for the playground, {name: folder}, with random weights."""
    from saved import save_models

    return save_models(tmp_path_factory.mktemp("weights"), randomised)


@pytest.fixture
def unet(randomised):
    """A small base with random weights, frozen."""
    # Not imported above, so that tests of other files run where these are incomplete.
    from minicnet.controlnet import freeze
    from minicnet.unet import UNet

    return freeze(randomised(UNet(channels=8, multipliers=(1,))))


@pytest.fixture
def nets(randomised, unet):
    """Two ControlNets of this base, with random weights."""
    from minicnet.controlnet import ControlNet, freeze

    return [freeze(randomised(ControlNet(unet), seed=seed)) for seed in (1, 2)]
