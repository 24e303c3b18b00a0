"""Diffusion: how an image becomes noise, what a network learns from it, and the way back.

A network learns to predict the noise in a noisy image. To draw, one starts from pure noise and
removes, step by step, a part of the noise that the network predicts.

Nothing in this file knows how the network is built. A network is any callable

    eps_model(x_t, t) -> eps

that takes noisy images x_t (B, ...) and their timesteps t (B,), and predicts the noise in them. A
closure supplies whatever else a network needs, such as a prompt: see `controlled` in controlnet.py.

    x_0    a clean image, with values in [-1, 1]
    x_t    the same image after the noise of the steps 0 .. t
    x_T    pure noise, from which sampling starts at t = T-1
    t      the timestep, 0 .. T-1 (papers count 1 .. T); x_0 is always the clean image, before
           step 0
    eps    the noise in x_t, drawn from N(0, I)
    v      sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, a mixture of the two that is easy to
           predict at every t; the UNet's last layer gives v, and `predict_eps` makes eps of it,
           because the loss, the samplers and guidance all speak of eps. alpha_bar is the fraction
           of the image's variance that is left in x_t

Papers:
    DDPM               Ho, Jain, Abbeel 2020           https://arxiv.org/abs/2006.11239
    DDIM               Song, Meng, Ermon 2021          https://arxiv.org/abs/2010.02502
    cosine schedule    Nichol, Dhariwal 2021           https://arxiv.org/abs/2102.09672
    v-prediction       Salimans, Ho 2022               https://arxiv.org/abs/2202.00512
    guidance           Ho, Salimans 2021               https://arxiv.org/abs/2207.12598
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class NoiseSchedule(nn.Module):
    """The amount of noise at each of T timesteps, as tables of shape (T,), indexed by t = 0 .. T-1.

    beta                        variance of the noise that step t adds
    alpha = 1 - beta            fraction of the variance that step t keeps
    alpha_bar                   product of alpha over the steps 0 .. t: the fraction of the
                                image's variance that is left in x_t
    sqrt_alpha_bar              weight of the image in x_t (DDPM Eq. 4)
    sqrt_one_minus_alpha_bar    weight of the noise in x_t (DDPM Eq. 4)
    posterior_variance          variance of q(x_{t-1} | x_t, x_0), the distribution of the image one
                                step earlier if x_0 were known; 0 at t = 0 (DDPM Eq. 7)
    posterior_mean_x_0          weight of x_0 in the mean of q (DDPM Eq. 7)
    posterior_mean_x_t          weight of x_t in the mean of q

    The tables are computed in float64, because alpha_bar is a long product, and kept in float32.
    They are buffers, so `schedule.to(device)` moves them. A checkpoint does not hold them.
    """

    def __init__(self, beta):
        super().__init__()
        beta = torch.as_tensor(beta, dtype=torch.float64)
        alpha = 1 - beta
        alpha_bar = alpha.cumprod(0)
        alpha_bar_prev = F.pad(alpha_bar[:-1], (1, 0), value=1.0)  # before step 0 there is no noise
        tables = {
            "beta": beta,
            "alpha": alpha,
            "alpha_bar": alpha_bar,
            "sqrt_alpha_bar": alpha_bar.sqrt(),
            "sqrt_one_minus_alpha_bar": (1 - alpha_bar).sqrt(),
            "posterior_variance": beta * (1 - alpha_bar_prev) / (1 - alpha_bar),
            "posterior_mean_x_0": alpha_bar_prev.sqrt() * beta / (1 - alpha_bar),
            "posterior_mean_x_t": alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    @classmethod
    def linear(cls, T=1000, beta_first=1e-4, beta_last=0.02):
        """Return DDPM's schedule, in which beta grows linearly from beta_first to beta_last."""
        return cls(torch.linspace(beta_first, beta_last, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T=1000, s=0.008):
        """Return the cosine schedule, which keeps the shapes of small images visible for longer.

        alpha_bar falls like a squared cosine (Nichol and Dhariwal, Eq. 17).
        """
        u = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
        # Else the last alpha_bar would be 0 up to rounding, and `predict_x0` divides by its root.
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    def __len__(self):
        """Return T, the number of timesteps."""
        return len(self.beta)

    def add_noise(self, x_0, eps, t):
        """Return x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps (DDPM Eq. 4).

        x_0, eps: (B, ...), of one shape; t: (B,), int64, in 0 .. T-1. The result is shaped like
        x_0. Raises ValueError if shapes or dtype do not fit and, on a CPU, for t outside its range.
        """
        signal, noise = self._weights(x_0, eps, t)
        return signal * x_0 + noise * eps

    def predict_x0(self, x_t, eps, t):
        """Return the x_0 from which `add_noise` makes x_t with this eps: Eq. 4 solved for x_0.

        Arguments and errors are those of `add_noise`.
        """
        signal, noise = self._weights(x_t, eps, t)
        return (x_t - noise * eps) / signal

    def predict_eps(self, x_t, v, t):
        """Return eps = sqrt(1 - alpha_bar_t) x_t + sqrt(alpha_bar_t) v (Salimans and Ho, App. D).

        Where x_t is nearly pure noise, eps is nearly x_t: a network that predicts eps has to copy
        its input there, and `predict_x0` divides its small errors by sqrt(alpha_bar_t), which is
        nearly 0. v is nearly -x_0 there, so a network that predicts v has to predict the image.
        Arguments and errors are those of `add_noise`.
        """
        signal, noise = self._weights(x_t, v, t)
        return noise * x_t + signal * v

    def _weights(self, x, other, t):
        """Check x, other and t. Returns the weights of image and noise in x_t, both (B, 1, ...)."""
        if x.shape != other.shape:
            raise ValueError(f"images {tuple(x.shape)} and what is mixed with them "
                             f"{tuple(other.shape)} must have the same shape")
        if t.shape != x.shape[:1] or t.dtype != torch.int64:
            raise ValueError(f"t must hold one int64 timestep for each of the {len(x)} images, "
                             f"but is {t.dtype} of shape {tuple(t.shape)}")
        # Only on the CPU: to read a value, the program would have to wait for a GPU.
        if t.device.type == "cpu" and t.numel() and not 0 <= t.min() <= t.max() < len(self):
            raise ValueError(f"timesteps run from 0 to {len(self) - 1}, but t holds "
                             f"{t.min()} .. {t.max()}")
        return (_per_image(self.sqrt_alpha_bar, t, x),
                _per_image(self.sqrt_one_minus_alpha_bar, t, x))


def _per_image(table, t, x):
    """Return table[t], shaped (B, 1, ...) so that it multiplies each image of x by its number."""
    return table[t].view(-1, *[1] * (x.ndim - 1))


def diffusion_loss(eps_model, schedule, x_0, t, eps):
    """Return the mean over all elements of (eps - eps_theta(x_t, t))^2 / alpha_bar_t.

    x_0: (B, ...), images in [-1, 1]; t: (B,), timesteps; eps: noise like x_0. The caller draws t
    and eps. Raises ValueError if the model's prediction has another shape than the noise.

    DDPM's Eq. 14 and ControlNet's Eq. 5 weigh errors in eps equally at every t. Dividing by
    alpha_bar weighs errors in v equally, because eps_theta - eps = sqrt(alpha_bar) (v_theta - v).
    For a network whose last layer gives v, this is a plain mean of squares, in which the small
    divisor cancels.
    """
    prediction = eps_model(schedule.add_noise(x_0, eps, t), t)
    if prediction.shape != eps.shape:
        raise ValueError(f"eps_model returned {tuple(prediction.shape)} for images of shape "
                         f"{tuple(eps.shape)}")
    v_error = (prediction - eps) / _per_image(schedule.sqrt_alpha_bar, t, eps)
    return v_error.square().mean()


def guided(eps_cond, eps_uncond, w):
    """Return classifier-free guidance, eps_uncond + w (eps_cond - eps_uncond), as an eps_model.

    The prediction goes from the one without a prompt towards the one with it, and beyond it if
    w > 1: images then show the prompt more clearly, and vary less. eps_cond, eps_uncond: eps_models
    with and without what is to be strengthened, such as the prompt. One network gives both, because
    training replaces some prompts by the null prompt (`Recipe.drop_prompts`). w = 1 is no guidance,
    and w = 0 ignores the prompt. (The paper's w is this one minus 1.)
    """
    if w == 1:
        return eps_cond

    def eps_guided(x_t, t):
        without = eps_uncond(x_t, t)
        return without + w * (eps_cond(x_t, t) - without)

    return eps_guided


@torch.no_grad()
def sample_ddpm(eps_model, schedule, x_T, generator=None, *, clip=True, hook=None):
    """Draw images by DDPM's ancestral sampling (Algorithm 2), in T steps.

    Each step but the last adds fresh noise. x_T: (B, ...), drawn from N(0, I). generator: draws the
    fresh noise. clip: keep each prediction of x_0 in [-1, 1], the range of images. hook(t, x_t,
    x_0): called at each step with t, an int, the noisy images and the x_0 that the model predicts
    from them, clipped if `clip`. Returns images shaped like x_T, which lie in [-1, 1] if they are
    clipped.
    """
    x_t = x_T
    for t in range(len(schedule) - 1, -1, -1):
        x_0 = _predict_x0(eps_model, schedule, x_t, t, clip)
        if hook:
            hook(t, x_t, x_0)
        # The mean of q(x_{t-1} | x_t, x_0), DDPM Eq. 7. It equals Algorithm 2's
        # (x_t - beta eps / sqrt(1 - alpha_bar)) / sqrt(alpha), and also holds for a clipped x_0.
        x_t = schedule.posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t
        if t > 0:
            noise = _noise_like(x_t, generator)
            x_t = x_t + schedule.posterior_variance[t].sqrt() * noise
    return x_t


@torch.no_grad()
def sample_ddim(eps_model, schedule, x_T, steps=50, eta=0.0, generator=None, *, clip=True,
                hook=None):
    """Draw images by DDIM (Eq. 12, whose alpha is our alpha_bar), which skips most timesteps.

    steps: how many timesteps are visited, spread evenly from T-1 to 0. eta: the amount of fresh
    noise; 0 is deterministic, and 1 with steps = T is DDPM, up to rounding. The other arguments
    and the result are those of `sample_ddpm`. Raises ValueError for steps outside 1 .. T.
    """
    if not 1 <= steps <= len(schedule):
        raise ValueError(f"steps must lie between 1 and the schedule's {len(schedule)}, "
                         f"not {steps}")
    times = torch.linspace(len(schedule) - 1, 0, steps).round().long().tolist()
    x_t = x_T
    for t, t_prev in zip(times, [*times[1:], None]):
        x_0 = _predict_x0(eps_model, schedule, x_t, t, clip)
        if hook:
            hook(t, x_t, x_0)
        if t_prev is None:
            return x_0
        alpha_bar = schedule.alpha_bar[t]
        alpha_bar_prev = schedule.alpha_bar[t_prev]
        # The noise that belongs to this x_0, which may have been clipped (DDPM Eq. 4).
        eps = (x_t - schedule.sqrt_alpha_bar[t] * x_0) / schedule.sqrt_one_minus_alpha_bar[t]
        # The variance of the fresh noise at eta = 1 (DDIM Eq. 16, squared).
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
        sigma = eta * variance.sqrt()
        # Rounding may leave -1e-8 under the root.
        direction = (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt()
        x_t = alpha_bar_prev.sqrt() * x_0 + direction * eps
        if eta > 0:
            x_t = x_t + sigma * _noise_like(x_t, generator)


def _predict_x0(eps_model, schedule, x_t, t, clip):
    """Return the x_0 that the model predicts at timestep t, an integer, for all images x_t."""
    t = torch.full((len(x_t),), t, device=x_t.device)
    x_0 = schedule.predict_x0(x_t, eps_model(x_t, t), t)
    return x_0.clamp(-1, 1) if clip else x_0


def _noise_like(x, generator):
    """Return N(0, I) shaped like x. It is drawn where the generator lives, so that a generator on
    the CPU gives the same noise on every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
