"""The diffusion process against closed forms, and samplers where the optimal denoiser is known."""

import numpy as np
import oracles
import pytest
import torch

from minicnet.diffusion import NoiseSchedule, diffusion_loss, guided, sample_ddim, sample_ddpm

T = 40
LINEAR, COSINE = NoiseSchedule.linear(T, 1e-3, 0.3), NoiseSchedule.cosine(T)
each_schedule = pytest.mark.parametrize("schedule", [LINEAR, COSINE], ids=["linear", "cosine"])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed))


@pytest.mark.parametrize("schedule, alpha_bar", [
    (NoiseSchedule.linear(), oracles.linear_alpha_bar(1000, 1e-4, 0.02)),  # the papers' defaults
    (NoiseSchedule.linear(30, 0.01, 0.3), oracles.linear_alpha_bar(30, 0.01, 0.3)),
    (NoiseSchedule.cosine(), oracles.cosine_alpha_bar(1000)),
    (NoiseSchedule.cosine(25), oracles.cosine_alpha_bar(25)),
    (NoiseSchedule([0.0123] * 1000), (1 - 0.0123) ** np.arange(1.0, 1001)),
], ids=["linear-1000", "linear-30", "cosine-1000", "cosine-25", "list"])
def test_schedules_follow_their_closed_forms_to_the_last_bit_of_float32(schedule, alpha_bar):
    previous = np.append(1, alpha_bar[:-1])
    alpha = alpha_bar / previous
    # Bayes' rule, as a product of two Gaussians: precisions add, and so do means times precisions.
    with np.errstate(divide="ignore"):  # before the first step there is no noise at all
        variance = 1 / (alpha / (1 - alpha) + 1 / (1 - previous))
    truth = {
        "alpha_bar": alpha_bar, "alpha": alpha, "beta": 1 - alpha,
        "sqrt_alpha_bar": alpha_bar**0.5, "sqrt_one_minus_alpha_bar": (1 - alpha_bar) ** 0.5,
        "posterior_variance": variance, "posterior_mean_x_t": variance * alpha**0.5 / (1 - alpha),
        "posterior_mean_x_0": previous**0.5 * np.append(1, (variance / (1 - previous + 1e-99))[1:]),
    }
    for name, expected in truth.items():  # as near as float32 can be, so no step is done in float32
        table = getattr(schedule, name)
        assert table.dtype == torch.float32 and len(schedule) == len(expected)
        np.testing.assert_allclose(table.double().numpy(), expected, rtol=2**-24 + 1e-11)
    assert not schedule.state_dict()  # a checkpoint holds weights only


# Noise, images and v


@each_schedule
@pytest.mark.parametrize("shape", [(T - 1,), (T - 1, 3, 2, 5)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-3), (torch.float64, 1e-4)])
def test_noise_image_and_v_determine_one_another(schedule, shape, dtype, tolerance):
    """v = sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x_0, Salimans and Ho 2022."""
    t = torch.arange(T - 1)  # at T - 1 the cosine leaves next to nothing of the image
    x_0, eps = noise(*shape).to(dtype), noise(*shape, seed=1).to(dtype)
    signal, scale = (table.to(dtype).view(-1, *[1] * (len(shape) - 1)) for table in
                     (schedule.alpha_bar[:-1].sqrt(), (1 - schedule.alpha_bar[:-1]).sqrt()))
    x_t, v = signal * x_0 + scale * eps, signal * eps - scale * x_0
    for found, expected in [(schedule.add_noise(x_0, eps, t), x_t),
                            (schedule.predict_x0(x_t, eps, t), x_0),
                            (schedule.predict_eps(x_t, v, t), eps)]:
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("t, message", [
    (torch.tensor([0, -1]), "from 0 to 39"),
    (torch.tensor([T, 0]), "from 0 to 39"),
    (torch.tensor([1]), "each of the 2 images"),
    (torch.tensor(1), "each of the 2 images"),
    (torch.tensor([[1], [2]]), "each of the 2 images"),
    (torch.tensor([1.0, 2.0]), "int64"),
    (torch.tensor([True, False]), "int64"),
    (torch.tensor([0, 1]), "same shape"),
])
@pytest.mark.parametrize("method", ["add_noise", "predict_x0", "predict_eps"])
def test_timesteps_out_of_range_and_noise_of_another_shape_are_refused(method, t, message):
    x = torch.zeros(2, 1, 4, 4)
    with pytest.raises(ValueError, match=message):
        getattr(LINEAR, method)(x, x[..., :1] if "shape" in message else x, t)
    no_images = getattr(LINEAR, method)(x[:0], x[:0], torch.zeros(0).long())
    assert no_images.shape == (0, 1, 4, 4)


