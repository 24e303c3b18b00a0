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


def ddim_any(steps, eta):
    """sample_ddim with these settings, and the signature of sample_ddpm."""
    return lambda *args, **kwargs: sample_ddim(*args, steps=steps, eta=eta, **kwargs)


# Schedules


def linear_alpha_bar(T, first, last):
    beta = np.array([first + (last - first) * t / (T - 1) for t in range(T)])
    return np.exp(np.log1p(-beta).cumsum())


def cosine_alpha_bar(T, s=0.008):
    f = np.array([math.cos((t / T + s) / (1 + s) * math.pi / 2) ** 2 for t in range(T + 1)])
    alpha_bar = f[1:] / f[0]
    alpha_bar[-1] = alpha_bar[-2] * 0.001  # beta is 0.999 at most
    return alpha_bar


CLOSED_FORMS = pytest.mark.parametrize("schedule, alpha_bar", [
    (NoiseSchedule.linear(1000, 1e-4, 0.02), linear_alpha_bar(1000, 1e-4, 0.02)),
    (NoiseSchedule.linear(30, 0.01, 0.3), linear_alpha_bar(30, 0.01, 0.3)),
    (NoiseSchedule.cosine(1000), cosine_alpha_bar(1000)),
    (NoiseSchedule.cosine(25), cosine_alpha_bar(25)),
], ids=["linear-1000", "linear-30", "cosine-1000", "cosine-25"])


def assert_is_float32_of(table, expected):
    """table is float32, and as near to the float64 numbers as float32 can be: not computed in float32 on the way."""
    assert table.dtype == torch.float32 and table.shape == expected.shape
    np.testing.assert_allclose(table.double().numpy(), expected, rtol=2**-24 + 1e-11)


@CLOSED_FORMS
def test_schedules_follow_their_closed_forms_to_the_last_bit_of_float32(schedule, alpha_bar):
    alpha = alpha_bar / np.append(1, alpha_bar[:-1])
    assert len(schedule) == len(alpha_bar)
    assert_is_float32_of(schedule.alpha_bar, alpha_bar)
    assert_is_float32_of(schedule.alpha, alpha)
    assert_is_float32_of(schedule.beta, 1 - alpha)
    assert_is_float32_of(schedule.sqrt_alpha_bar, alpha_bar**0.5)
    assert_is_float32_of(schedule.sqrt_one_minus_alpha_bar, (1 - alpha_bar) ** 0.5)


@CLOSED_FORMS
def test_the_posterior_is_the_product_of_two_gaussians(schedule, alpha_bar):
    """q(x_{t-1} | x_t, x_0) by Bayes' rule: precisions add, and so do means times precisions."""
    alpha_bar, previous = alpha_bar[1:], alpha_bar[:-1]
    alpha = alpha_bar / previous
    variance = 1 / (alpha / (1 - alpha) + 1 / (1 - previous))
    assert_is_float32_of(schedule.posterior_variance[1:], variance)
    assert_is_float32_of(schedule.posterior_mean_x_t[1:], variance * alpha**0.5 / (1 - alpha))
    assert_is_float32_of(schedule.posterior_mean_x_0[1:], variance * previous**0.5 / (1 - previous))


@each_schedule
def test_at_t_0_the_posterior_is_x_0_without_variance(schedule):
    assert schedule.posterior_variance[0] == 0
    assert schedule.posterior_mean_x_0[0] == 1
    assert schedule.posterior_mean_x_t[0] == 0


@each_schedule
def test_noise_only_ever_grows(schedule):
    assert (schedule.alpha_bar.diff() < 0).all()
    assert 0 < schedule.alpha_bar[-1] < 0.02 and 0.98 < schedule.alpha_bar[0] < 1


def test_the_defaults_are_those_of_the_papers():
    assert torch.equal(NoiseSchedule.linear().beta, NoiseSchedule.linear(1000, 1e-4, 0.02).beta)
    assert NoiseSchedule.linear().alpha_bar[-1].item() == pytest.approx(4.0358e-5, rel=1e-4)
    assert torch.equal(NoiseSchedule.cosine().beta, NoiseSchedule.cosine(1000, 0.008).beta)


