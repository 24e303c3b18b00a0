"""Conditions: maps that are computed from images and that a ControlNet follows.

There are five: Canny edges, a coarse colour map, a mask, a relief of depth, and a scribble. Each
takes images (B, C, H, W) in [-1, 1] of any float dtype and returns maps (B, K, H, W) in [0, 1] of
the same size, float32, on the same device. A map depends on its own image alone, and nothing is
learned or random. Anything but such images raises a ValueError. The functions below `scribble` are
steps of these five.

No condition makes the program wait for a GPU, so a training step can be queued before the previous
one has finished. The price is that values out of range are noticed on the CPU only.
"""

import math

import torch
import torch.nn.functional as F

GRID = 4  # the colour map is made of GRID x GRID colours
SAME_COLOUR = 0.02  # colours closer than this count as the same; black and white differ by 1
RELIEF = 4  # pixels from its border at which a foreground reaches its full height


@torch.no_grad()
def canny(images, low=0.05, high=0.1, sigma=0.8):
    """Find edges, the thin lines where brightness jumps (doi.org/10.1109/TPAMI.1986.4767851).

    images     (B, C, H, W) in [-1, 1]. In a colour image, each pixel uses the channel in which its
               slope is steepest, so a red digit on an equally bright green ground has edges, too.
    low, high  slopes in brightness per pixel, where black is 0 and white is 1. A line starts where
               the slope exceeds `high` and continues while it exceeds `low`. The defaults are about
               the usual 100 and 200 of OpenCV, whose thresholds are 8 * 255 = 2040 times ours;
               those of scikit-image are 8 times ours.
    sigma      standard deviation in pixels of the Gaussian blur that comes first; 0 means no blur

    Returns edges (B, 1, H, W), 1 on an edge and 0 elsewhere. They equal those of
    cv2.Canny(L2gradient=True) on the blurred image, provided that this is not rounded to 8 bits.
    On a GPU a line is followed for at most H + W pixels from its strong part, so only weak lines
    that wind lose their ends. The function takes about 50 bytes of memory per value of images and
    is fastest on at most a few thousand images at a time.
    Raises ValueError unless 0 <= low <= high and sigma >= 0.
    """
    _check_images(images)
    if not (0 <= low <= high < math.inf and 0 <= sigma < math.inf):
        found = f"low={low}, high={high}, sigma={sigma}"
        raise ValueError(f"canny needs 0 <= low <= high and sigma >= 0, not {found}")
    brightness = (images.float() + 1) / 2  # (B, C, H, W) in [0, 1]
    if sigma > 0:
        brightness = gaussian_blur(brightness, sigma)
    slope_x, slope_y = sobel(brightness)  # (B, C, H, W) both
    steepness = (slope_x**2 + slope_y**2).sqrt()
    if images.shape[1] > 1:
        steepness, channel = steepness.max(dim=1, keepdim=True)  # (B, 1, H, W) both
        slope_x, slope_y = slope_x.gather(1, channel), slope_y.gather(1, channel)  # likewise
    ridge = _ridges(steepness, slope_x, slope_y)  # (B, 1, H, W), bool
    strong, weak = ridge & (steepness > high), ridge & (steepness > low)
    if images.is_cpu:
        return hysteresis(strong, weak).float()
    return hysteresis(strong.float(), weak.float(), rounds=sum(images.shape[2:]))


@torch.no_grad()
def colour(images):
    """Keep where colours roughly are, and little of the shapes: 4 x 4 mean colours, interpolated.

    images (B, C, H, W) in [-1, 1] -> (B, C, H, W) in [0, 1]. For grey images it is a map of
    brightness.
    """
    _check_images(images)
    return colour_from_grid(colour_grid(images.float().clamp(-1, 1)), images.shape[-2:])


@torch.no_grad()
def mask(images):
    """Separate the foreground from the paper, which has the colour of the border.

    images (B, C, H, W) in [-1, 1] -> (B, 1, H, W) of {0., 1.}. The colour of the paper is the
    median along the border, channel by channel. A pixel is foreground if its Euclidean distance
    from that colour is more than half of the largest distance in the image, so it does not matter
    which colours ink and paper have. An image of one colour (within SAME_COLOUR) has no foreground.
    """
    _check_images(images)
    brightness = (images.float() + 1) / 2  # (B, C, H, W)
    difference = (brightness - paper_colour(brightness)).square().sum(1, keepdim=True).sqrt()
    largest = difference.amax((2, 3), keepdim=True)  # (B, 1, 1, 1)
    half = largest * 0.50001  # a little more than half, because rounding must not decide
    return ((difference > half) & (difference > SAME_COLOUR)).float()


