"""Assignment 1: diffusion. Each class tests one task. Stand-ins replace your other functions."""

import math

import pytest
import torch
from checking import check, close, waves
from torch import nn

from minicnet import diffusion
from minicnet.diffusion import NoiseSchedule

POINTS = pytest.mark.points
TABLES = {  # four timesteps, after which 81%, 64%, 36% and 4% of the image's variance are left
    "beta": [0.19, 0.2098765, 0.4375, 0.8888889],
    "alpha": [0.81, 0.7901235, 0.5625, 0.1111111],
    "alpha_bar": [0.81, 0.64, 0.36, 0.04],
    "sqrt_alpha_bar": [0.9, 0.8, 0.6, 0.2],
    "sqrt_one_minus_alpha_bar": [0.4358899, 0.6, 0.8, 0.9797959],
    "posterior_variance": [0.0, 0.1107682, 0.2460938, 0.5925926],
    "posterior_mean_x_0": [1.0, 0.5246914, 0.546875, 0.5555556],
    "posterior_mean_x_t": [0.0, 0.4691358, 0.421875, 0.2222222],
}


@pytest.fixture
def schedule():
    """Return a schedule with these tables, which needs none of your functions."""
    schedule = NoiseSchedule.__new__(NoiseSchedule)
    nn.Module.__init__(schedule)
    for name, table in TABLES.items():
        schedule.register_buffer(name, torch.tensor(table))
    return schedule


@pytest.fixture
def sampling_schedule(schedule):
    """Return the same schedule, whose models predict the image itself: predict_x0 returns it."""
    schedule.predict_x0 = lambda x_t, prediction, t: prediction
    return schedule


def sees(value):
    """Return the model that predicts an image of this brightness, whatever its input."""
    return lambda x_t, t: torch.full_like(x_t, value)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def after_drawing(count, shape):
    """Return the state of such a generator after noise of that shape was drawn `count` times."""
    generator = seeded()
    for _ in range(count):
        torch.randn(shape, generator=generator)
    return generator.get_state()


def each_for_itself(function):
    """Check that an image gets the same result in a batch as alone."""
    t = torch.tensor([0, 3])
    for shape in ((2, 2, 2, 2), (2, 2)):  # as many images as columns: pictures, and points
        first, second = waves(*shape), waves(*shape, phase=2)
        found = function(first, second, t)
        check(found.shape == shape, "the result has the shape of the images, whatever their axes")
        for i in range(2):
            alone = function(first[i:i + 1], second[i:i + 1], t[i:i + 1])
            check(close(found[i:i + 1], alone), "in a batch an image gets another result than "
                  "alone. Every pixel of image i belongs to t[i]: which axis of the images does "
                  "a table entry of shape (B,) meet, and which one should it meet?")


def refuses(function):
    image = torch.zeros(2, 1, 4, 4)
    cases = {
        "noise of another shape than the images": (image, image[:1], torch.tensor([0, 1])),
        "one timestep for two images": (image, image, torch.tensor([0])),
        "a timestep outside 0 .. T-1": (image, image, torch.tensor([0, 4])),
    }
    for case, arguments in cases.items():
        try:
            function(*arguments)
        except NotImplementedError:
            raise
        except (IndexError, RuntimeError, ValueError) as error:
            if isinstance(error, ValueError):
                continue
        check(False, f"the docstring promises a ValueError for {case}: which method of the class "
                     "checks the arguments?")


class TestAlphaBar:
    """1. alpha_bar of a schedule"""

    @POINTS(2)
    def test_three_steps(self):
        found = NoiseSchedule([0.5, 0.2, 0.5]).alpha_bar
        check(found.shape == (3,), "alpha_bar is a table with one number for each timestep")
        check(close(found[0], 0.5), "which fraction of the variance does the first step keep?")
        check(found[2] < found[1] < found[0], "each step keeps a fraction of what was left before "
              "it, so alpha_bar falls: can an image come back?")
        check(close(found, [0.5, 0.4, 0.2]), "after two steps that keep one half each, a quarter "
              "is left: how do fractions combine?")

    @POINTS(1)
    def test_a_thousand_steps(self):
        last = NoiseSchedule.linear(1000).alpha_bar[-1].item()
        check(math.isclose(last, 4.0358e-5, rel_tol=1e-3), "the linear schedule ends in nearly "
              f"pure noise, with 0.004% of the variance left, but here {last:.4%} are left: is "
              "every step counted once?")


