"""Ordinary picture files as conditions: drawings, photographs, maps from elsewhere.

    picture = read_picture("photo.jpg")                          # (1, 3, H, W) in [0, 1]
    edges = condition_from_image(picture, "canny", (1, 28, 28))  # found in it: (1, 1, 28, 28)
    edges = condition_from_map(picture, "canny", 1, (28, 28))    # the picture shows edges itself

A picture that is not square gets margins rather than a new shape, which would distort what it
shows. Everything that a user can mend raises a UserError.
"""

import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from minicnet.conditions import CONDITIONS, paper_colour
from minicnet.errors import UserError

LARGEST = 4096  # pixels per side that a file may have; a picture larger than half of it is halved
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")  # Pillow decodes these by itself
FAINTEST_LINE = 0.05  # difference from the paper that counts as drawn; black and white differ by 1


def read_picture(path):
    """Read an image file: RGB values (1, 3, H, W) in [0, 1].

    A photograph is turned upright, and transparent parts become white. A picture with more than
    LARGEST / 2 pixels on a side is halved. Raises UserError if the file cannot be opened, is
    damaged, not an image or too large, or holds values that are no brightness, such as NaN.
    """
    try:
        file = open(path, "rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot open {path}: {reason}") from error
    try:
        with file, warnings.catch_warnings():
            # Pillow warns of large pictures; we refuse them.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(file, formats=FORMATS)  # reads the size, but no pixels yet
            if max(image.size) > LARGEST:
                raise Image.DecompressionBombError
            return _rgb(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read {path}: it has more than {LARGEST} pixels on a side, so "
                        "shrink it first") from error
    except Exception as error:  # a damaged file can make the decoder raise anything
        reason = " ".join(str(error).split())
        raise UserError(f"cannot read {path} as an image: {reason}") from error


def _rgb(image):
    """Convert a Pillow image to RGB values (1, 3, H, W) in [0, 1]."""
    if image.mode.startswith(("I", "F")):  # grey, 16 or 32 bits: Pillow would clip it at 255
        image, white = _grey(image), 1
    else:
        paper = Image.new("RGBA", image.size, "white")
        image, white = Image.alpha_composite(paper, image.convert("RGBA")).convert("RGB"), 255
    if max(image.size) > LARGEST // 2:
        image = image.reduce(2)  # before the pixels become floats, which take four times the memory
    pixels = torch.from_numpy(np.array(image, dtype=np.float32)) / white
    pixels = torch.atleast_3d(pixels)  # (H, W, 3), or (H, W, 1) if grey
    return pixels.permute(2, 0, 1)[None].expand(1, 3, -1, -1)


def _grey(image):
    """Scale a grey Pillow image of 16-bit, 32-bit or float values to [0, 1], in mode "F"."""
    values = np.asarray(image, dtype=np.float32)
    low, high = values.min(), values.max()
    whites = {"I": (255, 65535), "F": (1, 255, 65535)}.get(image.mode, (65535,))
    for white in whites:  # the mode leaves open which value is white, so take the first that fits
        if -0.01 * whites[0] <= low <= high <= 1.01 * white:  # never true of NaN
            return Image.fromarray((values / white).clip(0, 1))
    known = " or ".join(f"0 to {white}" for white in whites)
    raise ValueError(f"grey values must lie in {known}, but run from {low:g} to {high:g}")


def condition_from_image(picture, name, image_shape):
    """Compute the condition called `name` of a picture (1, 3, H, W) in [0, 1].

    The picture is shrunk to image_shape (C, H', W') first, and (1, K, H', W') is returned. In the
    margins of a picture that is not square, only the colour map finds something. Raises UserError
    if there is no such condition, or nothing is found.
    """
    if name not in list(CONDITIONS):
        raise UserError(f"the condition must be one of {', '.join(CONDITIONS)}, not {name}")
    channels, *size = image_shape
    image = _shrunk(_square(picture), size)
    if channels == 1:
        image = image.mean(1, keepdim=True)
    condition = CONDITIONS[name](image * 2 - 1)
    if name != "colour":
        inside = _shrunk(_square(torch.ones_like(picture[:, :1]), "constant"), size)
        condition = condition * (inside > 0.5)
    return _not_empty(condition, name)


def condition_from_map(picture, name, channels, size):
    """Use a picture (1, 3, H, W) in [0, 1] as the condition called `name`: (1, channels, *size).

    Colours and depths are values in [0, 1] as they are. Edges, scribbles and masks become 0 or 1;
    they may be dark on light or light on dark, because whatever differs from the colour of the
    border is drawn. Shrinking lines keeps the strongest pixel of each cell, since their average
    would make thin lines fade. Raises UserError if nothing is drawn.
    """
    if channels == 1:
        picture = picture.mean(1, keepdim=True)
    if name in ("colour", "depth"):
        condition = _shrunk(_square(picture), size)
    else:
        drawn = _square((picture - paper_colour(picture)).abs(), "constant")  # (1, channels, S, S)
        shrink = F.adaptive_avg_pool2d if name == "mask" else F.adaptive_max_pool2d
        condition = (shrink(drawn / drawn.max().clamp(min=FAINTEST_LINE), size) > 0.5).float()
    return _not_empty(condition, name)


def _square(picture, margins="replicate"):
    """Put a picture (1, C, H, W) in the middle of a square (1, C, S, S).

    The margins repeat the picture's border, or are 0 with "constant".
    """
    H, W = picture.shape[2:]
    rows, columns = max(W - H, 0), max(H - W, 0)  # how many are missing
    left, top = columns // 2, rows // 2
    return F.pad(picture, (left, columns - left, top, rows - top), mode=margins)


def _shrunk(picture, size):
    resized = F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False)
    return resized.clamp(0, 1)


def _not_empty(condition, name):
    if name != "colour" and not condition.any():
        raise UserError(f"the picture's {name} condition is empty: draw thicker strokes, or add "
                        "contrast")
    return condition
