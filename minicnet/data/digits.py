"""Handwritten digits without a download: a soft brush paints along randomly deformed paths.

    images, labels = draw_digits(60_000, seed=0)  # (60000, 1, 28, 28) in [-1, 1], (60000,) in 0..9
    prompts, labels = describe_digits(60_000, seed=0)  # "a thick three leaning right", "a seven"

From text to image, a thousand digits at a time:

    hand shape  --spline-->  points and a basis  --deform-->  path in pixels  --paint-->  image
                                                       radius and slope  --describe-->  prompt

A spline through points is linear in the points. Therefore one matrix for each hand shape, its
basis, turns the points of many digits into paths at once.
"""

import math

import torch
import torch.nn.functional as F

from minicnet.data.prompts import phrase, with_article
from minicnet.words import DIGITS

SIZE = 28  # pixels per side
PATH_POINTS = 72  # points on a path: less than a pixel apart, so the brush joins them into a line
BRUSH = 0.8  # pixels, the standard deviation of the Gaussians that join them
CHUNK = 1000  # digits that are drawn at a time; each chunk has its own random stream
MAX_POINTS = 12  # different points in a hand shape

# A prompt names the stroke and the lean of a digit only if they are unusual, that is, beyond these
# values, which are about the outer quartiles over all digits.
THIN, THICK = 1.02, 1.53  # pixels, radius of the pen: 25% of the digits are thin, 25% thick
LEFT, RIGHT = -0.1, 0.35  # pixels to the right per pixel up: 22% lean left, 22% right, mean 0.13

# Several ways to write each of 0, 1, ..., 9. A pair of figures is a point "xy": x points right, y
# points down, and a digit is about 6 wide and 9 high. The pen follows a smooth curve from point to
# point; a repeated point makes a corner, and "|" lifts the pen. A point that occurs again later is
# the same point, so strokes that meet still meet after the points have moved at random.
HAND_SHAPES = (
    ("30 03 06 39 66 63 30", "40 21 04 07 29 48 65 62 40 21", "51 30 12 05 18 39 57 64 52 31",
     "50 20 03 06 29 59 76 73 51", "42 30 03 06 29 49 66 63 30 11", "20 02 05 19 48 65 62 40 11",
     "20 11 05 18 29 47 54 41 20"),
    ("30 39", "40 29", "31 35 28", "31 22 26 39", "20 31 39", "13 30 30 39", "03 30 30 39 | 19 59"),
    ("12 30 51 53 36 09 09 69", "02 20 50 53 36 09 09 79", "10 50 63 46 09 09 28 59 79",
     "13 30 51 54 18 29 69", "01 20 50 62 44 09 09 69", "12 20 40 52 45 28 09 07 27 48 68",
     "02 20 50 63 47 19 08 17 48 79", "02 20 50 52 35 29 09 06 26 68",
     "12 30 51 53 36 19 08 16 36 58 79", "12 30 51 53 46 29 09 07 26 58 79",
     "03 11 30 51 53 36 18 07 16 38 58 76", "23 12 20 50 53 36 09 09 39 68"),
    ("11 30 51 52 24 24 55 57 39 08", "00 50 50 23 43 65 57 39 08", "01 30 51 43 24 34 55 57 39 08",
     "02 20 51 52 34 24 34 55 57 39 18", "00 30 61 24 24 44 56 58 29 08",
     "01 40 52 34 34 56 48 29 07", "01 30 51 43 34 34 65 58 39 19 17",
     "00 60 60 34 34 56 58 29 08"),
    ("20 05 05 65 | 50 49", "10 14 35 64 | 60 53 49", "50 05 05 75 | 50 59",
     "20 04 25 54 | 50 44 39", "00 04 25 64 | 60 54 49", "20 05 05 54 74 | 50 49",
     "10 03 15 44 60 54 49", "30 14 06 06 75 | 50 39", "00 03 15 54 | 50 59"),
    ("10 04 04 23 45 57 39 08 | 10 60", "60 20 04 34 56 38 08", "50 10 10 04 33 56 48 19 08",
     "80 30 24 24 45 47 29 08", "61 31 13 34 56 48 29 08", "20 04 34 56 38 08 | 20 70",
     "30 24 44 57 39 18 | 30 80", "50 10 10 04 33 56 48 19 07 16", "10 13 34 55 47 29 18 | 20 71"),
    ("40 22 05 08 39 58 56 35 17", "50 13 06 28 48 57 45 16", "20 05 07 39 58 56 35 07",
     "50 22 05 08 39 58 55 34 15 07", "40 15 18 39 47 35 17", "20 04 08 39 67 64 35 07",
     "30 14 07 19 38 36 16"),
    ("00 60 60 39", "01 00 50 60 43 29", "01 60 60 29 | 24 64", "02 10 60 60 34 29",
     "03 11 40 51 44 39", "02 00 60 45 39", "00 60 60 29 | 15 65", "02 00 60 60 39",
     "03 10 60 60 19", "01 70 70 49", "03 01 50 51 49"),
    ("51 30 11 23 45 57 39 18 16 34 52 51", "30 11 13 34 52 51 30 | 34 16 18 39 58 56 34",
     "61 30 11 33 55 47 29 07 25 52 61", "60 30 12 34 46 38 19 07 35 51",
     "52 30 11 33 55 58 39 17 25 51", "30 11 24 56 38 19 17 35 51 30",
     "40 21 23 44 52 40 | 44 16 18 39 57 44", "60 41 11 23 45 57 39 18 16 35 60",
     "61 40 20 12 34 56 48 29 08 16 43 70", "50 20 11 24 46 48 29 17 35 52",
     "60 31 12 34 47 38 29 27 34 62 60", "51 20 02 14 34 45 58 39 18 25 52",
     "51 30 12 23 46 48 29 27 35 51"),
    ("51 30 11 04 15 34 51 51 49", "51 30 12 14 35 53 51 55 48 29", "52 30 11 13 34 52 52 37 19",
     "30 11 13 34 51 30 50 54 49", "51 20 03 15 43 51 45 29", "50 20 03 14 50 50 39",
     "51 30 12 34 52 51 57 39 18", "60 30 03 06 36 63 60 60 59", "51 30 12 14 35 53 51 55 39 19 08",
     "50 30 12 04 24 42 50 41 34 19", "50 20 02 14 34 50 46 39", "41 20 12 14 33 41 40 36 29"),
)


