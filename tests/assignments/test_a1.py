"""Assignment 1: diffusion. Each class tests one task. Stand-ins replace your other functions."""

from unittest.mock import Mock

import pytest
import torch
from checking import check, check_refused, close, waves

from minicnet import diffusion

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
    """Return a schedule with these tables, for which none of your functions was called."""
    schedule = diffusion.NoiseSchedule.__new__(diffusion.NoiseSchedule)
    vars(schedule).update({name: torch.tensor(table) for name, table in TABLES.items()})
    return schedule


def weights(function, t):
    """Return by which numbers a function multiplies its two images at timestep t."""
    one, none, t = torch.ones(1, 1, 2, 3), torch.zeros(1, 1, 2, 3), torch.tensor([t])
    return function(one, none, t).mean(), function(none, one, t).mean()


def check_each_image(function):
    """Check that an image gets the same result in a batch as alone."""
    t = torch.tensor([0, 3])
    for shape in ((2, 2, 2, 2), (2, 2)):  # as many images as columns: pictures, and points
        batch = waves(*shape), waves(*shape, phase=2), t
        found = function(*batch)
        check(found.shape == shape, "the result has the shape of the images, whatever their axes")
        alone = torch.cat([function(*one) for one in zip(*(x.split(1) for x in batch))])
        check(close(found, alone), "in a batch an image gets another result than alone. Every "
              "pixel of image i belongs to t[i]: which axis of the images does a table entry of "
              "shape (B,) meet, and which one should it meet?")


class TestAlphaBar:
    """1. alpha_bar of a schedule"""

    @POINTS(2)
    def test_three_steps(self):
        found = diffusion.NoiseSchedule([0.5, 0.2, 0.5]).alpha_bar
        check(found.shape == (3,), "alpha_bar is a table with one number for each timestep")
        check(close(found[0], 0.5), "which fraction of the variance does the first step keep?")
        check(found[2] < found[1] < found[0], "each step keeps a fraction of what was left before "
              "it, so alpha_bar falls: can an image come back?")
        check(close(found, [0.5, 0.4, 0.2]), "after two steps that keep one half each, a quarter "
              "is left: how do fractions combine?")

    @POINTS(1)
    def test_a_thousand_steps(self):
        last = diffusion.NoiseSchedule.linear(1000).alpha_bar[-1].item()
        check(abs(last / 4.0358e-5 - 1) < 1e-3, "the linear schedule ends in nearly pure noise, "
              f"with 0.004% of the variance left, but here {last:.4%} are left: is every step "
              "counted once?")


class TestAddNoise:
    """2. add_noise"""

    @POINTS(2)
    def test_the_weights_of_image_and_noise(self, schedule):
        for t, of_image, of_noise in ((3, 0.2, 0.9797959), (1, 0.8, 0.6)):
            image, noise = weights(schedule.add_noise, t)
            check((image < noise) == (t == 3), "late in the schedule, x_t holds more noise than "
                  "image: are the two weights exchanged?")
            check(close(image, of_image), "alpha_bar is the fraction of the image's *variance* "
                  "that is left: by which factor do you multiply x_0 itself?")
            check(close(noise, of_noise), "the noise supplies the rest of the *variance*: by which "
                  "factor do you multiply eps itself?")

    @POINTS(2)
    def test_each_image_has_its_own_timestep(self, schedule):
        check_each_image(schedule.add_noise)

    @POINTS(1)
    def test_arguments_that_do_not_fit_are_refused(self, schedule):
        image, t = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
        for case, arguments in {
                "noise of another shape than the images": (image, image[:1], t),
                "one timestep for two images": (image, image, t[:1]),
                "a timestep outside 0 .. T-1": (image, image, 4 * t)}.items():
            check_refused(f"the docstring promises a ValueError for {case}: which method of the "
                          "class checks the arguments?", schedule.add_noise, *arguments)


class TestPredictX0:
    """3. predict_x0"""

    @POINTS(2)
    def test_it_undoes_add_noise(self, schedule):
        for t, clean, noisy in ((3, 5.0, -4.8989795), (1, 1.25, -0.75)):
            of_x_t, of_eps = weights(schedule.predict_x0, t)
            check(close(of_x_t, clean), "without noise, x_t is a pale x_0: how do you restore its "
                  "contrast?")
            check(close(of_eps, noisy), "solve the equation of add_noise for x_0: what is undone "
                  "first, and what last?")

    @POINTS(2)
    def test_each_image_has_its_own_timestep(self, schedule):
        check_each_image(schedule.predict_x0)


