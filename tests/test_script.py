"""The whole story of train_mnist_edges.py in seconds: few drawn digits, a narrow network and a handful of steps."""

import json
import math
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import matplotlib.image
import pytest
import torch

import train_mnist_edges as script
from minicnet import data, sample
from minicnet.checkpoints import CheckpointError, fingerprint, load_base, load_checkpoint, load_control
from minicnet.conditions import CONDITIONS, canny
from minicnet.controlnet import ControlNet
from minicnet.diffusion import NoiseSchedule
from minicnet.digits import draw_digits
from minicnet.evaluation import MEASURES, edge_f1, frechet_distance, heldout_loss, label_accuracy, train_classifier
from minicnet.sample import generate
from minicnet.unet import UNet

SCRIPT = Path(script.__file__)
TRAIN, TEST = draw_digits(150, seed=0), draw_digits(30, seed=1)
BASE_KEYS = {"parameters", "steps", "heldout_loss", "label_accuracy", "frechet"}
CONTROL_KEYS = {"trainable_parameters", "steps", "heldout_loss", "heldout_loss_shuffled", "edge_f1", "edge_f1_strict",
                "edge_f1_strict_floor", "edge_f1_strict_ceiling", "edge_f1_floor", "edge_f1_ceiling",
                "label_accuracy", "frechet"}
KEYS = {"dataset", "condition", "measure", "device", "seed", "torch", "date", "seconds", "base", "control",
        "frechet_real", "classifier_accuracy"}


def make_small(patch):
    """Replaces the data and the network by small ones. The dataset "cifar10" then holds coloured digits."""
    def load_dataset(name, split, data_dir):
        images, labels = TRAIN if split == "train" else TEST
        return (images.expand(-1, 3, -1, -1) if name == "cifar10" else images), labels

    patch.setattr(script, "load_dataset", load_dataset)
    patch.setattr(script, "choose_dataset", lambda name, data_dir: "drawn" if name == "auto" else name)
    patch.setattr(script, "UNet", lambda in_channels, **model: UNet(in_channels, channels=8, multipliers=(1,), patch=4))
    patch.setattr(script, "generate", lambda *args, **settings: generate(*args, **{**settings, "steps": 2}))
    patch.setattr(script, "VALIDATION", 40)


def arguments(out, *flags):
    args = script.parse_arguments(["--out", str(out), "--device", "cpu", "--base-steps", "12", "--control-steps", "5",
                                   "--batch-size", "4", *flags])
    args.classifier_steps, args.measure = 3, 9
    return args


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture
def no_figures(monkeypatch):
    """Where pictures do not matter, they are not drawn, which takes longest of all."""
    monkeypatch.setattr(script, "save_figure", lambda fig, path: path.write_bytes(b""))


