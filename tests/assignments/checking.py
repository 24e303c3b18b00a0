"""Helpers for the tests of all assignments. A failing test gives a hint and never the answer."""

import pytest
import torch
import tqdm.auto  # noqa: F401  imported once here instead of in the process of every test


def check(ok, hint):
    if not ok:
        pytest.fail(hint, pytrace=False)


def close(value, expected, tolerance=1e-4):
    """Return whether value is a tensor with the shape and, up to rounding, the numbers expected."""
    expected = torch.as_tensor(expected, dtype=torch.float32)
    return (isinstance(value, torch.Tensor) and value.shape == expected.shape
            and torch.allclose(value.detach().float(), expected, rtol=tolerance, atol=tolerance))


def waves(*shape, phase=0.0, scale=1.0):
    """Return numbers that look random and are the same on every machine."""
    count = torch.Size(shape).numel()
    numbers = torch.sin(torch.arange(count, dtype=torch.float64) * 1.7 + phase)
    return scale * numbers.float().view(shape)


@torch.no_grad()
def with_waves(module, scale=0.3):
    """Fill a module with such numbers, so that no two parameters are alike and none is zero."""
    for i, parameter in enumerate(module.parameters()):
        parameter.copy_(waves(*parameter.shape, phase=i, scale=scale))
    return module


def samples(x, count=6):
    """Return a few numbers of a tensor, spread over all of it: enough to recognise it."""
    x = x.detach().flatten()
    return x[torch.linspace(0, len(x) - 1, count).long()]
