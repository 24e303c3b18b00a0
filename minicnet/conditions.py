"""Conditions: what a picture is asked to look like, computed from images: edges, colours, mask, depth or scribble.

A condition takes images (B, C, H, W) in [-1, 1], any float dtype, and returns a map (B, K, H, W) in [0, 1] of the same
size, on the same device, always float32. Each map depends on its own image alone. Nothing here is learned, and nothing
is random. Anything but such images is a ValueError. Nothing waits for a GPU, so that a training step can find its
conditions while it runs ahead; therefore values out of range are noticed on the CPU alone. The functions below
`scribble` are steps of these five.
"""

import math

import torch
import torch.nn.functional as F

FAINT = 0.02    # colours no further apart than this, black to white being 1, count as one
RELIEF = 4      # pixels from the rim at which a foreground reaches its full height


@torch.no_grad()
def canny(images, low=0.05, high=0.1, sigma=0.8):
    """Canny edges (J. Canny, "A Computational Approach to Edge Detection", 1986): thin lines where brightness jumps.

    images     (B, C, H, W) in [-1, 1], any float dtype. Each pixel of a colour image speaks through its steepest
               channel: a red digit on a green ground of the same brightness has edges, too.
    low, high  slopes in brightness per pixel, on a scale where black is 0 and white is 1. Lines start where the slope
               exceeds `high`, and go on as long as it exceeds `low`. The defaults are about OpenCV's usual 100 and 200:
               its numbers are 8 * 255 = 2040 times these, those of scikit-image 8 times.
    sigma      standard deviation in pixels of the Gaussian blur that comes first. 0 is no blur.

    Returns edges (B, 1, H, W), float32, 1 on an edge and 0 elsewhere: those of cv2.Canny(L2gradient=True) on the
    blurred image, if that is not rounded to 8 bits. On a GPU, lines go on for at most H + W pixels from where they are
    strong: more is only lost of weak lines that wind. Takes some 50 bytes of memory per value of images, and is fastest
    on at most a few thousand images at a time.
    Raises ValueError if images are not such a tensor, or unless 0 <= low <= high and sigma >= 0.
    """
    _check_images(images)
    if not (0 <= low <= high < math.inf and 0 <= sigma < math.inf):
        raise ValueError(f"canny needs 0 <= low <= high and sigma >= 0, not low={low}, high={high}, sigma={sigma}")
    brightness = (images.float() + 1) / 2  # (B, C, H, W) in [0, 1]
    if sigma > 0:
        brightness = gaussian_blur(brightness, sigma)
    slope_x, slope_y = sobel(brightness)  # (B, C, H, W) both
    steepness = (slope_x**2 + slope_y**2).sqrt()
    if images.shape[1] > 1:
        steepness, channel = steepness.max(dim=1, keepdim=True)  # (B, 1, H, W) both
        slope_x, slope_y = slope_x.gather(1, channel), slope_y.gather(1, channel)  # (B, 1, H, W) both
    ridge = _ridges(steepness, slope_x, slope_y)  # (B, 1, H, W), bool
    strong, weak = ridge & (steepness > high), ridge & (steepness > low)
    return hysteresis(strong, weak, steps=None if images.is_cpu else sum(images.shape[2:])).float()


@torch.no_grad()
def colour(images):
    """Which colours are about where, and little of the shapes: the image's means over a 4 x 4 grid, blurred together.

    images (B, C, H, W) in [-1, 1] -> (B, C, H, W) in [0, 1]. For gray images it is a map of brightness.
    """
    _check_images(images)
    brightness = ((images.float() + 1) / 2).clamp(0, 1)  # (B, C, H, W)
    means = F.adaptive_avg_pool2d(brightness, 4)  # (B, C, 4, 4)
    return F.interpolate(means, size=images.shape[-2:], mode="bilinear", align_corners=False)


@torch.no_grad()
def mask(images):
    """Where the foreground is: the pixels that differ from the paper by more than half of the greatest difference.

    images (B, C, H, W) in [-1, 1] -> (B, 1, H, W) of {0., 1.}. The paper's colour is the median of the pixels along
    the border, channel by channel; colours differ by their Euclidean distance. So it does not matter which colours ink
    and paper have. An image of one colour (within FAINT) has no foreground.
    """
    _check_images(images)
    brightness = (images.float() + 1) / 2  # (B, C, H, W)
    difference = (brightness - paper_colour(brightness)).square().sum(1, keepdim=True).sqrt()  # (B, 1, H, W)
    half = difference.amax((2, 3), keepdim=True) * 0.50001  # a little more than half: rounding must not decide
    return ((difference > half) & (difference > FAINT)).float()