def test_any_list_of_betas_makes_a_schedule():
    schedule = NoiseSchedule([0.1, 0.5, 0.2])
    assert schedule.alpha_bar.tolist() == pytest.approx([0.9, 0.45, 0.36])


def test_a_list_of_betas_is_computed_in_float64():
    schedule = NoiseSchedule([0.0123] * 1000)
    assert schedule.alpha_bar[-1].item() == pytest.approx((1 - 0.0123) ** 1000, rel=2e-7)


@pytest.mark.parametrize("beta", [[], 0.1, [[0.1, 0.2]], [0.1, 0.0], [1.0, 0.1], [-0.1], [0.1, math.nan], [math.inf]])
def test_bad_betas_are_refused(beta):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        NoiseSchedule(beta)


def test_a_schedule_moves_as_a_whole():
    schedule = NoiseSchedule.cosine(5)
    assert schedule.to("meta") is schedule
    assert {table.device.type for table in vars(schedule).values()} == {"meta"}


# Adding noise


@each_schedule
@pytest.mark.parametrize("shape", [(4,), (4, 2), (4, 3, 2, 5)])
def test_add_noise_by_hand(schedule, shape):
    x_0, eps, t = noise(*shape), noise(*shape, seed=1), torch.tensor([0, T - 1, 7, 7])
    x_t = schedule.add_noise(x_0, eps, t)
    for b in range(4):
        alpha_bar = schedule.alpha_bar[t[b]].item()
        expected = math.sqrt(alpha_bar) * x_0[b].numpy() + math.sqrt(1 - alpha_bar) * eps[b].numpy()
        np.testing.assert_allclose(x_t[b].numpy(), expected, atol=1e-5)


@each_schedule
def test_noise_in_one_go_is_noise_step_by_step(schedule):
    mean, variance = 1.0, 0.0
    for t in range(T):
        beta = schedule.beta[t].item()
        mean, variance = math.sqrt(1 - beta) * mean, (1 - beta) * variance + beta
        x_t = schedule.add_noise(torch.ones(20_000), noise(20_000, seed=t), torch.full((20_000,), t))
        assert x_t.mean().item() == pytest.approx(mean, abs=0.03)
        assert x_t.var().item() == pytest.approx(variance, rel=0.05)


@each_schedule
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-3), (torch.float64, 1e-11)])
def test_predict_x0_inverts_add_noise(schedule, dtype, tolerance):
    t = torch.arange(T - 1)  # at T - 1 the cosine leaves next to nothing of the image
    x_0, eps = noise(T - 1, 1, 2, 2).to(dtype), noise(T - 1, 1, 2, 2, seed=1).to(dtype)
    x_t = schedule.add_noise(x_0, eps, t)
    back = schedule.predict_x0(x_t, eps, t)
    assert x_t.dtype == back.dtype == dtype
    torch.testing.assert_close(back, x_0, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", ["add_noise", "predict_x0"])
@pytest.mark.parametrize("t, message", [
    (torch.tensor([0, -1]), "from 0 to 59"),
    (torch.tensor([T, 0]), "from 0 to 59"),
    (torch.tensor([1]), "each of the 2 images"),
    (torch.tensor([1, 2, 3]), "each of the 2 images"),
    (torch.tensor(1), "each of the 2 images"),
    (torch.tensor([[1], [2]]), "each of the 2 images"),
    (torch.tensor([1.0, 2.0]), "int64"),
    (torch.tensor([1, 2], dtype=torch.int32), "int64"),
    (torch.tensor([True, False]), "int64"),
])
def test_bad_timesteps_are_refused(method, t, message):
    with pytest.raises(ValueError, match=message):
        getattr(LINEAR, method)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 4), t)


@pytest.mark.parametrize("method", ["add_noise", "predict_x0"])
def test_no_images_make_no_noisy_images(method):
    schedule, none = NoiseSchedule.linear(), torch.zeros(0, 1, 4, 4)
    assert getattr(schedule, method)(none, none, torch.zeros(0).long()).shape == none.shape


@pytest.mark.parametrize("method", ["add_noise", "predict_x0"])
def test_noise_of_another_shape_is_refused(method):
    with pytest.raises(ValueError, match="same shape"):
        getattr(LINEAR, method)(torch.zeros(2, 1, 4, 4), torch.zeros(2, 1, 4, 1), torch.tensor([0, 1]))


