"""Canny against shapes whose edges are known, OpenCV's edge maps, and a Canny written with plain loops.

The other conditions, from "What every condition keeps to" on, against shapes whose maps are known and plain loops.
"""

import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from minicnet import conditions
from minicnet.conditions import CONDITIONS, canny, colour, depth, dilate, gaussian_blur, mask, scribble, sobel
from minicnet.digits import draw_digits

every_condition = pytest.mark.parametrize("condition", CONDITIONS.values(), ids=CONDITIONS.keys())


def image(brightness):
    """Brightness (H, W) or (C, H, W) in [0, 1], array or tensor -> images (1, C, H, W) in [-1, 1]."""
    brightness = torch.as_tensor(brightness, dtype=torch.float32)
    return brightness.view(1, -1, *brightness.shape[-2:]) * 2 - 1


def step(contrast=1.0, size=12, at=6):
    """A black picture (size, size) that is `contrast` bright from column `at` on."""
    picture = torch.zeros(size, size)
    picture[:, at:] = contrast
    return picture


def disc(size, radius, center):
    """A white disc with a soft rim one pixel wide."""
    y, x = np.mgrid[:size, :size]
    return np.clip(radius + 0.5 - np.hypot(y - center[0], x - center[1]), 0, 1)


def smooth_noise(*shape, seed=0, sigma=1.5):
    """Random images (B, C, H, W) in [-1, 1] without ties, with many edges of all directions and strengths."""
    noise = torch.rand(*shape, generator=torch.Generator().manual_seed(seed))
    noise = gaussian_blur(noise, sigma)
    low, high = noise.amin((2, 3), keepdim=True), noise.amax((2, 3), keepdim=True)
    return (noise - low) / (high - low) * 2 - 1


def draw(edges):
    """Edges (1, 1, H, W) as text, one row of '.' and '#' per line."""
    return "\n".join("".join(".#"[int(pixel)] for pixel in row) for row in edges[0, 0])


def neighbours(edges):
    """How many of its eight neighbours are edges, for each pixel of edges (B, 1, H, W)."""
    return F.conv2d(edges, torch.ones(1, 1, 3, 3), padding=1) - edges


# Shapes whose edges are known


@pytest.mark.parametrize("sigma", [0, 0.5, 0.8, 1.4])
@pytest.mark.parametrize("black, white", [(0, 1), (1, 0), (0.2, 0.8)])
def test_a_step_gives_one_line_of_one_pixel(sigma, black, white):
    picture = black + (white - black) * step(at=6)  # as steep at column 5 as at column 6: the first is the edge
    expected = torch.zeros(1, 1, 12, 12)
    expected[..., 5] = 1
    assert torch.equal(canny(image(picture), sigma=sigma), expected)
    assert torch.equal(canny(image(picture.T), sigma=sigma), expected.mT)


def test_the_edge_lies_where_the_slope_is_steepest():
    picture = step(at=6)
    picture[:, 5] = 0.5
    picture[:, 4] = 0.1
    assert canny(image(picture))[0, 0, :, 5].all() and canny(image(picture)).sum() == 12


@pytest.mark.parametrize("width", [1.5, 2, 3, 4])
def test_a_diagonal_ramp_gives_one_diagonal_line(width):
    y, x = np.mgrid[:12, :12]
    ramp = image(np.interp(x - y, [-width / 2, width / 2], [0, 1]))  # symmetric: pixels on both sides are equally steep
    for turned in (ramp, ramp.flip(3)):
        edges = canny(turned, low=0.1, high=0.1, sigma=0.8)
        assert torch.equal(edges if turned is ramp else edges.flip(3), torch.eye(12)[None, None])


def test_a_square_is_outlined_by_its_rim():
    square = torch.zeros(13, 13)
    square[2:11, 2:11] = 0.5
    square[3:10, 3:10] = 1
    assert draw(canny(image(square), sigma=0)) == """\
.............
.............
..#########..
..#.......#..
..#.......#..
..#.......#..
..#.......#..
..#.......#..
..#.......#..
..#.......#..
..#########..
.............
............."""


