"""Training on a network of ten numbers: its steps against a loop by hand, then stopped, resumed and broken."""

import contextlib
import io
import math
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import distributed, nn

from minicnet import training
from minicnet.checkpoints import CheckpointError, fingerprint, load_checkpoint
from minicnet.controlnet import ControlNet, controlled, freeze
from minicnet.devices import TrainingError, autocast, pick_device
from minicnet.diffusion import NoiseSchedule
from minicnet.muon import Muon
from minicnet.training import SAY_LESS, draw_batch, fit, rate_at, train
from minicnet.unet import UNet
from minicnet.words import LENGTH, tokenize, training_prompts

T = 1000
SCHEDULE = NoiseSchedule.cosine(T)
IMAGES = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
PROMPTS = training_prompts([f"a thick {'one' if i % 2 else 'seven'} leaning left" for i in range(40)])  # (40, 16, L)
SETTINGS = dict(steps=25, batch_size=4, drop_prompts=0.1, seed=0)


def tiny_net(scale=0.2):
    """A 3x3 convolution with weights that are the same at every call."""
    net = nn.Conv2d(1, 1, 3, padding=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=scale, generator=generator)
    return net


def ignore_prompt(net, x_0, prompt):
    return lambda x_t, t: net(x_t)


def size_of(net):
    """A measure that the last bit of every weight can change."""
    return {"size": sum(p.double().square().sum() for p in net.parameters()).item()}


def batch(step=0, seed=0, images=IMAGES, prompts=PROMPTS, batch_size=16, drop_prompts=0.1, T=T):
    return draw_batch(step, seed, images, prompts, batch_size=batch_size, drop_prompts=drop_prompts, T=T)