class TestAddNoise:
    """2. add_noise"""

    @POINTS(2)
    def test_the_weights_of_image_and_noise(self, schedule):
        one, none = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
        for step, of_image, of_noise in ((3, 0.2, 0.9797959), (1, 0.8, 0.6)):
            t = torch.tensor([step])
            image, noise = schedule.add_noise(one, none, t), schedule.add_noise(none, one, t)
            check(image.shape == one.shape, "x_t has the shape of x_0")
            check((image.mean() < noise.mean()) == (step == 3), "late in the schedule, x_t holds "
                  "more noise than image: are the two weights exchanged?")
            check(close(image, of_image * one), "alpha_bar is the fraction of the image's "
                  "*variance* that is left: by which factor do you multiply x_0 itself?")
            check(close(noise, of_noise * one), "the noise supplies the rest of the *variance*: "
                  "by which factor do you multiply eps itself?")

    @POINTS(2)
    def test_each_image_has_its_own_timestep(self, schedule):
        each_for_itself(schedule.add_noise)

    @POINTS(1)
    def test_arguments_that_do_not_fit_are_refused(self, schedule):
        refuses(schedule.add_noise)


class TestPredictX0:
    """3. predict_x0"""

    @POINTS(2)
    def test_it_undoes_add_noise(self, schedule):
        x_t = torch.ones(1, 1, 2, 3)
        for step, clean, noisy in ((3, 5.0, 0.1010205), (1, 1.25, 0.5)):
            t = torch.tensor([step])
            check(close(schedule.predict_x0(x_t, 0 * x_t, t), clean * x_t), "without noise, x_t "
                  "is a pale x_0: how do you restore its contrast?")
            check(close(schedule.predict_x0(x_t, x_t, t), noisy * x_t), "solve the equation of "
                  "add_noise for x_0: what is undone first, and what last?")

    @POINTS(2)
    def test_each_image_has_its_own_timestep(self, schedule):
        each_for_itself(schedule.predict_x0)


class TestPredictEps:
    """4. predict_eps"""

    @POINTS(1)
    def test_its_weights(self, schedule):
        one = torch.ones(1, 1, 2, 3)
        for step, of_x_t, of_v in ((3, 0.9797959, 0.2), (1, 0.6, 0.8)):
            t = torch.tensor([step])
            x_t, v = schedule.predict_eps(one, 0 * one, t), schedule.predict_eps(0 * one, one, t)
            check((x_t.mean() > v.mean()) == (step == 3), "late in the schedule, eps is nearly "
                  "x_t: which of the two weights belongs to x_t?")
            check(close(x_t, of_x_t * one) and close(v, of_v * one), "which two tables hold the "
                  "weights of Salimans and Ho's formula?")

    @POINTS(1)
    def test_each_image_has_its_own_timestep(self, schedule):
        each_for_itself(schedule.predict_eps)


