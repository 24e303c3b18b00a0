"""Canny against OpenCV's edge maps, a Canny of plain loops, and shapes with known edges.

The other conditions follow, from "Every condition" on, against plain loops and shapes whose maps
are known.
"""

import functools
import math

import numpy as np
import pytest
import torch

from minicnet import conditions
from minicnet.conditions import CONDITIONS, canny, colour, depth, dilate, hysteresis, mask, scribble

every_condition = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS.keys())


def image(brightness):
    """Turn brightness (H, W) or (C, H, W) in [0, 1] into images (1, C, H, W) in [-1, 1]."""
    brightness = torch.as_tensor(brightness, dtype=torch.float32)
    return brightness.view(1, -1, *brightness.shape[-2:]) * 2 - 1


def step(contrast=1.0, size=12, at=6):
    """A black picture (size, size) that is `contrast` bright from column `at` on."""
    return (torch.arange(size) >= at).float().expand(size, size) * contrast


def smooth_noise(*shape, seed=0, sigma=1.5):
    """Random images (B, C, H, W) in [-1, 1] with edges of all directions and strengths, no ties."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    noise = conditions.gaussian_blur(noise, sigma)
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return (noise - low) / (high - low) * 2 - 1


# Canny: shapes with known edges


@pytest.mark.parametrize("sigma", [0, 0.5, 0.8, 1.4])
@pytest.mark.parametrize("black, white", [(0, 1), (1, 0), (0.2, 0.8)])
def test_a_step_has_one_edge_that_is_one_pixel_wide(sigma, black, white):
    picture = black + (white - black) * step(at=6)  # equally steep in columns 5 and 6: 5 counts
    expected = torch.zeros(1, 1, 12, 12)
    expected[..., 5] = 1
    assert torch.equal(canny(image(picture), sigma=sigma), expected)
    assert torch.equal(canny(image(picture.T), sigma=sigma), expected.mT)


# Canny: hysteresis


@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_hysteresis_follows_a_chain_to_its_end_or_for_as_many_rounds_as_asked(dtype):
    weak = torch.zeros(1, 1, 13, 13, dtype=dtype)  # a line that winds and is longer than 2 * 13
    weak[..., ::2, :] = weak[..., 1::4, -1] = weak[..., 3::4, 0] = 1
    strong = torch.zeros_like(weak)
    strong[..., 0, 0] = 1
    assert torch.equal(hysteresis(strong, weak), weak)
    found = hysteresis(strong, weak, rounds=5)
    assert found.dtype == dtype
    assert found.nonzero()[:, 2:].tolist() == [[0, x] for x in range(6)]
    assert not torch.equal(hysteresis(strong, weak, rounds=26), weak)


def test_the_fixed_number_of_rounds_on_a_gpu_finds_the_same_edges(monkeypatch):
    images = torch.cat([smooth_noise(40, 1, 28, 28), smooth_noise(40, 1, 28, 28, sigma=3)])
    edges = canny(images)
    monkeypatch.setattr(conditions, "hysteresis", lambda strong, weak: hysteresis(
        strong.float(), weak.float(), rounds=28 + 28))
    assert edges.any() and torch.equal(canny(images), edges)


# Canny: independent oracles


def loop_canny(brightness, low, high, sigma):
    """Canny on brightness (C, H, W) in [0, 1] by the textbook, pixel by pixel, in float64."""
    H, W = brightness.shape[1:]
    radius = math.ceil(3 * sigma)
    square = np.arange(-radius, radius + 1) ** 2
    gaussian = np.exp(-(square[:, None] + square) / (2 * sigma**2 or 1))
    sobel_x = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8

    def correlate(x, kernel):
        size, margin = len(kernel), len(kernel) // 2
        padded = np.pad(x, ((0, 0), (margin, margin), (margin, margin)), mode="edge")
        windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), (1, 2))
        return (windows * kernel).sum((-1, -2))

    blurred = correlate(brightness, gaussian / gaussian.sum())
    slopes = np.stack([correlate(blurred, sobel_x), correlate(blurred, sobel_x.T)])
    steepest = np.hypot(*slopes).argmax(0)[None, None]
    slope_x, slope_y = np.take_along_axis(slopes, steepest, axis=1)[:, 0]
    strength, ridge, tie = np.pad(np.hypot(slope_x, slope_y), 1), np.zeros((H, W), bool), 1e-6
    for y, x in np.ndindex(H, W):
        sector = round(math.degrees(math.atan2(slope_y[y, x], slope_x[y, x])) / 45) % 4
        dy, dx = [(0, 1), (1, 1), (1, 0), (1, -1)][sector]
        here = strength[y + 1, x + 1]
        before, after = strength[y + 1 - dy, x + 1 - dx], strength[y + 1 + dy, x + 1 + dx]
        steeper = here > after + tie if dy and dx else here >= after - tie
        ridge[y, x] = here > before + tie and steeper
    edges, strength = np.zeros((H, W), bool), strength[1:-1, 1:-1]
    stack = list(np.argwhere(ridge & (strength > high)))
    while stack:
        y, x = stack.pop()
        inside = 0 <= y < H and 0 <= x < W
        if inside and not edges[y, x] and ridge[y, x] and strength[y, x] > low:
            edges[y, x] = True
            stack += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return edges


NOISE = smooth_noise(4, 1, 22, 19, seed=1)
COLOURED_NOISE = smooth_noise(4, 3, 22, 19, seed=3)
BLOCKS = (smooth_noise(3, 1, 20, 20, seed=3) > 0).float() * 2 - 1  # many slopes are equally steep


@pytest.mark.parametrize("images, low, high, sigma", [
    (NOISE, 0.05, 0.1, 0.8),
    (NOISE, 0.05, 0.1, 0),
    (NOISE, 0.02, 0.06, 1.4),
    (COLOURED_NOISE, 0.05, 0.1, 0.8),
    (COLOURED_NOISE, 0.0, 0.12, 0.5),
    (BLOCKS, 0.05, 0.1, 0.8),
    (BLOCKS, 0.05, 0.1, 0),
])
def test_canny_equals_the_textbook_canny_of_plain_loops(images, low, high, sigma):
    edges = canny(images, low, high, sigma)[:, 0].bool().numpy()
    assert 0.05 < edges.mean() < 0.4
    for picture, found in zip(images.double().numpy() / 2 + 0.5, edges, strict=True):
        np.testing.assert_array_equal(found, loop_canny(picture, low, high, sigma))


# Edge maps by OpenCV 5.0.0, thresholds 102 and 204 (0.05 and 0.1 of 8 * 255), L2gradient=True.
# RING: cv2.Canny(ring.astype(np.uint8), ...). WAVES: cv2.Canny of the same as (20, 20, 3) uint8.
# FOUR: b = cv2.GaussianBlur(four, (7, 7), 0.8, borderType=cv2.BORDER_REPLICATE), then
# cv2.Canny(dx, dy, ...) of b's cv2.Sobel slopes; these and the thresholds times 20, because they
# are rounded to int16.

RING = """\
....................
....................
.........##.........
......###..###......
.....##......###....
....##.........#....
....#....##....##...
...#...##..##...#...
...#...#....#...#...
...#...#....#...#...
...#...#....#...#...
...#...##..##...#...
....#...####....#...
....#..........##...
....###.......##....
......##.....##.....
........#####.......
....................
....................
...................."""

WAVES = """\
.#...#..#...........
##.##...##..........
...#...##.........##
.##....#..........#.
.#....##..........#.
.....##.....#.....#.
....##......#.....#.
...##.......#...#.#.
..##.......##....#..
.##.......##.#......
.#.......##.....#...
##......##.....#....
........#......#....
.......##......#....
......##.......#....
.....##.......##....
....##.......##.#...
...##.......##......
.###......###.......
###.....###........."""