def draw_digits(count, seed=0):
    """Draw digits, white on black.

    Returns images (N, 1, 28, 28) float32 in [-1, 1], and labels (N,) int64. Every ten consecutive
    digits have each label once, in random order. The same seed draws the same digits, and a larger
    count appends more of them. Raises ValueError for a count below 1.
    """
    chunks = [(2 * paint(path, radius, edge)[:, None] - 1, labels)
              for labels, path, radius, edge in pen_paths(count, seed)]
    return tuple(torch.cat(parts)[:count] for parts in zip(*chunks))


def describe_digits(count, seed=0):
    """Describe the digits of `draw_digits(count, seed)`: a list of N prompts, and labels (N,)."""
    chunks = list(pen_paths(count, seed))
    prompts = [describe(*digit) for labels, path, radius, _ in chunks
               for digit in zip(labels.tolist(), radius.tolist(), lean(path, labels).tolist())]
    return prompts[:count], torch.cat([labels for labels, *_ in chunks])[:count]


def describe(label, radius, lean):
    """Describe a digit by its pen's radius and its lean: "a thick three leaning right"."""
    return with_article(phrase(
        stroke="thin" if radius < THIN else "thick" if radius > THICK else "", digit=DIGITS[label],
        lean="left" if lean < LEFT else "right" if lean > RIGHT else ""))


def lean(path, labels):
    """Measure how far paths (B, P, 2) of digits `labels` (B,) lean to the right: (B,).

    This is a path's slope, in pixels to the right per pixel up, minus the mean slope of the hand
    shapes of the same digit.
    """
    return UPRIGHT[labels] - slope(path)


def slope(path):
    """Fit x = slope * y + constant to each path (B, P, 2) by least squares: (B,)."""
    x, y = (path - path.mean(1, keepdim=True)).unbind(-1)  # (B, P) each
    return (x * y).sum(1) / y.square().sum(1)