class TestLoss:
    """5. diffusion_loss"""

    @pytest.fixture
    def marked(self, schedule):
        """Return the schedule; its add_noise is a stand-in whose result is easy to recognise."""
        schedule.add_noise = lambda x_0, eps, t: x_0 + 10 * eps + 100 * t.sum()
        return schedule

    def loss(self, schedule, errors, shape=(2, 1, 3, 4)):
        """Return the loss at t = 1 and 3 if the prediction of image i is off by errors[i]."""
        eps = waves(*shape, phase=2)
        off = torch.tensor(errors).view(-1, *[1] * (len(shape) - 1))
        t = torch.tensor([1, 3])
        return diffusion.diffusion_loss(lambda *_: eps + off, schedule, waves(*shape), t, eps)

    @POINTS(2)
    def test_its_value(self, marked):
        check(close(self.loss(marked, [0.0, 0.0]), 0.0), "a model that predicts the noise exactly "
              "has no loss: with what do you compare its prediction?")
        half = self.loss(marked, [0.5, 0.5])
        check(half.shape == (), "the loss is one number for the batch")
        check(not close(half, 0.25), "the error of each image is weighted: by what, at its t?")
        check(not close(half, 1.5625), "1 / alpha_bar weights the *square* of the error")
        check(close(half, 3.3203125) and close(self.loss(marked, [-0.5, 1.0]), 12.6953125),
              "the square of each error counts 1 / alpha_bar_t times, at its own image's t, and "
              "then the mean of all pixels is taken: which norm, and a sum or a mean?")
        check(close(self.loss(marked, [-0.5, 1.0], (2, 2)), 12.6953125),
              "x_0 may have any number of axes, such as points (B, 2): does your code need four?")

    @POINTS(2)
    def test_the_model_sees_noisy_images(self, marked):
        seen, weight = [], torch.tensor(2.0, requires_grad=True)

        def eps_model(x_t, t):
            seen.append((x_t, t))
            return weight * x_t

        x_0, t, eps = waves(2, 1, 3, 4), torch.tensor([1, 3]), waves(2, 1, 3, 4, phase=2)
        loss = diffusion.diffusion_loss(eps_model, marked, x_0, t, eps)
        check(len(seen) == 1, "one call of the model is enough")
        check(not close(seen[0][0], x_0), "a clean image holds no noise to predict: what should "
              "the model see instead?")
        check(close(seen[0][0], marked.add_noise(x_0, eps, t)),
              "the model should see x_0 with the noise eps at t, as add_noise makes it")
        check(torch.equal(seen[0][1], t), "the model must also know how noisy its images are")
        check(loss.requires_grad, "no gradient reaches the model's weights: what cuts the graph?")

    @POINTS(1)
    def test_a_prediction_of_another_shape_is_refused(self, marked):
        try:
            self.loss(marked, [0.0], (2, 1, 3, 4))  # fits
            eps = waves(2, 1, 3, 4)
            diffusion.diffusion_loss(lambda *_: eps[:1], marked, eps, torch.tensor([1, 3]), eps)
        except ValueError:
            return
        check(False, "a prediction of another shape would be broadcast without a word: the "
                     "docstring promises a ValueError")


class TestDDPM:
    """6. one DDPM step"""

    def states(self, schedule, prediction=0.5, shape=(4, 1, 100, 100), seed=0):
        """Return x_t at t = 3, 2, 1 and 0, the final images, and the generator."""
        states, generator = [], seeded(seed)
        final = diffusion.sample_ddpm(sees(prediction), schedule, torch.ones(shape), generator,
                                      hook=lambda t, x_t, x_0: states.append(x_t))
        return [*states, final], generator

    @POINTS(2)
    def test_the_mean_of_a_step(self, sampling_schedule):
        states, _ = self.states(sampling_schedule)
        check(abs(states[1].mean() - 0.5) < 0.01, "the mean of x_{t-1} combines the predicted x_0 "
              "and x_t: which of the two tables belongs to which?")
        mean = self.states(sampling_schedule, prediction=7.0)[0][1].mean()
        check(abs(mean - 0.7778) < 0.01, "a predicted x_0 outside [-1, 1] has been clipped for "
              "you: does your step use this x_0, or one of its own?")

    @POINTS(2)
    def test_the_noise_of_a_step(self, sampling_schedule):
        states, generator = self.states(sampling_schedule)
        std = states[1].std().item()
        check(std > 0.01, "every step but the last one adds fresh noise")
        check(abs(std - 0.7698) < 0.02, "the noise of a step has the posterior *variance*, so its "
              f"standard deviation should be 0.770 in this test, and it is {std:.3f}")
        std = states[3].std().item()
        check(abs(std - 0.434) < 0.02, "the step from t = 1 to t = 0 adds noise as well, because t "
              f"counts from 0 here: the standard deviation should be 0.434, and it is {std:.3f}")
        check(close(states[4], torch.full((4, 1, 100, 100), 0.5)), "at t = 0 the image is "
              "finished: what would noise do to it now?")
        check(torch.equal(generator.get_state(), after_drawing(3, (4, 1, 100, 100))),
              "four timesteps need noise three times, of the shape of x_t, from the generator: is "
              "noise drawn elsewhere, or drawn and not used?")
        again, _ = self.states(sampling_schedule)
        other, _ = self.states(sampling_schedule, seed=1)
        check(torch.equal(again[1], states[1]) and not close(other[1], states[1]),
              "the generator alone decides the noise: who draws it in your code?")
        x = states[1]
        check(x.std((1, 2, 3)).min() > 0.7 and not close(x[0], x[1]),
              "each image and each pixel has noise of its own")


