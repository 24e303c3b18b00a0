"""The whole story of train_mnist_edges.py in seconds: few drawn digits, a narrow network and a handful of steps."""

import itertools
import json
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
import torch.nn.functional as F

import train_mnist_edges as script
from minicnet import data, digits, sample
from minicnet.checkpoints import CheckpointError, fingerprint, load_base, load_checkpoint, load_control, save_checkpoint
from minicnet.conditions import CONDITIONS, canny
from minicnet.controlnet import controlled
from minicnet.diffusion import NoiseSchedule
from minicnet.evaluation import MEASURES, edge_f1, frechet_distance, heldout_loss, train_classifier
from minicnet.sampling import generate, seeded_noise
from minicnet.words import tokenize

SCRIPT = Path(script.__file__)
COLUMNS = {"base, guidance 1", "base, guidance 2", "with control, guidance 1", "with control, guidance 2",
           "real images"}


def make_small(patch):
    patch.setattr(data, "DRAWN", {"train": 150, "test": 30})
    patch.setattr(digits, "CHUNK", 50)
    patch.setattr(script, "VALIDATION", 40)
    patch.setattr(script, "generate", lambda *args, **settings: generate(*args, **{**settings, "steps": 2}))
    for name in ("drawn", "coloured-drawn"):
        patch.setitem(script.MODELS, name, dict(channels=8, multipliers=(1,), patch=4))


def arguments(out, *flags):
    args = script.parse_arguments(["--out", str(out), "--device", "cpu", "--dataset", "drawn", "--base-steps", "4",
                                   "--control-steps", "3", "--batch-size", "4", "--measured", "9", *map(str, flags)])
    args.classifier_steps = 3
    return args


@pytest.fixture(autouse=True)
def small(monkeypatch):
    make_small(monkeypatch)


@pytest.fixture
def no_figures(monkeypatch):
    """Where pictures do not matter, they are not drawn, which takes longest of all."""
    monkeypatch.setattr(script, "save_figure", lambda fig, path: path.write_bytes(b""))


