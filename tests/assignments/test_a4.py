"""Assignment 4: a condition of your own. Tasks 1 and 2 have one right answer. Tasks 3 and 4 have
many, so their tests check what every condition and every measure must fulfil. Tasks 5 and 6 are
tested with another condition than yours."""

import inspect
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from checking import (
    check,
    check_refused,
    check_tensor,
    close,
    inputs,
    learns,
    small_unet,
    waves,
    with_waves,
)

from minicnet import conditions, evaluation, sampling
from minicnet.controlnet import Conditioning, ControlNet
from minicnet.data.digits import draw_digits

POINTS = pytest.mark.points


@pytest.fixture
def own(monkeypatch):
    """Return your own_condition.py."""
    monkeypatch.syspath_prepend(str(Path("notebooks/assignments").resolve()))
    import own_condition
    return own_condition


@pytest.fixture
def given(own, monkeypatch):
    """Return own_condition.py with a condition of two channels in place of yours."""
    monkeypatch.setattr(own, "condition", two_channels)
    return own


def two_channels(images):
    return torch.cat([(images + 1) / 2, (1 - images) / 4], dim=1).float()


def digits(count=20, seed=7):
    return draw_digits(count, seed)[0]


def square(size, start, end):
    """Return white from row and column `start` to `end`, on black: (1, 1, size, size)."""
    image = torch.full((1, 1, size, size), -1.0)
    image[..., start:end, start:end] = 1
    return image


def steps_of_python(function, image):
    """Count the instructions that Python runs in minicnet during a call."""
    count = 0

    def trace(frame, event, _):
        nonlocal count
        frame.f_trace_opcodes = "minicnet" in frame.f_code.co_filename
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # Python 3.12 counts no instruction without this
    sys.settrace(trace)
    try:
        function(image)
    finally:
        sys.settrace(before)
    return count


class TestDepth:
    """1. depth"""

    @POINTS(2)
    def test_a_square_becomes_a_pyramid(self):
        found = conditions.depth(square(9, 2, 7))
        check(torch.is_tensor(found) and found.shape == (1, 1, 9, 9)
              and found.dtype == torch.float32, "depth returns float32 maps (B, 1, H, W)")
        check(close(found[0, 0, 1:5, 2:7], [[0] * 5, [0.25] * 5, [0.25, 0.5, 0.5, 0.5, 0.25],
                                            [0.25, 0.5, 0.75, 0.5, 0.25]]),
              "the background is 0. Pixels at the rim are one pixel from the background, and those "
              "further inside two and three: what divides this? The nearest background may lie in "
              "any direction")
        image = square(26, 1, 25)
        image[..., 12, 12] = -1
        found = conditions.depth(image)[0, 0]
        check(close(found[13:15, 13:15], [[2**0.5 / 4, 5**0.5 / 4], [5**0.5 / 4, 8**0.5 / 4]]),
              "one step sideways and one down are not two pixels away, nor one: how long is a "
              "diagonal?")
        check(close(found[7, 7], 1.0) and found.max() <= 1, "from RELIEF pixels on, the relief is "
              "flat and has its full height, 1")

    @POINTS(2)
    def test_batches_borders_and_loops(self, monkeypatch):
        depth = conditions.depth
        images = torch.cat([square(12, 3, 9), -square(12, 4, 8), square(12, 5, 7)])
        alone = torch.cat([depth(image[None]) for image in images])
        check(close(depth(images), alone), "a map must not depend on the other images of its batch")
        check(alone[1, 0, 5, 5] == 0.5, "black on white is foreground as well: `mask` finds it")
        wide = depth(F.pad(square(9, 2, 7), (3, 4), value=-1.0))
        check(close(wide[..., 3:12], depth(square(9, 2, 7))), "images need not be square")
        bar = square(12, 0, 12)
        bar[..., :9] = bar[..., 0, :] = bar[..., -1, :] = -1
        check(close(depth(bar)[0, 0, 6, 9:], [0.25, 0.5, 0.75]), "there is no background beyond "
              "the border")
        small, large = (steps_of_python(depth, digits(1)[..., 4:4 + n, 4:4 + n]) for n in (6, 24))
        check(large < 2 * small + 200, "an image with sixteen times as many pixels takes "
              f"{large / small:.1f} times as many calls in Python: is there a loop over pixels?")
        monkeypatch.setattr(conditions, "mask", torch.ones_like)
        check(close(depth(images), torch.ones_like(images)), "where everything is foreground, no "
              "background is near, so the relief is 1")


