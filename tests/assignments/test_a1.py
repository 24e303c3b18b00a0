"""Assignment 1: diffusion. Each class is a task; each test looks at one idea in it, and at no other task's function."""

import math

import pytest
import torch
from checking import check, close, waves

POINTS = pytest.mark.points


@pytest.fixture
def schedule():
    """Four timesteps that keep 81%, 64%, 36% and 4% of the image's variance."""
    return schedule_of([0.81, 0.64, 0.36, 0.04])


def schedule_of(kept):
    """A working schedule that shares no function with yours: `add_noise` and `predict_x0` stand in for them."""
    from minicnet.diffusion import NoiseSchedule

    class Given(NoiseSchedule):
        def __init__(self):
            kept_by_now = torch.tensor(kept, dtype=torch.float64)
            kept_before = torch.tensor([1.0, *kept[:-1]], dtype=torch.float64)
            lost, beta = 1 - kept_by_now, 1 - kept_by_now / kept_before
            tables = {"beta": beta, "alpha": 1 - beta, "alpha_bar": kept_by_now, "sqrt_alpha_bar": kept_by_now**0.5,
                      "sqrt_one_minus_alpha_bar": lost**0.5, "posterior_variance": beta * (1 - kept_before) / lost,
                      "posterior_mean_x_0": kept_before**0.5 * beta / lost,
                      "posterior_mean_x_t": (1 - beta) ** 0.5 * (1 - kept_before) / lost}
            for name, table in tables.items():
                setattr(self, name, table.float())

        def add_noise(self, x_0, eps, t):
            rows = [self.sqrt_alpha_bar[i] * x + self.sqrt_one_minus_alpha_bar[i] * e for x, e, i in zip(x_0, eps, t)]
            return torch.stack(rows)

        def predict_x0(self, x_t, eps, t):
            image, noise = self.add_noise(torch.ones_like(eps), 0 * eps, t), self.add_noise(0 * eps, eps, t)
            return (x_t - noise) / image

    return Given()


def sees(x_0, schedule):
    """The eps_model that believes every image to be x_0, whatever it is shown."""

    def eps_model(x_t, t):
        shape = (-1, *[1] * (x_t.ndim - 1))
        image, noise = schedule.sqrt_alpha_bar[t].view(shape), schedule.sqrt_one_minus_alpha_bar[t].view(shape)
        return (x_t - image * x_0) / noise

    return eps_model


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class TestAlphaBar:
    """1. alpha_bar of a schedule"""

    @POINTS(2)
    def test_three_steps(self):
        from minicnet.diffusion import NoiseSchedule
        found = NoiseSchedule([0.5, 0.2, 0.5]).alpha_bar
        check(found.shape == (3,), "alpha_bar is a table with one number for each timestep")
        check(close(found[0], 0.5), "the first step alone: which share of the variance does it keep?")
        check(found[2] < found[1] < found[0], "each step keeps a share of what the steps before it have kept: can the "
                                              "image come back?")
        check(close(found, [0.5, 0.4, 0.2]), "two steps that keep a half each leave a quarter: how do shares combine?")

    @POINTS(1)
    def test_a_thousand_steps(self):
        from minicnet.diffusion import NoiseSchedule
        last = NoiseSchedule.linear(1000).alpha_bar[-1].item()
        check(math.isclose(last, 4.0358e-5, rel_tol=1e-3), "the linear schedule should end in nearly pure noise, with "
              f"about 0.004% of the variance left, but {last:.4%} are: are all steps counted, once each, in float64?")


class TestAddNoise:
    """2. add_noise"""

    @pytest.fixture
    def add_noise(self, schedule):
        from minicnet.diffusion import NoiseSchedule
        return lambda *arguments: NoiseSchedule.add_noise(schedule, *arguments)

    @POINTS(2)
    def test_image_and_noise_have_their_shares(self, add_noise):
        one, none = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
        image, noise = add_noise(one, none, torch.tensor([3])), add_noise(none, one, torch.tensor([3]))
        check(image.shape == one.shape, "x_t has the shape of x_0")
        check(image.mean() < noise.mean(), "late in the schedule there is more noise than image: which share is whose?")
        check(close(image, 0.2 * one), "alpha_bar is the share of the image's *variance*: by what do you multiply x_0?")
        check(close(noise, 0.9798 * one), "the noise has the rest of the *variance*: by what do you multiply eps?")

    @POINTS(2)
    def test_each_image_has_its_own_timestep(self, add_noise):
        t, one = torch.tensor([0, 3]), torch.ones(2, 2, 2, 2)  # B = W: a wrong broadcast does not raise
        found = add_noise(one, 0 * one, t)
        check(found.shape == one.shape, "x_t has the shape of x_0")
        check(close(found[0], 0.9 * one[0]) and close(found[1], 0.2 * one[1]), "every pixel of image i must get the "
              "noise of t[i]: which axes does a table entry of shape (B,) meet when it multiplies (B, C, H, W)?")
        check(close(add_noise(one[:, 0, 0], 0 * one[:, 0, 0], t), [[0.9, 0.9], [0.2, 0.2]]),
              "x_0 may have any number of axes after the first, such as points (B, 2): is your code tied to four?")

    @POINTS(1)
    def test_what_does_not_fit_is_refused(self, add_noise):
        refuses(add_noise)


