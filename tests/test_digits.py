"""Drawn digits: seeded, balanced, like MNIST, described truly, painted as the geometry says."""

import pytest
import torch

from minicnet.data.digits import PATH_POINTS, describe_digits, draw_digits, paint
from minicnet.words import DIGITS


@pytest.fixture(scope="module")
def drawn():
    return draw_digits(6000, seed=0)


@pytest.fixture(scope="module")
def prompts():
    return describe_digits(6000, seed=0)[0]


# -- What draw_digits promises ---------------------------------------------------------------------

def test_images_are_white_on_black_and_every_ten_have_each_label_once_in_random_order(drawn):
    images, labels = drawn
    assert images.shape == (6000, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (6000,) and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1 and images.amax((1, 2, 3)).min() > 0.5
    assert (labels.view(-1, 10).sort(1).values == torch.arange(10)).all()
    assert len(labels.view(-1, 10).unique(dim=0)) > 590


def test_a_seed_always_draws_the_same_digits_and_another_seed_draws_others(drawn, prompts):
    state = torch.get_rng_state()
    images, labels = draw_digits(1234, seed=0)
    described, described_labels = describe_digits(1234, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, drawn[0][:1234]) and described == prompts[:1234]
    assert torch.equal(labels, drawn[1][:1234]) and torch.equal(described_labels, labels)
    assert (images[:30] - draw_digits(30, seed=1)[0]).abs().amax((1, 2, 3)).min() > 0.5
    assert labels[:10].tolist() == [2, 3, 4, 8, 6, 0, 9, 5, 1, 7]
    ink = torch.tensor([150.043, 89.318, 137.115, 118.193, 155.674,
                        191.674, 92.515, 82.879, 64.351, 69.064])  # recorded
    torch.testing.assert_close(((images[:10] + 1) / 2).sum((1, 2, 3)), ink, rtol=0, atol=0.01)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count):
    with pytest.raises(ValueError, match=str(count)):
        draw_digits(count)


# -- Like handwriting ------------------------------------------------------------------------------

def test_digits_are_framed_and_inked_as_those_of_mnist(drawn):
    ink = (drawn[0][:, 0] + 1) / 2
    size = torch.stack([(ink > 0.3).any(along).sum(1).float() for along in (1, 2)])
    longer = size.amax(0)
    assert 18.5 < longer.mean() < 20.5 and longer.max() <= 24  # MNIST: 20 pixels
    for along in 1, 2:
        centre = ink.sum(along) @ (torch.arange(28) + 0.5) / ink.sum((1, 2))
        assert (centre.mean() - 14.5).abs() < 0.3 and centre.std() < 1  # MNIST: 14.5
    inside = ink[:, 1:-1, 1:-1] > 0.5
    assert ((ink > 0.5).sum((1, 2)) > inside.sum((1, 2))).float().mean() < 0.02  # MNIST: 0.012
    assert ink.mean() == pytest.approx(0.131, abs=0.01)  # MNIST: 0.1307
    assert ink.mean((1, 2)).std() == pytest.approx(0.043, abs=0.01)  # MNIST: 0.0435
    assert 0.07 < ((ink - 0.5).abs() < 0.4).float().mean() < 0.11  # soft edges; MNIST: 0.087


def test_all_digits_differ_but_their_nearest_neighbours_have_the_same_label(drawn):
    flat, labels = drawn[0].flatten(1), drawn[1]
    assert (torch.cdist(flat[:2000], flat[:2000]) + 1e9 * torch.eye(2000)).min() > 2
    others, other_labels = draw_digits(500, seed=1)
    nearest = torch.cdist(others.flatten(1), flat).argmin(1)
    assert (labels[nearest] == other_labels).float().mean() > 0.9


# -- Descriptions ----------------------------------------------------------------------------------

@pytest.mark.parametrize("word, fraction",
                         [("thin", 0.25), ("thick", 0.25), ("left", 0.22), ("right", 0.22)])
def test_prompts_name_the_digit_and_each_attribute_for_about_a_quarter(
        drawn, prompts, word, fraction):
    assert all(DIGITS[label] in said.split() for label, said in zip(drawn[1].tolist(), prompts))
    named = torch.tensor([word in prompt.split() for prompt in prompts]).float()
    assert named.mean() == pytest.approx(fraction, abs=0.02) and len(set(prompts)) == 10 * 3 * 3
    for digit in range(10):
        assert named[drawn[1] == digit].mean() == pytest.approx(fraction, abs=0.06)


# -- The brush -------------------------------------------------------------------------------------

@pytest.mark.parametrize("radius", [0.8, 1.25, 2.0])
@pytest.mark.parametrize("edge", [0.8, 1.4])
@pytest.mark.parametrize("heights, points", [([14.0], PATH_POINTS), ([14.0], 300),
                                             ([4.0, 24.0], PATH_POINTS)])
def test_a_line_has_the_radius_and_the_soft_edge_of_the_pen_however_dense_its_points(
        radius, edge, heights, points):
    x = torch.linspace(4, 24, points // len(heights))  # with a lifted pen between two lines
    path = torch.cat([torch.stack([x, torch.full_like(x, y)], dim=-1) for y in heights])
    image = paint(path[None], torch.tensor([radius]), torch.tensor([edge]))[0]
    distances = torch.stack([(torch.arange(28) + 0.5 - y).abs() for y in heights])
    expected = (0.5 + (radius - distances.amin(0)) / edge).clamp(0, 1)
    assert torch.allclose(image[:, 8:20], expected[:, None].expand(-1, 12), atol=0.02)
    assert not image[:, :2].any() and not image[:, -2:].any()  # the lines end where they should