class Finished:
    """A run, from beginning to end: its folder, metrics, what it printed, and how each stage was trained."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    run = Finished()
    run.out, run.calls, printed = tmp_path_factory.mktemp("run") / "deep" / "run", [], []
    fit = script.fit

    def recording(*args, **settings):
        run.calls.append((args, settings))
        return fit(*args, **settings)

    with pytest.MonkeyPatch.context() as patch:
        make_small(patch)
        patch.setattr(script, "fit", recording)
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


def copy_of(finished, out):
    out.mkdir(exist_ok=True)
    for name, content in files(finished.out).items():
        (out / name).write_bytes(content)
    return out


# What a run leaves


def test_a_run_leaves_five_files_and_prints_its_table_and_where_they_are(finished):
    assert sorted(path.name for path in finished.out.iterdir()) == sorted(script.FILES)
    assert set(script.FILES) == {"base.pt", "control.pt", "metrics.json", "samples.png", "learning.png"}
    score = finished.metrics["measured"]["with control, guidance 2"]["edge_f1"]
    for text in (f"{score:.3f}", "with control", str(finished.out), *script.FILES):
        assert text in finished.printed
    sheet, curves = (matplotlib.image.imread(finished.out / name) for name in ("samples.png", "learning.png"))
    assert min(sheet.shape[:2]) > 600 and sheet.shape[1] < 2500 and curves.shape[1] > 1000 and sheet.std() > 0.1


def test_metrics_say_what_was_run_and_how_good_it_is(finished):
    metrics = finished.metrics
    for name, value in dict(dataset="drawn", base_dataset="drawn", condition="canny", measure="edge_f1", device="cpu",
                            seed=0, images=9, batch_size=4, base_steps=4, control_steps=3).items():
        assert metrics[name] == value
    seconds = metrics["seconds"]
    assert seconds["total"] > seconds["base"] + seconds["control"] > seconds["base"] > 0
    assert set(metrics["measured"]) == COLUMNS
    for column in metrics["measured"].values():
        assert {"edge_f1", "edge_f1_strict", "digit", "all", "frechet"} <= set(column)
        assert 0 <= column["edge_f1_strict"] <= column["edge_f1"] <= 1 and column["frechet"] > 0
        assert 0 <= column["all"] <= column["digit"] <= 1
    assert metrics["measured"]["real images"]["edge_f1_strict"] == 1


def test_the_control_starts_from_exactly_the_base_and_leaves_it_locked_and_as_it_was(finished):
    unet, base = load_base(finished.out / "base.pt")
    _, control = load_control(finished.out / "control.pt", unet)  # refuses one that was trained for other weights
    start, end = control["history"][0], control["history"][-1]
    assert start["heldout_loss"] == start["heldout_loss_shuffled"] == base["history"][-1]["heldout_loss"]
    assert end["heldout_loss"] != start["heldout_loss"] and end["step"] == 3
    trained = finished.calls[0][0][0]
    assert fingerprint(trained) == fingerprint(unet) and not trained.training
    assert all(p.grad is None and not p.requires_grad for p in trained.parameters())


def test_both_learn_from_the_same_images_but_none_that_is_looked_at_and_drop_a_tenth_and_half_of_the_prompts(finished):
    images, prompts = data.load_dataset("drawn")[0][:110], tokenize(data.captions("drawn")[:110])
    for (args, settings), share in zip(finished.calls, (0.1, 0.5), strict=True):
        assert torch.equal(args[3], images) and torch.equal(args[4][:, 0], prompts)
        assert settings["drop_prompts"] == share


def test_what_was_trained_draws(finished, tmp_path):
    digit = data.load_dataset("drawn", "test")[0][0, 0]
    matplotlib.image.imsave(tmp_path / "drawing.png", digit.numpy(), cmap="gray")
    sample.main(sample.parse_arguments([
        "--control", str(finished.out / "control.pt"), "--condition", str(tmp_path / "drawing.png"), "--image",
        "--prompt", "a thick three", "--steps", "2", "--count", "2", "--out", str(tmp_path / "out.png")]))
    assert (tmp_path / "out.png").exists()


def test_the_numbers_are_of_what_they_say(no_figures, finished, tmp_path, randomised):
    """With random weights, because a base and a control of a few steps draw nearly the same."""
    unet = randomised(load_base(finished.out / "base.pt")[0])
    net = randomised(load_control(finished.out / "control.pt", unet, force=True)[0], std=0.4, seed=1)
    for name, module, changes in (("base", unet, {}), ("control", net, {"base": fingerprint(unet)})):
        checkpoint = torch.load(finished.out / f"{name}.pt", weights_only=True)
        save_checkpoint(tmp_path / f"{name}.pt", {**checkpoint, **changes, "weights": module.state_dict()})
    script.main(arguments(tmp_path, "--resume"))

    images, prompt = data.load_dataset("drawn", "test")[0][:9], tokenize(data.captions("drawn", "test")[:9])
    train_images, train_labels = data.load_dataset("drawn")
    edges, noise, schedule = canny(images), seeded_noise(images.shape, 0), NoiseSchedule.cosine(1000)
    classifier = train_classifier(train_images[:110], train_labels[:110], steps=3, seed=0)
    metrics = read_json(tmp_path / "metrics.json")

    def loss(*controls):
        eps = controlled(unet, controls)
        return heldout_loss(lambda x_t, t: eps(x_t, t, prompt), schedule, images)

    expected = {"base": loss(), "control": loss((net, edges, 1)), "shuffled": loss((net, edges.roll(1, 0), 1))}
    assert metrics["heldout_loss"] == pytest.approx(expected, rel=1e-5)
    assert all(abs(a / b - 1) > 5e-4 for a, b in itertools.combinations(expected.values(), 2))
    seen = set()
    for kind, controls in (("base", []), ("with control", [(net, edges, 1)])):
        for w in (1, 2):
            drawn = generate(unet, schedule, prompt, noise, controls, guidance=w, steps=2)
            column = metrics["measured"][f"{kind}, guidance {w}"]
            assert column["frechet"] == pytest.approx(frechet_distance(classifier, drawn, images), rel=1e-3)
            assert column["edge_f1"] == pytest.approx(edge_f1(drawn, edges), abs=1e-2)
            assert column["edge_f1_strict"] == pytest.approx(edge_f1(drawn, edges, tolerance=0), abs=1e-2)
            seen.add(column["frechet"])
    assert len(seen) == 4
    unseen = train_images[110:119]
    real = metrics["measured"]["real images"]
    assert real["frechet"] == pytest.approx(frechet_distance(classifier, unseen, images), rel=1e-3)


# A second control for the same base


@pytest.mark.parametrize("condition", ["mask", *(pytest.param(name, marks=pytest.mark.slow)
                                                 for name in CONDITIONS if name not in ("canny", "mask"))])
def test_a_second_condition_uses_the_base_of_the_first_run(no_figures, finished, tmp_path, condition):
    script.main(arguments(tmp_path, "--condition", condition, "--base", finished.out / "base.pt", "--base-steps", 99))
    metrics, name = read_json(tmp_path / "metrics.json"), MEASURES[condition].__name__
    assert (metrics["condition"], metrics["measure"]) == (condition, name)
    assert metrics["seconds"]["base"] == 0 and metrics["base_steps"] == 4
    assert set(metrics["measured"]) == COLUMNS and all(0 <= c[name] <= 1 for c in metrics["measured"].values())
    if condition != "scribble":
        assert metrics["measured"]["real images"][name] == (0 if "error" in name else 1)
    unet, _ = load_base(tmp_path / "base.pt")
    assert fingerprint(unet) == fingerprint(load_base(finished.out / "base.pt")[0])
    assert load_control(tmp_path / "control.pt", unet)[1]["condition"] == condition


def test_a_base_for_other_images_or_half_a_base_is_refused_and_the_run_that_is_there_stays(finished, tmp_path):
    before = files(out := copy_of(finished, tmp_path / "run"))
    with pytest.raises(CheckpointError, match=r"image_shape \[1, 28, 28\] instead of \[3, 28, 28\]"):
        script.main(arguments(out, "--dataset", "coloured-drawn", "--base", finished.out / "base.pt"))
    checkpoint = torch.load(finished.out / "base.pt", weights_only=True)
    save_checkpoint(tmp_path / "half.pt", {**checkpoint, "training": {}})
    with pytest.raises(CheckpointError, match="was stopped: --resume its run first"):
        script.main(arguments(out, "--base", tmp_path / "half.pt"))
    assert files(out) == before


def test_a_run_is_not_resumed_with_another_base(finished, tmp_path, randomised):
    out = copy_of(finished, tmp_path / "run")
    checkpoint = torch.load(out / "base.pt", weights_only=True)
    weights = randomised(load_base(out / "base.pt")[0]).state_dict()
    save_checkpoint(tmp_path / "other.pt", {**checkpoint, "weights": weights})
    before = files(out)
    with pytest.raises(CheckpointError, match="has another base than .*other.pt: choose another --out"):
        script.main(arguments(out, "--resume", "--base", tmp_path / "other.pt"))
    assert files(out) == before


@pytest.mark.slow
def test_colours_take_the_same_path(tmp_path):
    script.main(arguments(tmp_path, "--dataset", "coloured-drawn"))
    metrics = read_json(tmp_path / "metrics.json")
    assert metrics["dataset"] == "coloured-drawn" and {"ink", "paper"} <= set(metrics["measured"]["real images"])
    assert load_base(tmp_path / "base.pt", image_shape=[3, 28, 28])


def test_cifar10_is_seen_in_the_mirror_too(monkeypatch, tmp_path):
    images, labels = torch.rand(60, 3, 32, 32) * 2 - 1, torch.arange(60) % 10
    monkeypatch.setattr(script, "load_dataset", lambda *args: (images, labels))
    monkeypatch.setattr(script, "captions", lambda *args: [data.THINGS[label] for label in labels])
    loaded = script.load(arguments(tmp_path, "--dataset", "cifar10"), torch.device("cpu"))
    assert torch.equal(loaded.images, torch.cat([images[:20], images[:20].flip(3)]))
    assert torch.equal(loaded.labels, labels[:20].repeat(2)) and torch.equal(loaded.prompts[:20], loaded.prompts[20:])
    assert torch.equal(loaded.val_images, images[20:])


# Stopped and resumed


def stop(*args, **settings):
    raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["train_control", pytest.param("measure", marks=pytest.mark.slow),
                                   pytest.param("write_json", marks=pytest.mark.slow)])
def test_a_run_that_was_stopped_goes_on_to_the_same_end(no_figures, monkeypatch, finished, tmp_path, stage):
    torch.manual_seed(99)  # which must not matter
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(script, stage, stop)
        script.main(arguments(tmp_path))
    script.main(arguments(tmp_path, "--resume"))
    metrics = read_json(tmp_path / "metrics.json")
    for name in set(metrics) - {"seconds", "date"}:
        assert metrics[name] == finished.metrics[name]
    for kind in ("base", "control"):
        one, other = (load_checkpoint(out / f"{kind}.pt", {"kind": kind}) for out in (tmp_path, finished.out))
        assert one["history"] == other["history"]
        assert all(torch.equal(one["weights"][name], weight) for name, weight in other["weights"].items())


@pytest.mark.parametrize("flags, sentence", [
    (["--seed", "1"], "seed 0 instead of 1"), (["--base-steps", "5"], "steps 4 instead of 5"),
    (["--dataset", "coloured-drawn"], "dataset drawn instead of coloured-drawn"),
    (["--control-steps", "6"], "control.pt was made with steps 3 instead of 6"),
    (["--condition", "mask"], "control.pt was made with condition canny instead of mask")])
def test_a_run_does_not_go_on_with_other_settings(finished, flags, sentence):
    before = files(finished.out)
    with pytest.raises(CheckpointError, match=sentence):
        script.main(arguments(finished.out, "--resume", *flags))
    assert files(finished.out) == before


@pytest.mark.parametrize("name", ["base.pt", "control.pt"])
def test_a_damaged_run_does_not_go_on_and_is_left_alone(finished, tmp_path, name):
    out = copy_of(finished, tmp_path)
    (out / name).write_bytes((out / name).read_bytes()[:-20])
    before = files(out)
    with pytest.raises(CheckpointError, match=f"{name} is damaged"):
        script.main(arguments(out, "--resume"))
    assert files(out) == before


def test_at_strength_zero_what_is_measured_with_control_is_the_base_and_else_it_is_not(finished, tmp_path, no_figures):
    measured = {}
    for scale in (0, 1):
        out = copy_of(finished, tmp_path / str(scale))
        script.main(arguments(out, "--resume", "--scale", scale))
        metrics = read_json(out / "metrics.json")
        measured[scale] = metrics["measured"]
        assert metrics["scale"] == scale
    for w in (1, 2):
        assert measured[0][f"with control, guidance {w}"] == measured[0][f"base, guidance {w}"]
    assert measured[1] == finished.metrics["measured"] != measured[0]


# Flags


def test_the_defaults_are_a_full_run_quick_is_a_short_one_and_flags_that_are_given_win():
    for flags, settings in (([], script.FULL), (["--quick"], script.QUICK), (["--dataset", "cifar10"], script.CIFAR10)):
        args, given = script.parse_arguments(flags), script.parse_arguments([*flags, "--base-steps", "7"])
        assert settings.items() <= vars(args).items()
        assert {**settings, "base_steps": 7}.items() <= vars(given).items()
        assert (args.out, args.data_dir, args.seed) == (Path("runs/mnist-edges"), Path("data"), 0)
    assert all(script.QUICK[name] <= script.FULL[name] for name in script.FULL)


@pytest.mark.parametrize("flags", [
    ["--dataset", "minst"], ["--device", "gpu"], ["--base-steps", "0"], ["--control-steps", "-3"],
    ["--batch-size", "ten"], ["--scale", "nan"], ["--seed", "9" * 20], ["--nonsense"],
    ["--out", "a", "--base", "a/base.pt"]])
def test_a_flag_that_makes_no_sense_is_refused_with_the_usage(capsys, flags):
    with pytest.raises(SystemExit) as refused:
        script.parse_arguments(flags)
    assert refused.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].count("error: ") == 1


# As a program


def run_as_program(monkeypatch, *flags):
    """Runs the file itself, which must end with one sentence and exit status 1. Returns the sentence."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--device", "cpu", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert isinstance(ended.value.code, str)  # which Python prints on stderr, with exit status 1
    return ended.value.code


