"""Handwritten digits without a download: a pen led through shaken points, painted with a soft brush.

    images, labels = draw_digits(60_000, seed=0)  # (60000, 1, 28, 28) in [-1, 1], (60000,) in 0 .. 9
    prompts, labels = describe_digits(60_000, seed=0)  # "a thick three leaning right", "a seven", ...

From text to picture, a thousand digits at a time:

    hand shape  --trace-->  points and a basis  --shake-->  path  --frame-->  pixels  --paint-->  image
                                                                       pen and slant  --say-->  prompt

A smooth curve through points is linear in the points, so one matrix per hand shape (its basis) leads every pen.
"""

import math

import torch

from minicnet.words import DIGITS, with_article

SIZE = 28  # pixels per side
PATH_POINTS = 72  # points on a path: under a pixel apart, so that the brush melts them into a line
BRUSH = 0.8  # pixels by which the brush melts
CHUNK = 1000  # digits drawn at a time, each chunk from its own random stream
MAX_POINTS = 12  # points that a hand shape may name

# Where words begin: the outer quarters or nearly so, the same for every digit. What lies between has no word.
THIN, THICK = 1.02, 1.53  # pixels of the pen's radius: 25% of the digits are thin, 25% thick
LEFT, RIGHT = -0.1, 0.35  # pixels rightwards per pixel upwards: 22% lean left, 22% right; the mean is 0.13

# The ways of writing 0, 1, ..., 9. A pair of figures is a point "xy": x rightwards, y downwards, a digit about 6 wide
# and 9 high. The pen follows a smooth curve from point to point; a point twice in a row is a corner; "|" lifts the pen.
# A point that comes back later is the same point, so that strokes which meet still meet after the hand has shaken.
HAND_SHAPES = (
    ("30 03 06 39 66 63 30", "40 21 04 07 29 48 65 62 40 21", "51 30 12 05 18 39 57 64 52 31",
     "50 20 03 06 29 59 76 73 51", "42 30 03 06 29 49 66 63 30 11", "20 02 05 19 48 65 62 40 11",
     "20 11 05 18 29 47 54 41 20"),
    ("30 39", "40 29", "31 35 28", "31 22 26 39", "20 31 39", "13 30 30 39", "03 30 30 39 | 19 59"),
    ("12 30 51 53 36 09 09 69", "02 20 50 53 36 09 09 79", "10 50 63 46 09 09 28 59 79", "13 30 51 54 18 29 69",
     "01 20 50 62 44 09 09 69", "12 20 40 52 45 28 09 07 27 48 68", "02 20 50 63 47 19 08 17 48 79",
     "02 20 50 52 35 29 09 06 26 68", "12 30 51 53 36 19 08 16 36 58 79", "12 30 51 53 46 29 09 07 26 58 79",
     "03 11 30 51 53 36 18 07 16 38 58 76", "23 12 20 50 53 36 09 09 39 68"),
    ("11 30 51 52 24 24 55 57 39 08", "00 50 50 23 43 65 57 39 08", "01 30 51 43 24 34 55 57 39 08",
     "02 20 51 52 34 24 34 55 57 39 18", "00 30 61 24 24 44 56 58 29 08", "01 40 52 34 34 56 48 29 07",
     "01 30 51 43 34 34 65 58 39 19 17", "00 60 60 34 34 56 58 29 08"),
    ("20 05 05 65 | 50 49", "10 14 35 64 | 60 53 49", "50 05 05 75 | 50 59", "20 04 25 54 | 50 44 39",
     "00 04 25 64 | 60 54 49", "20 05 05 54 74 | 50 49", "10 03 15 44 60 54 49", "30 14 06 06 75 | 50 39",
     "00 03 15 54 | 50 59"),
    ("10 04 04 23 45 57 39 08 | 10 60", "60 20 04 34 56 38 08", "50 10 10 04 33 56 48 19 08",
     "80 30 24 24 45 47 29 08", "61 31 13 34 56 48 29 08", "20 04 34 56 38 08 | 20 70", "30 24 44 57 39 18 | 30 80",
     "50 10 10 04 33 56 48 19 07 16", "10 13 34 55 47 29 18 | 20 71"),
    ("40 22 05 08 39 58 56 35 17", "50 13 06 28 48 57 45 16", "20 05 07 39 58 56 35 07",
     "50 22 05 08 39 58 55 34 15 07", "40 15 18 39 47 35 17", "20 04 08 39 67 64 35 07", "30 14 07 19 38 36 16"),
    ("00 60 60 39", "01 00 50 60 43 29", "01 60 60 29 | 24 64", "02 10 60 60 34 29", "03 11 40 51 44 39",
     "02 00 60 45 39", "00 60 60 29 | 15 65", "02 00 60 60 39", "03 10 60 60 19", "01 70 70 49", "03 01 50 51 49"),
    ("51 30 11 23 45 57 39 18 16 34 52 51", "30 11 13 34 52 51 30 | 34 16 18 39 58 56 34",
     "61 30 11 33 55 47 29 07 25 52 61", "60 30 12 34 46 38 19 07 35 51", "52 30 11 33 55 58 39 17 25 51",
     "30 11 24 56 38 19 17 35 51 30", "40 21 23 44 52 40 | 44 16 18 39 57 44", "60 41 11 23 45 57 39 18 16 35 60",
     "61 40 20 12 34 56 48 29 08 16 43 70", "50 20 11 24 46 48 29 17 35 52", "60 31 12 34 47 38 29 27 34 62 60",
     "51 20 02 14 34 45 58 39 18 25 52", "51 30 12 23 46 48 29 27 35 51"),
    ("51 30 11 04 15 34 51 51 49", "51 30 12 14 35 53 51 55 48 29", "52 30 11 13 34 52 52 37 19",
     "30 11 13 34 51 30 50 54 49", "51 20 03 15 43 51 45 29", "50 20 03 14 50 50 39", "51 30 12 34 52 51 57 39 18",
     "60 30 03 06 36 63 60 60 59", "51 30 12 14 35 53 51 55 39 19 08", "50 30 12 04 24 42 50 41 34 19",
     "50 20 02 14 34 50 46 39", "41 20 12 14 33 41 40 36 29"),
)


