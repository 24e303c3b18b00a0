"""The training loop on a network of ten numbers: its steps against a loop by hand, then stopped, resumed and broken."""

import contextlib
import math
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from minicnet import training
from minicnet.checkpoints import CheckpointError, fingerprint, load_checkpoint
from minicnet.controlnet import ControlNet, freeze
from minicnet.diffusion import NoiseSchedule, diffusion_loss
from minicnet.training import (
    TrainingError,
    autocast,
    draw_batch,
    frozen_convolutions_forget,
    learning_rate_at,
    pick_device,
    train,
)
from minicnet.unet import UNet

T = 1000
SCHEDULE = NoiseSchedule.cosine(T)
NULL = 10
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
LABELS = torch.arange(40) % 10
pytestmark = pytest.mark.usefixtures("one_core")


def tiny_net(scale=0.5):
    """A 3x3 convolution with weights that are the same at every call."""
    net = nn.Conv2d(1, 1, 3, padding=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=scale, generator=generator)
    return net


def size_of(net):
    """A measure that the last bit of every weight can change."""
    return {"heldout_loss": sum(p.double().square().sum() for p in net.parameters()).item()}


def ignore_label(net, x_0, label):
    return lambda x_t, t: net(x_t)


def fit(path, net=None, eps_model=ignore_label, **changes):
    """Trains for 25 steps, looking at the network after 10, 20 and 25. Returns the network, history and seconds."""
    net = tiny_net() if net is None else net
    settings = dict(steps=25, batch_size=4, learning_rate=1e-2, drop_labels=0.1, null_label=NULL, seed=0,
                    about={"kind": "base", "dataset": "drawn"}, evaluate=size_of, evaluate_every=10)
    return net, *train(net, eps_model, SCHEDULE, IMAGES, LABELS, path=path, **{**settings, **changes})


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def at_call(number, action, function=ignore_label):
    """`function`, but at its call of that number, counted from 1, `action()` comes first."""
    calls = []

    def wrapped(*args):
        calls.append(args)
        if len(calls) == number:
            action()
        return function(*args)

    wrapped.calls = calls
    return wrapped


@pytest.fixture
def undisturbed(tmp_path):
    """A finished training: its path, network and history."""
    net, history, _ = fit(tmp_path / "undisturbed.pt")
    return tmp_path / "undisturbed.pt", net, history


# Batches


def batch(step=0, seed=0, images=IMAGES, labels=LABELS, batch_size=16, drop_labels=0.1, T=T):
    return draw_batch(step, seed, images, labels, batch_size=batch_size, null_label=NULL, drop_labels=drop_labels, T=T)