@torch.no_grad()
def depth(images):
    """A relief of the foreground: the further inside `mask`, the higher.

    images (B, C, H, W) in [-1, 1] -> (B, 1, H, W) in [0, 1]: the Euclidean distance of each foreground pixel to the
    nearest background pixel over RELIEF, at most 1; 0 in the background. Where all is foreground it is 1. Beyond the
    border is no background.
    """
    # The distance is exact, and found one axis after the other: the squared distance of pixel (y, x) is
    # min over y' of (y - y')^2 + [min over x' of (x - x')^2 + (0 in the background, infinity in the foreground)]
    # (Felzenszwalb and Huttenlocher, "Distance Transforms of Sampled Functions", 2012; their lower envelope of
    # parabolas is faster on large images). Takes some 8 (H + W) bytes of memory per pixel.
    squared = torch.where(mask(images).bool(), math.inf, 0.0)  # (B, 1, H, W)
    for _ in range(2):  # along x, then along y, which is last after the transposition
        place = torch.arange(squared.shape[-1], device=squared.device)
        apart = (place[:, None] - place).square()  # (W, W): from each x to each x'
        squared = (apart + squared[..., None, :]).amin(-1).mT  # (B, 1, H, W, W) -> (B, 1, H, W) -> (B, 1, W, H)
    return (squared.sqrt() / RELIEF).clamp(max=1)


@torch.no_grad()
def scribble(images):
    """What a hand might scribble: the Canny edges as thick lines that waver by a pixel and break off here and there.

    images (B, C, H, W) in [-1, 1] -> (B, 1, H, W) of {0., 1.}. Lines are two pixels thick, and nowhere more than two
    pixels away from an edge. Waves over the image say where they waver and break. The waves' phase comes from the mean
    place of the edges, so that images differ, and yet the same image always gives the same scribble.
    """
    edges = canny(images)  # (B, 1, H, W)
    B, _, H, W = edges.shape
    y, x = torch.arange(H, device=edges.device)[:, None], torch.arange(W, device=edges.device)  # (H, 1), (W,)
    phase = 3 * ((y + x) * edges).sum((1, 2, 3)) / edges.sum((1, 2, 3)).clamp(min=1)  # (B,), 3 radians a pixel

    def wave(place, period):  # in [-1, 1]; (B, H, 1), (B, 1, W) or (B, H, W), as place is
        return torch.sin(2 * math.pi * place / period + phase[:, None, None])

    thick = F.max_pool2d(F.pad(edges, (0, 1, 0, 1)), kernel_size=2, stride=1)[:, 0]  # (B, H, W)
    from_y = (y + wave(x, 29)).round().long().clamp(0, H - 1)  # (B, H, W): what is drawn at (y, x) comes from here,
    from_x = (x + wave(y, 31)).round().long().clamp(0, W - 1)  # at most one row and one column away
    drawn = thick[torch.arange(B, device=edges.device)[:, None, None], from_y, from_x]  # (B, H, W)
    broken = wave(x + y, 9) * wave(x - y, 13) > 0.6
    return drawn.where(~broken, 0)[:, None]


def paper_colour(x):
    """What x (B, C, H, W) is drawn on: the median of the pixels along the border, channel by channel. (B, C, 1, 1)"""
    border = torch.cat([x[..., 0, :], x[..., -1, :], x[..., :, 0], x[..., :, -1]], dim=2)  # (B, C, 2W + 2H)
    return border.median(dim=2).values[..., None, None]


def gaussian_blur(x, sigma):
    """x (B, C, H, W) blurred by a Gaussian of standard deviation `sigma` pixels, cut off at three of them."""
    radius = math.ceil(3 * sigma)
    taps = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(-radius, radius + 1)]
    taps = [tap / sum(taps) for tap in taps]
    return _filter(_filter(x, taps, dim=-2), taps, dim=-1)


