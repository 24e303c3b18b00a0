"""Picture files of every kind, and pictures as conditions."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from minicnet import pictures
from minicnet.conditions import CONDITIONS
from minicnet.pictures import condition_from_image, condition_from_map, read_picture

SIZE = 16


def drawing(size=SIZE):
    """A white cross on black, one pixel thin: (1, 1, size, size) of {0, 1}."""
    lines = torch.zeros(1, 1, size, size)
    lines[..., size // 3, 2:] = 1
    lines[..., :-3, size // 2] = 1
    return lines


def ramp(channels=()):
    """Gray values (6, 8, *channels) from 0 to 235, each another."""
    return np.arange(0, 240, 5).repeat(math.prod(channels)).reshape(6, 8, *channels)


def save_picture(path, array, **settings):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path, **settings)
    return path


# Files


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.gif"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pictures_are_read_as_values_from_0_to_1(tmp_path, name, channels):
    picture = read_picture(save_picture(tmp_path / name, ramp(channels)))
    assert picture.shape == (1, 3, 6, 8) and picture.dtype == torch.float32
    torch.testing.assert_close(picture[0], torch.tensor(ramp() / 255).float().expand(3, -1, -1), rtol=0, atol=0.01)


def test_colours_stay_in_their_order_with_a_palette_too(tmp_path):
    orange = np.zeros((4, 4, 3)) + [255, 153, 0]
    Image.fromarray(orange.astype(np.uint8)).quantize(4).save(tmp_path / "palette.png")
    for path in (save_picture(tmp_path / "a.png", orange), tmp_path / "palette.png"):
        torch.testing.assert_close(read_picture(path)[0, :, 1, 1], torch.tensor([1, 0.6, 0]))


@pytest.mark.parametrize("name", ["a.tiff", "a.png"])
def test_a_picture_of_16_bits_lies_in_0_to_1_too(tmp_path, name):
    Image.fromarray((ramp() * 257).astype(np.uint16)).save(tmp_path / name)
    torch.testing.assert_close(read_picture(tmp_path / name)[0, 2], torch.tensor(ramp() / 255).float())


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "F"])
def test_white_is_white_in_every_mode(tmp_path, mode):
    white = Image.new("L", (5, 4), 255).convert(mode) if mode != "F" else Image.new("F", (5, 4), 1.0)
    white.save(tmp_path / "a.tiff")
    torch.testing.assert_close(read_picture(tmp_path / "a.tiff"), torch.ones(1, 3, 4, 5))


@pytest.mark.parametrize("orientation, turned", [(1, 0), (8, 1), (3, 2), (6, 3)])
def test_a_photograph_stands_upright(tmp_path, orientation, turned):
    """Orientation 6 says that the camera was held so that the picture must be turned clockwise to be looked at."""
    pixels = np.zeros((16, 24, 3))
    pixels[:8, :8] = 255
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = read_picture(save_picture(tmp_path / "a.jpg", pixels, exif=exif))
    expected = torch.tensor(pixels / 255).float().permute(2, 0, 1)[None].rot90(turned, (2, 3))  # counter-clockwise
    torch.testing.assert_close(picture, expected, rtol=0, atol=0.05)


def test_transparent_pixels_are_white_paper_and_opaque_ones_do_not_mind(tmp_path):
    rgba = np.dstack([ramp((3,)), np.full((6, 8), 255)])
    rgba[0, :, 3] = 0
    picture = read_picture(save_picture(tmp_path / "a.png", rgba))
    assert (picture[..., 0, :] == 1).all()
    torch.testing.assert_close(picture[0, 0, 1:], torch.tensor(ramp()[1:] / 255).float(), rtol=0, atol=0.01)


KINDS = ["missing", "folder", "empty", "text", "half", "header", "garbled"]


def not_a_picture(path, kind):
    if kind == "missing":
        return path
    if kind == "folder":
        path.mkdir()
        return path
    whole = save_picture(path, np.random.default_rng(0).integers(0, 256, (40, 40))).read_bytes()
    path.write_bytes({"empty": b"", "text": b"not an image\n", "half": whole[:len(whole) // 2],
                      "header": whole[:20], "garbled": whole[:60] + bytes(100) + whole[160:]}[kind])
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_picture_is_refused_in_one_sentence(tmp_path, kind):
    with pytest.raises(ValueError, match="cannot read .*drawing.png as an image") as error:
        read_picture(not_a_picture(tmp_path / "drawing.png", kind))
    assert "\n" not in str(error.value) and ("folder" in str(error.value)) == (kind == "folder")


def test_a_format_that_another_program_would_read_is_refused(tmp_path, monkeypatch):
    red = Image.new("RGB", (8, 8), "red")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **settings: red.im.copy())  # as if it were here
    red.save(tmp_path / "drawing.eps")
    with pytest.raises(ValueError, match="cannot read .*drawing.eps as an image"):
        read_picture(tmp_path / "drawing.eps")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [(Image, "MAX_IMAGE_PIXELS", 10), (pictures, "LARGEST", 7)])
def test_a_picture_that_would_fill_the_memory_is_refused_before_it_is_decoded(tmp_path, monkeypatch, limit):
    path = save_picture(tmp_path / "drawing.png", ramp())
    path.write_bytes(path.read_bytes()[:45])  # its size, and hardly a pixel: decoding this would fail
    monkeypatch.setattr(*limit)
    with pytest.raises(ValueError, match="cannot read .*drawing.png: it has more than .* pixels on a side"):
        read_picture(path)


# Pictures that are conditions


def edges_from_picture(picture, size=(SIZE, SIZE)):
    return condition_from_map(picture, "canny", 1, size)


def test_a_drawing_is_its_own_edges_dark_or_light_hard_or_soft():
    for picture in (drawing(), 1 - drawing(), 0.1 + 0.6 * drawing(), 0.9 - 0.6 * drawing(), 0.1 * drawing()):
        assert torch.equal(edges_from_picture(picture), drawing())


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("side", [17, 64, 500])
def test_a_line_one_pixel_thin_survives_shrinking(invert, side):
    picture = torch.zeros(1, 1, side, side)
    picture[..., side // 2] = 1
    edges = edges_from_picture(1 - picture if invert else picture)
    assert edges.shape == (1, 1, SIZE, SIZE) and edges.unique().tolist() == [0, 1]
    assert edges[..., SIZE // 2].all() and edges.sum() <= 2 * SIZE


def test_a_small_picture_is_enlarged():
    assert torch.equal(edges_from_picture(drawing(8)), drawing(8).repeat_interleave(2, 2).repeat_interleave(2, 3))


@pytest.mark.parametrize("name", ["mask", "scribble"])
def test_masks_and_scribbles_too_may_be_drawn_dark_on_white(name):
    shape = torch.zeros(1, 3, 32, 32)
    shape[..., 2:30, 4:30] = 1  # most of the picture: what the border shows is the paper
    expected = shape[:, :1, ::2, ::2]
    assert torch.equal(condition_from_map(shape, name, 1, (16, 16)), expected)
    assert torch.equal(condition_from_map(1 - shape, name, 1, (16, 16)), expected)


@pytest.mark.parametrize("name, channels", [("depth", 1), ("colour", 3), ("colour", 1)])
def test_maps_of_depth_and_colour_are_taken_as_they_are(name, channels):
    picture = torch.rand(1, 3, 1, 1).expand(-1, -1, 40, 40)
    expected = picture if channels == 3 else picture.mean(1, keepdim=True)
    torch.testing.assert_close(condition_from_map(picture, name, channels, (16, 16)), expected[..., :16, :16])
    white = condition_from_map(torch.ones(1, 3, 20, 20), name, channels, (16, 16))
    torch.testing.assert_close(white, torch.ones(1, channels, 16, 16))
    assert white.max() <= 1  # or the control would refuse it


# Pictures in which conditions are found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(CONDITIONS))
def test_the_conditions_of_an_ordinary_picture_are_those_of_the_library(name, channels):
    picture = torch.rand(1, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    image = picture if channels == 3 else picture.mean(1, keepdim=True)
    assert torch.equal(condition_from_image(picture, name, [channels, 16, 16]), CONDITIONS[name](image * 2 - 1))


# Any picture


@pytest.mark.parametrize("H, W", [(16, 40), (40, 16), (15, 16)])
def test_a_picture_that_is_not_square_gets_margins_and_keeps_its_shapes(H, W):
    picture = torch.full((1, 3, H, W), 0.75)
    picture[:, 0, 4:10, 5:11] = 0.25  # a square
    side = max(H, W)
    top, left = 4 + (side - H) // 2, 5 + (side - W) // 2
    expected = torch.zeros(1, 1, side, side)
    expected[..., top : top + 6, left : left + 6] = 1
    assert torch.equal(condition_from_image(picture, "mask", (3, side, side)), expected)
    assert torch.equal(condition_from_map(picture, "mask", 1, (side, side)), expected)
    edges = condition_from_image(picture, "canny", (3, side, side))
    assert edges.any() and edges.nonzero()[:, 2:].min() > 2  # the margins have no edge of their own


@pytest.mark.parametrize("name", ["canny", "scribble"])
def test_the_rim_of_a_photograph_that_is_not_square_is_no_edge(name):
    """Bands of brightness fill it, so its border has no one colour. The edges of the bands end where it ends."""
    bands = (torch.arange(60) // 10 % 2 * 0.8 + 0.1).expand(1, 3, 30, 60)
    lines = condition_from_image(bands, name, (3, 60, 60))[0, 0]
    assert lines[:14].sum() == lines[46:].sum() == 0  # the picture fills rows 15 .. 44
    if name == "canny":
        assert torch.equal(lines[15:45], lines[30].expand(30, 60)) and lines[30].sum() == 5


@pytest.mark.parametrize("level", [0, 0.3, 1])
@pytest.mark.parametrize("name", ["canny", "scribble", "mask"])
def test_a_picture_that_shows_nothing_is_refused_in_a_sentence_that_says_what_to_do(name, level):
    blank = torch.full((1, 3, 20, 20), float(level)) + 0.001 * torch.rand(1, 3, 20, 20)
    for make in (lambda: condition_from_image(blank.clamp(0, 1), name, (1, 16, 16)),
                 lambda: condition_from_map(blank, name, 1, (16, 16))):
        with pytest.raises(ValueError, match=f"{name} condition is empty: draw thicker strokes, or take more contrast"):
            make()
    assert condition_from_image(torch.zeros(1, 3, 20, 20), "colour", (3, 16, 16)).sum() == 0  # black is a colour