@torch.no_grad()
def depth(images):
    """Turn the foreground into a relief: the further a pixel lies inside `mask`, the higher it is.

    images (B, C, H, W) in [-1, 1] -> (B, 1, H, W) in [0, 1]: the Euclidean distance from each
    foreground pixel to the nearest background pixel, divided by RELIEF, at most 1. The background
    is 0. Beyond the border there is no background, so an image that is all foreground is 1
    everywhere.
    """
    # The distance is exact, and we find it along one axis after the other: the squared distance of
    # pixel (y, x) is min over y' of (y - y')^2 + [min over x' of (x - x')^2 + f(y', x')], where f
    # is 0 in the background and infinity in the foreground (Felzenszwalb and Huttenlocher 2012,
    # "Distance Transforms of Sampled Functions"; their lower envelope of parabolas is faster on
    # large images). This takes about 8 (H + W) bytes of memory per pixel.
    squared = torch.where(mask(images).bool(), math.inf, 0.0)  # (B, 1, H, W)
    for _ in range(2):  # along x, then along y, which the transposition has made the last axis
        position = torch.arange(squared.shape[-1], device=squared.device)
        apart = (position[:, None] - position).square()  # (W, W): from each x to each x'
        nearest = (apart + squared[..., None, :]).amin(-1)  # (B, 1, H, W, W) -> (B, 1, H, W)
        squared = nearest.mT  # (B, 1, W, H)
    return (squared.sqrt() / RELIEF).clamp(max=1)


@torch.no_grad()
def scribble(images):
    """Imitate a hand that traces the Canny edges: thick lines that waver and have gaps.

    images (B, C, H, W) in [-1, 1] -> (B, 1, H, W) of {0., 1.}. Lines are two pixels thick, waver by
    one pixel, and never lie more than two pixels from an edge. Sine waves across the image decide
    where lines waver and where they break. The phase of the waves follows from the mean position of
    the edges, so images differ, but the same image always has the same scribble.
    """
    edges = canny(images)  # (B, 1, H, W)
    B, _, H, W = edges.shape
    y = torch.arange(H, device=edges.device)[:, None]  # (H, 1)
    x = torch.arange(W, device=edges.device)  # (W,)
    edge_count = edges.sum((1, 2, 3)).clamp(min=1)  # (B,)
    phase = 3 * ((y + x) * edges).sum((1, 2, 3)) / edge_count  # (B,), 3 radians per pixel

    def wave(position, period):  # in [-1, 1]: (B, H, 1), (B, 1, W) or (B, H, W), like the position
        return torch.sin(2 * math.pi * position / period + phase[:, None, None])

    thick = F.max_pool2d(F.pad(edges, (0, 1, 0, 1)), kernel_size=2, stride=1)[:, 0]  # (B, H, W)
    image = torch.arange(B, device=edges.device)[:, None, None]
    from_y = (y + wave(x, 29)).round().long().clamp(0, H - 1)  # (B, H, W): pixel (y, x) shows one
    from_x = (x + wave(y, 31)).round().long().clamp(0, W - 1)  # at most a row and a column away
    broken = wave(x + y, 9) * wave(x - y, 13) > 0.6
    return thick[image, from_y, from_x].where(~broken, 0)[:, None]


CONDITIONS = {"canny": canny, "colour": colour, "mask": mask, "depth": depth, "scribble": scribble}


def colour_grid(images):
    """Average images (B, C, H, W) in [-1, 1] over 4 x 4 cells: (B, C, 4, 4) in [0, 1]."""
    return F.adaptive_avg_pool2d((images.float() + 1) / 2, GRID)


def colour_from_grid(grid, size):
    """Interpolate a grid of colours (B, C, 4, 4), giving the colour map (B, C, *size)."""
    return F.interpolate(grid, size=size, mode="bilinear", align_corners=False)


def paper_colour(x):
    """Return the colour that x (B, C, H, W) is drawn on, the median of its border: (B, C, 1, 1)."""
    border = [x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]]
    return torch.cat(border, dim=2).median(dim=2).values[..., None, None]


def gaussian_blur(x, sigma):
    """Blur x (B, C, H, W) by a Gaussian with a standard deviation of `sigma` pixels."""
    radius = math.ceil(3 * sigma)  # beyond three standard deviations we cut the Gaussian off
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    taps = [tap / sum(taps) for tap in taps]
    return _filter(_filter(x, taps, dim=-2), taps, dim=-1)


def sobel(x):
    """Return the slopes of x (B, C, H, W) per pixel, rightwards and downwards.

    Each slope is a difference along its own direction, smoothed along the other one.
    """
    difference, smooth = (-1 / 2, 0, 1 / 2), (1 / 4, 2 / 4, 1 / 4)
    slope_x = _filter(_filter(x, smooth, dim=-2), difference, dim=-1)
    slope_y = _filter(_filter(x, difference, dim=-2), smooth, dim=-1)
    return slope_x, slope_y