@pytest.mark.parametrize("radius", [3, 4.3, 6, 8.5])
@pytest.mark.parametrize("center", [(14, 14), (13.6, 14.3), (13.5, 13.5)])
def test_a_disc_has_a_thin_closed_outline(radius, center):
    edges = canny(image(disc(28, radius, center)))
    distance = np.hypot(*(np.mgrid[:28, :28] - np.reshape(center, (2, 1, 1)))) - radius
    assert np.abs(distance)[edges[0, 0].numpy() == 1].max() < 1.2  # on the rim
    assert (neighbours(edges)[edges == 1] >= 2).all()  # no loose ends
    assert F.avg_pool2d(edges, 2, stride=1).max() < 1  # no 2x2 block
    outside = torch.zeros(1, 1, 28, 28, dtype=torch.bool)
    outside[..., 0, 0] = True
    for _ in range(4 * 28):  # pour water into the corner: it spreads up, down, left and right, but not through edges
        spread = outside | outside.roll(1, -1) | outside.roll(-1, -1) | outside.roll(1, -2) | outside.roll(-1, -2)
        outside = spread & (edges == 0)
    assert not outside[0, 0, 14, 14]


def test_the_border_is_no_edge():
    picture = step(size=16, at=8)  # the bright half touches three borders
    assert canny(image(picture)).sum() == 16
    picture = disc(16, 6, (0, 0))  # a quarter of a disc
    edges = canny(image(picture))[0, 0]
    assert edges[0].sum() == edges[:, 0].sum() == 1


# Thresholds


def test_thresholds_are_brightness_per_pixel():
    ramp = torch.zeros(8, 20)
    ramp[:, 5:16] = torch.linspace(0, 1, 11)  # 0.1 per pixel
    ramp[:, 16:] = 1
    assert canny(image(ramp), low=0.099, high=0.099, sigma=0).any()
    assert not canny(image(ramp), low=0.101, high=0.101, sigma=0).any()
    for contrast in (0.2, 0.6):  # a step climbs all its contrast between two pixels that Sobel sees two apart
        assert canny(image(step(contrast)), 0, contrast / 2 - 1e-4, sigma=0).any()
        assert not canny(image(step(contrast)), 0, contrast / 2 + 1e-4, sigma=0).any()


@pytest.mark.parametrize("sigma", [1.5, 2, 3])
def test_a_blurred_step_is_as_steep_as_the_error_function_says(sigma):
    def step_blurred(x):
        return 0.5 + 0.5 * math.erf(x / sigma / math.sqrt(2))

    steepness = (step_blurred(0.5) - step_blurred(-1.5)) / 2
    picture = image(step(size=40, at=20))
    assert canny(picture, 0, 0.98 * steepness, sigma).any()
    assert not canny(picture, 0, 1.02 * steepness, sigma).any()


def test_a_weak_line_is_kept_to_its_end_if_it_starts_strong_and_dropped_if_not():
    picture = torch.zeros(80, 24)
    picture[:, 8:16] = 0.15  # two weak edges, 80 pixels long, steepness 0.075
    picture[:3, 8:12] = 0.4  # the left one starts strong
    edges = canny(image(picture), low=0.05, high=0.1, sigma=0)[0, 0]
    assert edges[5:, 7].all() and edges[5:].sum() == 75
    alone = canny(image(picture[5:]), low=0.05, high=0.1, sigma=0)
    assert alone.sum() == 0
    assert canny(image(picture[5:]), low=0.05, high=0.07, sigma=0).sum() == 150
    assert canny(image(picture), low=0.08, high=0.1, sigma=0)[0, 0, 5:].sum() == 0


# Hysteresis


def serpentine(size=13):
    """A line (1, 1, size, size), bool, that winds from side to side and so is far longer than 2 * size."""
    line = torch.zeros(1, 1, size, size, dtype=torch.bool)
    line[..., ::2, :] = True
    line[..., 1::4, -1] = line[..., 3::4, 0] = True
    return line


def test_a_chain_of_weak_pixels_is_followed_to_its_end_or_as_far_as_asked():
    weak, strong = serpentine(), torch.zeros_like(serpentine())
    strong[..., 0, 0] = True
    assert torch.equal(conditions.hysteresis(strong, weak), weak)
    assert conditions.hysteresis(strong, weak, steps=5).nonzero()[:, 2:].tolist() == [[0, x] for x in range(6)]
    assert not torch.equal(conditions.hysteresis(strong, weak, steps=26), weak)
    weak[..., 4, 6] = False  # a gap
    reached = weak.clone()
    reached[..., 4, 7:] = reached[..., 5:, :] = False
    assert torch.equal(conditions.hysteresis(strong, weak), reached)