# The loss


def test_the_loss_by_hand():
    x_0, eps, t = noise(3, 1, 2, 2), noise(3, 1, 2, 2, seed=1), torch.tensor([3, 0, T - 1])
    loss = diffusion_loss(lambda x_t, t: 0.5 * x_t + t.view(-1, 1, 1, 1), LINEAR, x_0, t, eps)
    x_t = LINEAR.add_noise(x_0, eps, t).numpy()
    errors = [(eps.numpy()[b] - 0.5 * x_t[b] - t[b].item()) ** 2 for b in range(3)]
    assert loss.item() == pytest.approx(np.mean(errors), rel=1e-5)


def test_the_loss_of_who_knows_the_noise_is_zero():
    eps = noise(3, 1, 2, 2)
    assert diffusion_loss(lambda x_t, t: eps, COSINE, noise(3, 1, 2, 2, seed=1), torch.tensor([0, 1, 2]), eps) == 0


def test_the_loss_reaches_the_model_and_is_float32_under_bf16():
    weight = torch.tensor(0.3, requires_grad=True)
    t = torch.tensor([5, 9])
    loss = diffusion_loss(lambda x_t, t: (weight * x_t).bfloat16(), COSINE, noise(2, 4), t, noise(2, 4, seed=1))
    loss.backward()
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert weight.grad != 0


def test_the_loss_refuses_a_guess_of_another_shape():
    with pytest.raises(ValueError):
        diffusion_loss(lambda x_t, t: x_t[:, :1], LINEAR, noise(2, 3, 4, 4), torch.tensor([0, 1]), noise(2, 3, 4, 4))


# Samplers, on data for which the perfect eps is known

SAMPLERS = {
    "ddpm": sample_ddpm,
    "ddim": ddim_any(10, 0.0),
    "ddim-all": ddim_any(T, 0.0),
    "ddim-noisy": ddim_any(17, 0.6),
    "ddim-ancestral": ddim_any(T, 1.0),
    "ddim-one": ddim_any(1, 0.0),
    "ddim-one-noisy": ddim_any(1, 1.0),
}
each_sampler = pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
full_samplers = pytest.mark.parametrize("sampler", [sample_ddpm, ddim_any(T, 0.0), ddim_any(T, 1.0)],
                                        ids=["ddpm", "ddim-all", "ddim-ancestral"])


def eps_of(schedule, guess_x_0):
    """The eps_model that sees in x_t an image guess_x_0(x_t, alpha_bar)."""

    def eps_model(x_t, t):
        assert t.shape == (len(x_t),) and t.dtype == torch.int64 and (t == t[0]).all()
        x_0 = guess_x_0(x_t.double(), schedule.alpha_bar[t[0]].double())
        eps = (x_t.double() - schedule.sqrt_alpha_bar[t[0]] * x_0) / schedule.sqrt_one_minus_alpha_bar[t[0]]
        return eps.to(x_t.dtype)

    return eps_model


def gaussian(schedule):
    """The perfect eps for x_0 from N(0, I)."""
    return eps_of(schedule, lambda x_t, alpha_bar: alpha_bar.sqrt() * x_t)


def stubborn(schedule):
    """An eps_model that is far from linear, knows the time, and makes most of the predictions of x_0 leave [-1, 1]."""
    return lambda x_t, t: torch.sin(3 * x_t) + torch.cos(t.to(x_t.dtype)).view(-1, *[1] * (x_t.ndim - 1))


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


def ddim_variances(schedule, times, eta):
    """The exact variance of x_t at each of `times` for a unit Gaussian and an x_T of variance 1."""
    alpha_bar, variances = schedule.alpha_bar.double(), [1.0]
    for t, t_prev in zip(times, times[1:]):
        a, b = alpha_bar[t], alpha_bar[t_prev]
        sigma2 = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        keep = (a * b).sqrt() + ((1 - a) * (1 - b - sigma2)).sqrt()
        variances.append((keep**2 * variances[-1] + sigma2).item())
    return variances


