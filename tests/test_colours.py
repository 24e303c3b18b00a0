"""The colours of digits: families that do not overlap, combinations held out evenly, edges that stay."""

import itertools

import pytest
import torch

from minicnet import colours, words
from minicnet.colours import DARK, LIGHT, colourise
from minicnet.conditions import canny
from minicnet.digits import draw_digits
from minicnet.evaluation import edge_f1


@pytest.fixture(scope="module")
def drawn():
    return draw_digits(6000, seed=0)


def test_no_two_families_of_colours_overlap():
    """A colour d away from c, |d| <= JITTER in each channel, is nearer to another c + v if d . v > |v|^2 / 2."""
    for one, other in itertools.permutations(map(torch.tensor, {**LIGHT, **DARK}.values()), 2):
        v = (one - other).float()
        assert colours.JITTER * v.abs().sum() < 0.8 * v.square().sum() / 2  # and that with room to spare
    assert tuple(LIGHT) == words.LIGHT and tuple(DARK) == words.DARK


def test_ink_and_paper_are_of_the_named_families_and_fill_them(drawn):
    prompts, *painted = colours.choose_colours(drawn[1], seed=2, train=False)
    for place, colour in zip((1, 4), painted):
        named = torch.tensor([{**LIGHT, **DARK}[prompt.split()[place]] for prompt in prompts])
        apart = colour[..., 0, 0] - named
        assert 0.9 * colours.JITTER < min(apart.max(), -apart.min()) and apart.abs().max() < colours.JITTER + 1e-6
        for families in (LIGHT, DARK):  # either is the ink in half of the images
            counts = torch.tensor([sum(word == prompt.split()[place] for prompt in prompts) for word in families])
            assert (counts * 2 * len(families) / len(prompts) - 1).abs().max() < 0.25
    assert all((prompt.split()[1] in LIGHT) == (prompt.split()[4] in DARK) for prompt in prompts)


def test_a_tenth_of_the_combinations_is_held_out_evenly():
    digit, ink, paper = torch.meshgrid(torch.arange(10), torch.arange(8), torch.arange(6), indexing="ij")
    held = colours.held_out(digit, ink, paper)
    assert held.sum() == 48 and bool(colours.held_out(2, 4, 0)) == held[2, 4, 0].item()
    assert set(held.sum((1, 2)).tolist()) == {4, 5}  # of 48 for each digit
    assert set(held.sum((0, 2)).tolist()) == {6} and set(held.sum((0, 1)).tolist()) == {8}


def test_training_shows_every_combination_but_those_held_out():
    labels = torch.arange(20_000) % 10
    for train in (True, False):
        prompts, *_ = colours.choose_colours(labels, seed=0, train=train)
        for light, dark in ((1, 4), (4, 1)):  # ink and paper, or paper and ink
            seen = {(words.DIGITS.index(said[2]), list(LIGHT).index(said[light]), list(DARK).index(said[dark]))
                    for said in map(str.split, prompts) if said[light] in LIGHT}
            assert len(seen) == (432 if train else 480)
            assert not (train and any(colours.held_out(*some) for some in seen))


def test_gray_lies_between_paper_and_ink_and_a_seed_chooses_the_same_again():
    labels = torch.arange(10).repeat(2)
    black, gray, white = (colourise(torch.full((20, 1, 1, 1), value), labels, seed=1)[0] for value in (-1.0, -0.5, 1.0))
    assert black.shape == (20, 3, 1, 1) and black.dtype == torch.float32
    torch.testing.assert_close(gray, 0.75 * black + 0.25 * white)
    assert (white != black).any(1).all()
    assert not torch.equal(black, colourise(-torch.ones(20, 1, 1, 1), labels, 2)[0])


def test_coloured_digits_have_the_edges_of_the_gray_ones(drawn):
    gray, labels = drawn[0][:200], drawn[1][:200]
    assert edge_f1(colourise(gray, labels, seed=0)[0], canny(gray)) > 0.98
