"""Picture files of every kind, and pictures as conditions."""

import numpy as np
import pytest
import torch
from PIL import Image

from minicnet import pictures
from minicnet.conditions import CONDITIONS
from minicnet.errors import UserError
from minicnet.pictures import condition_from_image, condition_from_map, read_picture

RAMP = np.arange(0, 240, 5).reshape(6, 8)  # grey values from 0 to 235, all different


def save(path, array, dtype=np.uint8, **settings):
    Image.fromarray(np.asarray(array).astype(dtype)).save(path, **settings)
    return path


# Files


@pytest.mark.parametrize("name, white, dtype", [
    ("a.png", 255, np.uint8),
    ("a.bmp", 255, np.uint8),
    ("a.tiff", 255, np.uint8),
    ("a.gif", 255, np.uint8),
    ("a.tiff", 65535, np.uint16),
    ("a.png", 65535, np.uint16),
    ("a.tiff", 255, np.int32),
    ("a.tiff", 65535, np.int32),
    ("a.tiff", 1, np.float32),
    ("a.tiff", 255, np.float32),
    ("a.tiff", 65535, np.float32),
])
def test_grey_values_of_every_type_become_0_to_1(tmp_path, name, white, dtype):
    values = RAMP / 255 * white
    picture = read_picture(save(tmp_path / name, values, dtype))
    assert picture.shape == (1, 3, 6, 8) and picture.dtype == torch.float32
    np.testing.assert_allclose(picture[0], np.broadcast_to(RAMP / 255, (3, 6, 8)), atol=0.003)


@pytest.mark.parametrize("values, dtype", [
    ([[0.5, np.nan]], np.float32), ([[0, np.inf]], np.float32), ([[-3, 1]], np.float32),
    ([[0, 70000]], np.int32), ([[-300, 0]], np.int32),
])
def test_grey_values_that_are_no_brightness_are_refused(tmp_path, values, dtype):
    with pytest.raises(UserError, match="cannot read .*a.tiff as an image: grey values must lie"):
        read_picture(save(tmp_path / "a.tiff", values, dtype))


@pytest.mark.parametrize("image, colour", [
    *((Image.new("L", (4, 4), 255).convert(mode), (1, 1, 1)) for mode in ("1", "LA", "P", "CMYK")),
    (Image.new("RGB", (4, 4), (255, 153, 0)), (1, 0.6, 0)),
    (Image.new("RGB", (4, 4), (255, 153, 0)).quantize(4), (1, 0.6, 0)),
    (Image.new("RGBA", (4, 4), (255, 153, 0, 255)), (1, 0.6, 0)),
    (Image.new("RGBA", (4, 4), (255, 153, 0, 0)), (1, 1, 1)),  # transparent: white paper
])
def test_colours_of_every_mode_become_rgb_on_white(tmp_path, image, colour):
    image.save(tmp_path / "a.tiff")
    assert read_picture(tmp_path / "a.tiff")[0, :, 1, 1].tolist() == pytest.approx(colour)


@pytest.mark.parametrize("orientation, turns", [(1, 0), (8, 1), (3, 2), (6, 3)])
def test_a_photograph_stands_upright(tmp_path, orientation, turns):
    """Orientation 6 says that the picture must be turned clockwise before it is shown."""
    pixels, exif = np.zeros((16, 24)), Image.Exif()
    pixels[:8, :8] = 255
    exif[0x0112] = orientation
    picture = read_picture(save(tmp_path / "a.jpg", pixels, exif=exif))
    np.testing.assert_allclose(picture[0, 0], np.rot90(pixels / 255, turns), atol=0.05)


@pytest.mark.parametrize("damage", [
    lambda data: b"",
    lambda data: b"not an image\n",
    lambda data: data[: len(data) // 2],
    lambda data: data[:20],
    lambda data: data[:60] + bytes(100) + data[160:],
])
def test_a_file_that_is_not_a_picture_is_refused_in_one_sentence(tmp_path, damage):
    path = save(tmp_path / "a.png", np.random.default_rng(0).integers(0, 256, (40, 40)))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=r"\Acannot read .*a.png as an image: [^\n]+\Z"):
        read_picture(path)


@pytest.mark.parametrize("name", ["missing", ".", "loop", "a" * 300, "null\0"])
def test_a_path_that_cannot_be_opened_is_refused_in_one_sentence(tmp_path, name):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    with pytest.raises(UserError, match=r"\Acannot open .*: [^\n\[\]]+\Z"):
        read_picture(tmp_path / name)


def test_a_format_that_another_program_would_decode_is_refused(tmp_path, monkeypatch):
    red = Image.new("RGB", (8, 8), "red")
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *args, **settings: red.im.copy())
    red.save(tmp_path / "a.eps")
    with pytest.raises(UserError, match="cannot read .*a.eps as an image"):
        read_picture(tmp_path / "a.eps")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [(Image, "MAX_IMAGE_PIXELS", 10), (pictures, "LARGEST", 7)])
