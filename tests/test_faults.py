"""Runs that are killed at any moment, on disks that are full: they lose little, and end as if nothing had happened.

Each run is a process of its own, which trains a tiny base and its control as train_mnist_edges.py does.
"""

import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from minicnet.checkpoints import CheckpointError, fingerprint, load_checkpoint, open_run
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.training import train
from minicnet.unet import UNet

pytestmark = pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL here")
PROCESSES = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
PROCESSES.set_forkserver_preload(["torch", "torch._dynamo"])  # imported once for all processes
FILES = ("base.pt", "control.pt")
STEPS = 12


def train_base_and_control(out, resume=False):
    """Both stages, with a checkpoint after every second step."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    images, labels = torch.rand(20, 1, 8, 8, generator=generator) * 2 - 1, torch.arange(20) % 10
    schedule = NoiseSchedule.cosine(100)
    unet = UNet(channels=8, multipliers=(1,), patch=4)
    settings = dict(steps=STEPS, batch_size=2, learning_rate=1e-2, null_label=10, seed=0, evaluate_every=2,
                    resume=resume)

    def size_of(net):
        return {"heldout_loss": sum(p.double().square().sum() for p in net.parameters()).item()}

    open_run(out, FILES, resume and (out / "base.pt").exists())
    train(unet, lambda net, x_0, label: lambda x_t, t: net(x_t, t, label), schedule, images, labels, drop_labels=0.1,
          path=out / "base.pt", about={"kind": "base"}, evaluate=size_of, **settings)
    freeze(unet)

    def control_eps(net, x_0, label):
        return lambda x_t, t: unet(x_t, t, label, control=net(x_t, t, label, (x_0 > 0).float()))

    train(ControlNet(unet), control_eps, schedule, images, labels, drop_labels=0.5, path=out / "control.pt",
          about={"kind": "control", "base": fingerprint(unet)}, evaluate=size_of, **settings)


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


def run(out, connection, resume, kill_at=None):
    """The process. kill_at: a function of `os`, the number of the call at which to be killed, and whether after it."""
    if kill_at:
        name, number, after = kill_at
        setattr(os, name, killing(getattr(os, name), number, after))
    connection.send("starts")
    start = time.perf_counter()
    train_base_and_control(out, resume)
    connection.send(time.perf_counter() - start)


def start(*args):
    mine, its = PROCESSES.Pipe()
    process = PROCESSES.Process(target=run, args=[args[0], its, *args[1:]])
    process.start()
    assert mine.recv() == "starts"
    return process, mine


def finish(out, resume):
    """Runs to the end. Returns the seconds that it took."""
    process, connection = start(out, resume)
    process.join()
    assert process.exitcode == 0
    return connection.recv()


def contents(out):
    return {name: (out / name).read_bytes() for name in FILES if (out / name).exists()}


def steps_done(out):
    """The steps in the checkpoints that there are, each of which must be whole."""
    return [load_checkpoint(out / name, {"kind": name[:-3]})["step"] for name in FILES if (out / name).exists()]


class Undisturbed:
    """A run that nothing happened to: its files and how long it took."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    run = Undisturbed()
    out = tmp_path_factory.mktemp("undisturbed")
    run.seconds = finish(out, resume=False)
    run.contents = contents(out)
    assert set(run.contents) == set(FILES) and steps_done(out) == [STEPS, STEPS]
    return run


# Killed


def test_a_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, undisturbed):
    draw, done = random.Random(0), []
    for _ in range(5):
        process, _ = start(tmp_path, True)
        time.sleep(draw.uniform(0, 0.7) * undisturbed.seconds)
        process.kill()
        process.join()
        done.append(steps_done(tmp_path))
    finish(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed.contents
    assert sorted(done) == done and len({str(steps) for steps in done}) > 1  # each went on where the one before was


@pytest.mark.parametrize("name, number, after, steps", [
    ("fsync", 1, False, []),  # the first checkpoint is written, but may be in no file yet
    ("replace", 1, False, []),  # it is in its file, and the file not in its place
    ("replace", 1, True, [0]),
    ("replace", 4, False, [4]), ("replace", 7, True, [12]), ("fsync", 9, False, [12, 0]),
    ("replace", 14, False, [12, 10])])
def test_a_run_killed_while_it_writes_a_checkpoint_ends_with_the_same_bytes(
        tmp_path, undisturbed, name, number, after, steps):
    process, _ = start(tmp_path, False, (name, number, after))
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert steps_done(tmp_path) == steps
    finish(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed.contents
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)


def test_a_run_killed_again_and_again_while_it_writes_still_comes_to_its_end(tmp_path, undisturbed):
    for _ in range(3):
        process, _ = start(tmp_path, True, ("replace", 5, False))  # each gets four checkpoints further
        process.join()
        assert process.exitcode == -signal.SIGKILL
    assert steps_done(tmp_path)[0] == STEPS and len(steps_done(tmp_path)) == 2
    finish(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed.contents


# Full disks


def test_a_run_that_fills_a_disk_keeps_its_last_checkpoint_and_goes_on_elsewhere(tmp_path, undisturbed, monkeypatch,
                                                                                one_core):
    """The limit on the size of a file is met by the first checkpoint that holds an optimizer's state."""
    def refuse(descriptor):
        if sizes and os.fstat(descriptor).st_size > sizes[0]:
            raise OSError(28, os.strerror(28))
        sizes.append(os.fstat(descriptor).st_size)

    sizes = []
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(CheckpointError, match="cannot write .*base.pt: No space left on device; the one written"):
        train_base_and_control(tmp_path)
    assert steps_done(tmp_path) == [0] and [path.name for path in tmp_path.iterdir()] == ["base.pt"]
    monkeypatch.undo()
    train_base_and_control(tmp_path, resume=True)
    assert contents(tmp_path) == undisturbed.contents


FULL_DISK = """
import sys
from pathlib import Path
import torch
from minicnet.checkpoints import CheckpointError, load_checkpoint, save_checkpoint
path = Path(sys.argv[1]) / "base.pt"
save_checkpoint(path, {"kind": "base", "weights": torch.zeros(20_000)})
try:
    save_checkpoint(path, {"kind": "base", "weights": torch.ones(40_000)})
except CheckpointError as error:
    print(error)
print(load_checkpoint(path, {"kind": "base"})["weights"].shape, [path.name for path in path.parent.iterdir()])
"""


def test_a_disk_that_is_really_full_keeps_the_last_checkpoint(tmp_path):
    """A disk in memory of 200 kB, which an unprivileged user may mount on some systems."""
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=200k disk "$0" && exec "$@"']
    if not shutil.which("unshare") or subprocess.run([*mount, tmp_path, "true"], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    done = subprocess.run([*mount, tmp_path, sys.executable, "-c", FULL_DISK, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    error, rest = done.stdout.splitlines()
    assert error.startswith(f"cannot write {tmp_path}/base.pt: No space left on device; the one written before is kept")
    assert rest == "torch.Size([20000]) ['base.pt']"