def test_a_device_that_is_not_there_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    error = run_as_program(monkeypatch, "--device", "cuda", "--out", tmp_path / "run")
    assert error.startswith("error: there is no device 'cuda' here") and "\n" not in error
    assert not (tmp_path / "run").exists()


def test_damaged_data_are_refused(monkeypatch, tmp_path):
    (tmp_path / "mnist").mkdir()
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        (tmp_path / "mnist" / name).write_bytes(b"damaged")
    error = run_as_program(monkeypatch, "--dataset", "mnist", "--data-dir", tmp_path, "--out", tmp_path / "run")
    assert error.startswith("error: ") and "train-images-idx3-ubyte cannot be read" in error and "\n" not in error


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "load_dataset", stop)
    error = run_as_program(monkeypatch, "--dataset", "drawn", "--out", tmp_path / "run")
    assert error.endswith(f"the same command with --resume goes on with {tmp_path / 'run'}, if training had begun")


def test_missing_data_and_no_network_end_in_one_line(monkeypatch, capsys, tmp_path):
    nowhere = ("http://127.0.0.1:9/",), data.DOWNLOADS["fashion-mnist"][1]  # a port where nobody listens
    monkeypatch.setitem(data.DOWNLOADS, "fashion-mnist", nowhere)
    error = run_as_program(
        monkeypatch, "--dataset", "fashion-mnist", "--data-dir", tmp_path / "data", "--out", tmp_path / "run")
    assert error.startswith("error: could not download train-images") and "\n" not in error
    assert capsys.readouterr().out == "" and not any(path.is_file() for path in tmp_path.rglob("*"))


