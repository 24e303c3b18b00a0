"""The diffusion process: how an image becomes noise, what a network learns from it, and how noise becomes an image.

Nothing here knows what the network looks like. It is any callable `eps_model(x_t, t)` that looks at noisy images x_t
(B, ...) and their timesteps t (B,), and returns its guess of the noise in them, shaped like x_t. A closure adds
whatever else a network wants to know: `lambda x_t, t: unet(x_t, t, prompt)`.

    x_0      an image in [-1, 1]               eps      the noise, drawn from N(0, I)
    x_t      the image after t steps of noise  t        the timestep, 0 .. T-1 (the papers count 1 .. T)

DDPM: Ho, Jain, Abbeel 2020, arXiv 2006.11239.   DDIM: Song, Meng, Ermon 2021, arXiv 2010.02502.
Cosine schedule: Nichol, Dhariwal 2021, arXiv 2102.09672.   Guidance: Ho, Salimans 2021, arXiv 2207.12598.
"""

import math

import torch
import torch.nn.functional as F


class NoiseSchedule:
    """How much noise there is at each of T timesteps. Every table has shape (T,) and is indexed by t = 0 .. T-1.

    beta                      variance of the noise that step t adds
    alpha = 1 - beta          share of the variance that step t keeps
    alpha_bar                 share of the image's variance left after step t: the running product of alpha
    sqrt_alpha_bar, sqrt_one_minus_alpha_bar      the weights of image and noise in x_t, DDPM Eq. 4
    posterior_variance        variance of q(x_{t-1} | x_t, x_0), DDPM Eq. 7; 0 at t = 0
    posterior_mean_x_0, posterior_mean_x_t        the weights of x_0 and x_t in the mean of that q

    The tables are computed in float64, because alpha_bar is a long product, and kept in float32.
    """

    def __init__(self, beta):
        beta = torch.as_tensor(beta, dtype=torch.float64)
        if beta.ndim != 1 or not len(beta) or not ((beta > 0) & (beta < 1)).all():
            raise ValueError("beta must be a list of numbers strictly between 0 and 1, one for each timestep")
        alpha = 1 - beta
        alpha_bar = alpha.cumprod(0)
        alpha_bar_prev = F.pad(alpha_bar[:-1], (1, 0), value=1.0)  # before the first step the image is whole
        self.beta = beta.float()
        self.alpha = alpha.float()
        self.alpha_bar = alpha_bar.float()
        self.sqrt_alpha_bar = alpha_bar.sqrt().float()
        self.sqrt_one_minus_alpha_bar = (1 - alpha_bar).sqrt().float()
        self.posterior_variance = (beta * (1 - alpha_bar_prev) / (1 - alpha_bar)).float()
        self.posterior_mean_x_0 = (alpha_bar_prev.sqrt() * beta / (1 - alpha_bar)).float()
        self.posterior_mean_x_t = (alpha.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar)).float()

    @classmethod
    def linear(cls, T=1000, beta_first=1e-4, beta_last=0.02):
        """DDPM's schedule: beta grows linearly from beta_first to beta_last."""
        return cls(torch.linspace(beta_first, beta_last, T, dtype=torch.float64))

    @classmethod
    def cosine(cls, T=1000, s=0.008):
        """alpha_bar falls like a squared cosine (Nichol and Dhariwal, Eq. 17): small images keep their shape longer."""
        u = torch.arange(T + 1, dtype=torch.float64) / T
        alpha_bar = torch.cos((u + s) / (1 + s) * math.pi / 2) ** 2
        return cls((1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999))

    def __len__(self):
        """T, the number of timesteps."""
        return len(self.beta)

    def to(self, device):
        """Moves every table to `device`, in place, and returns the schedule."""
        for name, table in vars(self).items():
            setattr(self, name, table.to(device))
        return self

    def add_noise(self, x_0, eps, t):
        """x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps: t steps of noise in one (DDPM Eq. 4).

        x_0, eps: (B, ...) of one shape; t: (B,) integers in 0 .. T-1. Raises ValueError if they do not fit together.
        """
        self._check(x_0, eps, t)
        return _at(self.sqrt_alpha_bar, t, x_0) * x_0 + _at(self.sqrt_one_minus_alpha_bar, t, x_0) * eps

    def predict_x0(self, x_t, eps, t):
        """The x_0 from which `eps` made x_t: `add_noise` solved for x_0. Arguments and errors as there."""
        self._check(x_t, eps, t)
        return (x_t - _at(self.sqrt_one_minus_alpha_bar, t, x_t) * eps) / _at(self.sqrt_alpha_bar, t, x_t)

    def _check(self, x, eps, t):
        if x.shape != eps.shape:
            raise ValueError(f"images {tuple(x.shape)} and noise {tuple(eps.shape)} must have the same shape")
        if t.shape != x.shape[:1] or t.dtype != torch.int64:
            raise ValueError(f"t must hold one int64 timestep for each of the {len(x)} images, "
                             f"but is {t.dtype} of shape {tuple(t.shape)}")
        if t.device.type == "cpu" and t.numel() and not 0 <= t.min() <= t.max() < len(self):  # a GPU would have to wait
            raise ValueError(f"timesteps run from 0 to {len(self) - 1}, but t holds {t.min()} .. {t.max()}")


def _at(table, t, x):
    """table[t], shaped (B, 1, ...) so that it multiplies each image of x (B, ...) by its own number."""
    return table[t].view(-1, *[1] * (x.ndim - 1))