def test_a_batch_depends_on_seed_and_step_alone():
    first = batch(step=7, seed=3)
    torch.manual_seed(99)
    batch(step=8, seed=3)
    for a, b in zip(first, batch(step=7, seed=3), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("other", [dict(step=8, seed=3), dict(step=7, seed=4), dict(step=6, seed=4)])
def test_another_step_or_seed_draws_other_images_labels_times_and_noise(other):
    for a, b in zip(batch(step=7, seed=3), batch(**other), strict=True):
        assert not torch.equal(a, b)


def test_drawing_a_batch_leaves_the_global_random_stream_alone():
    before = torch.get_rng_state()
    batch()
    assert torch.equal(torch.get_rng_state(), before)


def test_each_image_keeps_its_own_label_or_gets_the_null_label():
    images = (LABELS / 10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    for step in range(20):
        x_0, label, _, _ = batch(step, images=images, drop_labels=0.5)
        kept = label != NULL
        assert 0 < kept.sum() < 16
        assert torch.equal(x_0[kept, 0, 0, 0], label[kept] / 10)


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_that_share_of_the_labels_is_dropped(share):
    labels = torch.cat([batch(step, drop_labels=share)[1] for step in range(500)])
    assert (labels == NULL).float().mean().item() == pytest.approx(share, abs=0.02)


def test_every_image_is_drawn_as_often_as_any_other():
    images = torch.arange(40.0).view(-1, 1, 1, 1)
    counts = torch.cat([batch(step, images=images)[0] for step in range(500)]).flatten().long().bincount(minlength=40)
    assert counts.float().std() < 40 and counts.min() > 100  # 200 of each, with a standard deviation of 14


def test_times_grow_more_likely_in_proportion_to_t():
    t = torch.cat([batch(step)[2] for step in range(500)])
    assert t.dtype == torch.int64 and t.min() >= 0 and t.max() <= T - 1
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert (t < share * T).float().mean().item() == pytest.approx(share**2, abs=0.01)


def test_each_part_of_time_has_its_image_in_every_batch():
    for step in range(50):
        t = batch(step)[2].double()
        for i in range(16):
            assert T * math.sqrt(i / 16) - 1 <= t[i] <= T * math.sqrt((i + 1) / 16)


def test_the_first_and_the_last_timestep_are_drawn_too():
    t = torch.cat([batch(step, T=8)[2] for step in range(100)])
    assert sorted(t.unique().tolist()) == list(range(8))


def test_noise_is_normal_and_shaped_like_the_images():
    x_0, _, _, eps = batch(batch_size=200)
    assert eps.shape == x_0.shape == (200, 1, 8, 8)
    assert eps.mean().item() == pytest.approx(0, abs=0.03) and eps.std().item() == pytest.approx(1, abs=0.03)


# Learning rate, device, precision


def test_the_learning_rate_warms_up_for_100_steps_and_falls_along_half_a_cosine():
    rates = [learning_rate_at(step, 1000, 2.0) for step in range(1001)]
    assert rates[0] == pytest.approx(2 / 100) and rates[49] == pytest.approx(1, rel=0.01)
    assert max(range(1001), key=rates.__getitem__) == 99
    assert rates[500] == pytest.approx(1) and rates[250] == pytest.approx(1 + math.sqrt(0.5))
    assert rates[1000] == pytest.approx(0) and min(rates[:1000]) > 0


def test_a_short_training_warms_up_for_a_tenth_of_its_steps():
    rates = [learning_rate_at(step, 40, 1.0) for step in range(40)]
    assert rates[0] == pytest.approx(1 / 5) and max(range(40), key=rates.__getitem__) == 4
    assert learning_rate_at(0, 1, 1.0) == 1


@pytest.mark.parametrize("present, fastest", [("cuda mps", "cuda"), ("mps", "mps"), ("", "cpu")])
def test_auto_is_the_fastest_device_there_is(monkeypatch, present, fastest):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    assert pick_device("auto").type == fastest
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps", "tpu", ""])
def test_a_device_that_is_not_there_is_refused(monkeypatch, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=f"no device '{name}' here .* --device cpu"):
        pick_device(name)


@pytest.mark.parametrize("capabilities, dtype", [
    ({}, torch.float32), ({"avx512_bf16": False, "avx2": True}, torch.float32),
    ({"avx512_bf16": True}, torch.bfloat16), ({"amx_bf16": True}, torch.bfloat16)])
def test_a_cpu_computes_in_bf16_only_if_it_has_instructions_for_it(monkeypatch, capabilities, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    with autocast(torch.device("cpu")):
        assert tiny_net()(IMAGES).dtype == dtype


# The loop


def by_hand(scale, steps, learning_rate, seed=0, batch_size=4):
    """What `train` says it does, written again. Returns the averaged network, losses and lengths of gradients."""
    net, average = tiny_net(scale), tiny_net(scale)
    optimizer = torch.optim.AdamW(net.parameters(), betas=(0.9, 0.99), weight_decay=0.01, foreach=False)
    losses, norms = [], []
    for step in range(steps):
        x_0, _, t, eps = batch(step, seed, batch_size=batch_size)
        loss = (net(SCHEDULE.add_noise(x_0, eps, t)) - eps).square().mean()
        losses.append(loss.item())
        grads = torch.autograd.grad(loss, net.parameters())
        norm = torch.cat([grad.flatten() for grad in grads]).norm()
        norms.append(norm.item())
        for parameter, grad in zip(net.parameters(), grads):
            parameter.grad = grad / max(1, norm)
        warm_up, cosine = min(1, (step + 1) / (1 + steps // 10)), (1 + math.cos(math.pi * step / steps)) / 2
        optimizer.param_groups[0]["lr"] = learning_rate * warm_up * cosine
        optimizer.step()
        decay = (1 + step) / (10 + step)
        with torch.no_grad():
            for a, b in zip(average.parameters(), net.parameters()):
                a.copy_(decay * a + (1 - decay) * b)
    return average, losses, norms


def test_train_is_clipped_adamw_on_the_diffusion_loss_and_an_average_of_the_weights(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})  # float32 on every machine
    net, history, _ = fit(tmp_path / "base.pt", tiny_net(scale=0.3), learning_rate=3e-2)
    average, losses, norms = by_hand(0.3, 25, 3e-2)
    assert min(norms) < 0.9 and max(norms) > 1.5  # some are clipped, some are not
    for a, b in zip(net.parameters(), average.parameters()):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert [row["step"] for row in history] == [0, 10, 20, 25]
    assert "loss" not in history[0]
    for row, part in zip(history[1:], (losses[:10], losses[10:20], losses[20:])):
        assert row["loss"] == pytest.approx(sum(part) / len(part), rel=1e-4)
    assert history[0]["heldout_loss"] == size_of(tiny_net(scale=0.3))["heldout_loss"]
    assert history[-1]["heldout_loss"] == size_of(net)["heldout_loss"]


def test_the_average_remembers_about_200_steps_at_most(monkeypatch, tmp_path):
    assert 1 / (1 - training.EMA_DECAY) == pytest.approx(200)
    monkeypatch.setattr(training, "EMA_DECAY", 0.3)  # reached at step 3, not at step 1790
    raw, averages = [], []

    def eps_model(net, x_0, label):
        raw.append(net.weight.detach().clone())
        return lambda x_t, t: net(x_t)

    def evaluate(average):
        averages.append(average.weight.detach().clone())
        return size_of(average)

    fit(tmp_path / "base.pt", eps_model=eps_model, evaluate=evaluate, evaluate_every=1)
    assert torch.equal(averages[0], raw[0])
    for step in range(24):
        decay = min(0.3, (1 + step) / (10 + step))
        torch.testing.assert_close(averages[step + 1], decay * averages[step] + (1 - decay) * raw[step + 1])


def test_what_is_evaluated_and_what_is_left_are_in_eval_mode(tmp_path):
    modes = []
    net, _, _ = fit(tmp_path / "base.pt", evaluate=lambda net: modes.append(net.training) or size_of(net))
    assert modes == [False] * 4 and not net.training


def test_the_loss_of_a_small_problem_falls(tmp_path):
    black = torch.full_like(IMAGES, -1)
    net = nn.Conv2d(1, 1, 3, padding=1)
    rate = dict(steps=150, batch_size=16, learning_rate=5e-2, drop_labels=0, null_label=NULL, seed=0)
    history, seconds = train(net, ignore_label, SCHEDULE, black, LABELS, path=tmp_path / "base.pt",
                             about={"kind": "base"}, evaluate=size_of, evaluate_every=50, **rate)
    assert history[1]["loss"] > history[2]["loss"] > history[3]["loss"]
    assert history[3]["loss"] < 0.15 and seconds > 0


def test_the_loss_is_that_of_diffusion_py_also_where_the_network_answers_in_bf16(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    answers = []

    def loss(eps_model, *args):
        answers.append(eps_model(IMAGES[:4], torch.zeros(4, dtype=torch.int64)).dtype)
        return diffusion_loss(eps_model, *args)

    monkeypatch.setattr(training, "diffusion_loss", loss)
    net, history, _ = fit(tmp_path / "base.pt", steps=5)
    assert answers == [torch.bfloat16] * 5
    assert net.weight.dtype == torch.float32 and math.isfinite(history[-1]["loss"])


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_the_network_sees_that_share_of_null_labels(tmp_path, share):
    seen = []

    def eps_model(net, x_0, label):
        seen.append(label)
        return lambda x_t, t: net(x_t)

    fit(tmp_path / "base.pt", eps_model=eps_model, drop_labels=share, batch_size=80)
    assert (torch.cat(seen) == NULL).float().mean().item() == pytest.approx(share, abs=0.03)


def test_progress_shows_loss_heldout_loss_and_speed(tmp_path, capsys):
    fit(tmp_path / "base.pt")
    bar = capsys.readouterr().err.splitlines()[-1]
    for part in ("base", "25/25", "loss 0.", "held-out", "images/s"):
        assert part in bar


def test_training_a_control_changes_no_byte_of_the_base_and_every_part_of_the_control(randomised, tmp_path):
    unet = freeze(randomised(UNet(channels=8, multipliers=(1,)), std=0.1))
    before, control_net = fingerprint(unet), ControlNet(unet)
    fresh = {name: parameter.clone() for name, parameter in control_net.named_parameters()}
    edges = (IMAGES[:4] > 0).float()

    def eps_model(net, x_0, label):
        return lambda x_t, t: unet(x_t, t, label, control=net(x_t, t, label, edges))

    fit(tmp_path / "control.pt", control_net, eps_model, steps=6, about={"kind": "control"})
    assert fingerprint(unet) == before
    assert all(parameter.grad is None for parameter in unet.parameters())
    for name, parameter in control_net.named_parameters():
        assert not torch.equal(parameter, fresh[name]), name


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_what_frozen_convolutions_forget_changes_no_bit_of_a_gradient(randomised, precision):
    unet = freeze(randomised(UNet(channels=8, multipliers=(1,)), std=0.1))
    control_net = randomised(ControlNet(unet), std=0.1)
    x_0, label, t, eps = batch()

    def gradient():
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            control = control_net(x_0, t, label, (x_0 > 0).float())
            loss = diffusion_loss(lambda x_t, t: unet(x_t, t, label, control=control), SCHEDULE, x_0, t, eps)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, control_net.parameters())])

    forward, before = nn.Conv2d.forward, gradient()
    with pytest.raises(ZeroDivisionError), frozen_convolutions_forget():
        within = gradient()
        raise ZeroDivisionError
    assert nn.Conv2d.forward is forward  # whatever happens
    assert torch.equal(within, before) and within.norm() > 0


def test_a_frozen_convolution_keeps_its_weight_and_the_shape_of_its_input():
    frozen, x = tiny_net().requires_grad_(False), torch.randn(40, 1, 8, 8, requires_grad=True)
    with frozen_convolutions_forget():
        saved = frozen(x).grad_fn
    assert saved._saved_input.shape == x.shape and saved._saved_input.untyped_storage().nbytes() == 4
    assert torch.equal(saved._saved_weight, frozen.weight)


def test_the_average_drags_no_graph_along(tmp_path):
    graphs = []
    fit(tmp_path / "base.pt", evaluate=lambda net: graphs.append(net.weight.grad_fn) or size_of(net))
    assert graphs == [None] * 4  # or it grows with every step, and memory with it


def test_training_works_outside_the_main_thread(tmp_path):
    with ThreadPoolExecutor() as pool:
        _, history, _ = pool.submit(fit, tmp_path / "base.pt").result(60)
    assert history[-1]["step"] == 25


# Stopped and resumed


@pytest.mark.parametrize("where, call, stopped_after", [
    ("eps_model", 1, 1), ("eps_model", 14, 14), ("eps_model", 20, 20), ("evaluate", 2, 10), ("evaluate", 4, 25)])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path, undisturbed, where, call, stopped_after):
    _, net, history = undisturbed
    function = {"eps_model": ignore_label, "evaluate": size_of}[where]
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "base.pt", **{where: at_call(call, press_ctrl_c, function)})
    assert load_checkpoint(tmp_path / "base.pt", {"kind": "base"})["step"] == stopped_after
    resumed, resumed_history, _ = fit(tmp_path / "base.pt", resume=True)
    assert resumed_history == history
    assert fingerprint(resumed) == fingerprint(net)


