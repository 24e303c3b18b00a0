"""Assignment 4: a condition of your own. Tasks 1 and 2 have one right answer. Tasks 3 and 4 have many, and are asked
only for what every condition and measure must keep to. Tasks 5 and 6 are given another condition than yours."""

import copy
from pathlib import Path

import pytest
import torch
from checking import check, close, waves, with_waves

POINTS = pytest.mark.points


@pytest.fixture
def own(monkeypatch):
    """Your own_condition.py."""
    monkeypatch.syspath_prepend(str(Path("notebooks/assignments").resolve()))
    import own_condition
    return own_condition


@pytest.fixture
def given(own, monkeypatch):
    """own_condition.py with a condition of two channels in place of yours."""
    monkeypatch.setattr(own, "condition", two_channels)
    return own


def two_channels(images):
    return torch.cat([(images + 1) / 2, (1 - images) / 4], dim=1).float()


def digits(count=20, seed=7):
    from minicnet.digits import draw_digits
    return draw_digits(count, seed)[0]


def square(size, start, end):
    """White from row and column `start` to `end`, on black: (1, 1, size, size)."""
    image = torch.full((1, 1, size, size), -1.0)
    image[..., start:end, start:end] = 1
    return image


class TestDepth:
    """1. depth"""

    @POINTS(2)
    def test_a_square_is_a_pyramid(self):
        from minicnet.conditions import depth
        found = depth(square(9, 2, 7))
        check(torch.is_tensor(found) and found.shape == (1, 1, 9, 9) and found.dtype == torch.float32,
              "depth gives float32 maps (B, 1, H, W), as large as the images")
        found = found[0, 0]
        check(not found[0].any() and not found[:, 1].any(), "the background is 0")
        check(close(found[4, 2:7], [0.25, 0.5, 0.75, 0.5, 0.25]), "pixels at the rim are one pixel from the background,"
              " those further inside two and three; what are distances divided by?")
        check(close(found[3, 2:7], [0.25, 0.5, 0.5, 0.5, 0.25]), "the nearest background may lie in any direction")

    @POINTS(1)
    def test_distances_are_euclidean_and_end_at_one(self, monkeypatch):
        from minicnet import conditions
        from minicnet.conditions import depth
        image = square(26, 1, 25)
        image[..., 12, 12] = -1
        found = depth(image)[0, 0]
        check(close(found[13:15, 13:15], [[2**0.5 / 4, 5**0.5 / 4], [5**0.5 / 4, 8**0.5 / 4]]),
              "one step sideways and one down are not two pixels away, nor one: how long is a diagonal?")
        check(found.max() <= 1, "from RELIEF pixels on, the relief is flat: no value is above 1")
        check(close(found[7, 7], 1.0), "from RELIEF pixels on, the relief has its full height")
        monkeypatch.setattr(conditions, "mask", lambda images: torch.ones_like(images))
        check(close(depth(image), torch.ones_like(image)), "where all is foreground, no background is near: it is 1")

    @POINTS(1)
    def test_each_image_is_for_itself(self):
        from minicnet.conditions import depth
        images = torch.cat([square(12, 3, 9), -square(12, 4, 8), square(12, 5, 7)])
        alone = torch.cat([depth(image[None]) for image in images])
        check(close(depth(images), alone), "what a map looks like must not depend on the other images of the batch")
        check(alone[1, 0, 5, 5] == 0.5, "black on white is foreground, too: `mask` finds it")
        bar = square(12, 0, 12)
        bar[..., :9] = bar[..., 0, :] = bar[..., -1, :] = -1
        check(close(depth(bar)[0, 0, 6, 9:], [0.25, 0.5, 0.75]), "beyond the border is no background")


