"""How well images follow colours, masks, depth and scribbles, on cases small enough to count by hand.

`edge_f1` has a file of its own, test_edge_f1.py; what all measures refuse is here.
"""

import math

import pytest
import torch

from minicnet.conditions import CONDITIONS, canny, colour, depth, mask
from minicnet.digits import draw_digits
from minicnet.evaluation import MEASURES, colour_error, depth_error, edge_f1, mask_iou, scribble_f1

SIZE = 12


def blank(brightness=0.0, C=1):
    """An image (1, C, SIZE, SIZE) of one brightness in [0, 1]."""
    return torch.full((1, C, SIZE, SIZE), 2.0 * brightness - 1)


def box(top=2, left=3, height=4, width=5):
    """A map (1, 1, SIZE, SIZE): 1 in a box, 0 elsewhere. `2 * box() - 1` is an image that has it as its mask."""
    inside = torch.zeros(1, 1, SIZE, SIZE)
    inside[..., top : top + height, left : left + width] = 1
    return inside


def coloured_digits(count):
    """Digits in random inks on random papers (count, 3, 28, 28), and one of a single colour."""
    digits = draw_digits(count, seed=5)[0]
    background = torch.rand(count, 3, 1, 1)
    ink = (background + 0.35 + 0.3 * torch.rand(count, 3, 1, 1)) % 1
    return torch.cat([torch.lerp(2 * background - 1, 2 * ink - 1, (digits + 1) / 2), torch.zeros(1, 3, 28, 28)])


def test_every_condition_has_a_measure():
    assert list(MEASURES) == list(CONDITIONS)


@pytest.mark.parametrize("name, best", [("canny", 1), ("colour", 0), ("mask", 1), ("depth", 0), ("scribble", None)])
def test_images_follow_their_own_condition_perfectly_and_that_of_others_worse(name, best):
    for images in (coloured_digits(20), draw_digits(20, seed=6)[0]):
        given, measure = CONDITIONS[name](images), MEASURES[name]
        own, others = measure(images, given), measure(images, given.roll(1, 0))
        assert isinstance(own, float)
        assert own == best if best is not None else 0.98 < own <= 1
        assert 0.03 < abs(own - others) < 1 and (others > own) == (best == 0)


# Colours


def test_colour_error_is_the_mean_absolute_difference():
    assert colour_error(blank(0), blank(0) + 1) == 0
    assert colour_error(blank(0), torch.full((1, 1, SIZE, SIZE), 0.25)) == 0.25
    assert colour_error(blank(0.75), torch.full((1, 1, SIZE, SIZE), 0.25)) == 0.5
    assert colour_error(blank(1), torch.zeros(1, 1, SIZE, SIZE)) == 1
    half = torch.zeros(1, 1, SIZE, SIZE)
    half[..., :6] = 0.5
    assert colour_error(blank(0), half) == 0.25
    assert colour_error(blank(1), half) == 0.75


def test_colour_error_counts_every_channel_and_every_image():
    images = torch.cat([blank(0, C=3), blank(0.5, C=3)])
    colours = torch.cat([torch.zeros(1, 3, SIZE, SIZE), torch.full((1, 3, SIZE, SIZE), 0.5)])
    colours[0, 2] = 0.6  # a third of one of two images
    assert colour_error(images, colours) == pytest.approx(0.1)


# Masks


@pytest.mark.parametrize("given, iou", [
    (box(), 1),
    (box(height=2), 1 / 2),
    (box(height=6), 2 / 3),
    (box(top=4), 10 / 30),
    (box(top=3, left=4), 12 / 28),
    (box(top=7), 0),
    (box(height=0), 0),
    (torch.ones(1, 1, SIZE, SIZE), 20 / 144),
])
def test_mask_iou_is_intersection_over_union(given, iou):
    assert mask_iou(2 * box() - 1, given) == pytest.approx(iou)
    assert mask_iou(1 - 2 * box(), given.bool()) == pytest.approx(iou)  # the inverted image has the same mask


