"""Do images show what their prompts say: on images whose words are known, and on strokes whose width and lean are."""

import pytest
import torch

from minicnet import adherence
from minicnet.adherence import prompt_accuracy
from minicnet.colours import DARK, LIGHT, colourise
from minicnet.digits import describe_digits, draw_digits


def reader(images):
    """A "classifier" that reads the label from the first pixel."""
    return torch.nn.functional.one_hot(images[:, 0, 0, 0].long(), 10).float()


def painted(ink, paper, digit=0):
    """An image (1, 3, 28, 28) of a cross in the named colours, the first pixel of which tells `reader` the digit."""
    share = torch.zeros(1, 28, 28)
    share[:, 4:24, 13:16] = share[:, 13:16, 8:20] = 1
    known = {**LIGHT, **DARK}
    ink, paper = (2 * torch.tensor(known[name]).float().view(3, 1, 1) - 1 for name in (ink, paper))
    image = torch.lerp(paper, ink, share)[None]
    image[:, 0, 0, 0] = digit
    return image


def test_every_word_counts_for_its_own_attribute_and_all_must_be_right():
    images = torch.cat([painted("red", "navy", 7), painted("red", "navy", 7), painted("pink", "teal", 1)])
    prompts = ["a red seven on navy paper", "a cyan seven on navy paper", "A pink digit on teal paper"]
    assert prompt_accuracy(images, prompts, reader) == {"ink": 2 / 3, "digit": 1, "paper": 1, "all": 2 / 3}
    assert prompt_accuracy(images, ["", "a digit", "one"], reader) == {"digit": 1, "all": 1}
    assert prompt_accuracy(images, ["a boot", "a horse", "a bag"], reader) == {"label": 1 / 3, "all": 1 / 3}
    assert prompt_accuracy(images, [""] * 3, reader) == {}


def test_the_order_of_words_says_which_colour_is_the_papers():
    images = torch.cat([painted("red", "navy"), painted("navy", "red")])
    swapped = ["a navy digit on red paper", "a red digit on navy paper"]
    assert prompt_accuracy(images, swapped[::-1], reader) == {"ink": 1, "paper": 1, "all": 1}
    assert prompt_accuracy(images, swapped, reader) == {"ink": 0, "paper": 0, "all": 0}


def test_real_images_show_what_their_captions_say():
    images, labels = draw_digits(1000, seed=5)
    right = torch.nn.functional.one_hot(labels, 10).float()
    drawn = prompt_accuracy(images, describe_digits(len(images), seed=5)[0], lambda batch: right)
    assert set(drawn) == {"digit", "stroke", "lean", "all"}
    assert min(drawn["stroke"], drawn["lean"]) > 0.97 and drawn["digit"] == 1
    images, prompts = colourise(images, labels, seed=1)
    coloured = prompt_accuracy(images, prompts, lambda batch: torch.eye(10)[torch.zeros(len(batch)).long()])
    assert set(coloured) == {"digit", "ink", "paper", "all"}
    assert min(coloured["ink"], coloured["paper"]) > 0.97 and 0 < coloured["digit"] < 0.2


@pytest.mark.parametrize("width", [1, 2, 3, 5])
def test_the_width_of_a_bar_is_measured_whichever_its_colours(width):
    bar = -torch.ones(2, 3, 64, 64)
    bar[0, :, 2:62, 30 : 30 + width] = bar[1, :, 30 : 30 + width, 2:62] = 1
    expected = [2 * 60 * width / (2 * (60 + width))] * 2  # twice the area over the outline
    for images in (bar, -bar, bar[:, :1], 0.1 * bar + 0.5, bar * (1 - 0.01 * torch.rand(2, 1, 64, 64))):
        assert adherence.stroke_width(images).tolist() == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("shear", [-1, -0.5, 0, 0.25, 1])
def test_the_slant_of_a_line_is_its_shear(shear):
    y, x = torch.meshgrid(torch.arange(41.0) - 20, torch.arange(41.0) - 20, indexing="ij")
    line = ((2 - (x + shear * y).abs()).clamp(0, 1) * (y.abs() < 14)) * 2 - 1  # upwards, y falls: x = shear * -y
    for images in (line, -line):
        assert adherence.slant(images[None, None]).item() == pytest.approx(shear, abs=0.02)


def test_a_blank_image_has_no_stroke_and_does_not_lean():
    blank = torch.zeros(2, 1, 9, 9)
    assert adherence.stroke_width(blank).tolist() == adherence.slant(blank).tolist() == [0, 0]