class TestPredictEps:
    """4. predict_eps"""

    @POINTS(1)
    def test_its_weights(self, schedule):
        for t, of_x_t, of_v in ((3, 0.9797959, 0.2), (1, 0.6, 0.8)):
            x_t, v = weights(schedule.predict_eps, t)
            check((x_t > v) == (t == 3), "late in the schedule, eps is nearly x_t: which of the "
                  "two weights belongs to x_t?")
            check(close(x_t, of_x_t) and close(v, of_v), "which two tables hold the weights of "
                  "Salimans and Ho's formula?")

    @POINTS(1)
    def test_each_image_has_its_own_timestep(self, schedule):
        check_each_image(schedule.predict_eps)


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
        check(not close(half, 0.25), "the error of each image is weighted: by what, at its t?")
        check(not close(half, 1.5625), "1 / alpha_bar weights the *square* of the error")
        check(close(half, 3.3203125) and close(self.loss(marked, [-0.5, 1.0]), 12.6953125),
              "the square of each error counts 1 / alpha_bar_t times, at its own image's t, and "
              "then the mean of all pixels is taken, which is one number for the batch: which "
              "norm, and a sum or a mean?")
        check(close(self.loss(marked, [-0.5, 1.0], (2, 2)), 12.6953125),
              "x_0 may have any number of axes, such as points (B, 2): does your code need four?")

    @POINTS(2)
    def test_the_model_sees_noisy_images(self, marked):
        x_0, t, eps = waves(2, 1, 3, 4), torch.tensor([1, 3]), waves(2, 1, 3, 4, phase=2)
        eps_model = Mock(return_value=torch.ones(2, 1, 3, 4, requires_grad=True))
        loss = diffusion.diffusion_loss(eps_model, marked, x_0, t, eps)
        check(eps_model.call_count == 1, "one call of the model is enough")
        x_t, seen_t = eps_model.call_args.args
        check(not close(x_t, x_0), "a clean image holds no noise to predict: what should the model "
              "see instead?")
        check(close(x_t, marked.add_noise(x_0, eps, t)),
              "the model should see x_0 with the noise eps at t, as add_noise makes it")
        check(torch.equal(seen_t, t), "the model must also know how noisy its images are")
        check(loss.requires_grad, "no gradient reaches the model's weights: what cuts the graph?")

    @POINTS(1)
    def test_a_prediction_of_another_shape_is_refused(self, marked):
        self.loss(marked, [0.0, 0.0])  # fits
        eps, t = waves(2, 1, 3, 4), torch.tensor([1, 3])
        check_refused("a prediction of another shape would be broadcast without a word: the "
                      "docstring promises a ValueError", diffusion.diffusion_loss,
                      lambda *_: eps[:1], marked, eps, t, eps)


SHAPE = 4, 1, 100, 100  # so many pixels that their mean and their standard deviation hardly vary


def sample(schedule, sampler, *settings, prediction=0.5):
    """Sample from an image of ones, with a model that predicts this brightness for every x_0.

    Returns x_t at each timestep, the final images, and the noise that was drawn: a list of tensors,
    or None if numbers of another shape were drawn.
    """
    schedule.predict_x0 = lambda x_t, prediction, t: prediction
    states, noise = [], []
    generator, same = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    final = sampler(lambda x_t, t: torch.full_like(x_t, prediction), schedule, torch.ones(SHAPE),
                    *settings, generator, hook=lambda t, x_t, x_0: states.append(x_t))
    while not torch.equal(generator.get_state(), same.get_state()):
        noise.append(torch.randn(SHAPE, generator=same))
        if len(noise) > len(states):
            return states, final, None
    return states, final, noise


class TestDDPM:
    """6. one DDPM step"""

    @POINTS(2)
    def test_the_mean_of_a_step(self, schedule):
        (_, x, *_), *_ = sample(schedule, diffusion.sample_ddpm)
        check(abs(x.mean() - 0.5) < 0.01, "the mean of x_{t-1} combines the predicted x_0 and x_t: "
              "which of the two tables belongs to which?")
        (_, x, *_), *_ = sample(schedule, diffusion.sample_ddpm, prediction=7.0)
        check(abs(x.mean() - 0.7778) < 0.01, "a predicted x_0 outside [-1, 1] has been clipped for "
              "you: does your step use this x_0, or one of its own?")

    @POINTS(2)
    def test_the_noise_of_a_step(self, schedule):
        states, final, noise = sample(schedule, diffusion.sample_ddpm)
        for t, expected, hint in (
                (3, 0.7698, "the noise of a step has the posterior *variance*"),
                (1, 0.4340, "the step from t = 1 to t = 0 adds noise as well, because t counts "
                            "from 0 here")):
            std = states[4 - t].std().item()
            check(std > 0.01, "every step but the last one adds fresh noise")
            check(abs(std - expected) < 0.02, f"{hint}: the standard deviation should be "
                  f"{expected:.3f} in this test, and it is {std:.3f}")
        check(close(final, torch.full(SHAPE, 0.5)), "at t = 0 the image is finished: what would "
              "noise do to it now?")
        check(noise and len(noise) == 3,
              "four timesteps need noise three times, of the shape of x_t, from the generator: is "
              "noise drawn elsewhere, or drawn and not used?")
        check(close((states[1] - 0.5).abs(), 0.7698 * noise[0].abs(), 1e-3), "the generator alone "
              "decides the noise of each image and each pixel: who draws it in your code?")


