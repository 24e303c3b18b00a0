"""python -m minicnet.sample: what its flags make of checkpoints and pictures, and what it refuses in one sentence."""

import runpy
import sys

import matplotlib.image
import numpy as np
import pytest
import torch
from PIL import Image

from minicnet import cli, sample
from minicnet.checkpoints import fingerprint, save_checkpoint
from minicnet.conditions import canny
from minicnet.diffusion import NoiseSchedule
from minicnet.sampling import generate, seeded_noise
from minicnet.words import VOCABULARY, tokenize

SCHEDULE = NoiseSchedule.linear(500)  # not that of every other test
SIZE = 16
CROSS = torch.zeros(SIZE, SIZE)
CROSS[5, 2:] = CROSS[:-3, 8] = 1


@pytest.fixture
def run(tmp_path, unet, nets):
    """A folder with base.pt, control.pt and cross.png, and a second control, for masks. The weights are random."""
    save_checkpoint(tmp_path / "base.pt", {
        "kind": "base", "image_shape": [1, SIZE, SIZE], "schedule": ["linear", 500], "vocabulary": list(VOCABULARY),
        "model": unet.settings, "weights": unet.state_dict()})
    for path, condition, net in (("control.pt", "canny", nets[0]), ("second/control.pt", "mask", nets[1])):
        save_checkpoint(tmp_path / path, {"kind": "control", "base": fingerprint(unet), "condition": condition,
                                          "condition_channels": 1, "weights": net.state_dict()})
    save_picture(tmp_path / "cross.png", CROSS)
    save_picture(tmp_path / "mask.png", torch.ones(SIZE, SIZE).triu())
    return tmp_path


def save_picture(path, values):
    Image.fromarray((255 * np.asarray(values)).astype(np.uint8)).save(path)


@pytest.fixture
def drawn(monkeypatch):
    """What `generate` was called with and what it returned, call by call."""
    calls = []

    def recording(unet, schedule, prompt, x_T, controls, **settings):
        images = generate(unet, schedule, prompt, x_T, controls, **settings)
        calls.append(dict(unet=unet, schedule=schedule, prompt=prompt, x_T=x_T, controls=controls, images=images,
                          **settings))
        return images

    monkeypatch.setattr(sample, "generate", recording)
    return calls


def start(*argv):
    cli.run(sample.main, sample.parse_arguments(list(map(str, argv))))


def control(run, *more, picture="cross.png"):
    return ["--control", run / "control.pt", "--condition", run / picture, "--out", run / "out.png", "--device", "cpu",
            "--steps", "2", *more]


def two_controls(run, *more):
    return control(run, "--control", run / "second" / "control.pt", "--condition", run / "mask.png", *more)


def test_a_drawing_and_a_prompt_become_images(run, drawn, capsys, unet, nets):
    start(*control(run, "--prompt", "a red seven"))
    call = drawn[0]
    assert torch.equal(call["prompt"], tokenize(["a red seven"] * 8)) and (call["guidance"], call["steps"]) == (2, 2)
    (net, condition, scale), = call["controls"]
    assert fingerprint(net) == fingerprint(nets[0]) and scale == 1
    assert torch.equal(condition, CROSS.expand(8, 1, -1, -1))
    assert torch.equal(call["x_T"], seeded_noise((8, 1, SIZE, SIZE), 0))
    assert torch.equal(call["schedule"].alpha_bar, SCHEDULE.alpha_bar)  # the base's own
    expected = generate(unet, SCHEDULE, call["prompt"], call["x_T"], [(nets[0], condition, 1)], guidance=2, steps=2)
    assert torch.equal(call["images"], expected) and capsys.readouterr().out == f"{run / 'out.png'}\n"
    wide = matplotlib.image.imread(run / "out.png")
    start(*control(run, "--count", "1"))
    narrow = matplotlib.image.imread(run / "out.png")
    assert wide.shape[1] > 2 * narrow.shape[1] and wide.std() > 0.1  # eight images are on the sheet