def test_a_run_that_was_stopped_writes_the_same_bytes_as_one_that_was_not(tmp_path, undisturbed):
    path, _, _ = undisturbed
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "base.pt", eps_model=at_call(14, press_ctrl_c))
    fit(tmp_path / "base.pt", resume=True)
    assert (tmp_path / "base.pt").read_bytes() == path.read_bytes()


def test_a_stopped_run_saves_all_that_its_next_step_depends_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "base.pt", eps_model=at_call(14, press_ctrl_c))
    checkpoint = load_checkpoint(tmp_path / "base.pt", {"kind": "base", "dataset": "drawn", "steps": 25, "seed": 0})
    assert set(checkpoint["training"]) == {"weights", "optimizer", "losses", "seconds"}
    assert len(checkpoint["training"]["losses"]) == 4  # of steps 11 to 14, for the mean at step 20


def test_the_same_run_twice_writes_the_same_bytes(tmp_path, undisturbed):
    path, _, _ = undisturbed
    fit(tmp_path / "base.pt")
    assert (tmp_path / "base.pt").read_bytes() == path.read_bytes()


def test_a_run_stopped_twice_ends_like_one_that_was_not(tmp_path, undisturbed):
    _, net, history = undisturbed
    for steps in (3, 9):  # 3, and then 9 more
        with pytest.raises(KeyboardInterrupt):
            fit(tmp_path / "base.pt", eps_model=at_call(steps, press_ctrl_c), resume=True)
    resumed, resumed_history, _ = fit(tmp_path / "base.pt", resume=True)
    assert (resumed_history, fingerprint(resumed)) == (history, fingerprint(net))


