"""python -m minicnet.sample: what its flags make of checkpoints and pictures, or refuse."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from saved import change, save_networks

from minicnet import cli, sample
from minicnet.conditions import canny
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

CROSS = torch.zeros(16, 16)
CROSS[5, 2:] = CROSS[:-3, 8] = 1
SQUARE = torch.zeros(16, 16)
SQUARE[4:12, 4:12] = 1


@pytest.fixture
def run(tmp_path, unet, nets):
    """A folder with base.pt, canny.pt, mask.pt, cross.png and square.png."""
    for name, values in (("cross", CROSS), ("square", SQUARE)):
        Image.fromarray((255 * values).numpy().astype(np.uint8)).save(tmp_path / f"{name}.png")
    return save_networks(tmp_path, unet, dict(zip(("canny", "mask"), nets)), size=16)


def control(run, *more, picture="cross.png"):
    return ["--control", run / "canny.pt", "--condition", run / picture, "--out",
            run / "out.png", "--device", "cpu", "--steps", "2", "--count", "2", *more]


def arguments(argv):
    return sample.parse_arguments(list(map(str, argv)))


def draw(argv):
    *maps, images = sample.draw(arguments(argv)).values()
    return images[0], *((picture[0] + 1) / 2 for picture in maps)


def expected(unet, *controls, prompt="", count=2, seed=0, guidance=2, steps=2, **more):
    return generate(unet, unet.schedule, tokenize([prompt] * count),
                    seeded_noise((count, 1, 16, 16), seed), controls, guidance=guidance,
                    steps=steps, **more)


def test_a_drawing_a_prompt_and_every_flag_make_the_images_that_they_say(run, unet, nets):
    flags = ["--prompt", "a red seven", "--scale", "-0.5", "--start", 0.5, "--end", 0.9, "--count",
             "3", "--guidance", "2.5", "--control-guidance", "1.5", "--seed", "7", "--steps", "4"]
    images, cross = draw(control(run, *flags))
    assert torch.equal(cross, CROSS[None, None])
    assert torch.equal(images, expected(
        unet, (nets[0], cross, -0.5, 0.5, 0.9), prompt="a red seven", count=3, seed=7, guidance=2.5,
        control_guidance=1.5, steps=4))


def test_a_base_alone_and_scale_0_draw_the_same(run, unet):
    alone, = draw(["--base", run / "base.pt", "--steps", 2, "--count", 2, "--device", "cpu"])
    nothing, _ = draw(control(run, "--scale", 0))
    assert torch.equal(alone, nothing) and torch.equal(alone, expected(unet))


def test_with_image_the_condition_is_found_in_the_picture(run):
    _, found = draw(control(run, "--image"))
    assert torch.equal(found, canny(CROSS[None, None] * 2 - 1)) and found.any()


def test_two_controls_have_their_own_settings_and_share_the_base_that_is_named(run, unet, nets):
    (run / "base.pt").rename(run / "elsewhere.pt")
    images, edges, masks = draw(control(
        run, "--control", run / "mask.pt", "--condition", run / "square.png", "--base",
        run / "elsewhere.pt", "--scale", 0.5, "--scale", 2, "--start", 0, "--start", 0.5))
    assert torch.equal(masks, SQUARE[None, None])
    assert torch.equal(images, expected(unet, (nets[0], edges, 0.5), (nets[1], masks, 2, 0.5)))


def test_the_sheet_is_written_and_its_path_printed(run, capsys):
    cli.run(sample.main, arguments(control(run)))
    assert capsys.readouterr().out == f"{run / 'out.png'}\n"
    sheet = np.asarray(Image.open(run / "out.png"))
    assert sheet.shape[1] > sheet.shape[0] and sheet.std() > 25


@pytest.mark.parametrize("dataset, prompt, word", [
    ("drawn", "a ship", "ship"), ("coloured-drawn", "a red coat", "coat"),
    ("cifar10", "seven", "seven"), ("fashion-mnist", "a coat", ""),
    ("coloured-mnist", "a red seven on navy paper", ""), ("cifar10", "", "")])
def test_a_noun_that_the_base_was_not_trained_on_is_noted(run, capsys, dataset, prompt, word):
    change(run / "base.pt", dataset=dataset)
    draw(control(run, "--prompt", prompt))
    note = capsys.readouterr().err
    assert note.count("no caption contains") == bool(word) and word in note


# -- What is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize("argv", [["--prompt", "seven"], ["--base", "base.pt", "--image"], *(
    control(Path("run"), *flags) for flags in [
        ["--scale", "nan"], ["--scale", "1e39"], ["--guidance", "inf"], ["--seed", "-1"],
        ["--count", "0"], ["--count", "1000000000"], ["--steps", "0"], ["--device", "tpu"],
        ["--scale", "1", "--scale", "1"], ["--condition", "a.png"], ["--label", "3"],
        ["--out", "run/cross.png"], ["--start", "0.6", "--end", "0.4"], ["--start", "1"],
        ["--end", "1.5"]])])
def test_a_command_line_that_makes_no_sense_is_refused_with_the_usage(capsys, argv):
    with pytest.raises(SystemExit) as ended:
        arguments(argv)
    assert ended.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


@pytest.mark.parametrize("flags, sentence", [
    (["--prompt", "a red sevn"], "did you mean 'seven'"),
    (["--prompt", "a a a a a a a a a"], "at most 8 words"),
    (["--out", "digit.txt"], "must end in .png"),
    (["--out", "{run}/folder.png"], "it is a folder"),
    (["--out", "{run}/base.pt/out.png", "--base", "{run}/nowhere.pt"], "cannot write"),  # at once
    (["--out", "x" * 300 + ".png"], "cannot write"),
    (["--base", "{run}"], "Is a directory"),
    (["--base", "x" * 300], "File name too long"),
    (["--base", "{run}/loop"], "symbolic links"),
    (["--base", "{run}/nowhere.pt"], "train first"),
    (["--base", "{run}/cross.png"], "is damaged"),
    (["--base", "{run}/huge.pt", "--force"], "the images are not finite"),
    (["--base", "{run}/odd.pt"], "multiples of"),
    (["--base", "{run}/other.pt"], "trained for another base")])
def test_what_cannot_be_drawn_ends_in_one_sentence_and_leaves_no_picture(
        run, unet, randomised, flags, sentence):
    (run / "folder.png").mkdir()
    (run / "loop").symlink_to(run / "loop")
    huge = {name: 1e38 * weight.sign() for name, weight in unet.state_dict().items()}
    for name, entries in (("odd", {"image_shape": [1, 15, 15]}), ("huge", {"weights": huge}),
                          ("other", {"weights": randomised(unet, seed=9).state_dict()})):
        change(shutil.copy(run / "base.pt", run / f"{name}.pt"), **entries)
    with pytest.raises(SystemExit, match=f"^error: .*{sentence}") as ended:
        cli.run(sample.main, arguments(control(run, *(flag.format(run=run) for flag in flags))))
    assert "\n" not in ended.value.code and not (run / "out.png").exists()