class TestPredictX0:
    """3. predict_x0"""

    @pytest.fixture
    def predict_x0(self, schedule):
        from minicnet.diffusion import NoiseSchedule
        return lambda *arguments: NoiseSchedule.predict_x0(schedule, *arguments)

    @POINTS(2)
    def test_it_undoes_add_noise(self, predict_x0):
        x_t, none, t = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), torch.tensor([3])
        check(close(predict_x0(x_t, none, t), 5 * x_t), "without noise in it, x_t is a pale x_0: how do you get its "
                                                        "contrast back?")
        check(close(predict_x0(x_t, x_t, t), 0.10102 * x_t), "solve the equation of add_noise for x_0: what happens "
                                                             "first to the noise, and what last?")

    @POINTS(1)
    def test_each_image_has_its_own_timestep(self, predict_x0):
        t, one = torch.tensor([0, 3]), torch.ones(2, 2, 2, 2)
        found = predict_x0(one, 0 * one, t)
        check(close(found[0], one[0] / 0.9) and close(found[1], one[1] / 0.2),
              "every pixel of image i belongs to t[i]: which axes does a table entry of shape (B,) meet?")
        check(close(predict_x0(one[:, 0], one[:, 0] * 0, t)[1], one[1, 0] / 0.2), "is your code tied to four axes?")

    @POINTS(1)
    def test_what_does_not_fit_is_refused(self, predict_x0):
        refuses(predict_x0)


def refuses(function):
    image, hint = torch.zeros(2, 1, 4, 4), "the docstring promises a ValueError for {}: is there a helper that checks?"
    for what, arguments in {"noise of another shape than the images": (image, image[:1], torch.tensor([0, 1])),
                            "t that is one number for two images": (image, image, torch.tensor([0])),
                            "a timestep outside 0 .. T-1": (image, image, torch.tensor([0, 4]))}.items():
        try:
            function(*arguments)
        except ValueError:
            continue
        except NotImplementedError:
            raise
        except (IndexError, RuntimeError):
            pass
        check(False, hint.format(what))


class TestLoss:
    """4. diffusion_loss"""

    @pytest.fixture
    def batch(self):
        """x_0, t, eps"""
        return waves(2, 1, 3, 4), torch.tensor([1, 3]), waves(2, 1, 3, 4, phase=2)

    @POINTS(2)
    def test_it_is_a_mean_square(self, schedule, batch):
        from minicnet.diffusion import diffusion_loss
        x_0, t, eps = batch
        perfect = diffusion_loss(lambda x_t, t: eps, schedule, x_0, t, eps)
        check(close(perfect, 0.0), "a model that names the noise exactly has no loss: with what do you compare its "
                                   "answer?")
        off_by_half = diffusion_loss(lambda x_t, t: eps + 0.5, schedule, x_0, t, eps)
        check(off_by_half.shape == (), "the loss is one number for the batch")
        check(close(off_by_half, 0.25), "the loss should not grow with the number of pixels, and a double error should "
                                        "count four times: which norm, and sum or mean?")
        weight = torch.tensor([9.0, 1.0, 9.0, 3.0])  # t is 1 and 3
        weighted = diffusion_loss(lambda x_t, t: eps + 0.5, schedule, x_0, t, eps, weight=weight)
        check(close(weighted, 0.5), "`weight` says how much an error counts at each timestep: which is each image's?")
        errors = torch.tensor([0.5, 1.0]).view(2, 1, 1, 1)
        weighted = diffusion_loss(lambda x_t, t: eps + errors, schedule, x_0, t, eps, weight=weight)
        check(close(weighted, 1.625), "each image's error counts with its own weight, and then the plain mean is taken")
        points, noise = waves(2, 2), waves(2, 2, phase=1)
        weighted = diffusion_loss(lambda x_t, t: noise + errors[:, 0, 0], schedule, points, t, noise, weight=weight)
        check(close(weighted, 1.625), "x_0 may have any number of axes after the first: is your code tied to four?")

    @POINTS(2)
    def test_the_model_is_shown_the_noisy_images(self, schedule, batch):
        from minicnet.diffusion import diffusion_loss
        seen, weight = [], torch.tensor(2.0, requires_grad=True)

        def eps_model(x_t, t):
            seen.append((x_t, t))
            return weight * x_t

        x_0, t, eps = batch
        loss = diffusion_loss(eps_model, schedule, x_0, t, eps)
        check(len(seen) == 1, "one call of the model is enough")
        check(not close(seen[0][0], x_0), "the model is to find noise in clean images: what should it see instead?")
        check(close(seen[0][0], schedule.add_noise(x_0, eps, t)), "the model should see x_0 after t steps of the noise "
                                                                  "eps, and of no other noise")
        check(torch.equal(seen[0][1], t), "the model is to be told how noisy its images are: by which t?")
        check(loss.requires_grad, "no gradient reaches the model's weights: what cuts the graph?")