def test_it_does_not_matter_when_in_a_step_ctrl_c_comes(tmp_path, monkeypatch, undisturbed):
    class Requests(list):
        """Is empty when it is looked at, until a certain look."""

        def __init__(self, look):
            self.looks_left = look

        def __bool__(self):
            self.looks_left -= 1
            return self.looks_left <= 0

    _, net, history = undisturbed
    for look in range(28, 44):  # the loop looks up to three times a step
        path = tmp_path / f"{look}.pt"
        with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
            patch.setattr(training, "deferred_interrupt", lambda look=look: contextlib.nullcontext(Requests(look)))
            fit(path)
        resumed, resumed_history, _ = fit(path, resume=True)
        assert (resumed_history, fingerprint(resumed)) == (history, fingerprint(net))


def test_a_resumed_run_takes_only_the_steps_that_are_left_and_adds_up_the_time(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(training.time, "perf_counter", lambda: now[0])

    def takes_a_second(net, x_0, label):
        now[0] += 1
        return ignore_label(net, x_0, label)

    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "base.pt", eps_model=at_call(14, press_ctrl_c, takes_a_second))
    now[0] = 500.0
    eps_model = at_call(None, None, takes_a_second)
    _, _, seconds = fit(tmp_path / "base.pt", eps_model=eps_model, resume=True)
    assert len(eps_model.calls) == 11
    assert seconds == 25


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    def twice():
        press_ctrl_c()
        press_ctrl_c()

    eps_model = at_call(14, twice)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "base.pt", eps_model=eps_model)
    assert len(eps_model.calls) == 14
    assert load_checkpoint(tmp_path / "base.pt", {"kind": "base"})["step"] == 10