def sobel(x):
    """Slopes of x (B, C, H, W), rightwards and downwards, per pixel: the difference one way, smoothed the other way."""
    difference, smooth = (-1 / 2, 0, 1 / 2), (1 / 4, 2 / 4, 1 / 4)
    slope_x = _filter(_filter(x, smooth, dim=-2), difference, dim=-1)
    slope_y = _filter(_filter(x, difference, dim=-2), smooth, dim=-1)
    return slope_x, slope_y


def hysteresis(strong, weak, steps=None):
    """The weak pixels that chains of weak pixels link to a strong one: strong, weak -> (B, 1, H, W), all bool.

    Every strong pixel must be weak, too. steps: how long a chain may be. None is any length; then each step waits for
    the one before to see whether anything was left to do.
    """
    for _ in range(weak[0].numel() if steps is None else steps):
        grown = dilate(strong) & weak
        if steps is None and grown.equal(strong):
            break
        strong = grown
    return strong


def dilate(mask):
    """mask (B, 1, H, W), bool, grown by one pixel in all eight directions."""
    mask = F.pad(mask, (1, 1, 1, 1))  # (B, 1, H+2, W+2)
    mask = mask[..., :-2, :] | mask[..., 1:-1, :] | mask[..., 2:, :]  # (B, 1, H, W+2)
    return mask[..., :-2] | mask[..., 1:-1] | mask[..., 2:]  # (B, 1, H, W)


def _filter(x, taps, dim):
    """Correlates x (B, C, H, W) with an odd number of taps along `dim` -2 or -1. Outside, the border pixel goes on for
    ever, so that the border itself is no edge. A sum of shifted images rather than a convolution, because autocast
    and TF32 make convolutions coarse, and ties and thresholds need every bit."""
    size, radius = x.shape[dim], len(taps) // 2
    x = F.pad(x, (radius, radius, 0, 0) if dim == -1 else (0, 0, radius, radius), mode="replicate")
    out = taps[0] * x.narrow(dim, 0, size)
    for i, tap in enumerate(taps[1:], start=1):
        out.add_(x.narrow(dim, i, size), alpha=tap)
    return out


def _ridges(steepness, slope_x, slope_y, tie=1e-6):
    """Non-maximum suppression: the pixels that are steeper than both neighbours up and down the slope.

    All are (B, 1, H, W), the result bool. Of two equally steep pixels side by side the first counts, so that a line
    between them is neither lost nor doubled; of two in a diagonal none, for the line has a pixel of its own between
    them (this is OpenCV's rule). Equal means within `tie`: rounding must not decide.
    """
    H, W = steepness.shape[-2:]
    around = F.pad(steepness, (1, 1, 1, 1))  # (B, 1, H+2, W+2): outside all is flat
    floor, ceiling = steepness - tie, steepness + tie

    def peak(dy, dx):  # against the neighbours at -(dy, dx) and at +(dy, dx)
        before, after = (around[..., 1 + s * dy :, 1 + s * dx :][..., :H, :W] for s in (-1, 1))
        return (floor > before) & (floor > after if dy and dx else ceiling >= after)

    tan_22_5 = math.sqrt(2) - 1  # the slope points one of four ways, 45 degrees apart
    across = slope_y.abs() < tan_22_5 * slope_x.abs()
    down = slope_x.abs() < tan_22_5 * slope_y.abs()
    diagonal, same_sign = ~(across | down), slope_x * slope_y > 0
    straight = (across & peak(0, 1)) | (down & peak(1, 0))
    oblique = (same_sign & peak(1, 1)) | (~same_sign & peak(1, -1))
    return straight | (diagonal & oblique)


def _check_images(images):
    if not torch.is_tensor(images) or images.ndim != 4 or not images.is_floating_point() or not images.numel():
        found = f"{images.dtype} {tuple(images.shape)}" if torch.is_tensor(images) else type(images).__name__
        raise ValueError(f"images must be a float tensor (B, C, H, W) with at least one pixel, not {found}")
    if not images.is_cpu:  # reading a value would halt this program until the GPU has caught up
        return
    low, high = (bound.item() for bound in images.float().aminmax())
    if not -1.001 <= low <= high <= 1.001:  # never true of NaN
        raise ValueError(f"images must be finite and lie in [-1, 1], but run from {low:g} to {high:g}")


CONDITIONS = {"canny": canny, "colour": colour, "mask": mask, "depth": depth, "scribble": scribble}
