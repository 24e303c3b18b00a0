"""The drawn digits: seeded, balanced, framed like MNIST, painted as the geometry says, legible, described, coloured."""

import itertools

import pytest
import torch

from minicnet import digits, words
from minicnet.digits import HAND_SHAPES, MAX_POINTS, PATH_POINTS, draw_digits, paint, trace


@pytest.fixture(scope="module")
def drawn():
    return draw_digits(6000, seed=0)


def ink_moments(images):
    """Centre of the ink (x, y) in pixels, and width and height of the box around it: four (N,)."""
    ink = (images[:, 0] + 1) / 2
    pixels = torch.arange(28) + 0.5
    x = (ink.sum(1) @ pixels) / ink.sum((1, 2))
    y = (ink.sum(2) @ pixels) / ink.sum((1, 2))
    return x, y, (ink > 0.3).any(1).sum(1).float(), (ink > 0.3).any(2).sum(1).float()


# -- The promise of draw_digits ----------------------------------------------------------------------------------------

def test_images_and_labels_are_of_the_promised_kind(drawn):
    images, labels = drawn
    assert images.shape == (6000, 1, 28, 28) and images.dtype == torch.float32
    assert labels.shape == (6000,) and labels.dtype == torch.int64
    assert images.min() == -1 and images.max() == 1
    assert images.amax((1, 2, 3)).min() > 0.5  # no digit is without ink


def test_each_ten_in_a_row_hold_every_label_once_in_random_order(drawn):
    tens = drawn[1].view(-1, 10)
    assert (tens.sort(1).values == torch.arange(10)).all()
    assert len({tuple(ten) for ten in tens.tolist()}) > 590


def test_the_same_seed_draws_the_same_digits_a_larger_count_more_and_another_seed_others(drawn):
    stream = torch.get_rng_state()
    images, labels = draw_digits(1234, seed=0)
    assert torch.equal(torch.get_rng_state(), stream)
    assert images.shape == (1234, 1, 28, 28) and labels.shape == (1234,)
    assert torch.equal(images, drawn[0][:1234]) and torch.equal(labels, drawn[1][:1234])
    others, _ = draw_digits(30, seed=1)
    assert (images[:30] - others).abs().amax((1, 2, 3)).min() > 0.5


def test_a_seed_draws_what_it_always_drew(drawn):
    assert drawn[1][:10].tolist() == [2, 3, 4, 8, 6, 0, 9, 5, 1, 7]
    ink = torch.tensor([150.043, 89.318, 137.115, 118.193, 155.674, 191.674, 92.515, 82.879, 64.351, 69.064])
    torch.testing.assert_close(((drawn[0][:10] + 1) / 2).sum((1, 2, 3)), ink, rtol=0, atol=0.01)


@pytest.mark.parametrize("count", [0, -3])
def test_a_count_below_one_is_refused(count):
    with pytest.raises(ValueError, match=str(count)):
        draw_digits(count)


# -- Like handwriting --------------------------------------------------------------------------------------------------

def test_digits_sit_in_the_frame_as_those_of_mnist_do(drawn):
    x, y, width, height = ink_moments(drawn[0])
    longer = torch.maximum(width, height)
    assert 18.5 < longer.mean() < 20.5 and longer.max() <= 24  # MNIST: 20 pixels
    assert (x.mean() - 14.5).abs() < 0.3 and (y.mean() - 14.5).abs() < 0.3  # MNIST: 14.5
    assert x.std() < 1 and y.std() < 1
    rim = torch.ones(28, 28, dtype=torch.bool)
    rim[1:-1, 1:-1] = False
    assert (drawn[0][:, 0, rim] > 0).any(1).float().mean() < 0.02  # few touch the edge; MNIST: 0.012


def test_there_is_as_much_ink_as_on_mnist(drawn):
    ink = ((drawn[0] + 1) / 2).mean((1, 2, 3))
    assert ink.mean() == pytest.approx(0.131, abs=0.01)  # MNIST: 0.1307
    assert ink.std() == pytest.approx(0.043, abs=0.01)  # MNIST: 0.0435
    grey = ((drawn[0].abs() < 0.8).float()).mean()
    assert 0.07 < grey < 0.11  # soft rims; MNIST: 0.087