class TestDDPM:
    """5. one DDPM step"""

    @pytest.fixture
    def step(self, schedule):
        """x_1 -> x_0 is the last step, x_2 -> x_1 adds noise. What a start of ones becomes when 0.5 is predicted."""
        from minicnet.diffusion import sample_ddpm

        def run(prediction=0.5, start=1.0, **settings):
            states = {}
            x_T = torch.full((4, 1, 100, 100), start)
            last = sample_ddpm(sees(prediction, schedule), schedule, x_T, seeded(),
                               hook=lambda t, x_t, x_0: states.update({t: x_t}), **settings)
            return states, last

        return run

    @POINTS(2)
    def test_the_mean_of_a_step(self, step):
        states, _ = step()
        check(close(states[2].mean(), 0.5, 0.01), "the mean of x_{t-1} mixes the predicted x_0 and x_t: the two "
              "tables for it are in NoiseSchedule, and which one belongs to which?")
        states, _ = step(prediction=7.0, clip=True)
        check(close(states[2].mean(), 0.7778, 0.01), "an x_0 outside [-1, 1] is clipped for you: does your step use "
                                                      "that x_0, or one of its own?")

    @POINTS(2)
    def test_the_noise_of_a_step(self, step):
        std = step()[0][2].std().item()
        check(std > 0.01, "from x_T on, every step but the last one adds fresh noise")
        check(abs(std - 0.7698) < 0.02, "the noise of a step has the posterior variance, so by what do you multiply "
              f"N(0, I)? Its standard deviation should be 0.770 in this test, and is {std:.3f}")
        std = step()[0][0].std().item()
        check(abs(std - 0.434) < 0.02, "the step from t = 1 to t = 0 adds noise, too: t counts from 0 here, and the "
              f"paper's from 1. The standard deviation there should be 0.434, and is {std:.3f}")

    @POINTS(1)
    def test_the_last_step(self, step):
        _, last = step()
        check(last.std() < 1e-3, "at t = 0 the image is done: what would noise do to it now?")
        check(close(last, torch.full((4, 1, 100, 100), 0.5)), "a model that believes in one image only must end in it")

    @POINTS(1)
    def test_noise_comes_from_the_generator(self, schedule):
        from minicnet.diffusion import sample_ddpm
        eps_model, x_T = sees(0.0, schedule), torch.zeros(2, 1, 8, 8)
        runs = []
        for seed in (1, 1, 2):
            states = []
            sample_ddpm(eps_model, schedule, x_T, seeded(seed), hook=lambda t, x_t, x_0, to=states: to.append(x_t))
            runs.append(states)
        check(torch.equal(runs[0][1], runs[1][1]), "the same generator must give the same images: who draws the noise?")
        check(not torch.equal(runs[0][1], runs[2][1]), "another seed must give other noise: is the generator used?")
        check(not torch.equal(runs[0][1][0], runs[0][1][1]), "each image and each pixel has its own noise")