def draw_digits(count, seed=0):
    """Draw `count` digits: images (N, 1, 28, 28) float32 in [-1, 1], white on black, and labels (N,) int64.

    Each ten in a row hold every label once, in random order. The same seed draws the same digits. A larger count adds
    more behind them. Raises ValueError for a count below 1.
    """
    chunks = [(2 * paint(path, radius, edge)[:, None] - 1, labels)
              for labels, path, radius, edge in lead_pens(count, seed)]
    images, labels = (torch.cat(parts)[:count] for parts in zip(*chunks))
    return images, labels


def describe_digits(count, seed=0):
    """Say what `draw_digits(count, seed)` draws, without painting it: prompts, a list of N, and labels (N,)."""
    chunks = list(lead_pens(count, seed))
    prompts = [say(*digit) for labels, path, radius, _ in chunks
               for digit in zip(labels.tolist(), radius.tolist(), lean(path, labels).tolist())]
    return prompts[:count], torch.cat([labels for labels, *_ in chunks])[:count]


def say(label, radius, lean):
    """Describe one digit: "a seven", "a thin two", "a five leaning left" or "a thick three leaning right"."""
    pen = "thin " if radius < THIN else "thick " if radius > THICK else ""
    slant = " leaning left" if lean < LEFT else " leaning right" if lean > RIGHT else ""
    return with_article(f"{pen}{DIGITS[label]}{slant}")


def lean(path, labels):
    """Measure how far paths (B, P, 2) of digits `labels` (B,) lean, in pixels rightwards per pixel upwards: (B,).

    The slope of the line that best tells x from y, less the slope that hand shapes of this digit have by themselves.
    """
    return UPRIGHT[labels] - slope(path)


def slope(path):
    """Least squares fit x = slope * y + constant of each path (B, P, 2): (B,)."""
    x, y = (path - path.mean(1, keepdim=True)).unbind(-1)  # (B, P) each
    return (x * y).sum(1) / y.square().sum(1)