@pytest.fixture
def float32(monkeypatch):
    """As on a CPU without instructions for bf16."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


# Batches


@pytest.mark.parametrize("t_power", [0.5, 1])
def test_timesteps_are_spread_as_their_power_says(t_power):
    *_, t, _ = draw_batch(0, 0, IMAGES, PROMPTS, batch_size=1000, drop_prompts=0, T=T, t_power=t_power)
    assert t.float().mean() == pytest.approx(T / (1 + t_power), rel=0.01)  # of T u^p, u uniform


def test_a_batch_depends_on_seed_and_step_alone():
    first, stream = batch(step=7, seed=3), torch.get_rng_state()
    batch(step=8, seed=3)
    for a, b in zip(first, batch(step=7, seed=3), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(torch.get_rng_state(), stream)


@pytest.mark.parametrize("other", [dict(step=8, seed=3), dict(step=7, seed=4), dict(step=6, seed=4)])
def test_another_step_or_seed_draws_another_batch(other):
    for a, b in zip(batch(step=7, seed=3), batch(**other), strict=True):
        assert not torch.equal(a, b)


def test_each_image_keeps_its_own_prompt_or_gets_the_null_prompt():
    labels = torch.arange(40) % 10 + 1
    images = (labels / 10).view(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    prompts = labels.view(-1, 1, 1).repeat(1, 4, LENGTH)
    for step in range(20):
        x_0, prompt, _, _ = batch(step, images=images, prompts=prompts, drop_prompts=0.5)
        kept = prompt.any(1)
        assert 0 < kept.sum() < 16
        assert torch.equal(x_0[kept, 0, 0, 0], prompt[kept, 3] / 10)
        assert torch.equal(prompt[~kept], tokenize([""] * int((~kept).sum())))


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 1])
def test_that_share_of_the_prompts_is_dropped(share):
    prompts = torch.cat([batch(step, drop_prompts=share)[1] for step in range(500)])
    assert (prompts == 0).all(1).float().mean().item() == pytest.approx(share, abs=0.02)


def test_a_fifth_of_the_prompts_may_say_less_each_way_as_often_as_any_other():
    assert SAY_LESS == 0.2
    ways = torch.arange(8).view(1, 8, 1).expand(40, 8, LENGTH)
    counts = torch.cat([batch(step, prompts=ways, drop_prompts=0)[1][:, 0] for step in range(1000)]).bincount() / 16_000
    assert counts[0].item() == pytest.approx(1 - SAY_LESS * 7 / 8, abs=0.01)  # the whole caption is one of the ways
    assert counts[1:].tolist() == pytest.approx([SAY_LESS / 8] * 7, abs=0.005)


def test_every_image_is_drawn_as_often_as_any_other():
    images = torch.arange(40.0).view(-1, 1, 1, 1)
    counts = torch.cat([batch(step, images=images)[0] for step in range(500)]).flatten().long().bincount(minlength=40)
    assert counts.float().std() < 40 and counts.min() > 100  # 200 of each, with a standard deviation of 14


def test_times_grow_more_likely_in_proportion_to_t():
    t = torch.cat([batch(step)[2] for step in range(500)])
    assert t.dtype == torch.int64
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert (t < share * T).float().mean().item() == pytest.approx(share**2, abs=0.01)


def test_each_part_of_time_has_its_image_in_every_batch():
    for step in range(50):
        for i, t in enumerate(batch(step)[2].tolist()):
            assert T * math.sqrt(i / 16) - 1 <= t <= T * math.sqrt((i + 1) / 16)


def test_the_first_and_the_last_timestep_are_drawn_too():
    t = torch.cat([batch(step, T=8)[2] for step in range(100)])
    assert sorted(t.unique().tolist()) == list(range(8))


def test_noise_is_normal_and_shaped_like_the_images():
    x_0, _, _, eps = batch(batch_size=200)
    assert eps.shape == x_0.shape == (200, 1, 8, 8)
    assert eps.mean().item() == pytest.approx(0, abs=0.03) and eps.std().item() == pytest.approx(1, abs=0.03)


# Learning rate, device, precision


@pytest.mark.parametrize("steps, warm_up", [(1000, 50), (40, 5), (1, 1)])
def test_the_learning_rate_warms_up_and_falls_in_a_straight_line(steps, warm_up):
    rates = [rate_at(step, steps) for step in range(steps + 1)]
    assert rates[0] == pytest.approx(1 / warm_up) and rates[-1] == 0
    assert max(range(steps), key=rates.__getitem__) == warm_up - 1
    for step in range(warm_up, steps):
        assert rates[step] == pytest.approx(1 - step / steps)


@pytest.mark.parametrize("present, fastest", [("cuda mps", "cuda"), ("mps", "mps"), ("", "cpu")])
def test_auto_is_the_fastest_device_there_is(monkeypatch, present, fastest):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in present)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in present)
    assert pick_device("auto").type == fastest and pick_device("cpu").type == "cpu"
    if "cuda" in present:  # each process gets a GPU of its own
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert pick_device("cuda") == torch.device("cuda", 1)
        monkeypatch.setenv("LOCAL_RANK", "2")
        with pytest.raises(TrainingError, match="--nproc_per_node must be at most the number of GPUs, 2"):
            pick_device("cuda")


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
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    with autocast(torch.device("cpu")):
        assert tiny_net()(IMAGES).dtype == dtype


@pytest.mark.parametrize("capabilities", [{}, {"avx512_bf16": True}])
def test_weights_averages_and_losses_are_float32_in_either_precision(monkeypatch, capabilities):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    net = tiny_net()
    for _, loss, average, _ in train(net, ignore_prompt, SCHEDULE, IMAGES, PROMPTS, **{**SETTINGS, "steps": 3}):
        assert {loss.dtype, net.weight.dtype, average.weight.dtype} == {torch.float32} and loss.isfinite()


# The loop


@pytest.mark.parametrize("times", [1, 0.3])
def test_train_is_clipped_muon_and_adamw_on_the_diffusion_loss_and_an_average_of_the_weights(float32, times):
    """Against what it says that it does, written again."""
    net, expected, averaged, norms = tiny_net(), tiny_net(), tiny_net(), []
    muon = Muon([expected.weight], lr=0)
    adamw = torch.optim.AdamW([expected.bias], betas=(0.9, 0.99), weight_decay=0.01)
    weight = (1 / SCHEDULE.alpha_bar.sqrt()).clamp(max=training.LOUDEST)

    def half(net, x_0, prompt):  # of whose gradients some are clipped, some are not
        return lambda x_t, t: 0.5 * net(x_t)

    for step, loss, average, _ in train(net, half, SCHEDULE, IMAGES, PROMPTS, **SETTINGS, rate=times):
        x_0, _, t, eps = batch(step - 1, batch_size=4)
        errors = (0.5 * expected(SCHEDULE.add_noise(x_0, eps, t)) - eps).square()
        expected_loss = (errors * (weight / weight.mean())[t].view(-1, 1, 1, 1)).mean()
        grads = torch.autograd.grad(expected_loss, expected.parameters())
        norms.append(torch.cat([grad.flatten() for grad in grads]).norm().item())
        for parameter, grad in zip(expected.parameters(), grads):
            parameter.grad = grad / max(1, norms[-1])
        rate = min(1, step / 3) * (26 - step) / 25  # up to a tenth of the steps, then down
        for optimizer, most in ((muon, training.MUON_RATE), (adamw, training.ADAM_RATE)):
            optimizer.param_groups[0]["lr"] = times * most * rate
            optimizer.step()
        with torch.no_grad():
            for a, p in zip(averaged.parameters(), expected.parameters()):
                a.lerp_(p, 1 - step / (step + 9))
        assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-4)
        for found, wanted in ((net, expected), (average, averaged)):
            for a, b in zip(found.parameters(), wanted.parameters()):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert step == 25 and min(norms) < 0.9 and max(norms) > 1.2


def test_the_average_remembers_no_more_steps_than_it_should(monkeypatch):
    assert 1 / (1 - training.EMA_DECAY) == pytest.approx(200)
    monkeypatch.setattr(training, "EMA_DECAY", 0.3)  # reached at step 3, not at step 1790
    net = tiny_net()
    expected = net.weight.detach().clone()
    for step, _, average, _ in train(net, ignore_prompt, SCHEDULE, IMAGES, PROMPTS, **SETTINGS):
        expected = expected.lerp(net.weight.detach(), 1 - min(0.3, step / (step + 9)))
        torch.testing.assert_close(average.weight, expected)
        assert average.weight.grad_fn is None and not average.training and net.training


def test_matrices_inside_are_muons_and_all_else_is_adamws():
    unet = UNet(channels=8, multipliers=(1,))
    muon, adamw = training.make_optimizers(unet)
    theirs = [{id(p) for group in optimizer.param_groups for p in group["params"]} for optimizer in (muon, adamw)]
    assert theirs[0] | theirs[1] == {id(p) for p in unet.parameters()} and not theirs[0] & theirs[1]
    rim = {unet.encoder.conv_in, unet.decoder.conv_out, unet.share, unet.encoder.text.tokens, unet.encoder.text.places}
    for module in unet.modules():
        for parameter in module.parameters(recurse=False):
            assert (id(parameter) in theirs[0]) == (parameter.ndim > 1 and module not in rim)


def test_the_loss_of_a_small_problem_falls():
    black = torch.full_like(IMAGES, -1)
    settings = dict(steps=150, batch_size=16, drop_prompts=0, seed=0)
    losses = torch.stack([loss for _, loss, _, _ in train(tiny_net(), ignore_prompt, SCHEDULE, black, PROMPTS,
                                                          **settings)])
    first, second, third = losses.view(3, 50).mean(1)
    assert first > second > third and third < 0.3 * losses[0]


# A base and its control, as they are trained


@pytest.fixture
def networks(randomised):
    """networks(kind): a tiny base, or a control of one, the same at every call, and the eps_model that trains it."""
    unet = freeze(randomised(UNet(channels=8, multipliers=(1,), patch=4), std=0.1))

    def control_eps(net, x_0, prompt):
        eps = controlled(unet, [(net, (x_0 > 0).float(), 1)])
        return lambda x_t, t: eps(x_t, t, prompt)

    def make(kind):
        if kind == "control":
            return randomised(ControlNet(unet), std=0.1), control_eps
        net = randomised(UNet(channels=8, multipliers=(1,), patch=4), std=0.1)
        return net, lambda net, x_0, prompt: lambda x_t, t: net(x_t, t, prompt)

    make.locked = unet
    return make


def test_training_a_control_changes_no_byte_of_the_base_and_every_part_of_the_control(networks):
    _, eps_model = networks("control")
    control_net, before = ControlNet(networks.locked), fingerprint(networks.locked)
    fresh = {name: parameter.clone() for name, parameter in control_net.named_parameters()}
    for _ in train(control_net, eps_model, SCHEDULE, IMAGES, PROMPTS, **{**SETTINGS, "steps": 5}):
        pass
    assert fingerprint(networks.locked) == before
    assert all(parameter.grad is None for parameter in networks.locked.parameters())
    for name, parameter in control_net.named_parameters():
        assert not torch.equal(parameter, fresh[name]), name


@pytest.mark.parametrize("kind", ["base", "control"])
def test_training_that_goes_on_from_a_snapshot_ends_with_the_same_tensors(networks, kind):
    net, eps_model = networks(kind)
    settings = {**SETTINGS, "steps": 6, "drop_prompts": 0.5}
    file, averages = io.BytesIO(), {}
    for step, _, average, take_snapshot in train(net, eps_model, SCHEDULE, IMAGES, PROMPTS, **settings):
        averages[step] = fingerprint(average)
        if step == 3:
            torch.save(take_snapshot(), file)
    file.seek(0)
    resumed, snapshot, resumed_averages = networks(kind)[0], torch.load(file, weights_only=True), {}
    for step, _, average, _ in train(resumed, eps_model, SCHEDULE, IMAGES, PROMPTS, snapshot=snapshot, **settings):
        resumed_averages[step] = fingerprint(average)
    assert fingerprint(resumed) == fingerprint(net) != fingerprint(networks(kind)[0])
    assert resumed_averages == {step: averages[step] for step in (4, 5, 6)}


# fit: looks, files, stopping


def fitted(path, eps_model=ignore_prompt, look=size_of, **changes):
    """Trains for 25 steps, looking at the network after 10, 20 and 25. Returns the network, history and seconds."""
    net = tiny_net()
    settings = dict(path=path, about={"kind": "base", "dataset": "drawn"}, look=look, looks=2.5, **SETTINGS)
    return net, *fit(net, eps_model, SCHEDULE, IMAGES, PROMPTS, **{**settings, **changes})


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def at_call(number, action, function=ignore_prompt):
    """`function`, but at its call of that number, counted from 1, `action()` comes first."""
    calls = []

    def wrapped(*args):
        calls.append(args)
        if len(calls) == number:
            action()
        return function(*args)

    wrapped.calls = calls
    return wrapped


def without_losses(history):
    """A loss is a mean since the last look, or since the run was resumed."""
    return [{name: value for name, value in row.items() if name != "loss"} for row in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished training: its path, network and history."""
    path = tmp_path_factory.mktemp("undisturbed") / "base.pt"
    net, history, _ = fitted(path)
    return path, net, history