@each_schedule
def test_the_loss_is_the_plain_mean_of_squared_errors_in_v(schedule):
    x_0, eps = noise(3, 1, 2, 2).double(), noise(3, 1, 2, 2, seed=1).double()
    t, weight = torch.tensor([3, 0, T - 2]), torch.tensor(0.5, requires_grad=True)
    signal = schedule.alpha_bar.double()[t].sqrt().view(3, 1, 1, 1)
    scale = (1 - signal**2).sqrt()
    error = weight * (signal * x_0 + scale * eps) - (signal * eps - scale * x_0)  # v_theta - v
    loss = diffusion_loss(lambda x_t, t: scale * x_t + signal * weight * x_t, schedule, x_0, t, eps)
    torch.testing.assert_close(loss, error.square().mean(), rtol=1e-4, atol=0)
    loss.backward()
    assert weight.grad != 0
    assert diffusion_loss(lambda x_t, t: eps, schedule, x_0, t, eps) == 0
    with pytest.raises(ValueError, match="returned"):
        diffusion_loss(lambda x_t, t: x_t[..., :1], schedule, x_0, t, eps)


# Samplers, on data for which the optimal denoiser is known


def ddim(*settings):
    """sample_ddim with these steps, and eta, which has the signature of sample_ddpm."""
    return lambda *args, **kwargs: sample_ddim(*args, *settings, **kwargs)


SAMPLERS = {"ddpm": sample_ddpm, "ddim": ddim(10, 0.0), "ddim-all": ddim(T, 0.0),
            "ddim-one": ddim(1, 0.0), "ddim-noisy": ddim(17, 0.6), "ddim-ancestral": ddim(T, 1.0)}


def stubborn(x_t, t):
    """An eps_model that is not linear, reads t, and predicts most of x_0 outside [-1, 1]."""
    return torch.sin(3 * x_t) + torch.cos(t.to(x_t.dtype)).view(-1, *[1] * (x_t.ndim - 1))


def trace(sampler, *args, **kwargs):
    """Sample. Returns the images and all that the hook saw, a list of (t, x_t, x_0)."""
    seen = []
    return sampler(*args, hook=lambda *step: seen.append(step), **kwargs), seen


@each_schedule
@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS.keys())
@pytest.mark.parametrize("clip, shape", [(True, (3, 1, 2, 4)), (False, (3, 2))])
def test_samplers_land_on_a_point_mass(schedule, sampler, clip, shape):
    x_0, x_T = noise(*shape).double().clamp(-0.9, 0.9), noise(*shape, seed=1).double()
    eps_model = oracles.point_mass(schedule.alpha_bar, x_0)
    result = sampler(eps_model, schedule, x_T, generator=generator(2), clip=clip)
    torch.testing.assert_close(result, x_0, rtol=0, atol=1e-3)


@each_schedule
@pytest.mark.parametrize("sampler, eta", [
    (sample_ddpm, 1), (ddim(T, 0.0), 0), (ddim(T, 0.5), 0.5), (ddim(T, 1.0), 1),
    (ddim(12, 0.0), 0), (ddim(12, 0.5), 0.5), (ddim(12, 1.0), 1),
], ids=["ddpm", "ddim-all", "ddim-all-half", "ddim-ancestral", "ddim", "ddim-half", "ddim-noisy"])
def test_a_unit_gaussian_keeps_its_variance_at_every_step(schedule, sampler, eta):
    x_T = noise(5_000, 1)
    eps_model, x_T = oracles.unit_gaussian(schedule.alpha_bar), (x_T - x_T.mean()) / x_T.std()
    _, seen = trace(sampler, eps_model, schedule, x_T, generator=generator(1), clip=False)
    expected = oracles.gaussian_variances(schedule.alpha_bar, [t for t, _, _ in seen], eta)
    actual = [x_t.var().item() for _, x_t, _ in seen]
    np.testing.assert_allclose(actual, expected, rtol=0.08 if eta else 1e-3)
    assert len(seen) < T or min(expected) > 0.85  # with all steps, every variance is near 1