class TestDDIM:
    """7. one DDIM step"""

    def jump(self, schedule, eta=0.0, prediction=0.5):
        """Return x_t at t = 0, jumped to from ones at t = 3, and the noise that was drawn."""
        states, _, noise = sample(schedule, diffusion.sample_ddim, 2, eta, prediction=prediction)
        return states[1], noise

    @POINTS(2)
    def test_a_jump_without_fresh_noise(self, schedule):
        x, noise = self.jump(schedule)
        check(x.std() < 1e-4, "with eta = 0 nothing is random")
        check(close(x.mean(), 0.85038), "x at t_prev combines image and noise as every x_t does: "
              "the weights of which timestep apply? DDIM jumps, so it is not t - 1")
        check(noise == [], "with eta = 0 no noise should be drawn from the generator")
        x, _ = self.jump(schedule, prediction=7.0)
        check(close(x.mean(), 1.25588), "x_t consists of image and noise. When the predicted image "
              "is clipped, the noise must be what remains of x_t after this image")

    @POINTS(2)
    def test_a_jump_with_fresh_noise(self, schedule):
        x, noise = self.jump(schedule, eta=1.0)
        check(abs(x.std().item() - 0.4338) < 0.01, "with eta = 1 the standard deviation of the "
              f"fresh noise is Eq. 16's sigma, 0.434 in this test, and it is {x.std().item():.3f}")
        check(close(x.mean(), 0.4896, 0.01), "fresh noise replaces a part of the old noise, so "
              "that the variance stays what it must be at t_prev: which factor is left for eps?")
        check(noise and len(noise) == 1 and close((x - x.mean()).abs(), 0.4338 * noise[0].abs(),
                                                  0.01),
              "noise of the shape of x_t comes from the generator, once per step: who draws it?")
        half, _ = self.jump(schedule, eta=0.5)
        check(close(half.std(), 0.2169, 0.02), "half of eta gives half of sigma")


class TestGuidance:
    """8. guided"""

    def pull(self, w):
        """Return what the guided model of two models, which predict x_t + 2 t and x_t - t, adds to
        x_t at t = 10 and 20, and how often each of the two is called."""
        cond = Mock(side_effect=lambda x_t, t: x_t + 2 * t.view(-1, 1))
        uncond = Mock(side_effect=lambda x_t, t: x_t - t.view(-1, 1))
        x_t = waves(2, 3)
        found = diffusion.guided(cond, uncond, w)(x_t, torch.tensor([10, 20])) - x_t
        return found[:, 0], (cond.call_count, uncond.call_count)

    @POINTS(2)
    def test_the_condition_is_strengthened(self):
        found, _ = self.pull(3.0)
        check(not close(found, [-40.0, -80.0]), "w = 0 is the prediction without the condition: "
              "from which of the two do you start, and in which direction do you go?")
        check(not close(found, [110.0, 220.0]), "some papers' w is one less than ours: here w = 1 "
              "is the prediction with the condition")
        for w, expected, hint in (
                (3.0, [80.0, 160.0], "start from one prediction and add w times the difference of "
                                     "the two, which has the shape of x_t"),
                (0, [-10.0, -20.0], "w = 0 ignores the condition"),
                (-0.5, [-25.0, -50.0], "w may be any number, also a negative")):
            check(close(self.pull(w)[0], expected), hint)

    @POINTS(1)
    def test_each_model_is_called_when_needed(self):
        for w, expected, calls in ((3.0, 80.0, (1, 1)), (1, 20.0, (1, 0))):
            found, called = self.pull(w)
            check(close(found[0], expected), f"the result for w = {w} is wrong")
            check(called == calls, f"w = {w} needs {calls[0]} call of the model with the condition "
                  f"and {calls[1]} of the other, with the whole batch")
