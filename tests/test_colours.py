"""Coloured digits: distinct colours, contrasting pairs, and combinations held out."""

import itertools
from collections import Counter

import pytest
import torch

from minicnet.data.colours import JITTER, PAIRS, RGB, choose_colours, colourise, held_out
from minicnet.data.prompts import attributes
from minicnet.words import COLOURS, DIGITS

LABELS = torch.arange(60_000) % 10
COMBINATIONS = {(digit, *pair) for digit in range(10) for pair in PAIRS.tolist()}


def test_jitter_leaves_every_colour_nearest_to_its_own_name():
    """c + d is nearer to another colour c + v if d . v > |v|^2 / 2. JITTER bounds each |d_i|."""
    assert tuple(RGB) == COLOURS
    for one, other in itertools.permutations(map(torch.tensor, RGB.values()), 2):
        v = (one - other).float()
        assert JITTER * v.abs().sum() < 0.8 * v.square().sum() / 2  # with room to spare


def test_every_pair_is_held_out_for_one_digit_in_both_orders_and_every_digit_for_some_pairs():
    held = {combination for combination in COMBINATIONS if held_out(*combination)}
    assert sorted(pair for _, *pair in held) == PAIRS.tolist()  # so inks and papers are even, too
    assert len(held) == 138
    assert held == {(digit, paper, ink) for digit, ink, paper in held}
    assert all(10 <= count <= 16 for count in Counter(digit for digit, *_ in held).values())


@pytest.mark.parametrize("train", [True, False])
def test_all_combinations_are_shown_equally_often_but_training_never_shows_those_held_out(train):
    prompts, *_ = choose_colours(LABELS, seed=0, train=train)
    counts = Counter(
        (DIGITS.index(said["digit"]), COLOURS.index(said["ink"]), COLOURS.index(said["paper"]))
        for said in map(attributes, prompts))
    assert set(counts) == {c for c in COMBINATIONS if not (train and held_out(*c))}
    assert 15 < min(counts.values()) and max(counts.values()) < 90  # 43 or 48 on average


def test_ink_and_paper_are_jittered_colours_of_the_prompt_and_fill_its_range():
    prompts, *painted = choose_colours(LABELS[:6000], seed=2, train=False)
    for part, colour in zip(("ink", "paper"), painted):
        named = torch.tensor([RGB[attributes(prompt)[part]] for prompt in prompts])
        apart = colour[..., 0, 0] - named  # (N, 3)
        assert 0 <= colour.min() and colour.max() <= 1 and apart.abs().max() < JITTER + 1e-6
        assert 0.9 * JITTER < min(apart.max(), -apart.min())


def test_gray_lies_between_paper_and_ink_and_a_seed_always_chooses_the_same():
    black, gray, white = (colourise(torch.full((20, 1, 1, 1), value), LABELS[:20], seed=1)[0]
                          for value in (-1.0, -0.5, 1.0))
    assert black.shape == (20, 3, 1, 1) and black.dtype == torch.float32
    torch.testing.assert_close(gray, 0.75 * black + 0.25 * white)
    assert not torch.equal(black, colourise(-torch.ones(20, 1, 1, 1), LABELS[:20], seed=2)[0])
