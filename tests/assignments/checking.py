"""Helpers for the tests of all assignments. A failing test gives a hint and never the answer."""

import pytest
import torch
import tqdm.auto  # noqa: F401  imported once here instead of in the process of every test

from minicnet.unet import UNet
from minicnet.words import tokenize


def check(ok, hint):
    if not ok:
        pytest.fail(hint, pytrace=False)


def close(value, expected, tolerance=1e-4):
    """Return whether value is a tensor with the shape and, up to rounding, the numbers expected."""
    expected = torch.as_tensor(expected, dtype=torch.float32)
    return (isinstance(value, torch.Tensor) and value.shape == expected.shape
            and torch.allclose(value.detach().float(), expected, rtol=tolerance, atol=tolerance))


def check_tensor(value, shape, numbers, hint, tolerance=1e-4):
    """Check the shape of a result, and a few of its numbers, which are spread over all of it."""
    found = tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__
    check(found == shape, f"the result should be a tensor of shape {shape}, not {found}. {hint}")
    spread = torch.linspace(0, value.numel() - 1, len(numbers)).long()
    check(close(value.flatten()[spread], numbers, tolerance), hint)


def check_refused(hint, function, *arguments, errors=ValueError):
    """Check that a function raises one of these errors, and no other, for these arguments."""
    try:
        function(*arguments)
    except NotImplementedError:
        raise
    except Exception as error:
        check(isinstance(error, errors), f"{hint} (Here it raises {error!r}.)")
    else:
        check(False, hint)


def learns(result, *parts):
    """Return whether a gradient of the result reaches all of these modules and tensors."""
    if result.requires_grad:
        (result * waves(*result.shape)).sum().backward()
    tensors = [[part] if isinstance(part, torch.Tensor) else part.parameters() for part in parts]
    return all(any(x.grad is not None and x.grad.any() for x in part) for part in tensors)


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


def small_unet(blocks=1):
    """Return a UNet with such parameters. Its skips and its middle have the same shape, so that a
    mix-up raises no error."""
    return with_waves(UNet(channels=16, multipliers=(1,), blocks=blocks, patch=1), scale=0.2)


def inputs(size):
    """Return x_t, t and prompt for two images of size x size."""
    return waves(2, 1, size, size), torch.tensor([5, 700]), tokenize(["a three", "seven"])