@pytest.mark.parametrize("action, end", [
    (lambda: None, contextlib.nullcontext()),
    (press_ctrl_c, pytest.raises(KeyboardInterrupt)),
    (lambda: 1 / 0, pytest.raises(ZeroDivisionError))], ids=["well", "stopped", "broken"])
def test_ctrl_c_means_what_it_meant_before_however_training_ends(tmp_path, action, end):
    before = signal.getsignal(signal.SIGINT)
    with end:
        fit(tmp_path / "base.pt", eps_model=at_call(5, action))
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_what_is_finished_is_over_at_once_and_writes_nothing(tmp_path, undisturbed):
    path, net, history = undisturbed
    before = path.stat()
    eps_model, evaluate = at_call(None, None), at_call(None, None, size_of)
    resumed, resumed_history, seconds = fit(path, eps_model=eps_model, evaluate=evaluate, resume=True)
    assert not eps_model.calls and not evaluate.calls and seconds == 0
    assert (resumed_history, fingerprint(resumed)) == (history, fingerprint(net))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_resuming_where_there_is_nothing_starts_from_the_beginning(tmp_path, undisturbed):
    _, _, history = undisturbed
    assert fit(tmp_path / "base.pt", resume=True)[1] == history


def test_without_resume_an_old_file_is_not_looked_at(tmp_path, undisturbed):
    path, _, history = undisturbed
    path.write_bytes(b"old")
    assert fit(path)[1] == history


