"""Drawing with what was trained: `generate` against a sampler written out, pictures as conditions, the command line."""

import math
import runpy
import sys
import threading

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from minicnet import sample
from minicnet.checkpoints import fingerprint, save_checkpoint
from minicnet.conditions import CONDITIONS, canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule, sample_ddim
from minicnet.sample import condition_from_image, condition_from_map, generate, read_picture
from minicnet.unet import UNet

SCHEDULE = NoiseSchedule.cosine(1000)
SIZE = 16
pytestmark = pytest.mark.usefixtures("one_core")


@pytest.fixture
def unet(randomised):
    return freeze(randomised(UNet(channels=8, multipliers=(1,), num_labels=10), std=0.1))


@pytest.fixture
def nets(randomised, unet):
    return [freeze(randomised(ControlNet(unet), std=0.1, seed=seed)) for seed in (1, 2)]


def inputs(B=5, size=8, seed=0):
    """Labels, noise and two conditions, other ones for each image."""
    generator = torch.Generator().manual_seed(seed)
    x_T = torch.randn(B, 1, size, size, generator=generator)
    first, second = (torch.rand(2, B, 1, size, size, generator=generator) < 0.3).float()
    return torch.randint(10, (B,), generator=generator), x_T, first, second


# generate


def test_without_controls_it_is_ddim_with_the_base(unet):
    label, x_T, _, _ = inputs()
    expected = sample_ddim(lambda x_t, t: unet(x_t, t, label), SCHEDULE, x_T, steps=4)
    assert torch.equal(generate(unet, SCHEDULE, label, x_T, steps=4), expected)
    assert expected.abs().max() <= 1 and expected.std() > 0.1