def hysteresis(strong, weak, rounds=None):
    """Keep the weak pixels that a chain of weak pixels connects to a strong one.

    strong, weak  (B, 1, H, W) of {0, 1}, both bool or both float, as for `dilate`; every strong
                  pixel is weak as well
    rounds        follow chains of at most this many pixels. None follows every chain to its end,
                  but has to read the result of each round, which makes the program wait for a GPU.

    Returns the pixels that are kept, (B, 1, H, W), in the dtype of the arguments.
    """
    for _ in range(weak[0].numel() if rounds is None else rounds):
        grown = dilate(strong) * weak
        if rounds is None and grown.equal(strong):
            break
        strong = grown
    return strong


def dilate(mask):
    """Grow a mask (B, 1, H, W) of {0, 1} by one pixel in all eight directions.

    Bool masks are faster on a CPU. Float masks are faster on a GPU, because one kernel is enough.
    """
    if mask.is_floating_point():
        return F.max_pool2d(mask, kernel_size=3, stride=1, padding=1)
    mask = F.pad(mask, (1, 1, 1, 1))  # (B, 1, H+2, W+2)
    mask = mask[..., :-2, :] | mask[..., 1:-1, :] | mask[..., 2:, :]  # (B, 1, H, W+2)
    return mask[..., :-2] | mask[..., 1:-1] | mask[..., 2:]  # (B, 1, H, W)


def check_range(images):
    """Raise ValueError unless images are finite and lie in [-1, 1], with a margin for rounding."""
    low, high = (bound.item() for bound in images.float().aminmax())
    if not -1.001 <= low <= high <= 1.001:  # this is never true of NaN
        found = f"but run from {low:g} to {high:g}"
        raise ValueError(f"images must be finite and lie in [-1, 1], {found}")


def _check_images(images):
    if not torch.is_tensor(images):
        raise ValueError(f"images must be a float tensor (B, C, H, W), not {type(images).__name__}")
    if images.ndim != 4 or not images.is_floating_point() or not images.numel():
        found = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images must be a float tensor (B, C, H, W) with a pixel, not {found}")
    if images.is_cpu:  # reading a value on a GPU would make the program wait for it
        check_range(images)


def _filter(x, taps, dim):
    """Correlate x (B, C, H, W) with an odd number of taps along `dim`, -2 or -1.

    The border pixels are repeated outwards, so that the border itself is no edge. We add shifted
    images instead of calling a convolution, because autocast and TF32 would round it, and ties and
    thresholds need every bit.
    """
    size, radius = x.shape[dim], len(taps) // 2
    margins = (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius)
    x = F.pad(x, margins, mode="replicate")
    out = taps[0] * x.narrow(dim, 0, size)
    for i, tap in enumerate(taps[1:], start=1):
        out.add_(x.narrow(dim, i, size), alpha=tap)
    return out


def _ridges(steepness, slope_x, slope_y, tie=1e-6):
    """Keep the pixels that are steeper than both neighbours along their slope.

    This is non-maximum suppression. All arguments are (B, 1, H, W), and the result is bool. If two
    pixels side by side are equally steep, the first one counts, so that the line between them is
    neither lost nor doubled. If they are diagonal neighbours, neither counts, because the line has
    a pixel of its own between them. OpenCV follows the same rule. Pixels within `tie` of each other
    are equally steep, because rounding must not decide.
    """
    H, W = steepness.shape[-2:]
    around = F.pad(steepness, (1, 1, 1, 1))  # (B, 1, H+2, W+2): flat beyond the border
    floor, ceiling = steepness - tie, steepness + tie

    def peak(dy, dx):  # compared with the neighbours at -(dy, dx) and at +(dy, dx)
        before, after = (around[..., 1 + s * dy :, 1 + s * dx :][..., :H, :W] for s in (-1, 1))
        return (floor > before) & (floor > after if dy and dx else ceiling >= after)

    tan_22_5 = math.sqrt(2) - 1  # each slope is rounded to one of four directions, 45 degrees apart
    across = slope_y.abs() < tan_22_5 * slope_x.abs()
    down = slope_x.abs() < tan_22_5 * slope_y.abs()
    diagonal, same_sign = ~(across | down), slope_x * slope_y > 0
    straight = (across & peak(0, 1)) | (down & peak(1, 0))
    oblique = (same_sign & peak(1, 1)) | (~same_sign & peak(1, -1))
    return straight | (diagonal & oblique)