class TestDepthError:
    """2. depth_error"""

    @pytest.fixture
    def error(self, monkeypatch):
        """depth_error, where the relief of an image is simply its brightness."""
        from minicnet import evaluation
        monkeypatch.setattr(evaluation, "depth", lambda images: (images[:, :1] + 1) / 2)
        return lambda found, given: evaluation.depth_error(2 * found - 1, given)

    @POINTS(1)
    def test_what_is_compared(self, error):
        maps = torch.rand(3, 1, 4, 4)
        found = error(maps, maps)
        check(isinstance(found, float), "the result is a float, not a tensor")
        check(found == 0, "images with the very relief they were given have no error")
        below, above = (error(torch.full((1, 1, 2, 2), a), torch.full((1, 1, 2, 2), b)) for a, b in ((0, 1), (1, 0)))
        check(below == above == 1, "too deep is as wrong as too high, and black against white is an error of 1")

    @POINTS(2)
    def test_which_pixels_count(self, error):
        found, given = torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4)
        found[..., 0, 0], given[..., 0, 1] = 0.5, 1.0
        check(abs(error(found, given) - 0.75) < 1e-6, "only pixels where either relief is above 0 count: here two, "
              "with errors of 0.5 and 1")
        found[..., 0, 1] = 1.0
        check(abs(error(found, given) - 0.25) < 1e-6, "a pixel without an error counts, but not one that both "
              "call background")

    @POINTS(1)
    def test_the_mean_over_images(self, error):
        found = torch.zeros(3, 1, 4, 4)
        given = found.clone()
        given[0, 0, 0, 0] = 1
        given[1] = 0.5
        check(abs(error(found, given) - 0.5) < 1e-6, "each image counts alike, however large its relief is: here "
              "their errors are 1, 0.5 and, where both reliefs are empty, 0")
        for wrong in (given[:2], 2 * given):
            try:
                error(found, wrong)
                refused = False
            except Exception as raised:
                refused = isinstance(raised, ValueError)
            check(refused, "maps of another shape, or outside [0, 1], are a ValueError: see `_checked`")


class TestCondition:
    """3. your condition"""

    @POINTS(2)
    def test_its_shape_and_range(self, own):
        for images in (digits(3), waves(2, 1, 12, 20), torch.full((2, 1, 8, 8), -1.0), torch.ones(1, 1, 28, 28)):
            before = images.clone()
            maps = own.condition(images)
            check(torch.is_tensor(maps) and maps.dtype == torch.float32, "a map is a float32 tensor")
            check(maps.ndim == 4 and maps.shape[1] > 0 and maps.shape[::2] == images.shape[::2]
                  and maps.shape[3] == images.shape[3],
                  f"maps are (B, K, H, W) with the B, H and W of the images, but {tuple(images.shape)} became "
                  f"{tuple(maps.shape)}")
            check(bool(maps.isfinite().all()), "maps must hold numbers, also for an image of one colour: was something "
                  "divided by zero?")
            check(0 <= maps.min() and maps.max() <= 1, "maps lie in [0, 1], but images in [-1, 1]")
            check(torch.equal(images, before), "the images themselves must stay as they are")

    @POINTS(2)
    def test_each_map_depends_on_its_own_image_alone(self, own):
        images = digits()
        maps = own.condition(images)
        check(torch.equal(maps, own.condition(images)), "the same images must have the same maps: is something random?")
        alone = torch.cat([own.condition(image[None]) for image in images[:6]])
        check(close(maps[:6], alone), "an image has another map alone than in a batch: does a mean, a maximum or a "
              "minimum run over all images?")

    @POINTS(1)
    def test_it_tells_digits_apart(self, own):
        maps = own.condition(digits())
        check(not close(maps, maps.mean().expand_as(maps)), "all maps are one flat gray")
        different = len(maps.flatten(1).unique(dim=0))
        check(different >= 15, f"20 different digits have only {different} different maps: what could a network learn "
              "from them?")

    @POINTS(1)
    def test_it_is_new(self, own):
        from minicnet.conditions import canny, colour, depth, mask, scribble
        images = digits()
        maps = own.condition(images)
        for known in (canny, colour, mask, scribble, *([depth] if is_written(depth) else [])):
            check(not any(alike(channel, known(images)) for channel in maps.split(1, 1)), f"this is {known.__name__}, "
                  "or the same turned over: which other map could be made of an image?")
        check(not any(alike(channel, images) for channel in maps.split(1, 1)), "this is the image itself, which leaves "
              "nothing to draw: what could be left out?")


def is_written(function):
    try:
        function(digits(1))
    except Exception:  # that is for its own tests to say
        return False
    return True


def alike(a, b):
    """Whether two maps say the same, scaled or turned over."""
    a, b = (x.flatten().double() - x.double().mean() for x in (a, b))
    return bool((a @ b).abs() > 0.98 * a.norm() * b.norm() > 0)