@each_schedule
@pytest.mark.parametrize("steps, eta", [(T, 0.0), (T, 0.5), (T, 1.0), (12, 0.0), (12, 0.5), (12, 1.0)])
def test_a_unit_gaussian_in_ddim_has_the_exact_variance_at_every_step(schedule, steps, eta):
    x_T = noise(20_000, 1)
    x_T = (x_T - x_T.mean()) / x_T.std()
    sampler = ddim_any(steps, eta)
    _, seen = trace(sampler, gaussian(schedule), schedule, x_T, generator=generator(1), clip=False)
    expected = ddim_variances(schedule, [t for t, _, _ in seen], eta)
    actual = [x_t.var().item() for _, x_t, _ in seen]
    np.testing.assert_allclose(actual, expected, rtol=1e-3 if eta == 0 else 0.04)
    if steps == T:
        assert min(expected) > 0.85  # and all of them are near 1


@each_schedule
def test_a_unit_gaussian_in_ddpm_keeps_its_variance(schedule):
    x_T, eps_model = noise(20_000, 1), gaussian(schedule)
    result, seen = trace(sample_ddpm, eps_model, schedule, x_T, generator=generator(1), clip=False)
    alpha, posterior = schedule.alpha.double(), schedule.posterior_variance.double()
    variance = 1.0
    for t, x_t, _ in seen:
        assert x_t.var().item() == pytest.approx(variance, rel=0.04)
        variance = (alpha[t] * variance + posterior[t]).item()
    assert result.var().item() == pytest.approx(1, abs=0.15)


def test_ddim_without_noise_turns_by_known_angles():
    """With cos(angle) = sqrt(alpha_bar), each step scales a unit Gaussian's x_t by the cosine of the angle it moves."""
    x_T = noise(5, 2)
    _, seen = trace(ddim_any(7, 0.0), gaussian(COSINE), COSINE, x_T, clip=False)
    angles = [math.acos(math.sqrt(COSINE.alpha_bar[t].item())) for t, _, _ in seen]
    x = x_T.double()
    for k, (_, x_t, _) in enumerate(seen):
        if k > 0:
            x = x * math.cos(angles[k - 1] - angles[k])
        torch.testing.assert_close(x_t.double(), x, rtol=0, atol=5e-5)