class TestDepthError:
    """2. depth_error"""

    @pytest.fixture
    def error(self, monkeypatch):
        """Return depth_error of 2 x 2 reliefs, with a stand-in for depth."""
        monkeypatch.setattr(evaluation, "depth", lambda images: (images[:, :1] + 1) / 2)

        def error(*reliefs):
            found, given = (torch.tensor(relief).view(-1, 1, 2, 2) for relief in reliefs)
            return evaluation.depth_error(2 * found - 1, given)

        return error

    @POINTS(2)
    def test_which_pixels_count(self, error):
        for found, given, expected, hint in (
                ([0.0] * 4, [1.0] * 4, 1.0, "too deep is as wrong as too high"),
                ([1.0] * 4, [0.0] * 4, 1.0, "too high is as wrong as too deep"),
                ([0.0] * 4, [0.5] * 4, 0.5, "the error is a difference, not its square"),
                ([0.5, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], 0.75, "only pixels where either "
                 "relief is above 0 count: here two, with errors of 0.5 and 1"),
                ([0.5, 1.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], 0.25, "a pixel without an error "
                 "counts, unless it is background in both")):
            result = error(found, given)
            check(isinstance(result, float), "the result is a float, not a tensor")
            check(abs(result - expected) < 1e-6, hint)

    @POINTS(2)
    def test_the_mean_over_images(self, error):
        given = [[0.0, 1.0, 0.0, 0.0], [0.5] * 4, [0.0] * 4]
        check(abs(error([[0.0] * 4] * 3, given) - 0.5) < 1e-6, "each image counts alike, however "
              "large its relief is: here the errors are 1, 0.5 and, where both reliefs are empty, "
              "0")
        for wrong in ([0.0] * 4, [[2.0] * 4] * 3):
            check_refused("maps of another shape, or outside [0, 1], are a ValueError: see "
                          "`_found_and_given`", error, given, wrong)


class TestCondition:
    """3. your condition"""

    @POINTS(2)
    def test_its_shape_and_range(self, own):
        for images in (digits(3), waves(2, 1, 12, 20), torch.full((2, 1, 8, 8), -1.0),
                       torch.ones(1, 1, 28, 28)):
            before = images.clone()
            maps = own.condition(images)
            check(torch.is_tensor(maps) and maps.dtype == torch.float32, "maps are float32 tensors")
            check(maps.ndim == 4 and maps.shape[1] > 0 and maps.shape[::2] == images.shape[::2]
                  and maps.shape[3] == images.shape[3], "maps are (B, K, H, W) with the B, H and W "
                  f"of the images, but {tuple(images.shape)} became {tuple(maps.shape)}")
            check(bool(maps.isfinite().all()), "maps must be finite, also for an image of one "
                  "colour: is something divided by zero?")
            check(0 <= maps.min() and maps.max() <= 1, "maps lie in [0, 1], but images in [-1, 1]")
            check(torch.equal(images, before), "the images themselves must stay as they are")

    @POINTS(2)
    def test_each_map_depends_on_its_own_image(self, own):
        images = digits()
        maps = own.condition(images)
        check(torch.equal(maps, own.condition(images)), "the same images must have the same maps: "
              "is something random?")
        alone = torch.cat([own.condition(image[None]) for image in images[:6]])
        check(close(maps[:6], alone), "an image has another map alone than in a batch: does a "
              "mean, a maximum or a minimum run over all images?")

    @POINTS(2)
    def test_it_is_new_and_tells_digits_apart(self, own):
        images = digits()
        maps = own.condition(images)
        different = len(maps.flatten(1).unique(dim=0))
        check(different >= 15, f"20 different digits have only {different} different maps: what "
              "could a network learn from them?")
        known = {"the image itself": (images + 1) / 2}
        for name, condition in conditions.CONDITIONS.items():
            with suppress(Exception):  # that of depth is reported by its own tests
                known[name] = condition(images)
        for name, map_ in known.items():
            check(not any(disguised(channel, map_) for channel in maps.split(1, 1)), "this is "
                  f"{name}, perhaps shifted, turned over, thicker or thinner: which other map "
                  "could be made of an image?")


def disguised(channel, known):
    """Return whether a channel is a known map, shifted, scaled, inverted, grown or shrunk."""
    grown = [known, F.max_pool2d(known, 3, 1, 1), F.max_pool2d(known, 5, 1, 2),
             -F.max_pool2d(-known, 3, 1, 1)]
    shifted = [x.roll((dy, dx), (2, 3)) for x in grown
               for dy in range(-2, 3) for dx in range(-2, 3)]
    together = torch.stack([channel, *shifted]).flatten(1)
    return (together.corrcoef()[0, 1:].abs() > 0.97).any()


class TestMeasure:
    """4. your measure"""

    @POINTS(2)
    def test_its_ceiling(self, own):
        images = digits()
        found = own.measure(images, own.condition(images))
        check(isinstance(found, float), "a measure is a float, not a tensor")
        check(abs(found - 1) < 1e-4, "real images follow their own maps perfectly, but score "
              f"{found:.3f} instead of 1")

    @POINTS(2)
    def test_its_floor(self, own):
        images = digits()
        maps = own.condition(images)
        others = own.measure(images.roll(1, 0), maps)
        check(0 <= others <= 1, f"a measure lies in [0, 1], but this is {others:.3f}")
        check(others < 0.8, f"images score {others:.3f} with the maps of other digits, and 1 with "
              "their own, which leaves little room: do pixels that are alike in all digits count?")
        check(own.measure(-torch.ones_like(images), maps) < 0.95, "black images follow your maps "
              "as well as the right digits do")
        check(own.measure(images.maximum(images.roll(1, 0)), maps) < 0.95, "two digits drawn over "
              "one another follow the maps of the first as well as it does: what is superfluous "
              "must count as well")

    @POINTS(2)
    def test_every_image_counts_alike(self, own):
        images = digits(6)
        maps = own.condition(images.roll(2, 0))
        each = [own.measure(image[None], its_map[None]) for image, its_map in zip(images, maps)]
        check(abs(own.measure(images, maps) - sum(each) / 6) < 1e-4, "the measure of a batch is "
              "the mean of its images' measures: compare each image first, then take the mean")
        blank = -torch.ones(6, 1, 28, 28)
        for shown, wanted in ((blank, blank), (blank, images), (images, blank)):
            found = own.measure(shown, own.condition(wanted))
            check(0 <= found <= 1, f"blank images, or blank maps, score {found}: is something "
                  "divided by zero?")
        check(abs(own.measure(blank, own.condition(blank)) - 1) < 1e-4, "blank images follow "
              "their own maps perfectly")


