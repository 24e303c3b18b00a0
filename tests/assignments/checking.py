"""What the tests of all assignments share. A failing test names what to think about, never the answer."""

import pytest
import torch
import tqdm.auto  # noqa: F401  imported once here, and not again in the process of every test


def check(ok, hint):
    if not ok:
        pytest.fail(hint, pytrace=False)


def close(value, expected, tolerance=1e-4):
    """Whether value is a tensor of the shape and, nearly, the numbers expected (a tensor, or nested lists)."""
    expected = torch.as_tensor(expected, dtype=torch.float32)
    return (isinstance(value, torch.Tensor) and value.shape == expected.shape
            and torch.allclose(value.detach().float(), expected, rtol=tolerance, atol=tolerance))


def waves(*shape, phase=0.0, scale=1.0):
    """A tensor of numbers that look random, and are the same on every machine."""
    count = torch.Size(shape).numel()
    return scale * torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + phase).float().view(shape)


@torch.no_grad()
def with_waves(module, scale=0.3):
    """The module with such numbers for parameters, so that nothing in it is zero or like anything else."""
    for i, parameter in enumerate(module.parameters()):
        parameter.copy_(waves(*parameter.shape, phase=i, scale=scale))
    return module
