"""The diffusion process against closed forms in float64, and samplers on data for which the perfect eps is known."""

import math

import numpy as np
import pytest
import torch

from minicnet.diffusion import NoiseSchedule, diffusion_loss, guided, sample_ddim, sample_ddpm

T = 60
LINEAR, COSINE = NoiseSchedule.linear(T, 1e-3, 0.3), NoiseSchedule.cosine(T)
each_schedule = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


# Schedules


def linear_alpha_bar(T, first, last):
    beta = np.array([first + (last - first) * t / (T - 1) for t in range(T)])
    return np.exp(np.log1p(-beta).cumsum())


def cosine_alpha_bar(T, s=0.008):
    f = np.array([math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)])
    alpha_bar = f[1:] / f[0]
    alpha_bar[-1] = alpha_bar[-2] * 0.001  # beta is 0.999 at most
    return alpha_bar


def assert_is_float32_of(table, expected):
    """table is float32, and as near to the float64 numbers as float32 can be: not computed in float32 on the way."""
    assert table.dtype == torch.float32 and table.shape == expected.shape
    np.testing.assert_allclose(table.double().numpy(), expected, rtol=2**-24 + 1e-11)


@pytest.mark.parametrize("schedule, alpha_bar", [
    (NoiseSchedule.linear(), linear_alpha_bar(1000, 1e-4, 0.02)),  # the papers' defaults
    (NoiseSchedule.linear(30, 0.01, 0.3), linear_alpha_bar(30, 0.01, 0.3)),
    (NoiseSchedule.cosine(), cosine_alpha_bar(1000)),
    (NoiseSchedule.cosine(25), cosine_alpha_bar(25)),
    (NoiseSchedule([0.0123] * 1000), (1 - 0.0123) ** np.arange(1.0, 1001)),
], ids=["linear-1000", "linear-30", "cosine-1000", "cosine-25", "list"])
def test_schedules_follow_their_closed_forms_to_the_last_bit_of_float32(schedule, alpha_bar):
    previous = np.append(1, alpha_bar[:-1])
    alpha = alpha_bar / previous
    assert len(schedule) == len(alpha_bar)
    assert_is_float32_of(schedule.alpha_bar, alpha_bar)
    assert_is_float32_of(schedule.alpha, alpha)
    assert_is_float32_of(schedule.beta, 1 - alpha)
    assert_is_float32_of(schedule.sqrt_alpha_bar, alpha_bar**0.5)
    assert_is_float32_of(schedule.sqrt_one_minus_alpha_bar, (1 - alpha_bar) ** 0.5)
    # The posterior by Bayes' rule, as a product of two Gaussians: precisions add, and so do means times precisions.
    alpha, previous = alpha[1:], previous[1:]
    variance = 1 / (alpha / (1 - alpha) + 1 / (1 - previous))
    assert_is_float32_of(schedule.posterior_variance[1:], variance)
    assert_is_float32_of(schedule.posterior_mean_x_t[1:], variance * alpha**0.5 / (1 - alpha))
    assert_is_float32_of(schedule.posterior_mean_x_0[1:], variance * previous**0.5 / (1 - previous))
    assert schedule.posterior_variance[0] == schedule.posterior_mean_x_t[0] == 0
    assert schedule.posterior_mean_x_0[0] == 1


@pytest.mark.parametrize("beta", [[], 0.1, [[0.1, 0.2]], [0.1, 0.0], [1.0, 0.1], [-0.1], [0.1, math.nan]])
def test_bad_betas_are_refused(beta):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule(beta)


# Adding noise, and the loss


@each_schedule
@pytest.mark.parametrize("shape", [(4,), (4, 3, 2, 5)])
def test_add_noise_by_hand(schedule, shape):
    x_0, eps, t = noise(*shape), noise(*shape, seed=1), torch.tensor([0, T - 1, 7, 7])
    x_t = schedule.add_noise(x_0, eps, t)
    for b in range(4):
        alpha_bar = schedule.alpha_bar[t[b]].item()
        torch.testing.assert_close(x_t[b], math.sqrt(alpha_bar) * x_0[b] + math.sqrt(1 - alpha_bar) * eps[b])


@each_schedule
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_predict_x0_inverts_add_noise(schedule, dtype, tolerance):
    t = torch.arange(T - 1)  # at T - 1 the cosine leaves next to nothing of the image
    x_0, eps = noise(T - 1, 1, 2, 2).to(dtype), noise(T - 1, 1, 2, 2, seed=1).to(dtype)
    x_t = schedule.add_noise(x_0, eps, t)
    back = schedule.predict_x0(x_t, eps, t)
    assert x_t.dtype == back.dtype == dtype
    torch.testing.assert_close(back, x_0, rtol=0, atol=tolerance)