class Finished:
    """A run, from beginning to end: its folder, what it printed, how `train` was called, and the base at that time."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = Finished()
    run.out, run.calls, run.base_bytes, run.titles = tmp_path_factory.mktemp("run") / "deep" / "run", [], [], []

    def train(*args, **settings):
        result = train_before(*args, **settings)
        run.calls.append((args, settings, result[0]))
        run.base_bytes.append((run.out / "base.pt").read_bytes())
        return result

    def titled(function):
        return lambda *args: run.titles.append(args[-1]) or function(*args)

    train_before = script.train
    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(script, "train", train)
        patch.setattr(script, "samples_sheet", titled(script.samples_sheet))
        patch.setattr(script, "learning_curves", titled(script.learning_curves))
        printed = []
        patch.setattr("builtins.print", lambda *args, **settings: printed.append(" ".join(map(str, args))))
        script.main(arguments(run.out))
    run.printed = "\n".join(printed)
    run.metrics = read_json(run.out / "metrics.json")
    return run


def read_json(path):
    """JSON as the standard has it: without NaN and Infinity."""
    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


# What a run leaves


def test_a_run_leaves_the_five_files(finished):
    assert sorted(path.name for path in finished.out.iterdir()) == sorted(script.FILES)
    assert set(script.FILES) == {"base.pt", "control.pt", "metrics.json", "samples.png", "learning.png"}


def test_metrics_have_the_names_that_were_agreed_on(finished):
    metrics = finished.metrics
    assert KEYS <= set(metrics) and set(metrics["seconds"]) == {"base", "control", "total"}
    assert BASE_KEYS <= set(metrics["base"]) and CONTROL_KEYS <= set(metrics["control"])


def test_metrics_are_finite_and_in_range(finished):
    metrics = finished.metrics
    base, control, seconds = metrics["base"], metrics["control"], metrics["seconds"]
    for value in (*base.values(), *control.values(), *seconds.values(), metrics["frechet_real"]):
        assert math.isfinite(value) and value >= 0
    for name, value in (*base.items(), *control.items(), ("label_accuracy", metrics["classifier_accuracy"])):
        if "accuracy" in name or "f1" in name:
            assert 0 <= value <= 1
    assert control["edge_f1_ceiling"] == 1
    assert control["edge_f1_strict"] <= control["edge_f1"] and 0 < control["edge_f1_floor"] < 1
    assert seconds["total"] > seconds["base"] + seconds["control"] and min(seconds.values()) > 0


def test_metrics_say_what_was_run(finished):
    metrics = finished.metrics
    assert (metrics["dataset"], metrics["device"], metrics["seed"]) == ("drawn", "cpu", 0)
    assert metrics["torch"] == torch.__version__ and metrics["images"] == 9
    assert (metrics["base"]["steps"], metrics["control"]["steps"]) == (12, 5)


def test_the_numbers_of_parameters_are_those_of_the_networks(finished):
    unet, _ = load_base(finished.out / "base.pt")
    control_net, _ = load_control(finished.out / "control.pt", unet)
    assert finished.metrics["base"]["parameters"] == sum(p.numel() for p in unet.parameters())
    assert finished.metrics["control"]["trainable_parameters"] == sum(p.numel() for p in control_net.parameters())


def test_training_the_control_leaves_base_pt_and_the_base_as_they_were(finished):
    before, after = finished.base_bytes
    assert before == after == (finished.out / "base.pt").read_bytes()
    unet, _ = load_base(finished.out / "base.pt")
    assert finished.calls[1][1]["about"]["base"] == fingerprint(unet)


def test_the_base_is_locked(finished):
    unet = finished.calls[0][0][0]
    assert not unet.training
    assert all(p.grad is None and not p.requires_grad for p in unet.parameters())


def test_the_control_starts_from_exactly_the_base(finished):
    (_, _, base_history), (_, _, control_history) = finished.calls
    start = control_history[0]
    assert start["heldout_loss"] == start["heldout_loss_shuffled"] == base_history[-1]["heldout_loss"]
    assert control_history[-1]["heldout_loss"] != start["heldout_loss"]


def test_a_tenth_of_the_labels_is_dropped_for_the_base_and_half_for_the_control(finished):
    assert [settings["drop_labels"] for _, settings, _ in finished.calls] == [0.1, 0.5]
    assert [settings["about"]["kind"] for _, settings, _ in finished.calls] == ["base", "control"]
    assert [settings["null_label"] for _, settings, _ in finished.calls] == [10, 10]


def test_images_that_are_looked_at_while_training_are_not_trained_on(finished):
    for (_, _, _, images, labels), _, _ in finished.calls:
        assert torch.equal(images, TRAIN[0][:110]) and torch.equal(labels, TRAIN[1][:110])


def test_the_figures_name_the_dataset_and_hold_the_images(finished):
    assert len(finished.titles) == 2 and all(title.startswith("drawn, seed 0") for title in finished.titles)
    sheet, curves = (matplotlib.image.imread(finished.out / name) for name in ("samples.png", "learning.png"))
    assert min(sheet.shape[:2]) > 600 and sheet.shape[1] < 2500
    assert curves.shape[1] > 1000 and sheet.std() > 0.1


def test_a_run_ends_with_the_table_and_where_the_files_are(finished):
    control = finished.metrics["control"]
    for text in (f"{control['edge_f1']:.3f}", f"{control['edge_f1_floor']:.3f}", "with control", str(finished.out)):
        assert text in finished.printed
    assert all(name in finished.printed for name in script.FILES)


def test_what_was_trained_draws(finished, tmp_path):
    picture = tmp_path / "drawing.png"
    matplotlib.image.imsave(picture, TEST[0][0, 0].numpy(), cmap="gray")
    sample.main(["--control", str(finished.out / "control.pt"), "--condition", str(picture), "--image", "--label", "3",
                 "--steps", "2", "--count", "2", "--out", str(tmp_path / "out.png"), "--device", "cpu"])
    assert (tmp_path / "out.png").exists()


@pytest.mark.parametrize("condition", [name for name in CONDITIONS if name != "canny"])
def test_a_second_condition_uses_the_base_of_the_first_run(no_figures, finished, tmp_path, monkeypatch, condition):
    monkeypatch.setattr(script, "train", at_call(2, script.train))  # the base is not trained again
    script.main(arguments(tmp_path, "--condition", condition, "--base", str(finished.out / "base.pt")))
    metrics, name = read_json(tmp_path / "metrics.json"), MEASURES[condition].__name__
    assert (metrics["condition"], metrics["measure"]) == (condition, name)
    control = metrics["control"]
    worst_and_best = sorted([control[f"{name}_floor"], control[f"{name}_ceiling"]])
    assert 0 <= worst_and_best[0] < worst_and_best[1] <= 1 and math.isfinite(control[name])
    if condition != "scribble":
        assert control[f"{name}_ceiling"] == (0 if "error" in name else 1)
    assert metrics["base"]["heldout_loss"] == finished.metrics["base"]["heldout_loss"]
    assert metrics["seconds"]["base"] == 0 and metrics["base"]["steps"] == 12
    unet, _ = load_base(tmp_path / "base.pt")
    assert fingerprint(unet) == fingerprint(load_base(finished.out / "base.pt")[0])
    assert load_control(tmp_path / "control.pt", unet)[1]["condition"] == condition


def test_a_second_control_depends_on_its_seed_alone(no_figures, finished, tmp_path):
    for name, seed, noise in (("a", "1", 5), ("b", "1", 6), ("c", "2", 5)):
        torch.manual_seed(noise)
        script.main(arguments(tmp_path / name, "--base", str(finished.out / "base.pt"), "--seed", seed))
    first, again, other = ((tmp_path / name / "control.pt").read_bytes() for name in "abc")
    assert first == again != other


def test_a_base_for_other_images_is_refused_before_anything_is_touched(finished, tmp_path):
    (tmp_path / "base.pt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"draws images of \[1, 28, 28\] instead of \[3, 28, 28\]"):
        script.main(arguments(tmp_path, "--dataset", "cifar10", "--base", str(finished.out / "base.pt")))
    assert files(tmp_path) == {"base.pt": b"mine"}


def test_a_run_is_not_resumed_with_another_base(no_figures, finished, tmp_path, randomised):
    out = copy_of(finished, tmp_path / "run")
    checkpoint = torch.load(out / "base.pt", weights_only=True)
    unet = randomised(load_base(out / "base.pt")[0])
    script.save_checkpoint(tmp_path / "other.pt", {**checkpoint, "weights": unet.state_dict()})
    before = files(out)
    with pytest.raises(CheckpointError, match="holds another base than"):
        script.main(arguments(out, "--resume", "--base", str(tmp_path / "other.pt")))
    assert files(out) == before


def test_a_base_whose_training_was_stopped_is_refused(finished, tmp_path):
    checkpoint = torch.load(finished.out / "base.pt", weights_only=True)
    script.save_checkpoint(tmp_path / "half.pt", {**checkpoint, "training": {}})
    with pytest.raises(CheckpointError, match="was stopped: --resume its run first"):
        script.main(arguments(tmp_path / "run", "--base", str(tmp_path / "half.pt")))
    assert not (tmp_path / "run").exists()


def test_a_base_in_the_run_folder_itself_is_refused(capsys, tmp_path):
    with pytest.raises(SystemExit) as stop:
        arguments(tmp_path, "--base", str(tmp_path / "base.pt"))
    assert stop.value.code == 2 and "choose another --out" in capsys.readouterr().err


def test_cifar10_is_seen_in_the_mirror_too(no_figures, tmp_path, monkeypatch):
    seen, train = [], script.train
    monkeypatch.setattr(script, "train", lambda *args, **settings: seen.append(args) or train(*args, **settings))
    script.main(arguments(tmp_path, "--dataset", "cifar10"))
    for _, _, _, images, labels in seen:
        assert torch.equal(images[:110].flip(3), images[110:]) and torch.equal(labels[:110], labels[110:])
        assert len(images) == len(labels) == 220


def test_colours_take_the_same_path(no_figures, tmp_path, monkeypatch):
    sheets, samples_sheet = [], script.samples_sheet
    monkeypatch.setattr(script, "samples_sheet", lambda *args: sheets.append(args) or samples_sheet(*args))
    script.main(arguments(tmp_path, "--dataset", "cifar10", "--base-steps", "2", "--control-steps", "2"))
    assert read_json(tmp_path / "metrics.json")["dataset"] == "cifar10"
    (sheet, title), = sheets
    assert title.startswith("cifar10") and {images.shape[2] for images in sheet.values()} == {1, 3}


def test_the_numbers_are_of_what_they_say(no_figures, tmp_path, monkeypatch, randomised):
    """With random weights, because a base and a control of a few steps draw nearly the same."""
    calls, small_unet, small_generate = [], script.UNet, script.generate

    def recording(*args, **settings):
        calls.append((args, small_generate(*args, **settings)))
        return calls[-1][1]

    monkeypatch.setattr(script, "generate", recording)
    monkeypatch.setattr(script, "UNet", lambda in_channels, **model: randomised(small_unet(in_channels)))
    monkeypatch.setattr(script, "ControlNet", lambda *args, **more: randomised(ControlNet(*args, **more), seed=1))
    script.main(arguments(tmp_path, "--seed", "1"))

    images, labels = TEST[0][:9], TEST[1][:9]
    edges, schedule = canny(images), NoiseSchedule.cosine(1000)
    (plain_args, plain), (controlled_args, controlled) = calls[2:4]  # after two looks at the control in training
    assert torch.equal(plain_args[2], labels) and torch.equal(controlled_args[2], labels)
    assert torch.equal(plain_args[3], controlled_args[3])  # the same noise
    unet, _ = load_base(tmp_path / "base.pt")
    control_net, _ = load_control(tmp_path / "control.pt", unet)
    classifier = train_classifier(TRAIN[0][:110], TRAIN[1][:110], steps=3, seed=1)

    def loss(edges):
        return heldout_loss(lambda x, t: unet(x, t, labels, control_net(x, t, labels, edges)), schedule, images)

    metrics = read_json(tmp_path / "metrics.json")
    base, control = metrics["base"], metrics["control"]
    expected = [
        (metrics["frechet_real"], frechet_distance(classifier, TRAIN[0][:9], images)),
        (metrics["classifier_accuracy"], label_accuracy(classifier, images, labels)),
        (base["heldout_loss"], heldout_loss(lambda x, t: unet(x, t, labels), schedule, images)),
        (base["label_accuracy"], label_accuracy(classifier, plain, labels)),
        (base["frechet"], frechet_distance(classifier, plain, images)),
        (control["heldout_loss"], loss(edges)), (control["heldout_loss_shuffled"], loss(edges.roll(1, 0))),
        (control["edge_f1"], edge_f1(controlled, edges)), (control["edge_f1_floor"], edge_f1(plain, edges)),
        (control["edge_f1_strict"], edge_f1(controlled, edges, 0)),
        (control["label_accuracy"], label_accuracy(classifier, controlled, labels)),
        (control["frechet"], frechet_distance(classifier, controlled, images))]
    for found, value in expected:
        assert found == pytest.approx(value, rel=1e-5)
    assert len({value for _, value in expected}) >= len(expected) - 2  # accuracies of nine images may be the same
    history = load_checkpoint(tmp_path / "control.pt", {"kind": "control"})["history"]
    assert all(row["heldout_loss"] != row["heldout_loss_shuffled"] for row in history)


# Stopped and resumed


def stop(*args, **settings):
    raise KeyboardInterrupt


def at_call(number, function, action=stop):
    """`function`, but at its call of that number, counted from 1, `action` comes in its place."""
    calls = []

    def wrapped(*args, **settings):
        calls.append(None)
        return (action if len(calls) == number else function)(*args, **settings)

    return wrapped


def stopped_run(monkeypatch, out, name, number):
    torch.manual_seed(99)  # which must not matter
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, name, at_call(number, getattr(script, name)))
        script.main(arguments(out))


def ends_like(finished, out):
    metrics = read_json(out / "metrics.json")
    for name in KEYS - {"seconds", "date"}:
        assert metrics[name] == finished.metrics[name]
    assert sorted(path.name for path in out.iterdir()) == sorted(script.FILES)
    assert (out / "control.pt").read_bytes() == (finished.out / "control.pt").read_bytes()
    assert (out / "base.pt").read_bytes() == (finished.out / "base.pt").read_bytes()
    return metrics["seconds"]


@pytest.mark.parametrize("name, number", [
    ("train", 2),
    ("generate", 3)], ids=["base done", "control done"])  # the first two are looks at the control
def test_a_run_that_was_stopped_goes_on_to_the_same_end(no_figures, monkeypatch, finished, tmp_path, name, number):
    stopped_run(monkeypatch, tmp_path, name, number)
    base_seconds = read_json(tmp_path / "metrics.json")["seconds"]["base"]
    script.main(arguments(tmp_path, "--resume"))
    seconds = ends_like(finished, tmp_path)
    assert seconds["base"] == base_seconds and seconds["total"] > base_seconds + seconds["control"] > base_seconds


def test_a_run_whose_metrics_were_lost_goes_on_to_the_same_end(no_figures, monkeypatch, finished, tmp_path):
    stopped_run(monkeypatch, tmp_path, "write_json", 1)
    assert not (tmp_path / "metrics.json").exists()
    script.main(arguments(tmp_path, "--resume"))
    ends_like(finished, tmp_path)


def copy_of(finished, out):
    out.mkdir(exist_ok=True)
    for name, content in files(finished.out).items():
        (out / name).write_bytes(content)
    return out


@pytest.mark.parametrize("flags", [["--control-steps", "6"], []], ids=["other settings", "damaged control"])
def test_a_finished_run_that_may_not_go_on_loses_nothing(finished, tmp_path, flags):
    out = copy_of(finished, tmp_path)
    if not flags:
        (out / "control.pt").write_bytes(b"damaged")
    before = files(out)
    with pytest.raises(CheckpointError):
        script.main(arguments(out, "--resume", *flags))
    assert files(out) == before


@pytest.mark.parametrize("flags, sentence", [
    (["--seed", "1"], "seed 0 instead of 1"), (["--batch-size", "5"], "batch_size 4 instead of 5"),
    (["--base-steps", "13"], "steps 12 instead of 13"), (["--dataset", "mnist"], "dataset drawn instead of mnist"),
    (["--dataset", "cifar10"], "dataset drawn instead of cifar10")])
def test_a_run_does_not_go_on_with_other_settings(finished, flags, sentence):
    before = files(finished.out)
    with pytest.raises(CheckpointError, match=sentence):
        script.main(arguments(finished.out, "--resume", *flags))
    assert files(finished.out) == before


def test_a_run_does_not_go_on_with_another_number_of_control_steps(finished, tmp_path):
    out = copy_of(finished, tmp_path)
    with pytest.raises(CheckpointError, match="control.pt was made with steps 5 instead of 6"):
        script.main(arguments(out, "--resume", "--control-steps", "6"))
    assert (out / "control.pt").read_bytes() == (finished.out / "control.pt").read_bytes()


@pytest.mark.parametrize("name", ["base.pt", "control.pt", "metrics.json"])
def test_a_damaged_run_does_not_go_on_and_is_left_alone(finished, tmp_path, name):
    out = copy_of(finished, tmp_path)
    (out / name).write_bytes((out / name).read_bytes()[:-20])
    before = files(out)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        script.main(arguments(out, "--resume"))
    for kept in ("base.pt", "control.pt", name):
        assert (out / kept).read_bytes() == before[kept]


@pytest.mark.parametrize("exists", [True, False])
def test_there_must_be_a_run_to_resume(tmp_path, exists):
    out = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(CheckpointError, match="no run to resume in .*: leave --resume out"):
        script.main(arguments(out, "--resume"))
    assert list(tmp_path.iterdir()) == []


def test_earlier_runs_are_set_aside_and_nothing_is_written_over(tmp_path):
    for i, name in enumerate(["base.pt", "metrics.json", "samples.png"]):
        (tmp_path / name).write_text(f"first {i}")
    (tmp_path / "notes.txt").write_text("mine")
    script.open_run(tmp_path, script.FILES, resume=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier-1", "notes.txt"]
    (tmp_path / "base.pt").write_text("second")
    script.open_run(tmp_path, script.FILES, resume=False)
    assert files(tmp_path / "earlier-1") == {"base.pt": b"first 0", "metrics.json": b"first 1",
                                             "samples.png": b"first 2"}
    assert files(tmp_path / "earlier-2") == {"base.pt": b"second"} and files(tmp_path) == {"notes.txt": b"mine"}
    script.open_run(tmp_path, script.FILES, resume=False)
    assert not (tmp_path / "earlier-3").exists()


# Flags


def test_the_defaults_are_a_full_run_and_quick_is_a_short_one():
    full, quick = script.parse_arguments([]), script.parse_arguments(["--quick"])
    for name, value in script.FULL.items():
        assert getattr(full, name) == value >= getattr(quick, name) == script.QUICK[name]
    assert quick.base_steps < 100 and (full.dataset, full.device, full.seed, full.resume) == ("auto", "auto", 0, False)
    assert full.out == quick.out == Path("runs/mnist-edges") and full.data_dir == Path("data")


@pytest.mark.parametrize("more", [[], ["--quick"]])
def test_flags_that_are_given_win(more):
    args = script.parse_arguments(["--base-steps", "7", "--control-steps", "8", "--batch-size", "9", *more])
    assert (args.base_steps, args.control_steps, args.batch_size) == (7, 8, 9)


@pytest.mark.parametrize("flags", [
    ["--dataset", "minst"], ["--device", "gpu"], ["--base-steps", "0"], ["--control-steps", "-3"],
    ["--batch-size", "ten"], ["--base-steps", "1.5"], ["--seed", "x"], ["--nonsense"],
    ["--seed", "9" * 20]])
def test_a_flag_that_makes_no_sense_is_refused_with_the_usage(capsys, flags):
    with pytest.raises(SystemExit) as stop:
        script.parse_arguments(flags)
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


# As a program


def run_as_program(monkeypatch, *flags):
    """Runs the file itself, which must end with one sentence and exit status 1. Returns the sentence."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", *map(str, flags)])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(stop.value.code, str)  # which Python prints on stderr, with exit status 1
    return stop.value.code