def lead_pens(count, seed):
    """Yield the digits of a seed by chunks: labels (B,), paths (B, P, 2), radius and edge of the pens (B,), pixels.

    The chunks hold at least `count` digits. Each has a random stream of its own.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    for i in range(math.ceil(count / CHUNK)):
        yield lead_chunk(torch.Generator().manual_seed(1_000_003 * seed + i))


def lead_chunk(generator):
    """Lead CHUNK pens from one random stream, as `lead_pens` says."""
    def normal(std, *shape):  # no hand strays further than two deviations
        return std * torch.randn(CHUNK, *shape, generator=generator).clamp(-2, 2)

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(CHUNK, *shape, generator=generator)

    labels = torch.rand(CHUNK // 10, 10, generator=generator).argsort(1).flatten()
    shape = (FIRST_SHAPE[labels] + uniform(0, 1) * SHAPE_COUNT[labels]).long()
    path = BASIS[shape] @ (POINTS[shape] + normal(0.04, MAX_POINTS, 2))  # (B, P, 2)
    path = shake(path, normal, uniform)

    # MNIST's frame: the longer side of the inked box is 20 pixels, the centre of the ink is the centre of the image.
    radius, edge = 1.25 * torch.exp(normal(0.3)), uniform(0.8, 1.4)  # pixels
    extent = (path.amax(1) - path.amin(1)).amax(1)
    path = path * ((uniform(19, 20.5) - 2 * radius) / extent)[:, None, None]
    return labels, path - path.mean(1, keepdim=True) + SIZE / 2 + 0.5 + normal(0.3, 1, 2), radius, edge


def shake(path, normal, uniform):
    """Give each path (B, P, 2), coordinates in about [-1, 1], a hand of its own: waves, proportions, slant, turn."""
    path = path + 0.12 * torch.sin(path @ normal(2, 2, 2) + uniform(0, 2 * math.pi, 1, 2))
    x, y = path.unbind(-1)  # (B, P) each
    x = x * (1 + normal(0.15, 1) * y)  # wider above or wider below
    y = y + normal(0.12, 1) * (1 - y**2)  # a waist that sits high or low
    x = x * torch.exp(0.1 + normal(0.22, 1)) + (normal(0.25, 1) - 0.12) * y  # width; slant, mostly to the right
    turn = normal(0.12, 1)
    return torch.stack([turn.cos() * x - turn.sin() * y, turn.sin() * x + turn.cos() * y], dim=-1)


def paint(path, radius, edge):
    """Paint paths (B, P, 2) in pixels with pens of `radius` and soft rims `edge` (B,) wide: ink (B, 28, 28) in [0, 1].

    Along a line of points `step` apart, a sum of Gaussians is exp(-d^2 / 2 BRUSH^2) at distance d from the line. Solved
    for d it is the distance to the path, smooth where strokes meet. And Gaussians are separable: x times y is one
    matrix product.
    """
    pixels = torch.arange(SIZE) + 0.5
    blur = torch.exp(-((path[..., None] - pixels) ** 2) / (2 * BRUSH**2))  # (B, P, 2, 28)
    step = path.diff(dim=1).norm(dim=-1).median(1).values  # the median: lifting the pen leaves no ink
    ink = blur[:, :, 1].mT @ blur[:, :, 0] * (step / (math.sqrt(2 * math.pi) * BRUSH))[:, None, None]  # (B, 28, 28)
    distance = BRUSH * (-2 * ink.clamp(1e-30, 1).log()).sqrt()
    return (0.5 + (radius[:, None, None] - distance) / edge[:, None, None]).clamp(0, 1)


def trace(hand_shape):
    """Read a hand shape: its points (MAX_POINTS, 2), in about [-1, 1], and its basis (PATH_POINTS, MAX_POINTS).

    `basis @ points` are places at even distances along Catmull-Rom splines (Catmull and Rom 1974) through the points.
    """
    strokes = [stroke.split() for stroke in hand_shape.split("|")]
    names = list(dict.fromkeys(name for stroke in strokes for name in stroke))
    points = torch.zeros(MAX_POINTS, 2)
    points[:len(names)] = (torch.tensor([[int(x), int(y)] for x, y in names]) - torch.tensor([3, 4.5])) / 4.5
    powers = torch.linspace(0, 1, 100)[:, None] ** torch.arange(4)  # (100, 4)
    spline = powers @ torch.tensor([[0, 1, 0, 0], [-0.5, 0, 0.5, 0], [1, -2.5, 2, -0.5], [-0.5, 1.5, -1.5, 0.5]])
    pieces, lengths = [], []
    for stroke in strokes:
        knots = [names.index(name) for name in stroke]
        closed = knots[0] == knots[-1]
        knots = [knots[-2] if closed else knots[0], *knots, knots[1] if closed else knots[-1]]
        for four in zip(knots, knots[1:], knots[2:], knots[3:]):  # from the second to the third, past the others
            if four[1] != four[2]:
                pieces.append(spline @ torch.eye(MAX_POINTS)[list(four)])
                lengths.append(torch.cat([torch.zeros(1), (pieces[-1] @ points).diff(dim=0).norm(dim=1)]))
    travelled = torch.cat(lengths).cumsum(0)
    even = (torch.arange(PATH_POINTS) + 0.5) / PATH_POINTS * travelled[-1]
    return points, torch.cat(pieces)[torch.searchsorted(travelled, even)]


POINTS, BASIS = (torch.stack(parts) for parts in zip(*(trace(shape) for shapes in HAND_SHAPES for shape in shapes)))
SHAPE_COUNT = torch.tensor([len(shapes) for shapes in HAND_SHAPES])
FIRST_SHAPE = SHAPE_COUNT.cumsum(0) - SHAPE_COUNT
UPRIGHT = torch.stack([slopes.mean() for slopes in slope(BASIS @ POINTS).split(SHAPE_COUNT.tolist())])  # (10,)