def test_the_steps_taken_on_a_gpu_find_the_same_edges(monkeypatch):
    y, x = torch.meshgrid(torch.arange(28.0) - 13.5, torch.arange(28.0) - 13.5, indexing="ij")
    spiral = (y.hypot(x) * 0.9 - y.atan2(x)).sin() * (1 - y.hypot(x) / 20)  # an arm that fades outwards
    images = [draw_digits(100, seed=4)[0], smooth_noise(20, 3, 28, 28), smooth_noise(20, 1, 28, 28, sigma=3),
              spiral.expand(1, 1, 28, 28), image(disc(64, 25, (30, 33))) * torch.linspace(0.05, 1, 64)]
    found = [canny(batch) for batch in images]
    hysteresis = conditions.hysteresis
    monkeypatch.setattr(conditions, "hysteresis", lambda a, b, steps: hysteresis(a, b, sum(a.shape[2:])))
    for batch, edges in zip(images, found):
        assert edges.any() and torch.equal(canny(batch), edges)


# Invariances


def test_mirrored_turned_and_inverted_images_have_mirrored_turned_and_the_same_edges():
    images = smooth_noise(8, 1, 24, 24)
    edges = canny(images)
    for turn in range(4):
        assert torch.equal(canny(images.rot90(turn, (2, 3))), edges.rot90(turn, (2, 3)))
        assert torch.equal(canny(images.rot90(turn, (2, 3)).flip(3)), edges.rot90(turn, (2, 3)).flip(3))
    assert torch.equal(canny(-images), edges)
    assert torch.equal(canny(0.5 * images + 0.3, low=0.025, high=0.05), edges)


def test_every_colour_counts_and_grey_in_three_channels_is_grey():
    grey = smooth_noise(4, 1, 20, 20)
    assert torch.equal(canny(grey.expand(4, 3, 20, 20)), canny(grey))
    red_on_green = torch.stack([step(0.587), 0.299 - step(0.299), torch.zeros(12, 12)])  # of one luma
    assert canny(image(red_on_green))[0, 0, :, 5].all()
    across, down = step(size=16, at=8), step(0.5, size=16, at=8).T
    both = canny(image(torch.stack([across, down])))
    assert both[0, 0, :, 7].all() and both[0, 0, 7].sum() == 15  # the weaker line is broken where they cross


# Independent oracles