@pytest.mark.parametrize("t, message", [
    (torch.tensor([0, -1]), "from 0 to 59"),
    (torch.tensor([T, 0]), "from 0 to 59"),
    (torch.tensor([1]), "each of the 2 images"),
    (torch.tensor(1), "each of the 2 images"),
    (torch.tensor([[1], [2]]), "each of the 2 images"),
    (torch.tensor([1.0, 2.0]), "int64"),
    (torch.tensor([True, False]), "int64"),
])
def test_bad_timesteps_and_noise_of_another_shape_are_refused(t, message):
    x = torch.zeros(2, 1, 4, 4)
    for method in (LINEAR.add_noise, LINEAR.predict_x0):
        with pytest.raises(ValueError, match=message):
            method(x, x, t)
        with pytest.raises(ValueError, match="same shape"):
            method(x, x[..., :1], torch.tensor([0, 1]))
        assert method(x[:0], x[:0], torch.zeros(0).long()).shape == (0, 1, 4, 4)  # nothing is fine


def test_the_loss_by_hand():
    x_0, eps, t = noise(3, 1, 2, 2), noise(3, 1, 2, 2, seed=1), torch.tensor([3, 0, T - 1])
    weight = torch.tensor(0.5, requires_grad=True)
    loss = diffusion_loss(lambda x_t, t: weight * x_t + t.view(-1, 1, 1, 1), LINEAR, x_0, t, eps)
    errors = eps - 0.5 * LINEAR.add_noise(x_0, eps, t) - t.view(-1, 1, 1, 1)
    assert loss.item() == pytest.approx((errors**2).mean().item(), rel=1e-5) and loss.shape == ()
    loss.backward()
    assert weight.grad != 0
    assert diffusion_loss(lambda x_t, t: eps, COSINE, x_0, t, eps) == 0
    table = torch.linspace(1, 3, T)  # how much each timestep counts
    weighted = diffusion_loss(lambda x_t, t: weight * x_t + t.view(-1, 1, 1, 1), LINEAR, x_0, t, eps, weight=table)
    expected = sum(table[t[b]] * (errors[b] ** 2).mean() for b in range(3)) / 3
    torch.testing.assert_close(weighted, expected)
    with pytest.raises(ValueError):
        diffusion_loss(lambda x_t, t: x_t[..., :1], LINEAR, x_0, t, eps)


# Samplers, on data for which the perfect eps is known


def ddim(steps, eta):
    """sample_ddim with these settings, and the signature of sample_ddpm."""
    return lambda *args, **kwargs: sample_ddim(*args, steps=steps, eta=eta, **kwargs)


QUIET = {"ddim": ddim(10, 0.0), "ddim-all": ddim(T, 0.0), "ddim-one": ddim(1, 0.0)}
NOISY = {"ddpm": sample_ddpm, "ddim-noisy": ddim(17, 0.6), "ddim-ancestral": ddim(T, 1.0), "ddim-one-noisy": ddim(1, 1)}
SAMPLERS = QUIET | NOISY
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())


def eps_of(schedule, guess_x_0):
    """The eps_model that sees in x_t an image guess_x_0(x_t, alpha_bar)."""

    def eps_model(x_t, t):
        assert t.shape == (len(x_t),) and t.dtype == torch.int64 and (t == t[0]).all()
        x_0 = guess_x_0(x_t.double(), schedule.alpha_bar[t[0]].double())
        eps = (x_t.double() - schedule.sqrt_alpha_bar[t[0]] * x_0) / schedule.sqrt_one_minus_alpha_bar[t[0]]
        return eps.to(x_t.dtype)

    return eps_model


def gaussian(schedule):
    """The perfect eps for x_0 from N(0, I): sqrt(1 - alpha_bar) x_t."""
    return eps_of(schedule, lambda x_t, alpha_bar: alpha_bar.sqrt() * x_t)


def stubborn(x_t, t):
    """An eps_model that is far from linear, knows the time, and makes most of the predictions of x_0 leave [-1, 1]."""
    return torch.sin(3 * x_t) + torch.cos(t.to(x_t.dtype)).view(-1, *[1] * (x_t.ndim - 1))


def trace(sampler, eps_model, schedule, x_T, **kwargs):
    """Samples, and returns the result and all that the hook saw: a list of (t, x_t, x_0)."""
    seen = []
    result = sampler(eps_model, schedule, x_T, hook=lambda t, x_t, x_0: seen.append((t, x_t, x_0)), **kwargs)
    return result, seen