def test_history_has_the_mean_loss_since_the_last_look_and_what_was_seen_of_the_average(tmp_path):
    looked = []
    net, history, seconds = fitted(tmp_path / "base.pt", look=lambda net: looked.append(net.training) or size_of(net))
    losses, sizes = [], {0: size_of(tiny_net())}
    for step, loss, average, _ in train(tiny_net(), ignore_prompt, SCHEDULE, IMAGES, PROMPTS, **SETTINGS):
        losses.append(loss.item())
        sizes[step] = size_of(average)
    assert [row["step"] for row in history] == [0, 10, 20, 25]
    assert without_losses(history) == [{"step": step, **sizes[step]} for step in (0, 10, 20, 25)]
    for row, part in zip(history[1:], (losses[:10], losses[10:20], losses[20:])):
        assert row["loss"] == pytest.approx(sum(part) / len(part), rel=1e-5)
    assert looked == [False] * 4 and not net.training and size_of(net) == sizes[25] and seconds > 0
    checkpoint = load_checkpoint(tmp_path / "base.pt", {"kind": "base", "dataset": "drawn", "seed": 0, "step": 25})
    assert checkpoint["history"] == history and "training" not in checkpoint
    assert all(torch.equal(checkpoint["weights"][name], weight) for name, weight in net.state_dict().items())