def loop_canny(brightness, low, high, sigma):
    """Canny on brightness (C, H, W) in [0, 1], one pixel at a time, in float64, straight from the textbook."""
    C, H, W = brightness.shape
    radius = math.ceil(3 * sigma)
    offsets = range(-radius, radius + 1)
    kernel = np.array([[math.exp(-(i**2 + j**2) / (2 * sigma**2)) if sigma else 1.0 for j in offsets] for i in offsets])
    kernel /= kernel.sum()
    padded = np.pad(brightness, ((0, 0), (radius, radius), (radius, radius)), mode="edge")
    blurred = np.zeros_like(brightness)
    for c, y, x in np.ndindex(C, H, W):
        blurred[c, y, x] = (kernel * padded[c, y : y + 2 * radius + 1, x : x + 2 * radius + 1]).sum()
    padded = np.pad(blurred, ((0, 0), (1, 1), (1, 1)), mode="edge")
    sobel_x = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]]) / 8
    slope = np.zeros((H, W, 2))
    for y, x in np.ndindex(H, W):
        slopes = []
        for c in range(C):
            patch = padded[c, y : y + 3, x : x + 3]
            slopes.append(((sobel_x * patch).sum(), (sobel_x.T * patch).sum()))
        slope[y, x] = max(slopes, key=lambda s: math.hypot(*s))
    steepness = np.pad(np.hypot(slope[..., 0], slope[..., 1]), 1)
    ridge = np.zeros((H, W), bool)
    for y, x in np.ndindex(H, W):
        sector = round(math.degrees(math.atan2(slope[y, x, 1], slope[y, x, 0])) / 45) % 4
        dy, dx = [(0, 1), (1, 1), (1, 0), (1, -1)][sector]
        here = steepness[y + 1, x + 1]
        before, after = steepness[y + 1 - dy, x + 1 - dx], steepness[y + 1 + dy, x + 1 + dx]
        tie = 1e-6
        ridge[y, x] = here > before + tie and (here > after + tie if sector % 2 else here >= after - tie)
    strength = steepness[1:-1, 1:-1]
    edges = np.zeros((H, W), bool)
    stack = [(y, x) for y, x in np.ndindex(H, W) if ridge[y, x] and strength[y, x] > high]
    while stack:
        y, x = stack.pop()
        if 0 <= y < H and 0 <= x < W and not edges[y, x] and ridge[y, x] and strength[y, x] > low:
            edges[y, x] = True
            stack += [(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
    return edges


@pytest.mark.parametrize("low, high, sigma", [(0.05, 0.1, 0.8), (0.05, 0.1, 0), (0.02, 0.06, 1.4), (0.0, 0.12, 0.5)])
@pytest.mark.parametrize("channels", [1, 3])
def test_canny_is_the_textbook_canny_on_random_images(low, high, sigma, channels):
    images = smooth_noise(4, channels, 22, 19, seed=channels)
    edges = canny(images, low, high, sigma)[:, 0].bool().numpy()
    assert 0.05 < edges.mean() < 0.4
    for picture, found in zip(images.double().numpy() / 2 + 0.5, edges, strict=True):
        np.testing.assert_array_equal(found, loop_canny(picture, low, high, sigma))


def test_canny_is_the_textbook_canny_where_everything_ties():
    blocks = (smooth_noise(3, 1, 20, 20, seed=3) > 0).float() * 2 - 1  # black and white: many equal slopes
    for edges, sigma in [(canny(blocks), 0.8), (canny(blocks, sigma=0), 0)]:
        for picture, found in zip(blocks.double().numpy() / 2 + 0.5, edges[:, 0].bool().numpy(), strict=True):
            np.testing.assert_array_equal(found, loop_canny(picture, 0.05, 0.1, sigma))


# Edge maps by OpenCV 5.0.0, thresholds 102 and 204 (0.05 and 0.1 of 8 * 255), L2gradient=True.

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


def test_a_grey_picture_has_the_edges_that_opencv_finds():
    distance = np.hypot(Y - 9.2, X - 9.7)
    ring = np.rint(255 * np.clip(7.3 - distance, 0, 1) - 255 * np.clip(3.4 - distance, 0, 1))
    assert draw(canny(image(ring / 255), sigma=0)) == RING  # cv2.Canny(ring.astype(np.uint8), ...)


def test_a_colour_picture_has_the_edges_that_opencv_finds():
    waves = [np.sin(0.11 * k * Y + 0.05 * (k + 3) * X + k) * np.cos(0.13 * X - 0.02 * k * Y) for k in (1, 2, 3)]
    waves = np.rint(127.5 + 127.5 * np.stack(waves))  # (3, 20, 20)
    assert draw(canny(image(waves / 255), sigma=0)) == WAVES  # cv2.Canny of (20, 20, 3) uint8


def test_a_blurred_picture_has_the_edges_that_opencv_finds():
    left = (X >= 4) & (X < 6) & (Y >= 3) & (Y < 11)
    bar = (X >= 4) & (X < 16) & (Y >= 9) & (Y < 11)
    right = (X >= 12) & (X < 14) & (Y >= 3) & (Y < 18)
    # b = cv2.GaussianBlur(255.0 * four, (7, 7), 0.8, borderType=cv2.BORDER_REPLICATE); cv2.Canny(dx, dy, ...) on its
    # cv2.Sobel slopes, these and the thresholds times 20 to keep what int16 would round away
    four = (left | bar | right).astype(float)
    assert draw(canny(image(four))) == FOUR


def test_sobel_is_the_slope_of_a_plane_and_dilate_a_maximum_over_nine_pixels():
    plane = torch.tensor(0.02 * Y - 0.03 * X)[None, None]
    slope_x, slope_y = sobel(plane)
    torch.testing.assert_close(slope_x[..., 1:-1, 1:-1], torch.full((1, 1, 18, 18), -0.03, dtype=torch.float64))
    torch.testing.assert_close(slope_y[..., 1:-1, 1:-1], torch.full((1, 1, 18, 18), 0.02, dtype=torch.float64))
    mask = smooth_noise(3, 1, 9, 11) > 0.6
    assert torch.equal(dilate(mask).float(), F.max_pool2d(mask.float(), 3, stride=1, padding=1))


# Bad input


@pytest.mark.parametrize("images, sentence", [
    (torch.zeros(28, 28), "float tensor"),
    (torch.zeros(1, 28, 28), "float tensor"),
    (torch.zeros(0, 1, 28, 28), "at least one pixel"),
    (torch.zeros(1, 1, 28, 28, dtype=torch.uint8), "uint8"),
    (np.zeros((1, 1, 28, 28), np.float32), "not ndarray"),
    (None, "not NoneType"),
    (torch.full((1, 1, 8, 8), 1.1), r"\[-1, 1\], but run from 1.1 to 1.1"),
    (torch.full((1, 1, 8, 8), -1.1), r"\[-1, 1\]"),
    (torch.tensor([0, math.nan, 0, 0]).view(1, 1, 2, 2), "finite"),
    (torch.tensor([0, math.inf, 0, 0]).view(1, 1, 2, 2), "finite"),
])
@every_condition
def test_images_of_the_wrong_kind_are_refused(condition, images, sentence):
    with pytest.raises(ValueError, match=sentence):
        condition(images)


@pytest.mark.parametrize("setting", [
    {"low": 0.2}, {"low": -0.1}, {"high": math.inf}, {"low": math.nan}, {"sigma": -1}, {"sigma": math.nan},
    {"sigma": math.inf},
])
def test_senseless_settings_are_refused(setting):
    with pytest.raises(ValueError, match="canny needs 0 <= low <= high"):
        canny(torch.zeros(1, 1, 8, 8), **setting)


def test_rounding_beyond_one_is_forgiven():
    images = image(step())
    assert torch.equal(canny(images * 1.0005), canny(images))


# What every condition keeps to


@functools.cache
def assorted(C=3):
    """Images (8, C, 28, 28): 3 of noise, 2 coloured digits, a square at the border, black, a faint step."""
    digits = -draw_digits(2, seed=3)[0].expand(2, C, 28, 28) * torch.linspace(0.2, 1, C).view(C, 1, 1)
    square = torch.full((1, C, 28, 28), 0.3)
    square[:, 0, 10:20, 20:] = -0.7
    gray = step(0.01, size=28).expand(1, C, 28, 28)
    return torch.cat([smooth_noise(3, C, 28, 28), digits, square, -torch.ones(1, C, 28, 28), gray])


@every_condition
@pytest.mark.parametrize("C", [1, 3])
def test_a_condition_is_a_float32_map_from_0_to_1_as_large_as_the_images(condition, C):
    maps = condition(assorted(C))
    assert maps.shape == (8, C if condition is colour else 1, 28, 28) and maps.dtype == torch.float32
    assert maps.min() >= 0 and maps.max() <= 1 and maps.std() > 0.1
    assert condition in (colour, depth) or set(maps.unique().tolist()) == {0, 1}


@every_condition
def test_a_map_depends_on_its_own_image_alone_and_on_nothing_random(condition):
    images = assorted()
    stream = torch.get_rng_state()
    maps = condition(images)
    assert torch.equal(torch.get_rng_state(), stream)
    order = torch.tensor([5, 0, 7, 3, 1, 6, 2, 4])
    assert torch.equal(condition(images[order]), maps[order])
    assert torch.equal(torch.cat([condition(one[None]) for one in images]), maps)


@every_condition
def test_no_condition_waits_for_a_gpu(condition):
    """A tensor on "meta" has a shape and no values: whoever asks for one, as waiting for a GPU does, gets an error."""
    images = torch.empty(2, 3, 28, 28, device="meta")
    assert condition(images).shape == (2, 3 if condition is colour else 1, 28, 28)
    with pytest.raises(ValueError, match="float tensor"):
        condition(images[0])


@every_condition
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_every_condition_takes_every_float_type_and_computes_in_float32(condition, dtype):
    images = assorted().to(torch.bfloat16).to(dtype)
    maps = condition(images)
    assert maps.dtype == torch.float32 and torch.equal(maps, condition(images.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(condition(images), maps)


@every_condition
def test_every_condition_leaves_its_images_alone_and_records_no_gradient(condition):
    images = assorted().clone().requires_grad_()
    before = images.detach().clone()
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: pytest.fail("a graph was built"), lambda saved: saved):
        assert not condition(images).requires_grad
    assert torch.equal(images, before)


@every_condition
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 3), (31, 18)])
def test_every_condition_takes_every_size(condition, size):
    maps = condition(smooth_noise(2, 3, 31, 18)[..., : size[0], : size[1]])
    assert maps.shape[2:] == size and maps.isfinite().all()