def test_cuda_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = run_as_program(monkeypatch, "--device", "cuda", "--out", tmp_path / "run")
    assert error.startswith("error: there is no device 'cuda' here") and "\n" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("flags", [[], ["--resume"]])
def test_a_run_folder_that_is_a_file_is_refused_and_kept(monkeypatch, tmp_path, flags):
    (tmp_path / "run").write_text("mine")
    error = run_as_program(monkeypatch, "--out", tmp_path / "run", *flags)
    assert error.startswith("error: ") and str(tmp_path / "run") in error and "\n" not in error
    assert (tmp_path / "run").read_text() == "mine"


def test_a_run_folder_inside_a_file_is_refused(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("mine")
    error = run_as_program(monkeypatch, "--out", tmp_path / "file" / "run")
    assert error.startswith("error: cannot use") and "\n" not in error


def test_damaged_data_are_refused(monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    (tmp_path / "mnist" / "train-images-idx3-ubyte").write_bytes(b"damaged")
    (tmp_path / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"damaged")
    error = run_as_program(monkeypatch, "--dataset", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert error.startswith("error: ") and "train-images-idx3-ubyte cannot be read" in error and "\n" not in error


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "load_dataset", stop)
    assert "--resume" not in run_as_program(monkeypatch, "--dataset", "drawn", "--out", tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "base.pt").touch()
    error = run_as_program(monkeypatch, "--dataset", "drawn", "--out", tmp_path / "run")
    assert f"{tmp_path / 'run'}" in error and "--resume" in error


def test_a_reader_who_leaves_ends_the_program_without_a_traceback(tmp_path):
    code = ("import runpy, sys, minicnet.data as data\n"
            "def load(name, split, data_dir): print('x' * 100_000, flush=True)\n"
            "data.load_dataset = load\n"
            f"sys.argv = ['script', '--dataset', 'drawn', '--out', {str(tmp_path / 'run')!r}, '--device', 'cpu']\n"
            f"runpy.run_path({str(SCRIPT)!r}, run_name='__main__')\n")
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               cwd=SCRIPT.parent, env={**os.environ, "OMP_NUM_THREADS": "1"})
    program.stdout.close()  # as `| head` does
    errors = program.stderr.read()
    assert program.wait(timeout=120) == 1 and errors == ""


def test_missing_data_and_no_network_end_in_one_line(tmp_path):
    nowhere = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy")}  # a port where nobody listens
    environment = {name: value for name, value in os.environ.items() if name.lower() != "no_proxy"}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--dataset", "fashion-mnist", "--data-dir", str(tmp_path / "data"),
         "--out", str(tmp_path / "run"), "--quick"],
        capture_output=True, text=True, timeout=120, env={**environment, **nowhere, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith("error: could not download train-images") and done.stderr.count("\n") == 1
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


SMALL = f"""
import runpy, sys, torch
from pathlib import Path
import minicnet.data, minicnet.sample, minicnet.training, minicnet.unet
from minicnet.training import draw_batch
from minicnet.unet import UNet
from minicnet.sample import generate

images = torch.rand(5040, 1, 28, 28, generator=torch.Generator().manual_seed(0)) * 2 - 1
minicnet.data.load_dataset = lambda *args: (images, torch.arange(5040) % 10)
minicnet.unet.UNet = lambda in_channels: UNet(in_channels, channels=8, multipliers=(1,), patch=4)
minicnet.sample.generate = lambda *args, **settings: generate(*args, **{{**settings, "steps": 2}})
batches = []

def counted(*args, **settings):
    batches.append(None)
    if len(batches) == 5:
        Path("fifth batch").touch()
    return draw_batch(*args, **settings)

minicnet.training.draw_batch = counted
runpy.run_path({str(SCRIPT)!r}, run_name="__main__")
"""


@pytest.fixture
def small_program(tmp_path):
    """small_program(threads, *flags, launcher=()): starts the file itself, with data and a network of a toy's size."""
    (tmp_path / "small.py").write_text(SMALL)
    started = []

    def start(threads, *flags, launcher=()):
        command = [sys.executable, *launcher, str(tmp_path / "small.py"), "--quick", "--dataset", "drawn", "--device",
                   "cpu", *map(str, flags)]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "OMP_NUM_THREADS": str(threads),
                       "PYTHONUNBUFFERED": "1"}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for program in started:
        program.kill()


