"""Conditions: what a picture is asked to look like, computed from images. So far: their edges.

A condition takes images (B, C, H, W) in [-1, 1] and returns a map (B, K, H, W) in [0, 1] of the same size, on the same
device, always float32. Nothing here is learned. `gaussian_blur`, `sobel` and `dilate` are steps that `canny` takes.
"""

import math

import torch
import torch.nn.functional as F


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
    blurred image, if that is not rounded to 8 bits. Takes some 50 bytes of memory per value of images, and is fastest
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
    edges, weak = ridge & (steepness > high), ridge & (steepness > low)
    while True:  # hysteresis: from the strong pixels, walk along the weak ones until there is nowhere left to go
        grown = dilate(edges) & weak
        if grown.equal(edges):
            return edges.float()
        edges = grown


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
    low, high = (bound.item() for bound in images.float().aminmax())
    if not -1.001 <= low <= high <= 1.001:  # never true of NaN
        raise ValueError(f"images must be finite and lie in [-1, 1], but run from {low:g} to {high:g}")