FOUR = """\
....................
....................
....................
...####....####.....
...#..#....#..#.....
...#..#....#..#.....
...#..#....#..#.....
...#..#....#..#.....
...#..######..##....
...#...........#....
....#..........#....
.....#######..##....
...........#..#.....
...........#..#.....
...........#..#.....
...........#..#.....
...........#..#.....
...........####.....
....................
...................."""

Y, X = np.mgrid[:20, :20]


DISTANCE = np.hypot(Y - 9.2, X - 9.7)
ring = np.rint(255 * np.clip(7.3 - DISTANCE, 0, 1) - 255 * np.clip(3.4 - DISTANCE, 0, 1))
waves = np.rint([
    127.5 + 127.5 * np.sin(0.11 * k * Y + 0.05 * (k + 3) * X + k) * np.cos(0.13 * X - 0.02 * k * Y)
    for k in (1, 2, 3)
])
four = np.zeros((20, 20))
four[3:11, 4:6] = four[9:11, 4:16] = four[3:18, 12:14] = 255


@pytest.mark.parametrize(
    "picture, sigma, edges", [(ring, 0, RING), (waves, 0, WAVES), (four, 0.8, FOUR)]
)
def test_canny_finds_the_edges_that_opencv_finds(picture, sigma, edges):
    found = canny(image(picture / 255), sigma=sigma)[0, 0]
    assert "\n".join("".join(".#"[int(pixel)] for pixel in row) for row in found) == edges