def test_ones_are_narrow_and_zeros_are_hollow(drawn):
    images, labels = drawn
    _, _, width, _ = ink_moments(images)
    means = torch.stack([width[labels == digit].mean() for digit in range(10)])
    assert means.argmin() == 1 and means[1] < 0.7 * means.sort().values[1]
    heart = (images[:, 0, 12:16, 12:16].mean((1, 2)) + 1) / 2
    assert heart[labels == 0].mean() < 0.15 and heart[labels == 1].mean() > 0.5


def test_no_two_digits_are_alike(drawn):
    flat = drawn[0][:2000].flatten(1)
    distance = torch.cdist(flat, flat) + 1e9 * torch.eye(2000)
    assert distance.min() > 2


def test_digits_of_another_seed_are_read_by_their_nearest_neighbours(drawn):
    images, labels = draw_digits(500, seed=1)
    nearest = torch.cdist(images.flatten(1), drawn[0].flatten(1)).argmin(1)
    assert (drawn[1][nearest] == labels).float().mean() > 0.9


# -- Descriptions ------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def prompts():
    return digits.describe_digits(6000, seed=0)[0]


def test_prompts_name_the_digits_that_are_drawn_and_a_larger_count_adds_more(drawn, prompts):
    assert torch.equal(digits.describe_digits(1234, seed=0)[1], drawn[1][:1234])
    assert digits.describe_digits(1234, seed=0)[0] == prompts[:1234]
    assert all(words.DIGITS[label] in prompt.split() for label, prompt in zip(drawn[1].tolist(), prompts))
    assert len(set(prompts)) == 10 * 3 * 3


@pytest.mark.parametrize("word, share", [("thin", 0.25), ("thick", 0.25), ("left", 0.22), ("right", 0.22)])
def test_each_word_is_said_of_about_a_quarter_of_every_digit(drawn, prompts, word, share):
    said = torch.tensor([word in prompt.split() for prompt in prompts]).float()
    assert said.mean() == pytest.approx(share, abs=0.02)
    assert all(said[drawn[1] == digit].mean() == pytest.approx(share, abs=0.06) for digit in range(10))


def test_words_are_visible_in_the_ink(drawn, prompts):
    """Thickness: ink by length of the rim. Slant: the least squares line through the ink. Each digit by itself."""
    images, labels = drawn
    ink, place = (images[:, 0] + 1) / 2, torch.arange(28) + 0.5
    thickness = ink.sum((1, 2)) / (ink.diff(dim=1).abs().sum((1, 2)) + ink.diff(dim=2).abs().sum((1, 2)))
    x, y = ((place - (ink.sum(along) @ place / ink.sum((1, 2)))[:, None]) for along in (1, 2))  # (N, 28) each
    slant = -torch.einsum("nyx,ny,nx->n", ink, y, x) / torch.einsum("nyx,ny->n", ink, y**2)
    for digit, measure, (less, more) in itertools.product(
            range(10), (thickness, slant), (("thin", "thick"), ("left", "right"))):
        few, many = (torch.tensor([word in prompt.split() for prompt in prompts]) & (labels == digit)
                     for word in (less, more))
        right = (measure[few][:, None] < measure[many]).float().mean()  # of all pairs
        expected = (less == "thin") == (measure is thickness)
        assert right > 0.97 if expected else 0.3 < right < 0.7


def test_a_sheared_path_leans_by_as_much():
    path = trace(HAND_SHAPES[3][0])
    path = (path[1] @ path[0])[None]  # (1, P, 2), y downwards
    sheared = torch.stack([path[..., 0] - 0.4 * path[..., 1], path[..., 1]], dim=-1)  # to the right at the top
    label = torch.tensor([3])
    assert (digits.lean(sheared, label) - digits.lean(path, label)).item() == pytest.approx(0.4, abs=1e-5)


# -- Hand shapes -------------------------------------------------------------------------------------------------------

def test_every_digit_has_several_hand_shapes_and_all_differ():
    assert len(HAND_SHAPES) == 10 and all(len(shapes) >= 3 for shapes in HAND_SHAPES)
    paths = [(basis @ points).flatten() for points, basis in (trace(s) for shapes in HAND_SHAPES for s in shapes)]
    paths = torch.stack(paths)
    assert (torch.cdist(paths, paths) + torch.eye(len(paths))).min() > 0.3


@pytest.mark.parametrize("hand_shape", ["51 30 11 23 45 57 39 18 16 34 52 51", "12 30 51 53 36 09 09 69",
                                        "20 05 05 65 | 50 49"])