@every_condition
@pytest.mark.parametrize("level", [-1.0, -0.3, 0.0, 1.0])
def test_an_image_of_one_colour_has_that_colour_and_nothing_else(condition, level):
    maps = condition(torch.full((2, 3, 9, 7), level))
    torch.testing.assert_close(maps, torch.full_like(maps, (level + 1) / 2 if condition is colour else 0))


# Colours


@pytest.mark.parametrize("H, W", [(16, 16), (28, 28), (32, 20)])
def test_colours_are_means_over_sixteen_cells_with_straight_lines_between_their_centres(H, W):
    picture = torch.rand(3, H, W, dtype=torch.float64)
    means = picture.reshape(3, 4, H // 4, 4, W // 4).mean((2, 4)).numpy()
    y, x = ((np.arange(n) + 0.5) * 4 / n - 0.5 for n in (H, W))  # in cells, from the centre of the first
    rows = np.apply_along_axis(lambda column: np.interp(y, range(4), column), 1, means)
    expected = np.apply_along_axis(lambda row: np.interp(x, range(4), row), 2, rows)
    np.testing.assert_allclose(colour(image(picture))[0], expected, atol=1e-5)


def test_each_channel_has_its_own_colours_and_shapes_inside_a_cell_are_lost():
    images = smooth_noise(2, 3, 28, 28)
    expected = torch.cat([colour(images[:, c : c + 1]) for c in range(3)], dim=1)
    assert torch.equal(colour(images), expected)
    cells = F.unfold(images.view(6, 1, 28, 28), 7, stride=7)[:, torch.randperm(49)]
    shuffled = F.fold(cells, 28, 7, stride=7).view(2, 3, 28, 28)
    assert (shuffled - images).abs().mean() > 0.1
    torch.testing.assert_close(colour(shuffled), expected)


def test_colours_of_images_that_rounding_took_beyond_one_stay_within_it():
    maps = colour(torch.tensor([-1.0005, 1.0005]).view(2, 1, 1, 1).expand(2, 1, 8, 8))
    assert maps[0].max() == 0 and maps[1].min() == 1


# Masks


def square(background, ink, size=9):
    """An image (1, C, size, size) of one colour with a square of another, rows 2 to 5 and columns 3 to 6."""
    colours = torch.tensor([background, ink], dtype=torch.float32)
    inside = torch.zeros(size, size, dtype=torch.long)
    inside[2:6, 3:7] = 1
    return colours[inside].permute(2, 0, 1)[None]


@pytest.mark.parametrize("background, ink", [
    ([-1], [1]), ([1], [-1]), ([0.2], [0.3]), ([0.1, 0.5, 0.9], [0.1, 0.5, 0.7]), ([-1, 1, 0], [1, -1, 0]),
])
def test_the_mask_of_a_square_is_the_square_whichever_its_colours(background, ink):
    assert draw(mask(square(background, ink))) == """\
.........
.........
...####..
...####..
...####..
...####..
.........
.........
........."""


def test_exactly_half_of_the_greatest_difference_is_background_whichever_the_colours():
    shares = torch.zeros(9, 9)
    shares[3, 2:7] = torch.tensor([0.45, 0.5, 0.55, 1, 0.5])
    background, ink = torch.rand(2, 500, 3, 1, 1)
    ink = (background + 0.35 + 0.3 * ink) % 1
    masks = mask(torch.lerp(background, ink, shares) * 2 - 1)
    assert torch.equal(masks, (shares > 0.5).float().expand(500, 1, 9, 9))


def test_colours_differ_by_their_euclidean_distance():
    picture = torch.zeros(3, 9, 9)
    picture[:, 2, 2] = 1  # sqrt(3) from the paper
    picture[0, 4, 4], picture[0, 6, 6] = 0.86, 0.88  # on both sides of half of it
    found = mask(image(picture))[0, 0]
    assert found[2, 2] == found[6, 6] == 1 and found.sum() == 2


def test_differences_too_faint_to_see_are_no_foreground():
    assert mask(square([0], [0.038])).sum() == 0
    assert mask(square([0], [0.042])).sum() == 16
    assert mask(0.5 + 1e-7 * smooth_noise(2, 3, 9, 9)).sum() == 0


def test_the_paper_is_the_colour_of_most_of_the_border():
    border = torch.tensor([[1, 1, 2], [3, 9, 3], [4, 5, 2.0]])  # corners count twice
    assert conditions.paper_colour(border[None, None]).item() == 2
    picture = torch.zeros(16, 16)
    picture[1:15, 1:15] = 1  # most of the picture, but none of the border
    assert torch.equal(mask(image(picture))[0, 0], picture)
    band = torch.zeros(16, 16)
    band[:4] = 1  # the whole of one side, and a quarter of two: 24 of 64
    for turn in range(4):
        turned = band.rot90(turn)
        assert torch.equal(mask(image(turned))[0, 0], turned)
        assert torch.equal(mask(image(1 - turned))[0, 0], turned)
    frame = 1 - picture
    assert torch.equal(mask(image(frame))[0, 0], picture)


# Depth


def loop_distance(foreground):
    """The distance of each true pixel of foreground (H, W) to the nearest false one: infinity if there is none."""
    background = np.argwhere(~foreground)
    distance = np.zeros(foreground.shape)
    for y, x in np.argwhere(foreground):
        distance[y, x] = np.hypot(*(background - [y, x]).T).min(initial=np.inf)
    return distance


@pytest.mark.parametrize("share", [0.2, 0.6, 0.9, 0.97, 1])
@pytest.mark.parametrize("H, W", [(12, 12), (9, 25), (25, 9)])
def test_depth_is_the_distance_that_plain_loops_find(share, H, W):
    foreground = torch.zeros(5, 1, H, W)
    foreground[..., 1:-1, 1:-1] = torch.rand(5, 1, H - 2, W - 2) < share  # a border of paper
    foreground[..., 3:8, 0] = 1  # but for a piece of its left side
    images = foreground * 2 - 1
    assert torch.equal(mask(images), foreground)
    for found, truth in zip(depth(images)[:, 0].numpy(), foreground[:, 0].bool().numpy(), strict=True):
        np.testing.assert_allclose(found, np.minimum(loop_distance(truth) / 4, 1), rtol=1e-6)


def test_the_relief_of_a_square_is_a_pyramid_and_outside_the_image_is_no_background():
    pyramid = torch.tensor([[1, 1, 1, 1], [1, 2, 2, 1], [1, 2, 2, 1], [1, 1, 1, 1]]) / 4
    found = depth(square([-1], [1]))[0, 0]
    assert torch.equal(found[2:6, 3:7], pyramid) and found.sum() == pyramid.sum()
    bar = torch.zeros(20, 20)
    bar[:, 7:] = 1
    bar[0], bar[-1] = 0, 0
    assert torch.equal(depth(image(bar))[0, 0, 10, 7:], torch.tensor([1, 2, 3, *[4] * 10]) / 4)


def test_where_all_is_foreground_the_relief_is_flat():
    red_and_green = torch.zeros(2, 8, 8)
    red_and_green[0, :, :4] = red_and_green[1, :, 4:] = 1  # in the median of the border neither is: paper is black
    assert mask(image(red_and_green)).all()
    assert torch.equal(depth(image(red_and_green)), torch.ones(1, 1, 8, 8))


# Scribble


def test_a_scribble_stays_within_two_pixels_of_the_edges_and_misses_few_of_them():
    for images in (draw_digits(50, seed=2)[0], smooth_noise(20, 3, 32, 32)):
        drawn, edges = scribble(images).bool(), canny(images).bool()
        assert not (drawn & ~dilate(dilate(edges))).any()
        assert (drawn & ~dilate(edges)).any()  # it wavers
        assert 0.99 < dilate(dilate(drawn))[edges].float().mean()
        assert (drawn.sum() > 1.2 * edges.sum()).all()


def test_a_scribbled_line_is_two_pixels_thick_wavers_by_one_and_breaks():
    drawn = scribble(image(step(size=64, at=32)))[0, 0]  # the edge is column 31
    width, where = drawn.sum(1), (drawn * torch.arange(64)).sum(1) / drawn.sum(1)
    assert set(width.tolist()) == {0, 1, 2} and (width == 2).float().mean() > 0.7
    assert 0.03 < (width == 0).float().mean() < 0.3
    assert set(where[width == 2].tolist()) == {29.5, 30.5, 31.5}
    there = scribble(image(step(size=64, at=33)))[0, 0]  # elsewhere the same line wavers and breaks in other places
    assert not torch.equal(there.sum(1), width)
