"""Ordinary picture files as conditions: drawings, photographs, maps from elsewhere.

    picture = read_picture("photo.jpg")                                 # (1, 3, H, W) in [0, 1]
    edges = condition_from_image(picture, "canny", (1, 28, 28))         # found in the picture: (1, 1, 28, 28)
    edges = condition_from_map(picture, "canny", 1, (28, 28))           # the picture is a drawing of edges itself

Pictures that are not square get margins, in which their border goes on: squashed, they would show something else.
"""

import os
import warnings

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from minicnet.conditions import CONDITIONS, paper_colour

LARGEST = 6400  # pixels on the longer side of what is read: made square, 41 megapixels
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF")  # no format that Pillow hands to another program
FAINT = 0.05  # the least contrast, black to white being 1, that counts as a drawing


def read_picture(path):
    """An image file, turned as it was taken, on white where it is transparent: RGB values (1, 3, H, W) in [0, 1].

    Raises ValueError, one sentence, if it cannot be read as an image or is too large.
    """
    try:
        if os.path.isdir(path):
            raise IsADirectoryError("it is a folder")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # what Pillow warns of is refused here
            file = Image.open(path, formats=FORMATS)  # reads the size, but no pixels
        with file:
            if max(file.size) > LARGEST:
                raise Image.DecompressionBombError
            return _pixels(ImageOps.exif_transpose(file))
    except Image.DecompressionBombError as error:
        raise ValueError(f"cannot read {path}: it has more than {LARGEST} pixels on a side, so shrink it") from error
    except Exception as error:  # what a damaged file makes of the reader cannot be foreseen
        raise ValueError(f"cannot read {path} as an image: {' '.join(str(error).split())}") from error


def _pixels(file):
    """An open Pillow image as RGB values (1, 3, H, W) in [0, 1]."""
    if file.mode.startswith(("I", "F")):  # gray, of 16 bits or of floats: Pillow would clip these at 255
        gray = torch.tensor(np.asarray(file, dtype=np.float32) / (1 if file.mode == "F" else 65535))
        return gray.clamp(0, 1).expand(1, 3, -1, -1)
    white = Image.new("RGBA", file.size, "white")
    pixels = np.asarray(Image.alpha_composite(white, file.convert("RGBA")).convert("RGB"), dtype=np.float32) / 255
    return torch.tensor(pixels).permute(2, 0, 1)[None]


def condition_from_image(picture, name, image_shape):
    """The condition called `name` of a picture (1, 3, H, W) in [0, 1], shrunk to image_shape (C, H', W') first.

    Nothing but colours is found in the margins of a picture that is not square. Raises ValueError if nothing is found.
    """
    channels, *size = image_shape
    image, inside = _shrunk(_square(picture), size), _shrunk(_square(torch.ones_like(picture), "constant"), size)
    if channels == 1:
        image = image.mean(1, keepdim=True)
    condition = CONDITIONS[name](image * 2 - 1)
    return _not_empty(condition if name == "colour" else condition * (inside[:, :1] > 0.5), name)


def condition_from_map(picture, name, channels, size):
    """A picture (1, 3, H, W) in [0, 1] that is itself a condition called `name`, as (1, channels, *size) in [0, 1].

    Edges, scribbles and masks become 0 or 1, and may be dark on light or light on dark: what differs from the border's
    colour is drawn. For lines, shrinking keeps the strongest pixel of each field, or thin ones would fade.
    Raises ValueError if nothing is drawn.
    """
    picture = picture.mean(1, keepdim=True) if channels == 1 else picture
    if name in ("colour", "depth"):
        condition = _shrunk(_square(picture), size)
    else:
        drawn = _square((picture - paper_colour(picture)).abs(), "constant")  # (1, channels, S, S)
        shrink = F.adaptive_avg_pool2d if name == "mask" else F.adaptive_max_pool2d
        condition = (shrink(drawn / drawn.max().clamp(min=FAINT), size) > 0.5).float()
    return _not_empty(condition, name)


def _square(picture, margins="replicate"):
    """A picture (1, C, H, W) in the middle of a square (1, C, S, S). margins: its border goes on, or "constant", 0."""
    H, W = picture.shape[2:]
    high, wide = max(W - H, 0), max(H - W, 0)  # rows and columns that are missing
    return F.pad(picture, (wide // 2, wide - wide // 2, high // 2, high - high // 2), mode=margins)


def _shrunk(picture, size):
    return F.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _not_empty(condition, name):
    if name != "colour" and not condition.any():
        raise ValueError(f"the picture's {name} condition is empty: draw thicker strokes, or take more contrast")
    return condition