def diffusion_loss(eps_model, schedule, x_0, t, eps, weight=None):
    """|| eps - eps_theta(x_t, t) ||^2, averaged over all pixels (DDPM Eq. 14; ControlNet Eq. 5).

    x_0: (B, ...) images in [-1, 1]. t: (B,) timesteps and eps: noise like x_0 from N(0, I), drawn by the caller.
    weight: (T,), how much an error counts at each timestep; all alike unless given.
    """
    guess = eps_model(schedule.add_noise(x_0, eps, t), t)
    if guess.shape != eps.shape:
        raise ValueError(f"eps_model gave {tuple(guess.shape)} for images of shape {tuple(eps.shape)}")
    error = (guess - eps).square().flatten(1).mean(1)  # (B,)
    return (error if weight is None else weight[t] * error).mean()


def guided(eps_model, conditional, unconditional, w):
    """Classifier-free guidance: eps = eps_uncond + w (eps_cond - eps_uncond), as an `eps_model(x_t, t)` for a sampler.

    eps_model(x_t, t, *inputs) is called with `conditional`, a tuple of tensors of B rows each (such as prompts), and
    with `unconditional`, the same with what is to be strengthened left out (such as null prompts): both in one batch
    of 2B. w = 1 is no guidance, w = 0 ignores the condition; either costs a single batch of B.
    """
    if w == 1:
        return lambda x_t, t: eps_model(x_t, t, *conditional)
    if w == 0:
        return lambda x_t, t: eps_model(x_t, t, *unconditional)
    inputs = [torch.cat(pair) for pair in zip(conditional, unconditional, strict=True)]

    def eps_guided(x_t, t):
        eps_cond, eps_uncond = eps_model(torch.cat([x_t, x_t]), torch.cat([t, t]), *inputs).chunk(2)
        return eps_uncond + w * (eps_cond - eps_uncond)

    return eps_guided


@torch.no_grad()
def sample_ddpm(eps_model, schedule, x_T, generator=None, *, clip=True, hook=None):
    """DDPM ancestral sampling (Algorithm 2): all T steps back from noise to an image, fresh noise at each but the last.

    x_T: (B, ...) drawn from N(0, I). clip: keep each prediction of x_0 in [-1, 1], the range of images.
    hook(t, x_t, x_0): called at each step with the noisy images and the x_0 that the model sees in them.
    Returns images shaped like x_T, in [-1, 1] if clipped.
    """
    x_t = x_T
    for t in range(len(schedule) - 1, -1, -1):
        x_0 = _predict_x0(eps_model, schedule, x_t, t, clip)
        if hook:
            hook(t, x_t, x_0)
        # The mean of q(x_{t-1} | x_t, x_0), DDPM Eq. 7. It equals Algorithm 2's (x_t - beta eps / sqrt(1 - alpha_bar))
        # / sqrt(alpha), but also holds for a clipped x_0.
        x_t = schedule.posterior_mean_x_0[t] * x_0 + schedule.posterior_mean_x_t[t] * x_t
        if t > 0:
            x_t = x_t + schedule.posterior_variance[t].sqrt() * _noise_like(x_t, generator)
    return x_t


@torch.no_grad()
def sample_ddim(eps_model, schedule, x_T, steps=50, eta=0.0, generator=None, *, clip=True, hook=None):
    """DDIM sampling (Eq. 12): `steps` of the T timesteps, evenly spread from T-1 to 0, jumping from each to the next.

    eta: how much fresh noise a step adds. 0 is deterministic; 1 with steps = T is DDPM, number for number.
    The other arguments and the result are those of `sample_ddpm`. Raises ValueError for steps outside 1 .. T.
    """
    if not 1 <= steps <= len(schedule):
        raise ValueError(f"steps must lie between 1 and the schedule's {len(schedule)}, not {steps}")
    times = torch.linspace(len(schedule) - 1, 0, steps).round().long().tolist()
    x_t = x_T
    for t, t_prev in zip(times, [*times[1:], None]):
        x_0 = _predict_x0(eps_model, schedule, x_t, t, clip)
        if hook:
            hook(t, x_t, x_0)
        if t_prev is None:
            return x_0
        alpha_bar, alpha_bar_prev = schedule.alpha_bar[t], schedule.alpha_bar[t_prev]
        eps = (x_t - schedule.sqrt_alpha_bar[t] * x_0) / schedule.sqrt_one_minus_alpha_bar[t]  # to fit the clipped x_0
        sigma = eta * ((1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)).sqrt()
        direction = (1 - alpha_bar_prev - sigma**2).clamp(min=0).sqrt()  # rounding must not make it the root of -1e-8
        x_t = alpha_bar_prev.sqrt() * x_0 + direction * eps
        if eta > 0:
            x_t = x_t + sigma * _noise_like(x_t, generator)


def _predict_x0(eps_model, schedule, x_t, t, clip):
    t = torch.full((len(x_t),), t, device=x_t.device)
    x_0 = schedule.predict_x0(x_t, eps_model(x_t, t), t)
    return x_0.clamp(-1, 1) if clip else x_0


def _noise_like(x, generator):
    """N(0, I) shaped like x, drawn where the generator lives: a generator on the CPU gives every device one noise."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, generator=generator, device=device, dtype=x.dtype).to(x.device)