@pytest.mark.parametrize("dataset, prompt, word", [
    ("drawn", "a ship", "ship"), ("coloured-drawn", "a red coat", "coat"), ("cifar10", "seven", "seven"),
    ("fashion-mnist", "a coat", ""), ("coloured-mnist", "a red seven on navy paper", ""), ("cifar10", "", "")])
def test_a_noun_that_the_base_never_heard_is_noted(run, capsys, dataset, prompt, word):
    checkpoint = torch.load(run / "base.pt", weights_only=True)
    save_checkpoint(run / "base.pt", {**checkpoint, "dataset": dataset})
    start(*control(run, "--prompt", prompt, "--count", "1"))
    said = f"note: this base was trained on {dataset}, and never heard of {word!r}\n" if word else ""
    assert [line for line in capsys.readouterr().err.splitlines(True) if "note:" in line] == ([said] if said else [])


def test_every_flag_does_what_it_says(run, drawn):
    start(*control(run, "--scale", "-0.5", "--guidance", "2.5", "--count", "3", "--seed", "7", "--steps", "3"))
    call = drawn[0]
    assert (call["guidance"], call["controls"][0][2], call["steps"]) == (2.5, -0.5, 3)
    assert torch.equal(call["prompt"], tokenize([""] * 3))
    assert torch.equal(call["x_T"], seeded_noise((3, 1, SIZE, SIZE), 7))


def test_a_base_alone_and_scale_0_draw_the_same(run, drawn):
    start("--base", run / "base.pt", "--prompt", "seven", "--steps", "2", "--out", run / "out.png", "--device", "cpu")
    start(*control(run, "--scale", "0", "--prompt", "seven"))
    assert drawn[0]["controls"] == [] and torch.equal(drawn[0]["images"], drawn[1]["images"])


def test_with_image_the_condition_is_found_in_the_picture(run, drawn):
    picture = torch.rand(4, 4).mul(255).floor().div(255).repeat_interleave(4, 0).repeat_interleave(4, 1)
    save_picture(run / "photo.png", picture.double() + 1e-3)
    start(*control(run, "--image", picture="photo.png"))
    expected = canny(picture[None, None] * 2 - 1)
    assert torch.equal(drawn[0]["controls"][0][1][:1], expected) and expected.any()


def test_two_controls_each_have_their_condition_and_scale_and_the_base_that_is_named(run, drawn, nets):
    (run / "base.pt").rename(run / "elsewhere.pt")
    base = ["--base", run / "elsewhere.pt"]
    start(*two_controls(run, *base, "--scale", "0.5", "--scale", "2", "--count", "3"))
    (first, edges, half), (second, masks, double) = drawn[0]["controls"]
    assert [fingerprint(net) for net in (first, second)] == [fingerprint(net) for net in nets]
    assert (half, double) == (0.5, 2) and drawn[0]["spans"] == [(0, 1), (0, 1)]
    assert torch.equal(edges, CROSS.expand(3, 1, -1, -1)) and masks.mean().item() == pytest.approx(0.5, abs=0.05)
    start(*two_controls(run, *base))
    assert [scale for _, _, scale in drawn[1]["controls"]] == [1, 1]


def test_two_controls_act_in_spans_of_their_own(run, drawn):
    start(*two_controls(run, "--from", "0.5", "--from", "0"))
    start(*two_controls(run, "--from", "0.5", "--from", "0", "--until", "1", "--until", "0.5"))
    assert [call["spans"] for call in drawn] == [[(0.5, 1), (0, 1)], [(0.5, 1), (0, 0.5)]]
    assert not torch.equal(drawn[0]["images"], drawn[1]["images"])


# What is refused


def refused(run, capsys, *argv):
    """Starts it, which must end with one sentence, and returns that."""
    with pytest.raises(SystemExit) as ended:
        start(*argv)
    assert not (run / "out.png").exists() and not capsys.readouterr().out
    assert isinstance(ended.value.code, str) and ended.value.code.startswith("error: ")
    assert "\n" not in ended.value.code
    return ended.value.code