@each_schedule
@full_samplers
def test_two_points_are_drawn_as_often_as_they_should_be(schedule, sampler):
    """x_0 is +1 with probability 1/4, else -1. The posterior mean is a tanh, so this eps is not linear in x_t."""
    prior = math.atanh(2 * 0.25 - 1)
    eps_model = eps_of(schedule, lambda x_t, alpha_bar: torch.tanh(alpha_bar.sqrt() * x_t / (1 - alpha_bar) + prior))
    result = sampler(eps_model, schedule, noise(8000), generator=generator(1))
    torch.testing.assert_close(result.abs(), torch.ones(8000), rtol=0, atol=0.05)
    assert (result > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def ddim_by_hand(eps_model, schedule, x, times, eta, z, clip):
    """Eq. 12 of the DDIM paper in float64, with an x_0 that is clipped and an eps that fits it."""
    alpha_bar = [*schedule.alpha_bar.double().tolist(), 1.0]
    for t, t_prev in zip(times, [*times[1:], -1]):
        a, b = alpha_bar[t], alpha_bar[t_prev]
        eps = eps_model(x, torch.full((len(x),), t))
        x_0 = (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
        if clip:
            x_0 = x_0.clamp(-1, 1)
            eps = (x - math.sqrt(a) * x_0) / math.sqrt(1 - a)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        x = math.sqrt(b) * x_0 + math.sqrt(1 - b - sigma**2) * eps
        if t_prev >= 0 and eta > 0:
            x = x + sigma * torch.randn(x.shape, generator=z, dtype=x.dtype)
    return x


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("steps, eta", [(T, 0.0), (T, 1.0), (9, 0.0), (9, 0.7), (2, 0.3), (1, 0.0), (1, 0.5)])
def test_ddim_follows_equation_12_number_for_number(steps, eta, clip):
    x_T = noise(20, 2).double()
    sampler, eps_model = ddim_any(steps, eta), stubborn(LINEAR)
    result, seen = trace(sampler, eps_model, LINEAR, x_T, generator=generator(1), clip=clip)
    expected = ddim_by_hand(eps_model, LINEAR, x_T, [t for t, _, _ in seen], eta, generator(1), clip)
    assert result.dtype == torch.float64
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@each_schedule
@pytest.mark.parametrize("clip", [True, False])
def test_ddim_with_eta_1_and_all_steps_is_ddpm_number_for_number(schedule, clip):
    eps_model = stubborn(schedule) if clip else gaussian(schedule)
    _, ddpm = trace(sample_ddpm, eps_model, schedule, noise(20, 2).double(), generator=generator(1), clip=clip)
    _, ddim = trace(ddim_any(T, 1.0), eps_model, schedule, noise(20, 2).double(), generator=generator(1), clip=clip)
    for (t, x_t, x_0), (u, y_t, y_0) in zip(ddpm, ddim, strict=True):
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
def test_samplers_draw_noise_at_each_step_but_the_last(sampler):
    x_T, used, expected = noise(3, 2), generator(1), generator(1)
    _, seen = trace(sampler, stubborn(LINEAR), LINEAR, x_T, generator=used)
    noisy = sampler in (sample_ddpm, SAMPLERS["ddim-noisy"], SAMPLERS["ddim-ancestral"], SAMPLERS["ddim-one-noisy"])
    for _ in range(len(seen) - 1 if noisy else 0):
        torch.randn(x_T.shape, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


@each_sampler
def test_the_generator_decides_and_nothing_else(sampler):
    def sample(*args, **kwargs):
        return trace(sampler, stubborn(LINEAR), LINEAR, noise(3, 2), *args, **kwargs)[1][-1][1]

    noisy = sampler in (sample_ddpm, SAMPLERS["ddim-noisy"], SAMPLERS["ddim-ancestral"])
    before = torch.get_rng_state()
    first, same, other = sample(generator=generator(5)), sample(generator=generator(5)), sample(generator=generator(6))
    assert torch.equal(first, same)
    assert torch.equal(first, other) != noisy
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_the_global_seed_decides():
    torch.manual_seed(3)
    first = sample_ddpm(gaussian(LINEAR), LINEAR, noise(3, 2), clip=False)
    torch.manual_seed(3)
    assert torch.equal(first, sample_ddpm(gaussian(LINEAR), LINEAR, noise(3, 2), clip=False))
    assert not torch.equal(first, sample_ddpm(gaussian(LINEAR), LINEAR, noise(3, 2), clip=False))


@each_sampler
def test_x_0_is_clipped_inside_and_only_if_asked(sampler):
    x_T = noise(30, 2)
    result, seen = trace(sampler, stubborn(LINEAR), LINEAR, x_T, generator=generator(1))
    for t, x_t, x_0 in seen:
        times = torch.full((30,), t)
        expected = LINEAR.predict_x0(x_t, stubborn(LINEAR)(x_t, times), times).clamp(-1, 1)
        assert torch.equal(x_0, expected)
    assert torch.equal(seen[0][1], x_T)
    torch.testing.assert_close(result, seen[-1][2])
    _, seen = trace(sampler, stubborn(LINEAR), LINEAR, x_T, generator=generator(1), clip=False)
    assert seen[0][2].abs().max() > 1


def test_ddpm_takes_every_step_once_from_the_last_to_the_first():
    calls = []

    def eps_model(x_t, t):
        calls.append(t.tolist())
        return x_t

    _, seen = trace(sample_ddpm, eps_model, LINEAR, noise(3, 2))
    assert [t for t, _, _ in seen] == list(range(T - 1, -1, -1))
    assert calls == [[t] * 3 for t in range(T - 1, -1, -1)]


@pytest.mark.parametrize("steps", [1, 2, 3, 7, 25, T - 1, T])
def test_ddim_spreads_its_steps_evenly_from_the_last_to_the_first(steps):
    _, seen = trace(ddim_any(steps, 0.0), gaussian(LINEAR), LINEAR, noise(3, 2))
    times = [t for t, _, _ in seen]
    assert len(times) == steps and times[0] == T - 1
    if steps > 1:
        gaps = {a - b for a, b in zip(times, times[1:])}
        assert times[-1] == 0 and min(gaps) >= 1 and max(gaps) - min(gaps) <= 1
    for k, t in enumerate(times):  # no further than rounding from where it should be
        assert abs(t - (T - 1) * (1 - k / max(steps - 1, 1))) <= 0.5001


def test_ddim_takes_50_steps_without_noise_unless_told_otherwise():
    x_T, before = noise(2, 2), torch.get_rng_state()
    _, seen = trace(sample_ddim, gaussian(LINEAR), LINEAR, x_T)
    assert len(seen) == 50
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [0, -1, T + 1])
def test_steps_out_of_range_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the schedule's 60"):
        sample_ddim(gaussian(LINEAR), LINEAR, noise(2, 2), steps=steps)


@each_sampler
def test_samplers_keep_no_graph_and_leave_x_T_alone(sampler):
    weight = torch.tensor(0.1, requires_grad=True)
    x_T = noise(2, 2)
    result, seen = trace(sampler, lambda x_t, t: weight * x_t, LINEAR, x_T)
    assert not result.requires_grad and not any(x.requires_grad for _, x_t, x_0 in seen for x in (x_t, x_0))
    assert torch.equal(x_T, noise(2, 2)) and torch.is_grad_enabled()


@pytest.mark.parametrize("sampler", [sample_ddpm, ddim_any(5, 0.0), ddim_any(5, 1.0)])
def test_samplers_stay_on_the_device_of_x_T(sampler):
    """On "meta", where tensors have no values, any mixture of devices is refused."""
    schedule, x_T = NoiseSchedule.linear(10).to("meta"), torch.zeros(2, 1, 4, 4, device="meta")

    def eps_model(x_t, t):
        assert x_t.device.type == t.device.type == "meta"
        return x_t

    for generator in (None, torch.Generator()):  # one of the CPU gives noise to every device
        assert sampler(eps_model, schedule, x_T, generator=generator).device.type == "meta"


@pytest.mark.parametrize("sampler", [sample_ddpm, ddim_any(5, 0.0)], ids=["DDPM", "DDIM"])
def test_the_bar_shows_only_if_asked(sampler, capsys, request):
    sampler(gaussian(LINEAR), LINEAR, noise(2, 2))
    assert capsys.readouterr().err == ""
    sampler(gaussian(LINEAR), LINEAR, noise(2, 2), progress=True)
    assert request.node.callspec.id in capsys.readouterr().err


# Guidance


class Recorder:
    """An eps_model(x_t, t, label, hint) that depends on each of its inputs and counts the rows of each call."""

    def __init__(self):
        self.rows = []

    def __call__(self, x_t, t, label, hint):
        assert len(x_t) == len(t) == len(label) == len(hint)
        self.rows.append(len(x_t))
        return x_t * label[:, None] + hint * t[:, None]


x_t, t = noise(3, 2), torch.tensor([4, 0, 9])
CONDITIONAL = torch.tensor([1, 2, 3]), noise(3, 2, seed=1)
UNCONDITIONAL = torch.tensor([7, 7, 7]), noise(3, 2, seed=2)


def test_w_1_is_the_conditional_model_called_once():
    model = Recorder()
    assert torch.equal(guided(model, CONDITIONAL, UNCONDITIONAL, 1)(x_t, t), Recorder()(x_t, t, *CONDITIONAL))
    assert model.rows == [3]


def test_w_0_is_the_unconditional_model_called_once():
    model = Recorder()
    assert torch.equal(guided(model, CONDITIONAL, UNCONDITIONAL, 0.0)(x_t, t), Recorder()(x_t, t, *UNCONDITIONAL))
    assert model.rows == [3]


@pytest.mark.parametrize("w", [-1, 0.5, 2, 7.5])
def test_other_w_go_along_the_line_through_both_in_one_call_of_twice_the_rows(w):
    model = Recorder()
    eps = guided(model, CONDITIONAL, UNCONDITIONAL, w)(x_t, t)
    for b in range(3):
        cond = x_t[b] * CONDITIONAL[0][b] + CONDITIONAL[1][b] * t[b]
        uncond = x_t[b] * UNCONDITIONAL[0][b] + UNCONDITIONAL[1][b] * t[b]
        torch.testing.assert_close(eps[b], (1 - w) * uncond + w * cond, rtol=1e-4, atol=1e-4)
    assert model.rows == [6]


def test_guidance_wants_both_sides_to_have_the_same_inputs():
    with pytest.raises(ValueError):
        guided(Recorder(), CONDITIONAL, UNCONDITIONAL[:1], 2)
