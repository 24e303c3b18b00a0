"""Runs that are killed at any moment, on disks that are full: they lose little, and end as if nothing had happened.

Each run is a process of its own, which trains a tiny base and its control as train_mnist_edges.py does.
"""

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from minicnet.checkpoints import CheckpointError, fingerprint, load_checkpoint
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.runs import open_run
from minicnet.training import fit
from minicnet.unet import UNet
from minicnet.words import training_prompts

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL here")
PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo"])  # imported once for all processes
FILES = ("base.pt", "control.pt")
STEPS = 6


def train_base_and_control(out, resume=False):
    """Both stages, in float32 on one core, with a checkpoint after every second step."""
    torch.cpu.get_capabilities = dict
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    prompts, schedule = training_prompts(["a thick seven"] * 20), NoiseSchedule.cosine(100)
    unet = UNet(channels=8, multipliers=(1,), patch=4)
    settings = dict(steps=STEPS, batch_size=2, seed=0, looks=3, resume=resume)

    def size_of(net):
        return {"size": sum(p.double().square().sum() for p in net.parameters()).item()}

    open_run(out, FILES, resume and (out / "base.pt").exists())
    fit(unet, lambda net, x_0, prompt: lambda x_t, t: net(x_t, t, prompt), schedule, images, prompts, drop_prompts=0.1,
        path=out / "base.pt", about={"kind": "base"}, look=size_of, **settings)
    freeze(unet)

    def control_eps(net, x_0, prompt):
        eps = controlled(unet, [(net, (x_0 > 0).float(), 1)])
        return lambda x_t, t: eps(x_t, t, prompt)

    fit(ControlNet(unet), control_eps, schedule, images, prompts, drop_prompts=0.5, path=out / "control.pt",
        about={"kind": "control", "base": fingerprint(unet)}, look=size_of, **settings)


def killing(function, number, after=False):
    """`function`, but at its call of that number the process is killed: before it, or after."""
    calls = []

    def wrapped(*args):
        calls.append(args)
        if len(calls) == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = function(*args)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped


def run(out, connection, kill_at=None):
    """The process. kill_at: a function of `os`, the number of the call at which to be killed, and whether after it."""
    if kill_at:
        name, number, after = kill_at
        setattr(os, name, killing(getattr(os, name), number, after))
    connection.send("starts")
    train_base_and_control(out, resume=True)


def start(out, kill_at=None):
    mine, its = PROCESSES.Pipe()
    process = PROCESSES.Process(target=run, args=[out, its, kill_at])
    process.start()
    assert mine.recv() == "starts"
    return process


def finish(out):
    process = start(out)
    process.join()
    assert process.exitcode == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(FILES)


def contents(out):
    """The histories and the tensors of a finished run: a time and the mean loss since a restart may differ."""
    found = {}
    for name in FILES:
        checkpoint = load_checkpoint(out / name, {"kind": name[:-3], "step": STEPS})
        found[name] = [(row["step"], row["size"]) for row in checkpoint["history"]], [
            weight.tolist() for weight in checkpoint["weights"].values()]
    return found


def steps_done(out):
    """The steps in the checkpoints that there are, each of which must be whole."""
    return [load_checkpoint(out / name, {"kind": name[:-3]})["step"] for name in FILES if (out / name).exists()]


class Undisturbed:
    """A run that nothing happened to: its contents, and how long it took."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Undisturbed()
    out = tmp_path_factory.mktemp("undisturbed")
    begin = time.perf_counter()
    finish(out)
    run.seconds = time.perf_counter() - begin
    run.contents = contents(out)
    return run


# Killed


@pytest.mark.parametrize("name, number, after, steps", [
    ("replace", 5, False, [6, 2]),  # the checkpoint is in its file, and the file not in its place
    *(pytest.param(*case, marks=pytest.mark.slow) for case in [
        ("fsync", 1, False, []),  # the first checkpoint is written, but may be in no file yet
        ("replace", 1, True, [2]),
        ("replace", 3, True, [6])])])  # the base is finished, and its control not begun
def test_a_run_killed_while_it_writes_a_checkpoint_ends_like_one_that_was_not(
        tmp_path, undisturbed, name, number, after, steps):
    process = start(tmp_path, (name, number, after))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert steps_done(tmp_path) == steps
    finish(tmp_path)
    assert contents(tmp_path) == undisturbed.contents


@pytest.mark.slow
def test_a_run_killed_at_random_moments_ends_like_one_that_was_not(tmp_path, undisturbed):
    draw, done = random.Random(0), []
    for _ in range(3):
        process = start(tmp_path)
        time.sleep(draw.uniform(0, 0.8) * undisturbed.seconds)
        process.kill()
        process.join()
        done.append(steps_done(tmp_path))
    finish(tmp_path)
    assert contents(tmp_path) == undisturbed.contents
    assert sorted(done) == done  # each went on where the one before was


# Full disks


def test_a_run_that_fills_a_disk_keeps_its_last_checkpoint_and_goes_on(tmp_path, undisturbed, monkeypatch):
    def refuse(descriptor):
        calls.append(descriptor)
        if len(calls) == 2:
            raise OSError(28, os.strerror(28))

    calls, threads = [], torch.get_num_threads()
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)  # which is taken back afterwards
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", refuse)
            with pytest.raises(CheckpointError, match="cannot write .*base.pt: No space left on device; the one writ"):
                train_base_and_control(tmp_path)
        assert steps_done(tmp_path) == [2] and [path.name for path in tmp_path.iterdir()] == ["base.pt"]
        train_base_and_control(tmp_path, resume=True)
    finally:
        torch.set_num_threads(threads)
    assert contents(tmp_path) == undisturbed.contents


# A reader who leaves


@pytest.mark.slow
def test_a_reader_who_leaves_ends_the_program_without_a_traceback():
    code = "from minicnet import cli; cli.run(lambda: print('x' * 1_000_000, flush=True))"
    program = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    program.stdout.close()  # as `| head` does
    errors = program.stderr.read()
    assert program.wait(timeout=120) == 1 and errors == ""