def test_two_empty_masks_agree_and_every_image_weighs_the_same():
    assert mask_iou(blank(0.3), box(height=0)) == 1
    assert mask_iou(blank(0.3), box()) == 0
    images = torch.cat([2 * box() - 1, blank(), blank(), 2 * box(height=1, width=1) - 1])
    masks = torch.cat([box(height=2), box(height=0), box(), box(height=1, width=4)])
    assert mask_iou(images, masks) == pytest.approx((1 / 2 + 1 + 0 + 1 / 4) / 4)


# Depth


def test_depth_error_is_the_mean_absolute_difference_where_either_map_is_not_0():
    pyramid = 2 * box(height=3, width=3) - 1  # eight pixels of 1/4 around one of 1/2
    nothing = torch.zeros(1, 1, SIZE, SIZE)
    assert depth_error(pyramid, nothing) == pytest.approx((8 / 4 + 1 / 2) / 9)
    assert depth_error(pyramid, box(height=3, width=3)) == pytest.approx((8 * 3 / 4 + 1 / 2) / 9)
    assert depth_error(pyramid, depth(pyramid) + 0.2 * box(height=3, width=3)) == pytest.approx(0.2)
    assert depth_error(pyramid, depth(pyramid) / 2) == pytest.approx((8 / 8 + 1 / 4) / 9)
    elsewhere = 0.5 * box(top=7, height=1, width=3)  # three pixels more
    assert depth_error(pyramid, depth(pyramid) + elsewhere) == pytest.approx(3 / 2 / 12)
    assert depth_error(pyramid, elsewhere) == pytest.approx((8 / 4 + 1 / 2 + 3 / 2) / 12)


def test_two_empty_reliefs_agree_and_every_image_weighs_the_same():
    nothing = torch.zeros(1, 1, SIZE, SIZE)
    assert depth_error(blank(0.3), nothing) == 0
    assert depth_error(blank(0.3), torch.ones(1, 1, SIZE, SIZE)) == 1
    dot = 2 * box(height=1, width=1) - 1
    images, depths = torch.cat([blank(), blank(), dot]), torch.cat([nothing, box(), nothing])
    assert depth_error(images, depths) == pytest.approx((0 + 1 + 1 / 4) / 3)


# Scribbles


@pytest.mark.parametrize("shift, expected", [(0, 1), (2, 1), (-2, 1), (3, 0), (-3, 0)])
def test_scribble_f1_forgives_two_pixels_and_not_three(shift, expected):
    images, line = blank(), torch.zeros(1, 1, SIZE, SIZE)
    images[..., 6:] = 1  # its edge is column 5
    line[..., 5 + shift] = 1
    assert scribble_f1(images, line) == expected == edge_f1(images, line, tolerance=2)


# What is refused, and what is not


@pytest.mark.parametrize("measure, name", [
    (edge_f1, "edges"), (colour_error, "colours"), (mask_iou, "masks"), (depth_error, "depths"), (scribble_f1, "edges"),
])
def test_what_cannot_be_compared_is_refused_in_one_sentence(measure, name):
    images, given = torch.zeros(2, 1, SIZE, SIZE), torch.zeros(2, 1, SIZE, SIZE)
    measure(images, given)
    for wrong in (given[:1], given[..., 1:], given[0], given.expand(2, 3, SIZE, SIZE), None, given.numpy()):
        with pytest.raises(ValueError, match=rf"need {name} \(2, 1, 12, 12\), not "):
            measure(images, wrong)
    for wrong in (given - 0.01, given + 1.01, given + math.nan, given + math.inf):
        with pytest.raises(ValueError, match=f"{name} must"):
            measure(images, wrong)
    for wrong in (images + 2, images + math.nan, images[0], None):
        with pytest.raises(ValueError, match="images must"):
            measure(wrong, given)
    if measure not in (colour_error, depth_error):
        with pytest.raises(ValueError, match="nothing but 0 and 1"):
            measure(images, given + 0.5)


@pytest.mark.parametrize("measure, condition", [
    (edge_f1, canny), (colour_error, colour), (mask_iou, mask), (depth_error, depth),
])
def test_other_float_types_measure_the_same(measure, condition):
    images = coloured_digits(6).bfloat16()
    given = condition(images.roll(1, 0)).bfloat16()
    expected = measure(images.float(), given.float())
    assert measure(images, given) == measure(images.double(), given.double()) == expected
