"""A batch shared out, between two cores and between two processes, against the same training on one."""

import copy
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from minicnet import parallel, training
from minicnet.checkpoints import fingerprint, load_checkpoint
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule
from minicnet.parallel import TrainingError, cores, rank_of, sum_over_ranks
from minicnet.training import draw_batch, pick_device, train, training_step
from minicnet.unet import UNet

CPU = torch.device("cpu")
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
STEPS = 6  # AdamW makes large steps even of gradients that are zero but for rounding: only losses can be compared
PATIENCE = 300  # s, on a machine that is busy with other things; ten seconds are usual


def networks():
    """A tiny base and its control, the same at every call, with the eps_model that trains each."""
    torch.manual_seed(0)
    unet = UNet(channels=8, multipliers=(1,))
    control_net = ControlNet(unet)
    for parameter in (*unet.parameters(), *control_net.parameters()):
        nn.init.normal_(parameter, std=0.1)
    locked = freeze(copy.deepcopy(unet))

    def control_eps(net, x_0, label):
        edges = (x_0 > 0).float()
        return lambda x_t, t: locked(x_t, t, label, control=net(x_t, t, label, edges))

    return {"base": (unet, lambda net, x_0, label: lambda x_t, t: net(x_t, t, label)),
            "control": (control_net, control_eps)}


def fit(kind, folder, evaluate=lambda net: {"heldout_loss": 0.0}, **changes):
    """Trains one of them for a few steps. Returns its losses, one for each step, and the network."""
    net, eps_model = networks()[kind]
    settings = dict(steps=STEPS, batch_size=6, learning_rate=1e-2, drop_labels=0.1, null_label=10, seed=0,
                    path=Path(folder) / f"{kind}.pt", about={"kind": kind}, evaluate=evaluate, evaluate_every=1)
    history, _ = train(net, changes.pop("eps_model", eps_model), NoiseSchedule.cosine(1000), IMAGES,
                       torch.arange(40) % 10, **{**settings, **changes})
    return torch.tensor([row["loss"] for row in history[1:]]), net


@pytest.fixture
def two_cores(one_core):
    torch.set_num_threads(2)  # which one_core takes back


# Two cores