def test_the_bar_shows_the_stage_the_loss_and_the_speed(tmp_path, capsys):
    fitted(tmp_path / "base.pt")
    bar = capsys.readouterr().err.splitlines()[-1]
    assert all(part in bar for part in ("base", "25/25", "loss 0.", "images/s"))


def test_training_works_outside_the_main_thread(tmp_path):
    with ThreadPoolExecutor() as pool:
        assert pool.submit(fitted, tmp_path / "base.pt").result(60)[1][-1]["step"] == 25


@pytest.mark.parametrize("where, call, stopped_after", [
    ("eps_model", 1, 1), ("eps_model", 14, 14), ("eps_model", 20, 20), ("look", 2, 10), ("look", 4, 25)])
def test_a_run_that_was_stopped_ends_like_one_that_was_not(tmp_path, undisturbed, where, call, stopped_after):
    _, net, history = undisturbed
    function = {"eps_model": ignore_prompt, "look": size_of}[where]
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "base.pt", **{where: at_call(call, press_ctrl_c, function)})
    saved = load_checkpoint(tmp_path / "base.pt", {"kind": "base"})
    assert saved["step"] == stopped_after
    eps_model = at_call(None, None)
    resumed, resumed_history, seconds = fitted(tmp_path / "base.pt", eps_model, resume=True)
    assert len(eps_model.calls) == 25 - stopped_after and seconds >= saved["seconds"] > 0
    assert without_losses(resumed_history) == without_losses(history)
    assert fingerprint(resumed) == fingerprint(net)