def pen_paths(count, seed):
    """Yield random digits in chunks of CHUNK, at least `count` in all.

    A chunk is labels (B,), paths (B, P, 2), and the radius and the edge width of the pens (B,), all
    in pixels. Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    for i in range(math.ceil(count / CHUNK)):
        yield sample_chunk(torch.Generator().manual_seed(1_000_003 * seed + i))


def sample_chunk(generator):
    """Sample one chunk of `pen_paths` from a random stream."""
    def normal(std, *shape):  # clamped, so that no digit becomes illegible
        return std * torch.randn(CHUNK, *shape, generator=generator).clamp(-2, 2)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(CHUNK, *shape, generator=generator)

    labels = torch.rand(CHUNK // 10, 10, generator=generator).argsort(1).flatten()
    shape = (FIRST_SHAPE[labels] + uniform(0, 1) * SHAPE_COUNT[labels]).long()
    path = BASIS[shape] @ (POINTS[shape] + normal(0.04, MAX_POINTS, 2))  # (B, P, 2)
    path = deform(path, normal, uniform)

    # As in MNIST, the longer side of the ink's box is 20 pixels, and its centre is the image's.
    radius, edge = 1.25 * torch.exp(normal(0.3)), uniform(0.8, 1.4)
    extent = (path.amax(1) - path.amin(1)).amax(1)
    path = path * ((uniform(19, 20.5) - 2 * radius) / extent)[:, None, None]
    path = path - path.mean(1, keepdim=True) + SIZE / 2 + 0.5 + normal(0.3, 1, 2)
    return labels, path, radius, edge


def deform(path, normal, uniform):
    """Deform paths (B, P, 2), about in [-1, 1], as different writers would.

    normal(std, *shape), uniform(low, high, *shape): draw random numbers (B, *shape).
    """
    path = path + 0.12 * torch.sin(path @ normal(2, 2, 2) + uniform(0, 2 * math.pi, 1, 2))
    x, y = path.unbind(-1)  # (B, P) each
    x = x * (1 + normal(0.15, 1) * y)  # wider at the top or at the bottom
    y = y + normal(0.12, 1) * (1 - y**2)  # the middle moves up or down
    x = x * torch.exp(0.1 + normal(0.22, 1)) + (normal(0.25, 1) - 0.12) * y  # width, and slant
    turn = normal(0.12, 1)
    return torch.stack([turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y], dim=-1)


def paint(path, radius, edge):
    """Paint paths (B, P, 2) in pixels: ink (B, 28, 28) in [0, 1].

    radius, edge: (B,) pixels, half the width of the line, and the width of its soft edge.

    The sum of Gaussians along a line of points is proportional to exp(-d^2 / (2 BRUSH^2)) at the
    distance d from the line. We solve this for d, which gives a distance to the path that is smooth
    where strokes meet. A Gaussian is separable, so one matrix product of x and y sums all of them.
    """
    pixels = torch.arange(SIZE) + 0.5
    blur = torch.exp(-((path[..., None] - pixels) ** 2) / (2 * BRUSH**2))  # (B, P, 2, 28)
    step = path.diff(dim=1).norm(dim=-1).median(1).values  # the median ignores the lifted pen
    ink = blur[:, :, 1].mT @ blur[:, :, 0]  # (B, 28, 28)
    ink = ink * (step / (math.sqrt(2 * math.pi) * BRUSH))[:, None, None]
    distance = BRUSH * (-2 * ink.clamp(1e-30, 1).log()).sqrt()
    return (0.5 + (radius[:, None, None] - distance) / edge[:, None, None]).clamp(0, 1)


def spline(hand_shape):
    """Parse a hand shape into its points and the basis of a spline through them.

    Returns points (MAX_POINTS, 2), about in [-1, 1], and a basis (PATH_POINTS, MAX_POINTS).
    `basis @ points` is a path: evenly spaced points on a Catmull-Rom spline (Catmull and Rom 1974).
    """
    strokes = [stroke.split() for stroke in hand_shape.split("|")]
    names = list(dict.fromkeys(name for stroke in strokes for name in stroke))
    points = torch.zeros(MAX_POINTS, 2)
    points[:len(names)] = torch.tensor([[int(x) - 3, int(y) - 4.5] for x, y in names]) / 4.5
    powers = torch.linspace(0, 1, 100)[:, None] ** torch.arange(4)  # (100, 4)
    weights = powers @ torch.tensor(
        [[0, 1, 0, 0], [-0.5, 0, 0.5, 0], [1, -2.5, 2, -0.5], [-0.5, 1.5, -1.5, 0.5]])
    pieces = []
    for stroke in strokes:
        knots = [names.index(name) for name in stroke]
        closed = knots[0] == knots[-1]
        knots = [knots[-2] if closed else knots[0], *knots, knots[1] if closed else knots[-1]]
        pieces += [weights @ torch.eye(MAX_POINTS)[list(four)]  # joins the second and the third
                   for four in zip(knots, knots[1:], knots[2:], knots[3:]) if four[1] != four[2]]
    steps = [F.pad((piece @ points).diff(dim=0).norm(dim=1), (1, 0)) for piece in pieces]
    travelled = torch.cat(steps).cumsum(0)  # the length of the path up to each of its points
    even = (torch.arange(PATH_POINTS) + 0.5) / PATH_POINTS * travelled[-1]
    return points, torch.cat(pieces)[torch.searchsorted(travelled, even)]


POINTS, BASIS = (torch.stack(parts) for parts in
                 zip(*(spline(shape) for shapes in HAND_SHAPES for shape in shapes)))
SHAPE_COUNT = torch.tensor([len(shapes) for shapes in HAND_SHAPES])
FIRST_SHAPE = SHAPE_COUNT.cumsum(0) - SHAPE_COUNT  # of each digit: index into POINTS and BASIS
UPRIGHT = torch.stack(  # (10,), the mean slope of each digit's hand shapes
    [slopes.mean() for slopes in slope(BASIS @ POINTS).split(SHAPE_COUNT.tolist())])