def test_the_residuals_of_all_controls_are_summed_each_times_its_scale(unet, nets):
    label, x_T, a, b = inputs()

    def eps_model(x_t, t):
        return unet(x_t, t, label, control=0.7 * nets[0](x_t, t, label, a) + -1.5 * nets[1](x_t, t, label, b))

    expected = sample_ddim(eps_model, SCHEDULE, x_T, steps=4)
    found = generate(unet, SCHEDULE, label, x_T, [(nets[0], a, 0.7), (nets[1], b, -1.5)], steps=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    for controls in ([], [(nets[0], a, 0.7)], [(nets[0], a, 0.7), (nets[1], b, 1.5)], [(nets[1], b, -1.5)]):
        assert (generate(unet, SCHEDULE, label, x_T, controls, steps=4) - expected).abs().max() > 0.01


def test_guidance_strengthens_the_label_and_the_conditions_are_in_both_branches(unet, nets):
    label, x_T, edges, _ = inputs()

    def eps_model(x_t, t):
        given, null = (unet(x_t, t, y, control=nets[0](x_t, t, y, edges)) for y in (label, torch.full_like(label, 10)))
        return null + 3 * (given - null)

    expected = sample_ddim(eps_model, SCHEDULE, x_T, steps=4)
    found = generate(unet, SCHEDULE, label, x_T, [(nets[0], edges, 1)], guidance=3, steps=4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    unguided = generate(unet, SCHEDULE, label, x_T, [(nets[0], edges, 1)], steps=4)
    assert (unguided - expected).abs().max() > 0.01


@pytest.mark.parametrize("guidance", [1, 2.0])
def test_scale_0_is_the_base_bit_for_bit(unet, nets, guidance):
    label, x_T, a, b = inputs()
    controlled = generate(unet, SCHEDULE, label, x_T, [(nets[0], a, 0), (nets[1], b, 0.0)], guidance=guidance, steps=4)
    assert torch.equal(controlled, generate(unet, SCHEDULE, label, x_T, guidance=guidance, steps=4))


def test_a_fresh_control_is_the_base_bit_for_bit(unet):
    label, x_T, edges, _ = inputs()
    controlled = generate(unet, SCHEDULE, label, x_T, [(ControlNet(unet), edges, 1)], steps=4)
    assert torch.equal(controlled, generate(unet, SCHEDULE, label, x_T, steps=4))


def test_many_images_are_drawn_in_parts_and_each_as_if_alone(unet, nets):
    label, x_T, edges, _ = inputs(B=520)
    sizes = record_batches(unet)
    together = generate(unet, SCHEDULE, label, x_T, [(nets[0], edges, 1)], steps=2)
    assert together.shape == x_T.shape and max(sizes) < 520 and sum(sizes) == 2 * 520
    for part in (slice(0, 3), slice(248, 252), slice(498, 502), slice(517, 520)):
        alone = generate(unet, SCHEDULE, label[part], x_T[part], [(nets[0], edges[part], 1)], steps=2)
        torch.testing.assert_close(together[part], alone, rtol=0, atol=1e-4)


@pytest.mark.parametrize("count", [2, 5, 9])
def test_two_cores_draw_parts_at_the_same_time_and_keep_their_order(unet, nets, monkeypatch, count):
    label, x_T, edges, _ = inputs(B=count)
    alone = generate(unet, SCHEDULE, label, x_T, [(nets[0], edges, 1)], guidance=2, steps=3)
    torch.set_num_threads(2)
    monkeypatch.setattr(sample, "CPU_CHUNK", 2)
    met, sizes = threading.Barrier(2, timeout=30), record_batches(unet)
    unet.register_forward_hook(lambda module, args, eps: torch.add(eps, 0 * met.wait()))
    together = generate(unet, SCHEDULE, label, x_T, [(nets[0], edges, 1)], guidance=2, steps=3)
    assert max(sizes) <= 2 * 2 and sum(sizes) == 2 * 3 * count and not together.requires_grad
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)


def record_batches(net):
    sizes = []
    net.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    return sizes


@pytest.mark.parametrize("guidance, batch", [(1, 5), (1.0, 5), (0, 5), (2, 10)])
def test_only_guidance_needs_a_double_batch(unet, guidance, batch):
    label, x_T, _, _ = inputs()
    sizes = record_batches(unet)
    generate(unet, SCHEDULE, label, x_T, guidance=guidance, steps=3)
    assert sizes == [batch] * 3


@pytest.mark.parametrize("guidance", [1, 2])
def test_each_condition_is_encoded_once_and_not_at_every_step(unet, nets, guidance):
    label, x_T, a, b = inputs()
    encoded = [record_batches(net.condition_encoder) for net in nets]
    generate(unet, SCHEDULE, label, x_T, [(nets[0], a, 1), (nets[1], b, 1)], guidance=guidance, steps=5)
    assert encoded == [[5], [5]]


def test_generating_computes_no_gradient(unet):
    label, x_T, edges, _ = inputs()
    assert not generate(unet, SCHEDULE, label, x_T, [(ControlNet(unet), edges, 1)], steps=2).requires_grad


# Pictures


def drawing(size=SIZE):
    """A white cross on black, one pixel thin: (1, 1, size, size) of {0, 1}."""
    lines = torch.zeros(1, 1, size, size)
    lines[..., size // 3, 2:] = 1
    lines[..., :-3, size // 2] = 1
    return lines


def edges_from_picture(picture, size):
    return condition_from_map(picture, "canny", 1, size)


def test_a_drawing_of_the_right_size_is_its_own_edges():
    assert torch.equal(edges_from_picture(drawing(), (SIZE, SIZE)), drawing())


def test_dark_lines_on_white_paper_are_as_good_as_white_ones_on_black():
    assert torch.equal(edges_from_picture(1 - drawing(), (SIZE, SIZE)), drawing())


def test_soft_lines_become_hard_ones():
    assert torch.equal(edges_from_picture(0.1 + 0.6 * drawing(), (SIZE, SIZE)), drawing())
    assert torch.equal(edges_from_picture(0.9 - 0.6 * drawing(), (SIZE, SIZE)), drawing())


@pytest.mark.parametrize("invert", [False, True])
@pytest.mark.parametrize("side", [17, 64, 280, 500])
def test_a_line_one_pixel_thin_survives_shrinking(invert, side):
    picture = torch.zeros(1, 1, side, side)
    picture[..., side // 2] = 1
    edges = edges_from_picture(1 - picture if invert else picture, (SIZE, SIZE))
    assert edges.shape == (1, 1, SIZE, SIZE) and edges.unique().tolist() == [0, 1]
    assert edges[..., SIZE // 2].all() and edges.sum() <= 2 * SIZE


def test_a_small_picture_is_stretched():
    assert torch.equal(edges_from_picture(drawing(8), (16, 24)),
                       drawing(8).repeat_interleave(2, dim=2).repeat_interleave(3, dim=3))


@pytest.mark.parametrize("name", ["mask", "scribble"])
def test_masks_and_scribbles_too_may_be_drawn_dark_on_white(name):
    shape = torch.zeros(1, 3, 32, 32)
    shape[..., 8:20, 4:20] = 1
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


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(CONDITIONS))
def test_the_conditions_of_an_ordinary_picture_are_those_of_the_library(name, channels):
    picture = torch.rand(1, 3, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    image = picture if channels == 3 else picture.mean(1, keepdim=True)
    assert torch.equal(condition_from_image(picture, name, [channels, 16, 16]), CONDITIONS[name](image * 2 - 1))


def save_picture(path, array):
    Image.fromarray(np.asarray(array, dtype=np.uint8)).save(path)
    return path


def ramp(channels=()):
    return np.arange(0, 240, 5).repeat(math.prod(channels)).reshape(6, 8, *channels)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.tiff", "a.gif"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_pictures_are_read_as_values_from_0_to_1(tmp_path, name, channels):
    picture = read_picture(save_picture(tmp_path / name, ramp(channels)))
    assert picture.shape == (1, 3, 6, 8) and picture.dtype == torch.float32
    torch.testing.assert_close(picture[0], torch.tensor(ramp() / 255).float().expand(3, -1, -1), rtol=0, atol=0.01)


def test_colours_stay_in_their_order(tmp_path):
    orange = np.zeros((4, 4, 3)) + [255, 153, 0]
    picture = read_picture(save_picture(tmp_path / "a.png", orange))
    torch.testing.assert_close(picture[0, :, 1, 1], torch.tensor([1, 0.6, 0]))


def test_for_gray_images_colours_become_their_mean():
    picture = torch.tensor([0.9, 0.6, 0.0]).view(1, 3, 1, 1).expand(-1, -1, 16, 16)
    torch.testing.assert_close(condition_from_image(picture, "colour", [1, 16, 16]), torch.full((1, 1, 16, 16), 0.5))


def test_a_photograph_is_read(tmp_path):
    picture = read_picture(save_picture(tmp_path / "a.jpg", np.full((20, 30, 3), 128)))
    assert picture.shape == (1, 3, 20, 30)
    torch.testing.assert_close(picture, torch.full_like(picture, 0.5), rtol=0, atol=0.02)


def test_opaque_pixels_do_not_mind_the_alpha_channel(tmp_path):
    rgba = np.dstack([ramp((3,)), np.full((6, 8), 255)])
    picture = read_picture(save_picture(tmp_path / "a.png", rgba))
    torch.testing.assert_close(picture[0, 0], torch.tensor(ramp() / 255).float(), rtol=0, atol=0.01)


def test_black_lines_on_a_transparent_ground_are_lines(tmp_path):
    rgba = np.zeros((SIZE, SIZE, 4))
    rgba[..., 3] = 255 * drawing()[0, 0].numpy()
    picture = read_picture(save_picture(tmp_path / "a.png", rgba))
    assert torch.equal(edges_from_picture(picture, (SIZE, SIZE)), drawing())


def test_a_picture_of_16_bits_lies_in_0_to_1_too(tmp_path):
    Image.fromarray((ramp() * 257).astype(np.uint16)).save(tmp_path / "a.tiff")
    torch.testing.assert_close(read_picture(tmp_path / "a.tiff")[0, 0], torch.tensor(ramp() / 255).float())


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


KINDS = ["missing", "folder", "empty", "text", "half", "header", "garbled"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_a_picture_is_refused(tmp_path, kind):
    with pytest.raises(ValueError, match="cannot read .*drawing.png as an image") as error:
        read_picture(not_a_picture(tmp_path / "drawing.png", kind))
    assert "\n" not in str(error.value)


def test_a_picture_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(ValueError, match="cannot read .*drawing.bmp as an image"):
        read_picture(save_picture(tmp_path / "drawing.bmp", ramp()))


# The command line


@pytest.fixture
def run(tmp_path, unet, nets):
    """A folder with base.pt, control.pt and drawing.png. The networks' weights are random."""
    save_checkpoint(tmp_path / "base.pt", {
        "kind": "base", "dataset": "drawn", "image_shape": [1, SIZE, SIZE], "schedule": ["cosine", 1000],
        "model": unet.settings, "steps": 5, "batch_size": 4, "seed": 0, "step": 5, "history": [],
        "weights": unet.state_dict()})
    save_checkpoint(tmp_path / "control.pt", {
        "kind": "control", "dataset": "drawn", "base": fingerprint(unet), "condition": "canny", "condition_channels": 1,
        "steps": 5, "batch_size": 4, "seed": 0, "step": 5, "history": [], "weights": nets[0].state_dict()})
    save_picture(tmp_path / "drawing.png", 255 * drawing()[0, 0])
    return tmp_path


@pytest.fixture
def drawn(monkeypatch):
    """What `generate` was called with and what it returned, call by call."""
    calls = []

    def recording(unet, schedule, label, x_T, controls, **settings):
        images = generate(unet, schedule, label, x_T, controls, **settings)
        calls.append(dict(label=label, x_T=x_T, controls=controls, images=images, schedule=schedule, **settings))
        return images

    monkeypatch.setattr(sample, "generate", recording)
    return calls


def arguments(run, *more, edges="drawing.png"):
    return ["--control", str(run / "control.pt"), "--condition", str(run / edges), "--out", str(run / "out.png"),
            "--device", "cpu", "--steps", "2", *more]


def test_a_drawing_becomes_images(run, drawn, capsys, unet, nets):
    sample.main(arguments(run, "--label", "3"))
    call = drawn[0]
    assert call["label"].tolist() == [3] * 8 and call["guidance"] == 1 and call["steps"] == 2
    (control_net, condition, scale), = call["controls"]
    assert fingerprint(control_net) == fingerprint(nets[0]) and scale == 1
    assert torch.equal(condition, drawing().expand(8, -1, -1, -1))
    assert call["x_T"].shape == (8, 1, SIZE, SIZE) and len(call["x_T"].unique()) > 1000
    assert torch.equal(call["schedule"].alpha_bar, SCHEDULE.alpha_bar)
    expected = generate(unet, SCHEDULE, call["label"], call["x_T"], [(nets[0], condition, 1)], steps=2)
    assert torch.equal(call["images"], expected)
    assert capsys.readouterr().out == f"{run / 'out.png'}\n"


def test_the_sheet_shows_the_edges_and_all_images(run):
    sample.main(arguments(run))
    wide = matplotlib.image.imread(run / "out.png")
    sample.main(arguments(run, "--count", "1"))
    narrow = matplotlib.image.imread(run / "out.png")
    assert 100 < len(wide) == len(narrow) < 400
    assert wide.shape[1] > 3 * narrow.shape[1] and wide.shape[1] > 600
    assert wide.std() > 0.1


def test_every_flag_does_what_it_says(run, drawn):
    sample.main(arguments(run, "--label", "0", "--scale", "0.5", "--guidance", "2.5", "--count", "3", "--seed", "7"))
    call = drawn[0]
    assert call["label"].tolist() == [0, 0, 0] and call["guidance"] == 2.5 and call["controls"][0][2] == 0.5
    assert torch.equal(call["x_T"], torch.randn(3, 1, SIZE, SIZE, generator=torch.Generator().manual_seed(7)))


def test_scale_0_draws_what_the_base_draws(run, drawn, unet):
    sample.main(arguments(run, "--scale", "0", "--count", "2", "--label", "5"))
    assert torch.equal(drawn[0]["images"], generate(unet, SCHEDULE, torch.tensor([5, 5]), drawn[0]["x_T"], steps=2))


def test_no_label_is_the_null_label(run, drawn):
    sample.main(arguments(run))
    assert drawn[0]["label"].tolist() == [10] * 8


def test_the_same_seed_draws_the_same_and_another_seed_does_not(run, drawn):
    for seed in ("0", "0", "1"):
        sample.main(arguments(run, "--seed", seed))
    first, again, other = (call["images"] for call in drawn)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_image_finds_the_edges_of_a_photograph(run, drawn):
    disc = (torch.arange(64) - 32)[:, None] ** 2 + (torch.arange(64) - 32) ** 2 < 20**2
    save_picture(run / "photo.jpg", np.dstack([255 * disc.numpy()] * 3))
    sample.main(arguments(run, "--image", "--count", "2", edges="photo.jpg"))
    edges = drawn[0]["controls"][0][1][0, 0]
    assert edges.unique().tolist() == [0, 1] and not edges[6:10, 6:10].any()  # a ring
    far = ((torch.arange(16) - 7.5)[:, None] ** 2 + (torch.arange(16) - 7.5) ** 2).sqrt()
    assert ((far[edges > 0] - 5).abs() < 1.2).all() and edges.sum() > 20


def test_image_of_a_picture_of_the_right_size_is_that_of_the_library(run, drawn):
    picture = np.random.default_rng(0).integers(0, 256, (4, 4)).repeat(4, 0).repeat(4, 1)
    save_picture(run / "photo.png", picture)
    sample.main(arguments(run, "--image", edges="photo.png"))
    expected = canny(torch.tensor(picture / 255).float()[None, None] * 2 - 1)
    assert torch.equal(drawn[0]["controls"][0][1][:1], expected) and expected.any()


def stopped(capsys, *argv):
    """Runs `main`, which must end with one sentence, and returns it."""
    with pytest.raises(SystemExit) as stop:
        sample.main(list(map(str, argv)))
    assert isinstance(stop.value.code, str) and stop.value.code.startswith("error: ")
    assert "\n" not in stop.value.code and not capsys.readouterr().out
    return stop.value.code


@pytest.mark.parametrize("flags, sentence", [
    (["--label", 10], "--label must lie in 0 .. 9"), (["--label", -1], "--label must lie in 0 .. 9"),
    (["--count", 0], "--count must be at least 1"), (["--count", -2], "--count must be at least 1"),
    (["--steps", 0], "steps must lie between 1 and"), (["--steps", 1001], "steps must lie between 1 and"),
    (["--device", "cuda"], "there is no device 'cuda' here")])
def test_a_flag_out_of_range_is_refused(run, capsys, monkeypatch, flags, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sentence in stopped(capsys, *arguments(run), *flags)
    assert not (run / "out.png").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_drawing_that_is_not_one_is_refused(run, capsys, kind):
    not_a_picture(run / "other.png", kind)
    assert "other.png as an image" in stopped(capsys, *arguments(run, edges="other.png"))
    assert not (run / "out.png").exists()


@pytest.mark.parametrize("name", ["base.pt", "control.pt"])
def test_a_run_that_lacks_a_checkpoint_or_has_a_damaged_one_is_refused(run, capsys, name):
    (run / name).write_bytes(b"damaged")
    assert f"{name} is damaged" in stopped(capsys, *arguments(run))
    (run / name).unlink()
    assert f"{name}: train first" in stopped(capsys, *arguments(run))
    assert f"{name}: train first" in stopped(capsys, *arguments(run), "--image", "--label", "3")


def test_a_run_that_is_not_there_is_refused(run, capsys):
    nowhere = ["--control", run / "nowhere" / "control.pt", "--condition", run / "drawing.png"]
    assert "nowhere/base.pt: train first" in stopped(capsys, *nowhere)


def test_a_control_of_another_run_is_refused(run, capsys, unet, randomised):
    before = unet.state_dict()["encoder.conv_in.weight"].clone()
    checkpoint = torch.load(run / "control.pt", weights_only=True)
    save_checkpoint(run / "control.pt", {**checkpoint, "base": fingerprint(randomised(unet, seed=9))})
    assert not torch.equal(before, unet.state_dict()["encoder.conv_in.weight"])
    assert "trained for another base" in stopped(capsys, *arguments(run))
    sample.main(arguments(run, "--force"))  # unless that is what is wanted
    assert (run / "out.png").exists()


@pytest.fixture
def two(run, unet, nets):
    """The arguments for two controls of one base, the second in a folder of its own, for masks."""
    checkpoint = torch.load(run / "control.pt", weights_only=True)
    save_checkpoint(run / "second" / "control.pt", {**checkpoint, "condition": "mask",
                                                    "weights": nets[1].state_dict()})
    save_picture(run / "mask.png", 255 * (torch.arange(SIZE)[:, None] < SIZE // 2).expand(SIZE, SIZE))
    return arguments(run, "--control", str(run / "second" / "control.pt"), "--condition", str(run / "mask.png"))


def test_two_controls_are_summed_each_with_its_own_condition_and_scale(two, drawn, unet, nets):
    sample.main([*two, "--scale", "0.5", "--scale", "2", "--count", "3"])
    (first, edges, half), (second, masks, double) = drawn[0]["controls"]
    assert [fingerprint(net) for net in (first, second)] == [fingerprint(net) for net in nets]
    assert (half, double) == (0.5, 2)
    assert torch.equal(edges, drawing().expand(3, -1, -1, -1)) and masks[..., : SIZE // 2, :].eq(1).all()
    assert masks[..., SIZE // 2 :, :].eq(0).all()
    call, controls = drawn[0], [(nets[0], edges, 0.5), (nets[1], masks, 2)]
    assert torch.equal(call["images"], generate(unet, SCHEDULE, call["label"], call["x_T"], controls, steps=2))


def test_without_scales_every_control_counts_once(two, drawn):
    sample.main(two)
    assert [scale for _, _, scale in drawn[0]["controls"]] == [1, 1]


@pytest.mark.parametrize("flags, sentence", [
    (["--scale", "1"], "2 --control but 1 --scale"), (["--scale", "1"] * 3, "2 --control but 3 --scale"),
    (["--condition", "drawing.png"], "2 --control but 3 --condition"),
    (["--control", "control.pt"], "3 --control but 2 --condition")])
def test_flags_that_do_not_come_in_equal_numbers_are_refused(two, capsys, flags, sentence):
    assert sentence in stopped(capsys, *two, *flags)


def test_a_base_can_be_named(run, two, drawn):
    (run / "base.pt").rename(run / "elsewhere.pt")
    sample.main([*two, "--base", str(run / "elsewhere.pt")])
    assert len(drawn) == 1


@pytest.mark.parametrize("missing", ["--control", "--condition"])
def test_a_control_and_a_condition_must_be_given(run, capsys, missing):
    given = arguments(run)
    at = given.index(missing)
    with pytest.raises(SystemExit) as stop:
        sample.main(given[:at] + given[at + 2:])
    assert stop.value.code == 2 and f"required: {missing}" in capsys.readouterr().err


def test_a_sheet_that_cannot_be_written_is_refused(run, capsys):
    (run / "folder").mkdir()
    assert "cannot write" in stopped(capsys, *arguments(run), "--out", run / "folder")


@pytest.mark.parametrize("flags", [
    ["--label", "three"], ["--count", "many"], ["--device", "tpu"], ["--nonsense"],
    ["--seed", "9" * 20]])
def test_a_flag_that_makes_no_sense_is_refused_with_the_usage(run, capsys, flags):
    with pytest.raises(SystemExit) as stop:
        sample.main([*arguments(run), *flags])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


def test_it_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(sample.__file__, run_name="__main__")
    assert stop.value.code == 0
    assert "--condition" in capsys.readouterr().out


def test_ctrl_c_ends_without_a_traceback(run, monkeypatch):
    def pressed(*args, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr(sample, "generate", pressed)
    with pytest.raises(SystemExit, match="stopped"):
        sample.main(arguments(run))