def test_a_run_stopped_twice_ends_like_one_that_was_not(tmp_path, undisturbed):
    _, net, history = undisturbed
    for steps in (3, 9):  # 3, and then 9 more
        with pytest.raises(KeyboardInterrupt):
            fitted(tmp_path / "base.pt", at_call(steps, press_ctrl_c), resume=True)
    resumed, resumed_history, _ = fitted(tmp_path / "base.pt", resume=True)
    assert without_losses(resumed_history) == without_losses(history) and fingerprint(resumed) == fingerprint(net)


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    eps_model = at_call(14, lambda: (press_ctrl_c(), press_ctrl_c()))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "base.pt", eps_model)
    assert len(eps_model.calls) == 14
    assert load_checkpoint(tmp_path / "base.pt", {"kind": "base"})["step"] == 10


@pytest.mark.parametrize("action, end", [
    (lambda: None, contextlib.nullcontext()),
    (press_ctrl_c, pytest.raises(KeyboardInterrupt)),
    (lambda: 1 / 0, pytest.raises(ZeroDivisionError))], ids=["well", "stopped", "broken"])
def test_ctrl_c_means_what_it_meant_before_however_training_ends(tmp_path, action, end):
    before = signal.getsignal(signal.SIGINT)
    with end:
        fitted(tmp_path / "base.pt", at_call(5, action))
    assert signal.getsignal(signal.SIGINT) is before


def test_resuming_what_is_finished_is_over_at_once_and_writes_nothing(undisturbed):
    path, net, history = undisturbed
    before = path.stat()
    eps_model, look = at_call(None, None), at_call(None, None, size_of)
    resumed, resumed_history, seconds = fitted(path, eps_model, look, resume=True)
    assert not eps_model.calls and not look.calls and not resumed.training
    assert seconds == load_checkpoint(path, {"kind": "base"})["seconds"]
    assert (resumed_history, fingerprint(resumed)) == (history, fingerprint(net))
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == (before.st_mtime_ns, before.st_ino)


def test_resuming_where_there_is_nothing_starts_and_not_resuming_starts_afresh(tmp_path, undisturbed):
    path, history = tmp_path / "base.pt", undisturbed[2]
    assert fitted(path, resume=True)[1] == history
    path.write_bytes(b"old")
    assert fitted(path)[1] == history


@pytest.mark.parametrize("changes, sentence", [
    (dict(seed=1), "seed 0 instead of 1"),
    (dict(about={"kind": "base", "dataset": "mnist"}), "dataset drawn instead of mnist"),
    (dict(batch_size=5, steps=30), "steps 25 instead of 30, batch_size 4 instead of 5")])
def test_a_run_does_not_go_on_with_other_settings(undisturbed, changes, sentence):
    path = undisturbed[0]
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=sentence):
        fitted(path, resume=True, **changes)
    assert path.read_bytes() == before


def test_processes_that_cannot_share_a_batch_evenly_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 3)
    with pytest.raises(TrainingError, match="3 processes cannot share a batch of 4: --batch-size must be a multiple"):
        fitted(tmp_path / "base.pt")


# A loss that is no number


@pytest.mark.parametrize("step, kept, value", [
    (3, None, math.nan), (11, 10, math.inf), (14, 10, math.nan), (20, 10, math.inf), (25, 20, math.nan)])
def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_last_good_weights(tmp_path, undisturbed, step, kept,
                                                                              value):
    calls = []

    def eps_model(net, x_0, prompt):
        calls.append(None)
        return lambda x_t, t: net(x_t) + (value if len(calls) == step else 0)

    path = tmp_path / "base.pt"
    with pytest.raises(TrainingError, match="the loss became (nan|inf) before step .*: try another --seed"):
        fitted(path, eps_model)
    if kept is None:
        assert not path.exists()
    else:
        checkpoint = load_checkpoint(path, {"kind": "base"})
        assert checkpoint["step"] == kept and all(w.isfinite().all() for w in checkpoint["weights"].values())
    assert fingerprint(fitted(path, resume=True)[0]) == fingerprint(undisturbed[1])


def test_weights_that_are_no_numbers_are_not_saved_over_good_ones(tmp_path):
    calls = []

    def eps_model(net, x_0, prompt):  # at step 20, which ends with a look: the loss is finite, its gradient is not
        calls.append(None)
        return lambda x_t, t: net(x_t) + ((0 * net.bias).sqrt() if len(calls) == 20 else 0)

    with pytest.raises(TrainingError, match="no longer finite after step 20, which is not saved: try another --seed"):
        fitted(tmp_path / "base.pt", eps_model)
    checkpoint = load_checkpoint(tmp_path / "base.pt", {"kind": "base"})
    assert checkpoint["step"] == 10 and all(w.isfinite().all() for w in checkpoint["weights"].values())