def test_the_path_meets_every_point_of_its_hand_shape(hand_shape):
    points, basis = trace(hand_shape)
    path = basis @ points
    places = torch.tensor([[int(x) - 3, int(y) - 4.5] for x, y in hand_shape.replace("|", "").split()]) / 4.5
    spacing = path.diff(dim=0).norm(dim=1).median()
    assert torch.cdist(places, path).amin(1).max() < 0.7 * spacing


def test_the_points_of_a_path_are_evenly_spaced():
    points, basis = trace("40 21 04 07 29 48 65 62 40 21")
    steps = (basis @ points).diff(dim=0).norm(dim=1)
    assert steps.max() < 1.25 * steps.min()


def test_a_path_goes_along_when_its_points_are_moved():
    for hand_shape in ("30 39", "13 30 30 39", "30 11 13 34 52 51 30 | 34 16 18 39 58 56 34"):
        points, basis = trace(hand_shape)
        assert points.shape == (MAX_POINTS, 2) and basis.shape == (PATH_POINTS, MAX_POINTS)
        moved = points + torch.tensor([0.3, -0.2])
        assert torch.allclose(basis @ moved, basis @ points + torch.tensor([0.3, -0.2]), atol=1e-5)


def test_a_stroke_through_points_in_line_is_straight():
    points, basis = trace("33 34 38")
    path = basis @ points
    assert path[:, 0].abs().max() < 1e-6 and (path[:, 1].diff() > 0).all()


def test_a_point_given_twice_is_a_corner():
    points, basis = trace("00 06 06 66")
    path = (basis @ points) * 4.5 + torch.tensor([3, 4.5])
    on_a_leg = torch.minimum(path[:, 0].abs(), (path[:, 1] - 6).abs())
    assert on_a_leg.max() < 1e-4  # straight down, then straight to the right
    rounded = trace("00 06 66")
    path = (rounded[1] @ rounded[0]) * 4.5 + torch.tensor([3, 4.5])
    assert torch.minimum(path[:, 0].abs(), (path[:, 1] - 6).abs()).max() > 0.2


def test_a_closed_curve_does_not_show_where_it_began():
    points, basis = trace("30 03 06 39 66 63 30")  # upside down it is the same
    path = basis @ points
    half = PATH_POINTS // 2
    assert torch.allclose(path[half:], -path[:half], atol=0.01)


def test_a_lifted_pen_draws_nothing():
    points, basis = trace("10 19 | 50 59")
    x = (basis @ points)[:, 0] * 4.5 + 3
    assert ((x - 1).abs() < 1e-4).sum() == ((x - 5).abs() < 1e-4).sum() == PATH_POINTS // 2


# -- The brush ---------------------------------------------------------------------------------------------------------

def straight_line(path_points=PATH_POINTS):
    """A level path, 20 pixels long, in the middle of the image: (1, P, 2)."""
    x = torch.linspace(4, 24, path_points)
    return torch.stack([x, torch.full_like(x, 14.0)], dim=-1)[None]


@pytest.mark.parametrize("radius", [0.8, 1.25, 2.0])
@pytest.mark.parametrize("edge", [0.8, 1.4])
def test_a_line_is_as_thick_and_as_soft_as_asked(radius, edge):
    image = paint(straight_line(), torch.tensor([radius]), torch.tensor([edge]))[0]
    distance = (torch.arange(28) + 0.5 - 14).abs()
    expected = (0.5 + (radius - distance) / edge).clamp(0, 1)
    for column in range(8, 20):
        assert torch.allclose(image[:, column], expected, atol=0.02)
    assert image[:, :2].max() == 0 and image[:, -2:].max() == 0  # the line ends where it should


def test_a_lifted_pen_makes_the_line_no_thicker():
    x = torch.linspace(4, 24, PATH_POINTS // 2)
    lines = [torch.stack([x, torch.full_like(x, y)], dim=-1) for y in (4.0, 24.0)]
    image = paint(torch.cat(lines)[None], torch.tensor([1.2]), torch.tensor([1.0]))[0]
    assert torch.allclose(image[:4, 14], torch.tensor([0.0, 0.0, 0.2, 1.0]), atol=0.02)


def test_a_denser_path_leaves_no_more_ink():
    radius, edge = torch.tensor([1.2]), torch.tensor([1.0])
    coarse, fine = paint(straight_line(30), radius, edge)[0], paint(straight_line(300), radius, edge)[0]
    assert torch.allclose(coarse[:, 8:20], fine[:, 8:20], atol=1e-4)  # away from the ends