@pytest.mark.parametrize("kind, batch_size", [("base", 6), ("control", 6), ("base", 7), ("base", 1)])
def test_two_cores_train_like_one(two_cores, tmp_path, kind, batch_size):
    losses, _ = fit(kind, tmp_path, batch_size=batch_size)
    torch.set_num_threads(1)
    torch.testing.assert_close(losses, fit(kind, tmp_path, batch_size=batch_size)[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["base", "control"])
@pytest.mark.parametrize("shares", [2, 3, 6])
def test_the_gradients_of_shares_add_up_to_that_of_the_batch(kind, shares):
    def gradient(shares):
        net, eps_model = networks()[kind]
        batch = draw_batch(0, 0, IMAGES, torch.arange(40) % 10, batch_size=7, null_label=10, drop_labels=0.1, T=1000)
        schedule, optimizer = NoiseSchedule.cosine(1000), torch.optim.SGD(net.parameters(), 0.0)
        loss = training_step(0, net, networks()[kind][0], optimizer, eps_model, schedule, batch, shares)
        return torch.cat([loss.view(1), *(p.grad.flatten() for p in net.parameters())])

    whole = gradient(1)
    assert whole[1:].norm() > 0.01  # of which rounding is but a small part
    torch.testing.assert_close(gradient(shares), whole, rtol=1e-4, atol=1e-6)


def test_two_cores_give_the_same_bits_every_time(two_cores, tmp_path):
    assert fingerprint(fit("control", tmp_path)[1]) == fingerprint(fit("control", tmp_path)[1])


def test_two_cores_take_half_a_batch_each_at_the_same_time(two_cores, tmp_path):
    met = threading.Barrier(2, timeout=30)
    sizes = []

    def eps_model(net, x_0, label):
        sizes.append((len(x_0), torch.get_num_threads()))
        met.wait()
        return lambda x_t, t: net(x_t, t, label)

    fit("base", tmp_path, eps_model=eps_model, steps=2)
    assert sizes == [(3, 1)] * 4


@pytest.mark.parametrize("threads, device, most, shares", [
    (2, "cpu", 6, 2), (1, "cpu", 6, 1), (4, "cpu", 6, 1), (2, "cpu", 1, 1), (2, "cuda", 6, 1), (2, "mps", 6, 1)])
def test_only_two_cores_share_and_only_a_batch_that_can_be_shared(two_cores, threads, device, most, shares):
    torch.set_num_threads(threads)
    with cores(torch.device(device), most) as (n, spread):
        assert n == shares and list(spread(abs, [-1, -2])) == [1, 2]


def test_threads_are_as_before_however_training_ends(two_cores):
    before = sys.getswitchinterval()
    with pytest.raises(ZeroDivisionError), cores(CPU, 6) as (_, spread):
        assert torch.get_num_threads() == 1
        list(spread(lambda x: 1 / x, [1, 0]))
    assert torch.get_num_threads() == 2 and sys.getswitchinterval() == before


def test_after_an_error_nothing_goes_on_in_the_other_thread(two_cores):
    ended = []

    def work(x):
        if x == 0:
            raise ZeroDivisionError
        time.sleep(0.3)
        ended.append(x)

    with pytest.raises(ZeroDivisionError), cores(CPU, 6) as (_, spread):
        list(spread(work, [0, 1, 2, 3, 4]))
    before = list(ended)
    time.sleep(0.5)
    assert ended == before and len(before) < 4  # what had not begun never did


# Two processes


def test_alone_there_is_one_process_and_nothing_to_sum():
    x = torch.ones(3)
    assert rank_of() == (0, 1) and sum_over_ranks(x) is x and torch.equal(x, torch.ones(3))


@pytest.mark.parametrize("rank, order", [(0, ["work", "wait"]), (1, ["wait", "work"])])
def test_the_others_wait_until_the_first_process_has_done_its_work(monkeypatch, rank, order):
    events = []
    monkeypatch.setattr(parallel, "rank_of", lambda: (rank, 2))
    monkeypatch.setattr(parallel, "sum_over_ranks", lambda vector: events.append("wait"))
    with parallel.first_goes_first(CPU) as first:
        events.append("work")
    assert events == order and first == (rank == 0)


def test_a_batch_that_is_too_small_for_its_processes_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(training, "rank_of", lambda: (0, 7))
    with pytest.raises(TrainingError, match="7 processes cannot share a batch of 6: use a larger --batch-size"):
        fit("base", tmp_path)


def test_each_process_gets_a_gpu_of_its_own_if_there_are_enough(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == torch.device("cuda", 1) and pick_device("cpu") == CPU
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(TrainingError, match="--nproc_per_node must not be larger than the number of GPUs, 2"):
        pick_device("cuda")


def test_processes_that_cannot_exchange_gradients_are_refused(monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert pick_device("mps") == torch.device("mps")
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises(TrainingError, match="from device mps: try --device cpu"):
        pick_device("mps")


def start(folder, what, *launcher):
    """This very file as a program, alone in its environment, in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return [sys.executable, *launcher, __file__, str(folder), what], environment


def two_processes(folder, what):
    """Starts them by hand: torchrun would end the second process as soon as the first has ended. Returns both."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = []
    for rank in ("0", "1"):
        command, environment = start(folder, what)
        environment |= {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
                        "MASTER_PORT": port}
        processes.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                          text=True))
    return processes


def test_two_processes_of_torchrun_train_like_one(tmp_path):
    command, environment = start(tmp_path, "train", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("base    : 100%") in (1, 2)  # one process shows its bar, and may draw its end twice
    assert json.loads((tmp_path / "evaluations.json").read_text()) == {"0": 2 * (STEPS + 1), "1": 0}
    for kind in ("base", "control"):
        alone = tmp_path / "alone"
        losses, _ = fit(kind, alone)
        together = load_checkpoint(tmp_path / f"{kind}.pt", {"kind": kind, "step": STEPS})
        shared = torch.tensor([row["loss"] for row in together["history"][1:]])
        torch.testing.assert_close(shared, losses, rtol=1e-4, atol=1e-5)


def ends(processes):
    """Waits for them all, and returns what each wrote on stderr."""
    try:
        return [process.communicate(timeout=PATIENCE)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()


def test_a_process_that_dies_ends_the_other_with_a_message(tmp_path):
    processes = two_processes(tmp_path, "die")
    errors = ends(processes)
    assert [process.returncode for process in processes] == [1, 7], errors
    assert errors[0].splitlines()[-1] == "error: another process of this run has ended, and so does this one"


def test_ctrl_c_saves_the_step_and_ends_both(tmp_path):
    processes = two_processes(tmp_path, "long")
    deadline = time.monotonic() + PATIENCE
    while not (tmp_path / "third step").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in reversed(processes):
        process.send_signal(signal.SIGINT)
    errors = ends(processes)
    assert processes[0].returncode == 3 and processes[1].returncode != 0, errors  # gloo may abort at the very end
    assert "another process" in errors[1]
    checkpoint = load_checkpoint(tmp_path / "base.pt", {"kind": "base"})
    assert 3 <= checkpoint["step"] < 100_000 and "training" in checkpoint


def program(folder, what):
    """What each of two processes does."""
    evaluations = []
    device = pick_device("cpu")
    with parallel.process_group(device):
        rank, ranks = rank_of()
        assert ranks == 2

        def evaluate(net):
            evaluations.append(net)
            return {"heldout_loss": 0.0}

        def watched(action):
            calls = []

            def eps_model(net, x_0, label):
                calls.append(len(x_0))
                action(len(calls))
                return lambda x_t, t: net(x_t, t, label)
            return eps_model

        if what == "train":
            fit("base", folder, evaluate)
            fit("control", folder, evaluate)
            counts = torch.zeros(2)
            counts[rank] = len(evaluations)
            sum_over_ranks(counts)
            if rank == 0:
                (folder / "evaluations.json").write_text(json.dumps({i: int(n) for i, n in enumerate(counts)}))
        elif what == "long":
            fit("base", folder, evaluate, steps=100_000, evaluate_every=100_000,
                eps_model=watched(lambda call: call == 3 and (folder / "third step").touch()))
        else:
            fit("base", folder, evaluate, eps_model=watched(
                lambda call: call == 4 and rank == 1 and os._exit(7)))


if __name__ == "__main__":
    torch.set_num_threads(1)
    try:
        program(Path(sys.argv[1]), sys.argv[2])
    except TrainingError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(3)