class TestDDIM:
    """7. one DDIM step"""

    def jump(self, schedule, eta=0.0, prediction=0.5):
        """Return x_t at t = 0, jumped to from ones at t = 3, and whether noise was drawn."""
        states, generator = [], seeded()
        diffusion.sample_ddim(sees(prediction), schedule, torch.ones(4, 1, 100, 100), 2, eta,
                              generator, hook=lambda t, x_t, x_0: states.append(x_t))
        drawn = [torch.equal(generator.get_state(), after_drawing(n, (4, 1, 100, 100)))
                 for n in range(2)]
        return states[1], drawn.index(True) if any(drawn) else -1

    @POINTS(2)
    def test_a_jump_without_fresh_noise(self, sampling_schedule):
        x, drawn = self.jump(sampling_schedule)
        check(x.std() < 1e-4, "with eta = 0 nothing is random")
        check(close(x.mean(), 0.85038), "x at t_prev combines image and noise as every x_t does: "
              "the weights of which timestep apply? DDIM jumps, so it is not t - 1")
        x, _ = self.jump(sampling_schedule, prediction=7.0)
        check(close(x.mean(), 1.25588), "x_t consists of image and noise. When the predicted image "
              "is clipped, the noise must be what remains of x_t after this image")
        check(drawn == 0, "with eta = 0 no noise should be drawn from the generator")

    @POINTS(2)
    def test_a_jump_with_fresh_noise(self, sampling_schedule):
        x, drawn = self.jump(sampling_schedule, eta=1.0)
        check(abs(x.std().item() - 0.4338) < 0.01, "with eta = 1 the standard deviation of the "
              f"fresh noise is Eq. 16's sigma, 0.434 in this test, and it is {x.std().item():.3f}")
        check(close(x.mean(), 0.4896, 0.01), "fresh noise replaces a part of the old noise, so "
              "that the variance stays what it must be at t_prev: which factor is left for eps?")
        half, _ = self.jump(sampling_schedule, eta=0.5)
        check(close(half.std(), 0.2169, 0.02), "half of eta gives half of sigma")
        check(drawn == 1 and not close(x[0], x[1]),
              "noise of the shape of x_t comes from the generator, once per step: who draws it?")


class TestGuidance:
    """8. guided"""

    def guided(self, w, calls):
        """Return the guided model of two models that predict x_t + 2 t and x_t - t."""
        def model(name, factor):
            def eps_model(x_t, t):
                calls.append((name, len(x_t)))
                return x_t + factor * t.view(-1, 1)
            return eps_model
        return diffusion.guided(model("cond", 2), model("uncond", -1), w)

    def pull(self, w, calls):
        """Return what the guided model adds to x_t at t = 10 and 20."""
        x_t = waves(2, 3)
        found = self.guided(w, calls)(x_t, torch.tensor([10, 20])) - x_t
        check(found.shape == (2, 3), "the result has the shape of x_t")
        return found[:, 0]

    @POINTS(2)
    def test_the_condition_is_strengthened(self):
        found = self.pull(3.0, [])
        check(not close(found, [-40.0, -80.0]), "w = 0 is the prediction without the condition: "
              "from which of the two do you start, and in which direction do you go?")
        check(not close(found, [110.0, 220.0]), "some papers' w is one less than ours: here w = 1 "
              "is the prediction with the condition")
        check(close(found, [80.0, 160.0]), "start from one prediction and add w times the "
              "difference of the two")
        check(close(self.pull(0, []), [-10.0, -20.0]), "w = 0 ignores the condition")
        check(close(self.pull(-0.5, []), [-25.0, -50.0]), "w may be any number, also a negative")

    @POINTS(1)
    def test_each_model_is_called_when_needed(self):
        for w, names in {3.0: ["cond", "uncond"], 1: ["cond"]}.items():
            calls = []
            expected = {3.0: 80.0, 1: 20.0}[w]
            check(close(self.pull(w, calls)[0], expected), f"the result for w = {w} is wrong")
            check(sorted(calls) == [(name, 2) for name in names], f"w = {w} needs one call of "
                  f"each of {' and '.join(names)}, with the whole batch")