class TestMeasure:
    """4. your measure"""

    @POINTS(2)
    def test_its_ceiling(self, own):
        images = digits()
        found = own.measure(images, own.condition(images))
        check(isinstance(found, float), "a measure is a float, not a tensor")
        check(abs(found - 1) < 1e-4, f"real images follow their own maps perfectly, but score {found:.3f} instead of 1")

    @POINTS(2)
    def test_its_floor(self, own):
        images = digits()
        maps = own.condition(images)
        others = own.measure(images.roll(1, 0), maps)
        check(0 <= others <= 1, f"a measure lies in [0, 1], but this is {others:.3f}")
        check(others < 0.8, f"images score {others:.3f} with the maps of other digits, and 1 with their own: nothing "
              "could be told from that. Which pixels, alike in all digits, hide the rest?")
        check(own.measure(-torch.ones_like(images), maps) < 0.95, "black images follow your maps as well as the digits "
              "they belong to")
        check(own.measure(images.maximum(images.roll(1, 0)), maps) < 0.95, "two digits drawn over one another follow "
              "the maps of the first as well as it does: what is too much must count, too")

    @POINTS(1)
    def test_every_image_counts_alike(self, own):
        images = digits(6)
        maps = own.condition(images.roll(2, 0))
        each = [own.measure(image[None], its_map[None]) for image, its_map in zip(images, maps)]
        check(abs(own.measure(images, maps) - sum(each) / 6) < 1e-4, "the measure of a batch is the mean of the "
              "measures of its images: first compare each image, then take the mean")

    @POINTS(1)
    def test_blank_images_have_a_score(self, own):
        blank, images = -torch.ones(3, 1, 28, 28), digits(3)
        for shown, asked in ((blank, blank), (blank, images), (images, blank)):
            found = own.measure(shown, own.condition(asked))
            check(0 <= found <= 1, f"blank images, or blank maps, score {found}: was something divided by zero?")
        check(abs(own.measure(blank, own.condition(blank)) - 1) < 1e-4, "blank images follow their own maps perfectly")


def small_unet(channels=8):
    """A base with numbers for weights, locked. With 8 channels, each is a group of its own, and the norms remove t."""
    from minicnet.unet import UNet
    return with_waves(UNet(channels=channels, multipliers=(1,), patch=1), scale=0.2).eval().requires_grad_(False)


@torch.no_grad()
def as_if_trained(net):
    generator = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return net


def inputs():
    """x_t, t, prompt"""
    from minicnet.words import tokenize
    return waves(2, 1, 8, 8), torch.tensor([5, 700]), tokenize(["a three", "seven"])


def pictures(phase):
    """x_0 (2, 1, 8, 8) in [-1, 1] with edges."""
    return waves(2, 1, 4, 4, phase=phase).repeat_interleave(2, 2).repeat_interleave(2, 3)