def test_two_processes_of_torchrun_make_one_run(small_program, tmp_path):
    flags = ["--base-steps", 4, "--control-steps", 3]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    together = small_program(1, *flags, "--out", tmp_path / "together", launcher=launcher)
    alone = small_program(1, *flags, "--out", tmp_path / "alone")
    printed, errors = together.communicate(timeout=300)
    assert together.returncode == 0, errors
    assert printed.count("measuring on 64 test images") == 1  # only the first speaks
    _, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors
    for kind, steps in (("base", 4), ("control", 3)):
        one, two = (load_checkpoint(tmp_path / name / f"{kind}.pt", {"kind": kind}) for name in ("alone", "together"))
        assert one["step"] == two["step"] == steps
        losses, shared = ([row["loss"] for row in run["history"][1:]] for run in (one, two))
        assert shared == pytest.approx(losses, rel=1e-3)
    assert sorted(path.name for path in (tmp_path / "together").iterdir()) == sorted(script.FILES)


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGINT here")
def test_ctrl_c_leaves_a_run_that_goes_on(small_program, tmp_path):
    flags, steps, deadline = ["--base-steps", 100_000, "--out", tmp_path / "run"], [0], time.monotonic() + 300
    for resume in ([], ["--resume"]):
        program = small_program(2, *flags, *resume)
        while not (tmp_path / "fifth batch").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=300)
        assert program.returncode == 1 and "Traceback" not in errors
        assert errors.splitlines()[-1] == f"stopped: the same command with --resume goes on with {tmp_path / 'run'}"
        checkpoint = load_checkpoint(tmp_path / "run" / "base.pt", {"kind": "base"})
        assert "training" in checkpoint
        steps.append(checkpoint["step"])
        (tmp_path / "fifth batch").unlink()
    assert steps[1] >= 5 and steps[2] >= steps[1] + 5
