"""Independent truths: what correct code agrees with, computed in another way.

Here are closed forms in float64, denoisers that are known exactly, and loops that are too slow for
use but too simple to be wrong. Nothing here imports minicnet, so that tests of students' code can
use it.

Song et al. 2021        https://arxiv.org/abs/2010.02502
Nichol, Dhariwal 2021   https://arxiv.org/abs/2102.09672
"""

import itertools
import math

import numpy as np
import torch
import torch.nn.functional as F

# Noise schedules


def linear_alpha_bar(T, first, last):
    """Return the products of 1 - beta, for beta from first to last, as a sum of logarithms."""
    beta = np.array([first + (last - first) * t / (T - 1) for t in range(T)])
    return np.exp(np.log1p(-beta).cumsum())


def cosine_alpha_bar(T, s=0.008):
    """Return the squared cosine of Nichol and Dhariwal, Eq. 17. It would be 0 at the last step."""
    f = np.array([math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)])
    alpha_bar = f[1:] / f[0]
    alpha_bar[-1] = alpha_bar[-2] * 0.001  # beta is at most 0.999
    return alpha_bar


# Optimal denoisers: the eps_model(x_t, t) of data distributions for which E[x_0 | x_t] is known


def optimal_eps(alpha_bar, mean_x_0):
    """Return the eps_model that belongs to E[x_0 | x_t] = mean_x_0(x_t, alpha_bar_t)."""

    def eps_model(x_t, t):
        assert t.shape == (len(x_t),) and t.dtype == torch.int64
        x, a = x_t.double(), alpha_bar.double()[t].view(-1, *[1] * (x_t.ndim - 1))
        return ((x - a.sqrt() * mean_x_0(x, a)) / (1 - a).sqrt()).to(x_t.dtype)

    return eps_model


def point_mass(alpha_bar, x_0):
    """Every image is x_0."""
    return optimal_eps(alpha_bar, lambda x_t, a: x_0)


def unit_gaussian(alpha_bar):
    """Images are drawn from N(0, I), so eps = sqrt(1 - alpha_bar) x_t."""
    return optimal_eps(alpha_bar, lambda x_t, a: a.sqrt() * x_t)


def two_points(alpha_bar, p):
    """Every value is +1 with probability p, else -1. This eps is not linear in x_t."""
    prior = math.atanh(2 * p - 1)
    return optimal_eps(alpha_bar, lambda x_t, a: torch.tanh(a.sqrt() * x_t / (1 - a) + prior))


def gaussian_variances(alpha_bar, times, eta):
    """Return the variance of x_t at each of `times` while DDIM samples a unit Gaussian.

    Each step of Song, Eq. 12, multiplies x_t by a number and adds independent noise.
    """
    variances = [1.0]
    for a, b in itertools.pairwise(alpha_bar.double()[times].tolist()):
        sigma2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        keep = math.sqrt(a * b) + math.sqrt(max(0, (1 - a) * (1 - b - sigma2)))
        variances.append(keep**2 * variances[-1] + sigma2)
    return variances


@torch.no_grad()
def ddim(eps_model, alpha_bar, x_T, times, eta=0.0, generator=None):
    """Sample by Song, Eq. 12 and 16, at the given timesteps, clipping each estimate of x_0."""
    x_t = x_T
    for t, t_prev in zip(times, [*times[1:], None]):
        a, b = alpha_bar[t], 1.0 if t_prev is None else alpha_bar[t_prev]
        eps = eps_model(x_t, torch.full((len(x_t),), t))
        x_0 = ((x_t - (1 - a) ** 0.5 * eps) / a**0.5).clamp(-1, 1)
        eps = (x_t - a**0.5 * x_0) / (1 - a) ** 0.5
        sigma = eta * ((1 - b) / (1 - a)) ** 0.5 * (1 - a / b) ** 0.5
        x_t = b**0.5 * x_0 + abs(1 - b - sigma**2) ** 0.5 * eps
        if eta and t_prev is not None:
            x_t = x_t + sigma * torch.randn(x_t.shape, generator=generator, dtype=x_t.dtype)
    return x_t


# Layers


def convolution(x, weight, bias, stride=1):
    """Sum over the kernel's positions, one shifted image at a time. Outside, the image is zero."""
    k, (H, W) = weight.shape[-1], x.shape[2:]
    padded = F.pad(x, [k // 2] * 4)
    out = bias.view(1, -1, 1, 1)
    for i, j in itertools.product(range(k), repeat=2):
        shifted = padded[:, :, i:i + H, j:j + W]
        out = out + torch.einsum("oc,bchw->bohw", weight[:, :, i, j], shifted)
    return out[:, :, ::stride, ::stride]


def space_to_depth(x, p):
    """Fold p x p pixels into channels: for each channel in turn, its p p grids of pixels."""
    return torch.stack([x[:, c, i::p, j::p] for c in range(x.shape[1])
                        for i in range(p) for j in range(p)], dim=1)


def attention(q, k, v, heads, mask=None):
    """Attend with one query of one head at a time. q: (B, N, C); k, v: (B, M, C); mask: (B, M).

    Returns the weights (B, heads, N, M) and the averages (B, N, C).
    """
    (B, N, C), M = q.shape, k.shape[1]
    weights, averages = torch.zeros(B, heads, N, M), torch.zeros(B, N, C)
    for b, h, n in itertools.product(range(B), range(heads), range(N)):
        d = slice(h * C // heads, (h + 1) * C // heads)
        scores = (k[b, :, d] @ q[b, n, d] / math.sqrt(C // heads)).exp()
        scores = scores if mask is None else scores * mask[b]
        weights[b, h, n] = scores / scores.sum()
        averages[b, n, d] = weights[b, h, n] @ v[b, :, d]
    return weights, averages