def test_a_picture_that_would_fill_the_memory_is_refused_undecoded(tmp_path, monkeypatch, limit):
    path = save(tmp_path / "a.png", RAMP)
    path.write_bytes(path.read_bytes()[:45])  # its size and hardly a pixel: decoding would fail
    monkeypatch.setattr(*limit)
    with pytest.raises(UserError, match="cannot read .*a.png: it has more than .* on a side"):
        read_picture(path)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_a_large_picture_is_halved_before_it_becomes_floats(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(pictures, "LARGEST", 8)
    picture = read_picture(save(tmp_path / "a.tiff", RAMP, dtype))
    means = RAMP.reshape(3, 2, 4, 2).mean((1, 3)) / 255
    np.testing.assert_allclose(picture[0], np.broadcast_to(means, (3, 3, 4)), atol=0.003)


# Pictures that are conditions


def cross(size=16):
    """A cross (1, 1, size, size) of lines one pixel wide."""
    lines = torch.zeros(1, 1, size, size)
    lines[..., size // 3, 2:] = lines[..., :-3, size // 2] = 1
    return lines


@pytest.mark.parametrize("paper, ink", [(0, 1), (1, 0), (0.1, 0.7), (0.9, 0.3), (0, 0.1)])
@pytest.mark.parametrize("side", [8, 16, 500])
def test_a_drawing_keeps_its_thin_lines_in_every_size_and_contrast(paper, ink, side):
    edges = condition_from_map(paper + (ink - paper) * cross(side), "canny", 1, (16, 16))
    assert torch.equal(edges, torch.nn.functional.adaptive_max_pool2d(cross(side), 16))


@pytest.mark.parametrize("name", ["mask", "scribble"])
@pytest.mark.parametrize("inverted", [False, True])
def test_masks_and_scribbles_may_be_drawn_dark_on_light(name, inverted):
    shape = torch.zeros(1, 3, 32, 32)
    shape[..., 2:30, 4:30] = 1  # most of the picture, but the border shows what the paper is
    found = condition_from_map((shape - int(inverted)).abs(), name, 1, (16, 16))
    assert torch.equal(found, shape[:, :1, ::2, ::2])


@pytest.mark.parametrize("name, channels", [("depth", 1), ("colour", 3), ("colour", 1)])
@pytest.mark.parametrize("values", [(0.2, 0.5, 0.8), (1, 1, 1)])
def test_maps_of_depth_and_colour_are_taken_as_they_are(name, channels, values):
    picture = torch.tensor(values).view(1, 3, 1, 1).expand(-1, -1, 40, 40).float()
    condition = condition_from_map(picture, name, channels, (16, 16))
    expected = picture if channels == 3 else picture.mean(1, keepdim=True)
    torch.testing.assert_close(condition, expected[..., :16, :16])
    assert condition.max() <= 1  # otherwise the control would refuse it


# Pictures in which conditions are found


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(CONDITIONS))
def test_the_conditions_of_a_square_picture_are_those_of_the_image(name, channels):
    picture = torch.rand(1, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    image = picture if channels == 3 else picture.mean(1, keepdim=True)
    found = condition_from_image(picture, name, [channels, 16, 16])
    assert torch.equal(found, CONDITIONS[name](image * 2 - 1))


@pytest.mark.parametrize("name", ["normals", ["canny"], None])
def test_a_condition_that_does_not_exist_is_refused(name):
    with pytest.raises(UserError, match="condition must be one of canny, colour"):
        condition_from_image(torch.rand(1, 3, 16, 16), name, (1, 16, 16))


@pytest.mark.parametrize("H, W", [(16, 40), (40, 16), (15, 16)])
def test_a_picture_that_is_not_square_gets_margins_and_keeps_its_shapes(H, W):
    side = max(H, W)
    picture, expected = torch.full((1, 3, H, W), 0.75), torch.zeros(1, 1, side, side)
    picture[:, 0, 4:10, 5:11] = 0.25
    top, left = 4 + (side - H) // 2, 5 + (side - W) // 2
    expected[..., top : top + 6, left : left + 6] = 1
    assert torch.equal(condition_from_image(picture, "mask", (3, side, side)), expected)
    assert torch.equal(condition_from_map(picture, "mask", 1, (side, side)), expected)


@pytest.mark.parametrize("name, count", [("canny", 150), ("scribble", 1)])
def test_the_margins_of_a_photograph_have_no_edges(name, count):
    """Bands of brightness fill the picture and end where it ends: rows 15 to 44 of the square."""
    bands = (torch.arange(60) // 10 % 2 * 0.8 + 0.1).expand(1, 3, 30, 60)
    lines = condition_from_image(bands, name, (3, 60, 60))[0, 0]
    assert lines[:14].sum() == lines[46:].sum() == 0 and lines[15:45].sum() >= count


@pytest.mark.parametrize("level", [0, 0.3, 0.99])
@pytest.mark.parametrize("name", ["canny", "scribble", "mask"])
@pytest.mark.parametrize("make, shape", [
    (condition_from_image, [(1, 16, 16)]), (condition_from_map, [1, (16, 16)]),
])
def test_an_empty_condition_is_refused_in_a_sentence_that_says_what_to_do(level, name, make, shape):
    with pytest.raises(UserError, match=f"{name} condition is empty: draw thicker strokes"):
        make(level + 0.001 * torch.rand(1, 3, 20, 20), name, *shape)


def test_a_black_picture_is_a_colour_map_and_no_empty_condition():
    assert condition_from_image(torch.zeros(1, 3, 20, 20), "colour", (3, 16, 16)).sum() == 0