# Canny: invariances


@pytest.mark.parametrize("turn", [lambda x: x.mT, lambda x: x.flip(3), lambda x: x.flip(2)])
def test_edges_turn_with_the_image_and_are_mirrored_with_it(turn):
    assert torch.equal(canny(turn(NOISE)), turn(canny(NOISE)))


@pytest.mark.parametrize("change", [lambda x: -x, lambda x: x.expand(-1, 3, -1, -1)])
def test_edges_are_those_of_the_inverted_image_and_of_grey_in_three_channels(change):
    assert torch.equal(canny(change(NOISE)), canny(NOISE))


def test_the_thresholds_scale_with_the_contrast():
    assert torch.equal(canny(0.5 * NOISE + 0.3, low=0.025, high=0.05), canny(NOISE))


# What is refused


@every_condition
@pytest.mark.parametrize("images, message", [
    (torch.zeros(28, 28), "float tensor"),
    (torch.zeros(0, 1, 28, 28), "with a pixel"),
    (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "uint8"),
    (np.zeros((1, 1, 28, 28), np.float32), "not ndarray"),
    (torch.full((1, 1, 8, 8), 1.1), r"\[-1, 1\], but run from 1.1 to 1.1"),
    (torch.full((1, 1, 8, 8), -1.1), r"\[-1, 1\]"),
    (torch.tensor([0, math.nan, 0, 0]).view(1, 1, 2, 2), "finite"),
    (torch.tensor([0, math.inf, 0, 0]).view(1, 1, 2, 2), "finite"),
])
def test_images_of_the_wrong_kind_are_refused(condition, images, message):
    with pytest.raises(ValueError, match=message):
        condition(images)


@pytest.mark.parametrize("setting", [
    {"low": 0.2}, {"low": -0.1}, {"high": math.inf}, {"low": math.nan}, {"sigma": -1},
    {"sigma": math.nan}, {"sigma": math.inf},
])
def test_senseless_settings_of_canny_are_refused(setting):
    with pytest.raises(ValueError, match="canny needs 0 <= low <= high"):
        canny(torch.zeros(1, 1, 8, 8), **setting)