@each_schedule
@pytest.mark.parametrize("sampler", [sample_ddpm, ddim(T, 0.0), ddim(T, 1.0)])
def test_two_points_are_drawn_as_often_as_they_occur(schedule, sampler):
    eps_model = oracles.two_points(schedule.alpha_bar, p=0.25)
    result = sampler(eps_model, schedule, noise(8000), generator=generator(1))
    torch.testing.assert_close(result.abs(), torch.ones(8000), rtol=0, atol=0.05)
    assert (result > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


@each_schedule
@pytest.mark.parametrize("sampler, eta", [
    (ddim(7), 0.0), (ddim(7, 0.6), 0.6), (ddim(1, 0.6), 0.6), (ddim(T, 1.0), 1.0),
    (sample_ddpm, 1.0)], ids=["ddim", "ddim-noisy", "ddim-one", "ddim-ancestral", "ddpm"])
def test_samplers_follow_equation_12_number_for_number_and_ddpm_is_eta_1_with_all_steps(
        schedule, sampler, eta):
    x_T, used, expected_use = noise(20, 2).double(), generator(1), generator(1)
    before = torch.get_rng_state()
    result, seen = trace(sampler, stubborn, schedule, x_T, generator=used)
    assert torch.equal(seen[0][1], noise(20, 2).double()) and torch.equal(seen[-1][2], result)
    expected = oracles.ddim(stubborn, schedule.alpha_bar.double(), x_T, [t for t, _, _ in seen],
                            eta, expected_use)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-3)
    assert torch.equal(used.get_state(), expected_use.get_state())  # no noise at the last step
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("steps", [2, 3, 6, 10, 50])
@pytest.mark.parametrize("kind", [NoiseSchedule.linear, NoiseSchedule.cosine])
def test_ancestral_ddim_is_finite_for_any_number_of_steps(kind, steps):
    """By rounding, the number under the root of the direction may be -1e-8."""
    eps_model = oracles.unit_gaussian(kind().alpha_bar)
    assert sample_ddim(eps_model, kind(), noise(4, 2), steps, eta=1.0).isfinite().all()


@pytest.mark.parametrize("sampler, steps", [(sample_ddpm, 60), (sample_ddim, 50)] + [
    (ddim(steps, 0.0), steps) for steps in (1, 2, 3, 7, 25, 59, 60)])
def test_steps_are_spread_evenly_from_the_last_timestep_to_the_first(sampler, steps):
    _, seen = trace(sampler, stubborn, NoiseSchedule.linear(60), noise(3, 2))
    even = 59 - np.arange(steps) * 59 / max(steps - 1, 1)
    np.testing.assert_allclose([t for t, _, _ in seen], even, rtol=0, atol=0.5001)  # by rounding


@pytest.mark.parametrize("steps", [0, -1, T + 1])
def test_more_steps_than_the_schedule_has_or_none_are_refused(steps):
    with pytest.raises(ValueError, match="between 1 and the schedule's 40"):
        sample_ddim(stubborn, LINEAR, noise(2, 2), steps=steps)


@pytest.mark.parametrize("sampler", [sample_ddpm, ddim(5, 0.0), ddim(5, 1.0)])
def test_samplers_stay_on_the_device_of_x_T_and_keep_no_graph(sampler):
    """On "meta", where tensors have no values, any mixture of devices is refused."""
    schedule, x_T = NoiseSchedule.linear(10).to("meta"), torch.zeros(2, 1, 4, 4, device="meta")
    weight = torch.ones((), device="meta", requires_grad=True)
    for source in (None, torch.Generator()):  # a generator on the CPU gives noise to every device
        result = sampler(lambda x_t, t: weight * x_t * t.view(-1, 1, 1, 1), schedule, x_T,
                         generator=source)
        assert result.device.type == "meta" and not result.requires_grad
    assert torch.is_grad_enabled()


# Guidance


@pytest.mark.parametrize("w, needed", [(1, "c"), (0, "cu"), (-1, "cu"), (0.5, "cu"), (7.5, "cu")])
def test_guidance_lies_on_the_line_through_both_predictions_and_w_1_needs_only_one(w, needed):
    asked = []

    def model(name, slope):
        return lambda x_t, t: asked.append(name) or slope * x_t + t.view(-1, 1)

    x_t, t = noise(3, 2), torch.tensor([4, 0, 9])
    eps = guided(model("c", 2), model("u", -1), w)(x_t, t)
    torch.testing.assert_close(eps, (2 * w - (1 - w)) * x_t + t.view(-1, 1))
    assert sorted(asked) == list(needed)