@pytest.mark.parametrize("changes, sentence", [
    (dict(seed=1), "seed 0 instead of 1"),
    (dict(batch_size=5), "batch_size 4 instead of 5"),
    (dict(steps=30), "steps 25 instead of 30"),
    (dict(about={"kind": "base", "dataset": "mnist"}), "dataset drawn instead of mnist"),
    (dict(seed=1, steps=30), "steps 25 instead of 30, seed 0 instead of 1"),
])
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_does_not_go_on_with_other_settings(tmp_path, changes, sentence, finished):
    path = tmp_path / "base.pt"
    if finished:
        fit(path)
    else:
        with pytest.raises(KeyboardInterrupt):
            fit(path, eps_model=at_call(14, press_ctrl_c))
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=sentence):
        fit(path, resume=True, **changes)
    assert path.read_bytes() == before


def test_a_damaged_checkpoint_is_refused_and_left_alone(tmp_path, undisturbed):
    path, _, _ = undisturbed
    path.write_bytes(path.read_bytes()[:-100])
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="undisturbed.pt is damaged"):
        fit(path, resume=True)
    assert path.read_bytes() == before


# A loss that is no number


def spoilt(step, value):
    """An eps_model whose loss is no finite number at that step, and at the ones before and after is."""
    calls = []

    def eps_model(net, x_0, label):
        calls.append(None)
        return lambda x_t, t: net(x_t) + (value if len(calls) == step else 0)

    return eps_model


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step, kept", [(1, 0), (3, 0), (11, 10), (14, 10), (20, 10), (21, 20), (25, 20)])
def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_last_good_weights(tmp_path, step, kept, value):
    path = tmp_path / "base.pt"
    with pytest.raises(TrainingError, match=rf"became (nan|inf) at step {step}; .*base\.pt keeps"):
        fit(path, eps_model=spoilt(step, value))
    checkpoint = load_checkpoint(path, {"kind": "base"})
    assert checkpoint["step"] == kept
    assert all(weight.isfinite().all() for weight in checkpoint["weights"].values())


@pytest.mark.parametrize("step", [
    3, 14, 25])
def test_a_run_goes_on_from_the_last_good_weights(tmp_path, undisturbed, step):
    _, net, history = undisturbed
    with pytest.raises(TrainingError):
        fit(tmp_path / "base.pt", eps_model=spoilt(step, math.nan))
    resumed, resumed_history, _ = fit(tmp_path / "base.pt", resume=True)
    assert (resumed_history, fingerprint(resumed)) == (history, fingerprint(net))


def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(tmp_path):
    calls = []

    def eps_model(net, x_0, label):  # at step 20, which ends with a checkpoint
        calls.append(None)
        return lambda x_t, t: net(x_t) + ((0 * net.bias).sqrt() if len(calls) == 20 else 0)

    with pytest.raises(TrainingError):
        fit(tmp_path / "base.pt", eps_model=eps_model)
    weights = load_checkpoint(tmp_path / "base.pt", {"kind": "base"})["weights"]
    assert all(weight.isfinite().all() for weight in weights.values())