def test_rounding_beyond_one_is_tolerated():
    assert torch.equal(canny(image(step()) * 1.0005), canny(image(step())))
    maps = colour(torch.tensor([-1.0005, 1.0005]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert maps[0].max() == 0 and maps[1].min() == 1


# Every condition


ASSORTED = torch.cat([smooth_noise(3, 3, 28, 28), image(step(0.01, 28)).expand(1, 3, 28, 28)])


@every_condition
@pytest.mark.parametrize("C", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (28, 28), (31, 18)])
def test_a_map_is_as_large_as_its_image_and_lies_in_0_to_1(condition, C, size):
    maps = condition(smooth_noise(2, C, 31, 28)[..., : size[0], : size[1]])
    assert maps.shape == (2, C if condition is colour else 1, *size)
    assert maps.min() >= 0 and maps.max() <= 1
    assert condition in (colour, depth) or maps.unique().tolist() in ([0], [1], [0, 1])


@every_condition
def test_a_map_depends_on_its_own_image_alone_and_on_nothing_random(condition):
    stream, maps = torch.get_rng_state(), condition(ASSORTED)
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(torch.cat([condition(one[None]) for one in ASSORTED]), maps)


@every_condition
def test_no_condition_waits_for_a_gpu(condition):
    """A tensor on "meta" has no values: reading one, as waiting for a GPU does, is an error."""
    images = torch.empty(2, 3, 28, 28, device="meta")
    assert condition(images).shape == (2, 3 if condition is colour else 1, 28, 28)


@every_condition
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_float_type_is_taken_and_float32_computed_with(condition, dtype):
    images = ASSORTED.to(torch.bfloat16).to(dtype)
    maps = condition(images)
    assert maps.dtype == torch.float32 and torch.equal(maps, condition(images.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(condition(images), maps)


@every_condition
def test_images_stay_as_they_are_and_no_gradient_is_recorded(condition):
    images = ASSORTED.clone().requires_grad_()
    fail = functools.partial(pytest.fail, "a graph was built")
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: fail(), lambda saved: saved):
        assert not condition(images).requires_grad
    assert torch.equal(images, ASSORTED)


@every_condition
@pytest.mark.parametrize("level", [-1.0, -0.3, 0.0, 1.0])
def test_an_image_of_one_colour_has_nothing_but_that_colour(condition, level):
    maps = condition(torch.full((2, 3, 9, 7), level))
    assert (maps - (level + 1) / 2 * (condition is colour)).abs().max() < 1e-6


# Colours


@pytest.mark.parametrize("H, W", [(16, 16), (28, 28), (32, 20)])
def test_colours_are_means_of_sixteen_cells_with_straight_lines_between_their_centres(H, W):
    picture = torch.rand(3, H, W, dtype=torch.float64)
    means = picture.reshape(3, 4, H // 4, 4, W // 4).mean((2, 4)).numpy()
    np.testing.assert_allclose(conditions.colour_grid(image(picture))[0], means, atol=1e-6)
    y, x = ((np.arange(n) + 0.5) * 4 / n - 0.5 for n in (H, W))  # in cells, from the first centre
    rows = np.apply_along_axis(lambda column: np.interp(y, range(4), column), 1, means)
    expected = np.apply_along_axis(lambda row: np.interp(x, range(4), row), 2, rows)
    np.testing.assert_allclose(colour(image(picture))[0], expected, atol=1e-5)


# Masks


def square(background, ink):
    """An image (1, C, 9, 9) with a square of another colour: rows 2 to 5, columns 3 to 6."""
    inside = torch.zeros(9, 9, dtype=torch.long)
    inside[2:6, 3:7] = 1
    return torch.tensor([background, ink], dtype=torch.float32)[inside].permute(2, 0, 1)[None]


@pytest.mark.parametrize("background, ink", [
    ([-1], [1]), ([1], [-1]), ([0.2], [0.3]), ([0.1, 0.5, 0.9], [0.1, 0.5, 0.7]),
    ([-1, 1, 0], [1, -1, 0]),
])
def test_the_mask_of_a_square_is_the_square_whatever_its_colours(background, ink):
    assert torch.equal(mask(square(background, ink)), square([0], [1]))


def test_exactly_half_of_the_largest_difference_is_background_whatever_the_colours():
    coverage = torch.zeros(9, 9)
    coverage[3, 2:7] = torch.tensor([0.45, 0.5, 0.55, 1, 0.5])
    background, jitter = torch.rand(2, 500, 3, 1, 1)
    ink = (background + 0.35 + 0.3 * jitter) % 1
    masks = mask(torch.lerp(background, ink, coverage) * 2 - 1)
    assert torch.equal(masks, (coverage > 0.5).float().expand(500, 1, 9, 9))


def test_colours_differ_by_their_euclidean_distance():
    picture = torch.zeros(3, 9, 9)
    picture[:, 2, 2] = 1  # sqrt(3) from the paper
    picture[0, 4, 4], picture[0, 6, 6] = 0.86, 0.88  # below and above half of it
    assert mask(image(picture))[0, 0].nonzero().tolist() == [[2, 2], [6, 6]]


@pytest.mark.parametrize("ink, area", [(0.038, 0), (0.042, 16)])
def test_differences_too_faint_to_see_are_no_foreground(ink, area):
    assert mask(square([0], [ink])).sum() == area


def test_the_paper_is_the_colour_of_most_of_the_border():
    border = torch.tensor([[1, 1, 2], [3, 9, 3], [4, 5, 2.0]])  # corners count twice
    assert conditions.paper_colour(border[None, None]).item() == 2
    inside, band = torch.zeros(2, 16, 16)
    inside[1:15, 1:15] = 1  # most of the picture, but none of the border
    band[:4] = 1  # the whole of one side and a quarter of two: 24 of 64
    for picture in (inside, *(band.rot90(turn) for turn in range(4))):
        assert torch.equal(mask(image(picture))[0, 0], picture)
        assert torch.equal(mask(image(1 - picture))[0, 0], picture)


# Depth


@pytest.mark.parametrize("probability", [0.2, 0.6, 0.9, 0.97, 1])
@pytest.mark.parametrize("H, W", [(12, 12), (9, 25), (25, 9)])
def test_depth_is_the_smallest_of_all_distances_to_the_background(probability, H, W):
    foreground = torch.zeros(5, 1, H, W)
    foreground[..., 1:-1, 1:-1] = torch.rand(5, 1, H - 2, W - 2) < probability
    foreground[..., 3:8, 0] = 1  # beyond the border there is no background
    assert torch.equal(mask(foreground * 2 - 1), foreground)
    for found, truth in zip(depth(foreground * 2 - 1)[:, 0], foreground[:, 0], strict=True):
        pixels, background = torch.ones(H, W).nonzero().double(), (truth == 0).nonzero().double()
        nearest = torch.cdist(pixels, background).amin(1).view(H, W)
        np.testing.assert_allclose(found, (nearest / 4).clamp(max=1), rtol=1e-6)


def test_where_all_is_foreground_the_relief_is_flat():
    red_and_green = torch.stack([step(size=8, at=4), 1 - step(size=8, at=4)])
    assert mask(image(red_and_green)).all()  # the median of neither channel is 1: paper is black
    assert torch.equal(depth(image(red_and_green)), torch.ones(1, 1, 8, 8))


# Scribbles


@pytest.mark.parametrize("C, sigma", [(1, 3), (3, 1.5)])
def test_a_scribble_lies_within_two_pixels_of_the_edges_and_misses_few_of_them(C, sigma):
    images = smooth_noise(20, C, 32, 32, sigma=sigma)
    drawn, edges = scribble(images).bool(), canny(images).bool()
    assert not (drawn & ~dilate(dilate(edges))).any()
    assert (drawn & ~dilate(edges)).any()  # it wavers
    assert 0.99 < dilate(dilate(drawn))[edges].float().mean()


def test_a_scribbled_line_is_two_pixels_thick_wavers_by_one_and_breaks():
    drawn = scribble(image(step(size=64, at=32)))[0, 0]  # the edge is column 31
    width, where = drawn.sum(1), (drawn * torch.arange(64)).sum(1) / drawn.sum(1)
    assert set(width.tolist()) == {0, 1, 2} and (width == 2).float().mean() > 0.7
    assert 0.03 < (width == 0).float().mean() < 0.3
    assert set(where[width == 2].tolist()) == {29.5, 30.5, 31.5}
    there = scribble(image(step(size=64, at=33)))[0, 0]
    assert not torch.equal(there.sum(1), width)  # elsewhere a line breaks in other places