@each_schedule
@each_sampler
@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("shape", [(3, 1, 2, 4), (3, 2)])
def test_a_point_mass_is_where_samplers_land(schedule, sampler, clip, shape):
    x_0, x_T = noise(*shape).double().clamp(-0.9, 0.9), noise(*shape, seed=1).double()
    eps_model = eps_of(schedule, lambda x_t, alpha_bar: x_0)
    result = sampler(eps_model, schedule, x_T, generator=generator(2), clip=clip)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-9)


@each_schedule
def test_a_unit_gaussian_in_ddpm_follows_algorithm_2_number_for_number(schedule):
    """Algorithm 2 with eps = sqrt(1 - alpha_bar) x_t is x_{t-1} = sqrt(alpha) x_t + sqrt(posterior variance) z."""
    x_T = noise(50, 2)
    _, seen = trace(sample_ddpm, gaussian(schedule), schedule, x_T, generator=generator(1), clip=False)
    alpha, alpha_bar = schedule.alpha.double(), schedule.alpha_bar.double()
    x, z = x_T.double(), generator(1)
    for t, x_t, x_0 in seen:
        torch.testing.assert_close(x_t.double(), x, rtol=0, atol=1e-4)
        torch.testing.assert_close(x_0.double(), alpha_bar[t].sqrt() * x, rtol=0, atol=1e-2 if t == T - 1 else 1e-3)
        if t > 0:
            variance = (1 - alpha[t]) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t])
            x = alpha[t].sqrt() * x + variance.sqrt() * torch.randn(50, 2, generator=z)


def gaussian_variances(schedule, times, eta):
    """The exact variance of x_t at each of `times` for a unit Gaussian and an x_T of variance 1."""
    alpha_bar, variances = schedule.alpha_bar.double(), [1.0]
    for t, t_prev in zip(times, times[1:]):
        a, b = alpha_bar[t], alpha_bar[t_prev]
        sigma2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        keep = (a * b).sqrt() + ((1 - a) * (1 - b - sigma2)).sqrt()
        variances.append((keep**2 * variances[-1] + sigma2).item())
    return variances


@each_schedule
@pytest.mark.parametrize("sampler, eta", [(sample_ddpm, 1), (ddim(T, 0.0), 0), (ddim(T, 0.5), 0.5), (ddim(T, 1.0), 1),
                                          (ddim(12, 0.0), 0), (ddim(12, 0.5), 0.5), (ddim(12, 1.0), 1)],
                         ids=["ddpm", "ddim-all", "ddim-all-half", "ddim-ancestral", "ddim", "ddim-half", "ddim-noisy"])
def test_a_unit_gaussian_has_the_exact_variance_at_every_step(schedule, sampler, eta):
    x_T = noise(20_000, 1)
    x_T = (x_T - x_T.mean()) / x_T.std()
    _, seen = trace(sampler, gaussian(schedule), schedule, x_T, generator=generator(1), clip=False)
    expected = gaussian_variances(schedule, [t for t, _, _ in seen], eta)
    actual = [x_t.var().item() for _, x_t, _ in seen]
    np.testing.assert_allclose(actual, expected, rtol=0.04 if eta else 1e-3)
    if len(seen) == T:
        assert min(expected) > 0.85  # and all of them are near 1