SMALL = f"""
import runpy, sys, torch
from pathlib import Path
import minicnet.data, minicnet.training, minicnet.unet
from minicnet.training import draw_batch
from minicnet.unet import UNet

precision, *sys.argv[1:] = sys.argv[1:]
torch.cpu.get_capabilities = lambda: {{"avx512_bf16": precision == "bf16"}}
torch.set_num_threads(1)
minicnet.data.DRAWN = {{"train": 5200, "test": 70}}
minicnet.unet.UNet = lambda in_channels: UNet(in_channels, channels=8, multipliers=(1,), patch=4)
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
    """small_program(precision, *flags, launcher=()): starts the file itself, with a toy's data and network."""
    (tmp_path / "small.py").write_text(SMALL)
    started = []

    def start(precision, *flags, launcher=()):
        command = [sys.executable, *launcher, str(tmp_path / "small.py"), precision, "--quick", "--dataset", "drawn",
                   "--device", "cpu", *map(str, flags)]
        environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parent), "PYTHONUNBUFFERED": "1"}
        started.append(subprocess.Popen(command, cwd=tmp_path, env=environment, text=True,
                                        stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return started[-1]

    yield start
    for program in started:
        program.kill()


@pytest.mark.slow
def test_two_processes_of_torchrun_make_the_run_that_one_makes(small_program, tmp_path, pytestconfig):
    precision = "bf16" if pytestconfig.getoption("--autocast") == "on" else "float32"
    flags = ["--base-steps", 3, "--control-steps", 3, "--batch-size", 8, "--measured", 9]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    together = small_program(precision, *flags, "--out", tmp_path / "together", launcher=launcher)
    printed, errors = together.communicate(timeout=300)
    assert together.returncode == 0, errors
    assert printed.count("measuring on 9 test images") == 1  # only the first speaks
    assert errors.count("control : 100%") in (1, 2)  # and shows a bar, whose end it may draw twice
    alone = small_program(precision, *flags, "--out", tmp_path / "alone")
    _, errors = alone.communicate(timeout=300)
    assert alone.returncode == 0, errors
    for kind in ("base", "control"):
        one, two = (load_checkpoint(tmp_path / name / f"{kind}.pt", {"kind": kind}) for name in ("alone", "together"))
        for a, b in zip(one["history"], two["history"], strict=True):
            assert b["heldout_loss"] == pytest.approx(a["heldout_loss"], rel=2e-3)
        a, b = (torch.cat([weight.flatten() for weight in run["weights"].values()]) for run in (one, two))
        assert F.cosine_similarity(a, b, dim=0) > 0.999
    assert sorted(path.name for path in (tmp_path / "together").iterdir()) == sorted(script.FILES)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="there is no SIGINT here")
def test_ctrl_c_leaves_a_run_that_goes_on(small_program, tmp_path):
    flags, steps, deadline = ["--base-steps", 100_000, "--out", tmp_path / "run"], [0], time.monotonic() + 300
    for resume in ([], ["--resume"]):
        program = small_program("float32", *flags, *resume)
        while not (tmp_path / "fifth batch").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        program.send_signal(signal.SIGINT)
        _, errors = program.communicate(timeout=300)
        assert program.returncode == 1 and "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("stopped: the same command with --resume goes on with")
        checkpoint = load_checkpoint(tmp_path / "run" / "base.pt", {"kind": "base"})
        assert "training" in checkpoint
        steps.append(checkpoint["step"])
        (tmp_path / "fifth batch").unlink()
    assert steps[1] >= 5 and steps[2] >= steps[1] + 5