@pytest.mark.parametrize("flags, sentence", [
    (["--prompt", "a red sevn"], "the word 'sevn' is unknown: is 'seven' meant?"),
    (["--prompt", "a a a a a a a a a"], "at most 8 words"),
    (["--steps", 501], "--steps must be at most 500"), (["--device", "cuda"], "there is no device 'cuda' here")])
def test_what_cannot_be_drawn_is_refused(run, capsys, monkeypatch, flags, sentence):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert sentence in refused(run, capsys, *control(run), *flags)


@pytest.mark.parametrize("flags", [
    ["--scale", "nan"], ["--guidance", "inf"], ["--seed", "-1"], ["--count", "0"], ["--steps", "0"],
    ["--device", "tpu"], ["--scale", "1", "--scale", "1"], ["--condition", "a.png"], ["--label", "3"]])
def test_a_flag_that_makes_no_sense_is_refused_with_the_usage(run, capsys, flags):
    with pytest.raises(SystemExit) as ended:
        start(*control(run), *flags)
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


@pytest.mark.parametrize("flags, sentence", [
    (["--from", "0.6", "--until", "0.4"], "both from 0 to 1, not from 0.6 until 0.4"),
    (["--until", "0.04"], "no step lies between 0 and 0.04 of 2: take more --steps"),
    (["--from", "1"], "not from 1 until 1"), (["--until", "1.5"], "not from 0 until 1.5"),
    (["--until", "1", "--until", "1"], "1 --control, 1 --condition, 1 --scale, 1 --from, 2 --until: give one of each"),
    (["--out", "digit.txt"], "cannot write digit.txt: the name of a picture must end in .png")])
def test_nonsense_is_refused_before_anything_is_read(tmp_path, capsys, flags, sentence):
    with pytest.raises(SystemExit) as ended:
        sample.parse_arguments(list(map(str, control(tmp_path, *flags))))
    assert ended.value.code == 2 and sentence in capsys.readouterr().err.splitlines()[-1]


def test_a_folder_is_no_control(run, capsys):
    with pytest.raises(SystemExit) as ended:
        start("--control", run / "second", "--condition", run / "mask.png")
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and f"--control {run / 'second'} is a folder: name the file in it" in sentence


def test_without_a_control_and_a_base_there_is_nothing_to_draw_with(capsys):
    with pytest.raises(SystemExit) as ended:
        start("--prompt", "seven")
    assert ended.value.code == 2 and "give a --control, or at least a --base" in capsys.readouterr().err


def test_a_picture_that_is_none_is_refused(run, capsys):
    (run / "cross.png").write_text("not a picture")
    assert "cross.png as an image" in refused(run, capsys, *control(run))


@pytest.mark.parametrize("name", ["base.pt", "control.pt"])
def test_a_checkpoint_that_is_damaged_or_missing_is_refused(run, capsys, name):
    (run / name).write_bytes(b"damaged")
    assert f"{name} is damaged" in refused(run, capsys, *control(run))
    (run / name).unlink()
    assert f"{name}: train first" in refused(run, capsys, *control(run))


def test_a_control_of_another_base_is_refused_unless_it_is_forced(run, capsys, unet, randomised):
    checkpoint = torch.load(run / "base.pt", weights_only=True)
    save_checkpoint(run / "base.pt", {**checkpoint, "weights": randomised(unet, seed=9).state_dict()})
    assert "trained for another base" in refused(run, capsys, *control(run))
    start(*control(run, "--force"))
    assert (run / "out.png").exists()


def test_a_sheet_that_cannot_be_written_is_refused(run, capsys):
    (run / "folder.png").mkdir()
    assert "cannot write" in refused(run, capsys, *control(run), "--out", run / "folder.png")


def test_it_runs_as_a_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(sample.__file__, run_name="__main__")
    assert ended.value.code == 0 and "--condition" in capsys.readouterr().out
