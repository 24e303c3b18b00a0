"""train_mnist_edges.py from beginning to end in seconds: few images, a narrow network."""

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch
from saved import change, contents, idx, save_mnist

import train_mnist_edges as script
from minicnet import sample
from minicnet.checkpoints import fingerprint, load_base, load_checkpoint, load_control
from minicnet.controlnet import ControlNet
from minicnet.errors import UserError
from minicnet.evaluation import MEASURES

ROOT = Path(script.__file__).parent
SMALL = dict(model=dict(channels=8, multipliers=(1,), patch=4), classifier=dict(steps=3, width=4))
FLAGS = ["--dataset", "mnist", "--device", "cpu", "--base-steps", "4", "--control-steps", "3",
         "--batch-size", "4", "--measured", "9"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with MNIST's four files, which hold 60 images many times, and 20 to test on."""
    folder = tmp_path_factory.mktemp("data") / "mnist"
    pixels = torch.randint(256, (80, 7, 7), dtype=torch.uint8)
    pixels = pixels.repeat_interleave(4, 1).repeat_interleave(4, 2)
    labels = torch.arange(80, dtype=torch.uint8) % 10
    for split, part in (("train", torch.arange(5040) % 60), ("t10k", torch.arange(60, 80))):
        save_mnist(folder, idx(pixels[part]), idx(labels[part]), [split])
    return folder.parent


@pytest.fixture(scope="module")
def run(data):
    """run(out, *flags): run the script into the folder `out`."""

    def run(out, *flags):
        args = script.parse_arguments(
            list(map(str, ["--out", out, "--data-dir", data, *FLAGS, *flags])))
        vars(args).update(SMALL)
        script.main(args)

    return run


@pytest.fixture(scope="module")
def finished(run, tmp_path_factory):
    """The folder of a finished run."""
    out = tmp_path_factory.mktemp("run") / "deep" / "run"
    run(out)
    return out


@pytest.fixture
def copied(finished, tmp_path):
    """The folder of a copy of the finished run."""
    return shutil.copytree(finished, tmp_path / "run")


def metrics(out):
    """Read metrics.json as the standard has it, without NaN and Infinity."""
    return json.loads((out / "metrics.json").read_bytes(), parse_constant=pytest.fail)


def learned(out):
    """Return what does not depend on the machine's speed: the logs and weights of both networks."""
    loaded = [load_checkpoint(out / f"{kind}.pt", {"kind": kind}) for kind in ("base", "control")]
    return [(checkpoint["history"], fingerprint(checkpoint["weights"])) for checkpoint in loaded]


# -- What a run leaves -------------------------------------------------------------------------


def test_a_run_leaves_five_files_that_say_what_was_run(finished):
    assert sorted(contents(finished)) == sorted(script.FILES) and len(script.FILES) == 5
    found = metrics(finished)
    assert (found["dataset"], found["condition"], found["images"]) == ("mnist", "canny", 9)
    assert (found["base_steps"], found["control_steps"]) == (4, 3)
    assert found["real"]["edge_f1_strict"] == 1 and found["real"]["frechet"] > 1e-5
    assert found["seconds"]["total"] > found["seconds"]["base"] + found["seconds"]["control"] > 0


def test_the_control_starts_from_exactly_the_base_and_leaves_it_as_it_was(finished):
    unet, base = load_base(finished / "base.pt")
    _, control = load_control(finished / "control.pt", unet)  # refuses one of another base
    first, last = control["history"][0], control["history"][-1]
    assert first["heldout_loss"] == first["heldout_loss_shuffled"]
    assert first["heldout_loss"] == base["history"][-1]["heldout_loss"] != last["heldout_loss"]


def test_what_is_measured_and_drawn_with_control_depends_on_the_control_and_nothing_else_does(
        run, finished, copied, randomised):
    net = randomised(ControlNet(load_base(copied / "base.pt")[0]))
    change(copied / "control.pt", weights=net.state_dict(), seconds=1000.0)
    run(copied, "--resume")
    before, after = metrics(finished), metrics(copied)
    assert all(after[name] == before[name] for name in ("base", "real"))
    assert all(after["control"][w] != before["control"][w] for w in ("1.0", "2.0"))
    assert after["heldout_loss"]["base"] == before["heldout_loss"]["base"]
    assert len({*after["heldout_loss"].values()}) == 3
    assert after["seconds"]["total"] > after["seconds"]["control"] == 1000
    sheet, other = (matplotlib.image.imread(out / "samples.png") for out in (finished, copied))
    changed = (sheet != other)[len(sheet) // 3:].any((0, 2)).nonzero()[0] / sheet.shape[1]
    assert 0.1 < changed.min() < changed.max() < 0.55  # where the images with control are


@pytest.mark.slow
@pytest.mark.parametrize("condition", ["mask", "colour", "depth", "scribble"])
def test_a_second_condition_uses_the_base_of_the_first_run(run, finished, tmp_path, condition):
    run(tmp_path, "--condition", condition, "--base", finished / "base.pt", "--base-steps", 99)
    found, measure = metrics(tmp_path), MEASURES[condition].__name__
    assert (found["condition"], found["base_steps"], found["seconds"]["base"]) == (condition, 4, 0)
    if condition != "scribble":
        assert found["real"][measure] == (0 if "error" in measure else 1)
    unet, _ = load_base(tmp_path / "base.pt")
    assert load_control(tmp_path / "control.pt", unet)[1]["condition"] == condition
    assert learned(tmp_path)[0] == learned(finished)[0]


# -- Resumed, or refused -----------------------------------------------------------------------


@pytest.mark.parametrize("flags, sentence", [
    (["--resume", "--seed", "1"], "seed 0 and not 1"),
    (["--resume", "--base-steps", "5"], "steps 4 and not 5"),
    (["--resume", "--dataset", "coloured-mnist"], "dataset 'mnist' and not 'coloured-mnist'"),
    (["--resume", "--control-steps", "6"], "control.pt was made with steps 3 and not 6"),
    (["--resume", "--condition", "mask"], "condition 'canny' and not 'mask'"),
    (["--resume", "--out", "{out}/nowhere"], "no run to resume"),
    (["--base", "{out}/control.pt"], "no checkpoint of a base"),
    (["--base", "{out}/half.pt"], "was stopped: --resume its run first"),
    (["--base", "{out}/half.pt", "--dataset", "coloured-mnist"], r"\[1, 28, 28\] and not \[3"),
    (["--base", "x" * 300], "File name too long"),
    (["--out", "x" * 300], "File name too long"),
    (["--out", "{out}/base.pt"], "cannot use .* as the run folder"),
    (["--data-dir", "{out}"], "cannot be read")])
def test_a_run_that_cannot_go_on_or_start_leaves_the_earlier_one_where_it_is(
        run, copied, flags, sentence):
    (copied / "mnist").mkdir()
    (copied / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(b"damaged")
    change(shutil.copy(copied / "base.pt", copied / "half.pt"), training={})
    before = contents(copied)
    with pytest.raises(UserError, match=sentence):
        run(copied, *(flag.format(out=copied) for flag in flags))
    assert contents(copied) == before


@pytest.mark.parametrize("flags", [
    ["--dataset", "minst"], ["--device", "gpu"], ["--base-steps", "0"], ["--control-steps", "-3"],
    ["--batch-size", "ten"], ["--batch-size", "4097"], ["--measured", "1"], ["--seed", "9" * 20],
    ["--nonsense"], ["--out", "a", "--base", "a/base.pt"]])
def test_a_flag_that_makes_no_sense_is_refused_with_the_usage(capsys, flags):
    with pytest.raises(SystemExit) as refused:
        script.parse_arguments(flags)
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


def test_the_dataset_and_quick_choose_the_settings_and_flags_win():
    for flags, settings in (([], script.FOR_DIGITS), (["--quick"], script.QUICK),
                            (["--dataset", "cifar10"], script.FOR_CIFAR10)):
        given = script.parse_arguments([*flags, "--base-steps", "7"])
        assert {**settings, "base_steps": 7}.items() <= vars(given).items()


def test_every_command_in_the_readme_exists_and_takes_its_flags():
    text = (ROOT / "README.md").read_text(encoding="utf-8").replace("\\\n", " ")
    blocks = "\n".join(text.split("\n```")[1::2])
    programs = {"train_mnist_edges.py": script, "-m minicnet.sample": sample}
    for name, program in programs.items():
        commands = re.findall(rf"python {re.escape(name)}(.*)", blocks)
        assert commands
        for flags in commands:
            program.parse_arguments(shlex.split(flags, comments=True))
    for path in re.findall(r"minicnet/weights/\S+", blocks):
        assert (ROOT / path).exists()


# -- As a program: killed, and in several processes --------------------------------------------

PROGRAM = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import train_mnist_edges as script
from minicnet import cli

def main():
    args = script.parse_arguments()
    vars(args).update({SMALL!r})
    script.main(args)

cli.run(main)
"""


@pytest.fixture
def program(tmp_path, data):
    """program(out, *flags, launcher=()): start the script, small, in the folder tmp_path / out."""
    (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
    started = []

    def start(out, *flags, launcher=()):
        command = [sys.executable, *launcher, "program.py", "--data-dir", data, "--out", out]
        started.append(subprocess.Popen(list(map(str, [*command, *FLAGS, *flags])), cwd=tmp_path,
                                        stdout=subprocess.DEVNULL))
        return started[-1]

    yield start
    for process in started:
        process.kill()


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_like_one_that_was_not(program, tmp_path):
    flags = ["--base-steps", 26, "--control-steps", 26]
    assert program(tmp_path / "undisturbed", *flags).wait(300) == 0
    out = tmp_path / "killed"
    for name, resume in (("base.pt", []), ("base.pt", ["--resume"]), ("control.pt", ["--resume"])):
        process = program(out, *flags, *resume)
        while not (out / name).exists():
            assert process.poll() is None
            time.sleep(0.05)
        process.kill()
        process.wait()
    assert not (out / "metrics.json").exists()
    assert program(out, *flags, "--resume").wait(300) == 0
    assert sorted(contents(out)) == sorted(script.FILES)
    assert learned(out) == learned(tmp_path / "undisturbed")


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_run_that_one_makes(finished, program, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    assert program(tmp_path, launcher=launcher).wait(300) == 0
    alone, together = (
        [entry["heldout_loss"] for history, _ in learned(out) for entry in history]
        for out in (finished, tmp_path))
    assert together == pytest.approx(alone, rel=2e-3)