def base():
    """Return a locked base whose parameters are waves."""
    return small_unet().eval().requires_grad_(False)


def pictures(phase):
    """Return images (2, 1, 8, 8) in [-1, 1] with edges."""
    return waves(2, 1, 4, 4, phase=phase).repeat_interleave(2, 2).repeat_interleave(2, 3)


class TestTraining:
    """5. new_control and training_model"""

    @POINTS(2)
    def test_a_new_control(self, given, monkeypatch):
        unet, (x_t, t, prompt) = base(), inputs(8)
        net = given.new_control(unet)
        check(isinstance(net, ControlNet), "new_control returns a ControlNet")
        check(net.condition_encoder.condition_channels == 2, "ControlNet must know how many "
              "channels the maps have")
        y = given.training_model(unet)(net, pictures(1), prompt)(x_t, t)
        check(torch.equal(y, unet(x_t, t, prompt)), "before training, the base under a new control "
              "is the base, to the last bit: is the net new?")
        monkeypatch.setattr(given, "condition", lambda x: two_channels(x)[:, [0, 1, 1, 0, 1]])
        check(given.new_control(unet).condition_encoder.condition_channels == 5,
              "maps may have any number of channels K: ask `condition` for it")

    @POINTS(3)
    def test_what_is_trained(self, given):
        unet, (x_t, t, prompt) = base(), inputs(8)
        net = with_waves(ControlNet(unet, 2), scale=0.3)
        y = given.training_model(unet)(net, pictures(1), prompt)(x_t, t)
        check(not close(y, unet(x_t, t, prompt)), "the control makes no difference")
        check_tensor(y, (2, 1, 8, 8), [-0.1337, -0.1217, -0.0511, -0.3801, 0.7301, 0.6066],
                     "What is trained is the base plus the control, at strength 1. The control "
                     "reads the map of the *clean* images x_0, and the same t and prompt as the "
                     "base", 1e-3)  # a sample of the right result, the same on every machine
        check(learns(y, *net.condition_encoder.parameters()), "the condition encoder must learn as "
              "well: where is its gradient cut off?")
        check(all(p.grad is None for p in unet.parameters()), "the base must stay locked")


class TestWithEdges:
    """6. with_edges"""

    def controls(self, given, *strengths):
        """Run with_edges. Returns generate's Conditionings of its two nets, or None instead."""
        unet, (x_T, _, prompt) = base(), inputs(8)
        own, edges = zip(("own", "edges"), (pictures(1), pictures(2)), strengths)
        with patch.object(given, "generate") as generate:
            found = given.with_edges(unet, unet.schedule, prompt, x_T, own, edges)
        check(generate.call_count == 1 and found is generate.return_value, "call `generate` once, "
              "and return its images")
        settings = inspect.signature(sampling.generate).bind(
            *generate.call_args.args, **generate.call_args.kwargs).arguments
        controls = settings.pop("controls", ())
        check([*map(id, settings.values())] == [*map(id, (unet, unet.schedule, prompt, x_T))],
              "`generate` gets the unet, the schedule, the prompt and the noise as they are. Leave "
              f"all other settings as they are: here they are {', '.join(settings)}")
        by_net = {control[0]: Conditioning(*control) for control in controls}
        return by_net.get("own"), by_net.get("edges")

    @POINTS(3)
    def test_each_net_reads_its_own_map(self, given):
        found = self.controls(given, 0.5, 0.75)
        check(all(found), "both nets act at the same time: `generate` takes a list of controls")
        check(close(found[0].condition, two_channels(pictures(1))), "your net reads `condition` of "
              "the images given for it")
        check(close(found[1].condition, conditions.canny(pictures(2))), "the other net reads the "
              "edges of the images given for *it*, which may show something else")

    @POINTS(2)
    def test_strengths(self, given):
        for strengths in ((0.5, 0.75), (1, 0), (0, 1)):
            for control, strength in zip(self.controls(given, *strengths), strengths):
                scale = control.scale if control else 0
                check(scale == strength, f"a net has strength {scale} in place of {strength}: 0 "
                      "is a number like any other")
                check(not control or control[3:] == (0.0, 1.0), "both act in all steps")