class TestDDIM:
    """6. one DDIM step"""

    def first_jump(self, schedule, eta=0.0, prediction=0.5, steps=2):
        """x at the second of the timesteps, from ones at the first."""
        from minicnet.diffusion import sample_ddim
        states, x_T = [], torch.ones(4, 1, 100, 100)
        sample_ddim(sees(prediction, schedule), schedule, x_T, steps, eta, seeded(),
                    hook=lambda t, x_t, x_0: states.append(x_t))
        return states[1]

    @POINTS(2)
    def test_a_jump_without_fresh_noise(self, schedule):
        jump = self.first_jump(schedule)
        check(jump.std() < 1e-4, "with eta = 0 nothing random happens")
        check(close(jump.mean(), 0.85038), "x at t_prev is made like any x_t, from an image and its noise: which "
              "timestep's shares do they have? Not those of t - 1, for DDIM jumps; and shares are of the variance")

    @POINTS(1)
    def test_the_noise_fits_the_clipped_image(self, schedule):
        check(close(self.first_jump(schedule, prediction=7.0).mean(), 1.25588), "x_t consists of image and noise. When "
              "the predicted image is clipped, the noise must be what remains of x_t: so compute it from the clipped")

    @POINTS(2)
    def test_a_jump_with_fresh_noise(self, schedule):
        jump = self.first_jump(schedule, eta=1.0)
        check(abs(jump.std().item() - 0.4338) < 0.01, "eta = 1 adds noise with the sigma of Eq. 16 (variance sigma^2): "
              f"its standard deviation should be 0.434 in this test, and is {jump.std().item():.3f}")
        check(close(jump.mean(), 0.4896, 0.01), "fresh noise takes the place of old noise, so that the variance stays "
              "what it has to be at t_prev: what remains for the direction that points to x_t?")
        check(close(self.first_jump(schedule, eta=0.5).std(), 0.2169, 0.01), "half of eta is half of sigma")
        check(torch.equal(self.first_jump(schedule, eta=1.0), jump),
              "the same generator must give the same images: who draws the noise?")
        check(not torch.equal(jump[0], jump[1]), "each image has its own noise")


class TestGuidance:
    """7. guided"""

    @pytest.fixture
    def model(self):
        """Answers a number that stands for a prompt, plus x_t. Keeps its batch sizes in `model.batches`."""

        def eps_model(x_t, t, prompt):
            check(len(x_t) == len(t) == len(prompt), "x_t, t and the inputs must have the same number of rows")
            eps_model.batches.append(len(x_t))
            return x_t + t.view(-1, 1) + prompt.view(-1, 1)

        eps_model.batches = []
        return eps_model

    def run(self, model, w):
        from minicnet.diffusion import guided
        conditional, unconditional = (torch.tensor([2.0, 4.0]),), (torch.tensor([-1.0, -1.0]),)
        return guided(model, conditional, unconditional, w)(waves(2, 3), torch.tensor([10, 20])) - waves(2, 3)

    @POINTS(2)
    def test_the_condition_is_strengthened(self, model):
        found = self.run(model, 3.0)
        check(found.shape == (2, 3), "the result has the shape of x_t, with one row for each image")
        check(close(found[:, 0] - found[:, 1], [0.0, 0.0]), "w should strengthen the condition, not x_t")
        check(not close(found[:, 0], [3.0, 9.0]) and not close(found[:, 0], [6.0, 4.0]), "w = 0 is unconditional: from "
              "which of the two answers do you start, and in which direction do you go?")
        check(not close(found[:, 0], [21.0, 39.0]), "some papers' w is one less than ours: here w = 1 is no guidance")
        check(close(found[:, 0], [18.0, 34.0]), "walk from one answer to the other, w times their difference")
        check(close(self.run(model, -0.5)[:, 0], [7.5, 16.5]), "w may be any number, negative ones too")
        from minicnet.diffusion import guided
        both = guided(lambda x_t, t, a, b: (a + 10 * b)[:, None], (torch.ones(2), 2 * torch.ones(2)),
                      (torch.zeros(2), torch.ones(2)), 3.0)(torch.zeros(2, 1), torch.tensor([0, 0]))
        check(close(both[:, 0], [43.0, 43.0]), "the model may be told several things: all of the tuple is handed on")

    @POINTS(1)
    def test_it_costs_one_call(self, model):
        self.run(model, 3.0)
        check(model.batches == [4], "both answers can be had in one call with a batch of 2B")
        for w, expected in {1: [12.0, 24.0], 0: [9.0, 19.0]}.items():
            model.batches.clear()
            check(close(self.run(model, w)[:, 0], expected), f"w = {w} needs one of the two answers only: which?")
            check(model.batches == [2], f"w = {w} needs one of the two answers only, so one batch of B")