class TestTraining:
    """5. new_control and training_model"""

    @POINTS(1)
    def test_a_new_control_reads_your_maps(self, given, monkeypatch):
        from minicnet.controlnet import ControlNet
        net = given.new_control(small_unet())
        check(isinstance(net, ControlNet), "new_control returns a ControlNet")
        check(net.condition_encoder.condition_channels == 2, "how many channels the maps have is told to ControlNet")
        monkeypatch.setattr(given, "condition", lambda images: two_channels(images)[:, [0, 1, 1, 0, 1]])
        check(given.new_control(small_unet()).condition_encoder.condition_channels == 5,
              "maps may have any number of channels K: ask `condition` for it")

    @POINTS(1)
    def test_at_the_start_it_is_the_base(self, given):
        unet, (x_t, t, prompt) = small_unet(), inputs()
        model = given.training_model(unet)(given.new_control(unet), pictures(1), prompt)
        check(torch.equal(model(x_t, t), unet(x_t, t, prompt)), "before training, the base under a new control is the "
              "base, to the last bit, whatever the condition: is the net new, is the base locked, and what is added?")

    @POINTS(2)
    def test_the_condition_is_that_of_the_clean_image(self, given):
        unet, (x_t, t, prompt), x_0 = small_unet(channels=16), inputs(), pictures(1)
        net = as_if_trained(given.new_control(unet))
        found = given.training_model(unet)(net, x_0, prompt)(x_t, t)

        def under(images, scale=1):
            return unet(x_t, t, prompt, control=scale * net(x_t, t, prompt, two_channels(images)))

        check(not close(found, unet(x_t, t, prompt)), "the control makes no difference, even after training")
        check(not close(found, under(x_t.clamp(-1, 1))), "are maps those of the clean image, or of the noisy one?")
        check(close(found, under(x_0)), "what is trained is the base plus the control, at strength 1, where the "
              "control reads `condition` of x_0, and both are told of t and prompt")

    @POINTS(1)
    def test_what_learns(self, given):
        unet, (x_t, t, prompt) = small_unet(), inputs()
        net, before = given.new_control(unet), copy.deepcopy(unet.state_dict())
        y = given.training_model(unet)(net, pictures(1), prompt)(x_t, t)
        check(y.requires_grad, "no gradient reaches the control: is it under no_grad?")
        y.square().sum().backward()
        check(all(zero.weight.grad.any() for zero in net.zero_skips), "zero convolutions learn in the first step")
        given.training_model(unet)(as_if_trained(net), pictures(1), prompt)(x_t, t).square().sum().backward()
        check(all(p.grad is not None and p.grad.any() for p in net.condition_encoder.parameters()), "later on the "
              "condition encoder learns, too: where is its gradient cut off?")
        check(all(parameter.grad is None for parameter in unet.parameters()), "the base must stay locked")
        check(all(torch.equal(a, b) for a, b in zip(before.values(), unet.state_dict().values())), "the base changed")


class TestWithEdges:
    """6. with_edges"""

    @pytest.fixture
    def scene(self, given, monkeypatch):
        """drawn(own strength, edge strength), and what generate makes of a list of controls: three of their steps."""
        from minicnet import sampling
        from minicnet.controlnet import ControlNet
        from minicnet.diffusion import NoiseSchedule, sample_ddim

        def few_steps(eps_model, schedule, x_T, steps, hook=None):
            check(steps == 20, "the number of steps is one of the settings that stay as they are")
            return sample_ddim(eps_model, schedule, x_T, steps=3)

        monkeypatch.setattr(sampling, "sample_ddim", few_steps)
        unet, schedule, (x_T, _, prompt) = small_unet(), NoiseSchedule.cosine(100), inputs()
        self.own_net = with_waves(ControlNet(unet, 2), scale=0.1).eval()
        self.edge_net = with_waves(ControlNet(unet, 1), scale=0.15).eval()

        def drawn(own_strength, edge_strength):
            return given.with_edges(unet, schedule, prompt, x_T, (self.own_net, pictures(1), own_strength),
                                    (self.edge_net, pictures(2), edge_strength))

        return drawn, lambda controls: sampling.generate(unet, schedule, prompt, x_T, controls)

    @POINTS(1)
    def test_without_strength_it_is_the_base(self, scene):
        drawn, expected = scene
        found = drawn(0, 0)
        check(torch.is_tensor(found) and found.shape == (2, 1, 8, 8), "images like x_T are returned")
        check(torch.equal(found, expected([])), "strength 0 is the base, to the last bit: 0 is a number like any other")

    @POINTS(2)
    def test_each_net_reads_its_own_images(self, scene):
        from minicnet.conditions import canny
        drawn, expected = scene
        own, edges = (self.own_net, two_channels(pictures(1)), 1), (self.edge_net, canny(pictures(2)), 1)
        check(torch.allclose(drawn(1, 0), expected([own]), atol=1e-4), "with edges at strength 0, your own condition "
              "is left alone: is it made of the images given for it, and at the strength given?")
        check(torch.allclose(drawn(0, 1), expected([edges]), atol=1e-4), "with your own condition at strength 0, "
              "edges are left alone: are they made of the images given for *them*, which may show something else?")

    @POINTS(2)
    def test_the_two_are_summed(self, scene):
        from minicnet.conditions import canny
        drawn, expected = scene
        controls = [(self.own_net, two_channels(pictures(1)), 0.5), (self.edge_net, canny(pictures(2)), 0.7)]
        check(torch.allclose(drawn(0.5, 0.7), expected(controls), atol=1e-4), "both act in each step, their residuals "
              "added, each at its own strength: `generate` takes a list of controls")