@each_schedule
@pytest.mark.parametrize("sampler", [sample_ddpm, ddim(T, 0.0), ddim(T, 1.0)])
def test_two_points_are_drawn_as_often_as_they_should_be(schedule, sampler):
    """x_0 is +1 with probability 1/4, else -1. The posterior mean is a tanh, so this eps is not linear in x_t."""
    prior = math.atanh(2 * 0.25 - 1)
    eps_model = eps_of(schedule, lambda x_t, alpha_bar: torch.tanh(alpha_bar.sqrt() * x_t / (1 - alpha_bar) + prior))
    result = sampler(eps_model, schedule, noise(8000), generator=generator(1))
    torch.testing.assert_close(result.abs(), torch.ones(8000), rtol=0, atol=0.05)
    assert (result > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


@each_schedule
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_eta_1_and_all_steps_is_ddpm_number_for_number(schedule, clip):
    eps_model = stubborn if clip else gaussian(schedule)
    kwargs = dict(schedule=schedule, x_T=noise(20, 2).double(), clip=clip)
    _, ddpm_seen = trace(sample_ddpm, eps_model, generator=generator(1), **kwargs)
    _, ddim_seen = trace(ddim(T, 1.0), eps_model, generator=generator(1), **kwargs)
    for (t, x_t, x_0), (u, y_t, y_0) in zip(ddpm_seen, ddim_seen, strict=True):
        assert t == u
        torch.testing.assert_close(x_t, y_t, rtol=0, atol=2e-5)
        torch.testing.assert_close(x_0, y_0, rtol=0, atol=3e-4)


@pytest.mark.parametrize("steps", [2, 3, 6, 10, 50])
@pytest.mark.parametrize("schedule", [NoiseSchedule.linear(), NoiseSchedule.cosine()], ids=["linear", "cosine"])
def test_ancestral_ddim_is_finite_for_any_number_of_steps(schedule, steps):
    result = sample_ddim(gaussian(schedule), schedule, noise(4, 2), steps=steps, eta=1.0, generator=generator())
    assert result.isfinite().all()


# Samplers, step by step


@each_sampler
def test_noise_comes_from_the_generator_at_each_step_but_the_last(sampler):
    before, used, expected = torch.get_rng_state(), generator(1), generator(1)
    result, seen = trace(sampler, stubborn, LINEAR, noise(3, 2), generator=used)
    for _ in range(len(seen) - 1 if sampler in NOISY.values() else 0):
        torch.randn(3, 2, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(sampler(stubborn, LINEAR, noise(3, 2), generator=generator(1)), result)


@each_sampler
def test_x_0_is_clipped_inside_and_only_if_asked(sampler):
    x_T = noise(30, 2)
    result, seen = trace(sampler, stubborn, LINEAR, x_T, generator=generator(1))
    for t, x_t, x_0 in seen:
        times = torch.full((30,), t)
        assert torch.equal(x_0, LINEAR.predict_x0(x_t, stubborn(x_t, times), times).clamp(-1, 1))
    assert torch.equal(seen[0][1], x_T) and torch.equal(x_T, noise(30, 2))
    torch.testing.assert_close(result, seen[-1][2])
    _, seen = trace(sampler, stubborn, LINEAR, x_T, generator=generator(1), clip=False)
    assert seen[0][2].abs().max() > 1


@pytest.mark.parametrize("sampler, steps", [(sample_ddpm, T), (sample_ddim, 50)] + [
    (ddim(steps, 0.0), steps) for steps in (1, 2, 3, 7, 25, T - 1, T)])
def test_steps_are_spread_evenly_from_the_last_to_the_first(sampler, steps):
    _, seen = trace(sampler, gaussian(LINEAR), LINEAR, noise(3, 2))
    assert len(seen) == steps
    for k, (t, _, _) in enumerate(seen):  # no further than rounding from where it should be
        assert abs(t - (T - 1) * (1 - k / max(steps - 1, 1))) <= 0.5001


@pytest.mark.parametrize("steps", [0, -1, T + 1])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the schedule's 60"):
        sample_ddim(gaussian(LINEAR), LINEAR, noise(2, 2), steps=steps)


@pytest.mark.parametrize("sampler", [sample_ddpm, ddim(5, 0.0), ddim(5, 1.0)])
def test_samplers_stay_on_the_device_of_x_T_and_keep_no_graph(sampler):
    """On "meta", where tensors have no values, any mixture of devices is refused."""
    schedule, x_T = NoiseSchedule.linear(10), torch.zeros(2, 1, 4, 4, device="meta")
    assert schedule.to("meta") is schedule
    weight = torch.ones((), device="meta", requires_grad=True)
    for generator in (None, torch.Generator()):  # one of the CPU gives noise to every device
        result = sampler(lambda x_t, t: weight * x_t * t.view(-1, 1, 1, 1), schedule, x_T, generator=generator)
        assert result.device.type == "meta" and not result.requires_grad
    assert torch.is_grad_enabled()


# Guidance


@pytest.mark.parametrize("w, rows", [(1, 3), (0, 3), (-1, 6), (0.5, 6), (7.5, 6)])
def test_guidance_goes_along_the_line_through_both_in_one_call(w, rows):
    calls = []

    def eps_model(x_t, t, a, b):
        calls.append(len(x_t))
        return x_t * a[:, None] + b * t[:, None]

    x_t, t = noise(3, 2), torch.tensor([4, 0, 9])
    conditional = torch.tensor([1, 2, 3]), noise(3, 2, seed=1)
    unconditional = torch.tensor([7, 7, 7]), noise(3, 2, seed=2)
    eps = guided(eps_model, conditional, unconditional, w)(x_t, t)
    assert calls == [rows]
    expected = w * eps_model(x_t, t, *conditional) + (1 - w) * eps_model(x_t, t, *unconditional)
    torch.testing.assert_close(eps, expected, rtol=1e-4, atol=1e-4)


def test_guidance_wants_both_sides_to_have_the_same_inputs():
    with pytest.raises(ValueError):
        guided(stubborn, (torch.zeros(3), torch.zeros(3)), (torch.zeros(3),), 2)
