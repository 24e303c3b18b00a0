"""Training a network of twenty numbers: its batches and steps, and runs stopped and resumed."""

import itertools
import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import oracles
import pytest
import torch
from torch import distributed, nn

from minicnet.checkpoints import fingerprint, load_checkpoint, save_checkpoint
from minicnet.controlnet import ControlNet, controlled
from minicnet.data.prompts import training_prompts
from minicnet.diffusion import NoiseSchedule
from minicnet.errors import UserError
from minicnet.training import Recipe, Trainer, fit, make_optimizers
from minicnet.unet import UNet

SCHEDULE = NoiseSchedule.cosine(1000)
CENTRE = torch.rand(4, 4, generator=torch.Generator().manual_seed(0)) - 0.5
IMAGES = CENTRE + 0.4 * torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))
PROMPTS = training_prompts(20 * ["a thick one leaning left", "a thin seven leaning right"])


class PointMass(nn.Module):
    """Learn where all images are, as if they were one. The best answer is their mean."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.zeros(4, 4))
        self.vector = nn.Parameter(torch.zeros(4))


def point_mass(net, x_0, prompt):
    return oracles.point_mass(SCHEDULE.alpha_bar, net.matrix + net.vector)


def make_trainer(steps=25, batch_size=4, *, images=IMAGES, prompts=PROMPTS, eps_model_of=point_mass,
                 **recipe):
    return Trainer(PointMass(), eps_model_of, images, prompts, Recipe(steps, batch_size, **recipe),
                   SCHEDULE)


# Batches


def draw(step, **changes):
    trainer = make_trainer(**{"batch_size": 16, **changes})
    trainer.steps_done = step
    return trainer.draw_batch()


@pytest.mark.parametrize("step, seed", [(8, 0), (7, 1), (6, 1), (7, 33554432)])
def test_a_batch_depends_on_its_step_and_seed_alone(step, seed):
    first, stream = draw(7), torch.get_rng_state()
    assert all(map(torch.equal, first, draw(7))) and torch.equal(torch.get_rng_state(), stream)
    assert not any(map(torch.equal, first, draw(step, seed=seed)))


@pytest.mark.parametrize("drop", [0, 0.1, 0.5, 1])
def test_images_come_equally_often_with_their_own_prompt_a_part_of_it_or_the_null_prompt(drop):
    numbers = torch.arange(40)
    prompts = (1 + 8 * numbers[:, None] + torch.arange(8))[..., None].repeat(1, 1, 8)
    x_0, prompt, _, _ = draw(0, batch_size=20_000, drop_prompts=drop, prompts=prompts,
                             images=numbers.view(40, 1, 1, 1).float())
    index, kept, part = x_0.flatten().long(), prompt.all(1), (prompt[:, 3] - 1) % 8
    assert index.bincount(minlength=40).float().sub(500).abs().max() < 100  # of deviation 22
    assert torch.equal(prompt, prompts[index, part] * kept[:, None])
    assert kept.float().mean().item() == pytest.approx(1 - drop, abs=0.015)
    if drop < 1:  # in a fifth of the cases any of the 8, of which the whole caption is one
        found = part[kept].bincount() / kept.sum()
        assert found.tolist() == pytest.approx([0.825] + 7 * [0.025], abs=0.015)


def test_timesteps_are_uniform_and_noise_is_normal():
    x_0, _, t, eps = draw(0, batch_size=20_000)
    assert (t.dtype, t.min(), t.max()) == (torch.int64, 0, 999)
    for part in (0.1, 0.3, 0.5, 0.7, 0.9):
        assert (t < 1000 * part).float().mean().item() == pytest.approx(part, abs=0.015)
    assert eps.shape == x_0.shape and abs(eps.mean()) < 0.01 and abs(eps.std() - 1) < 0.01


# Steps


@pytest.mark.parametrize("steps, warm_up", [(1000, 50), (40, 5), (1, 1)])
def test_the_learning_rate_warms_up_and_falls_in_a_straight_line(steps, warm_up):
    trainer = make_trainer(steps, rate=0.3)
    for step in {0, warm_up - 1, warm_up, steps // 2, steps - 1} & set(range(steps)):
        trainer.steps_done = step
        trainer.step()
        expected = 0.3 * min(1, (step + 1) / warm_up) * (1 - step / steps)
        for optimizer, rate in trainer.optimizers.items():
            assert optimizer.param_groups[0]["lr"] == pytest.approx(rate * expected)


@pytest.mark.parametrize("kind, outer", [
    ("base", {"encoder.conv_in.weight", "decoder.conv_out.weight"}),
    ("control", {"encoder.conv_in.weight", "condition_encoder.1.weight"})])
def test_muon_trains_the_matrices_inside_and_adamw_all_that_touches_input_output_or_tokens(
        unet, kind, outer):
    net = unet.requires_grad_() if kind == "base" else ControlNet(unet)
    outer |= {"encoder.text.tokens.weight", "encoder.text.positions.weight"}
    names = {id(parameter): name for name, parameter in net.named_parameters()}
    muon, adamw = ({names.pop(id(p)) for p in optimizer.param_groups[0]["params"]}
                   for optimizer in make_optimizers(net))
    assert not names and adamw == outer | {n for n, p in net.named_parameters() if p.ndim < 2}


def test_training_finds_the_mean_of_the_images_even_if_one_batch_is_wild():
    batches = itertools.count()

    def wild_once(net, x_0, prompt):
        size = 1e4 if next(batches) == 100 else 1
        return lambda x_t, t: size * point_mass(net, x_0, prompt)(x_t, t)

    trainer = make_trainer(200, 16, eps_model_of=wild_once)
    losses = [trainer.step() for _ in range(200)]
    assert sum(losses[:20]) > 2 * sum(losses[-20:])
    found = trainer.average.matrix + trainer.average.vector
    torch.testing.assert_close(found, IMAGES.mean((0, 1)), rtol=0, atol=0.06)


def test_the_average_weighs_step_k_by_the_binomial_coefficient_of_k_plus_8_over_8():
    """Karras et al. 2024: after n steps, weights grow like (k / n)^8, and so forget the start."""
    trainer, history = make_trainer(), [torch.zeros(4, 4)]
    for n in range(1, 13):
        trainer.step()
        history.append(trainer.net.matrix.detach().clone())
        expected = sum(math.comb(k + 8, 8) * w for k, w in enumerate(history)) / math.comb(n + 9, 9)
        torch.testing.assert_close(trainer.average.matrix, expected)


@pytest.mark.parametrize("capabilities", [{}, {"amx_bf16": True}])
def test_training_a_control_changes_all_of_it_and_no_byte_of_the_base(
        monkeypatch, unet, capabilities):
    """In float32 and in bf16, in which only the computing is done."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    net, before = ControlNet(unet), fingerprint(unet.state_dict())
    fresh = {name: weight.clone() for name, weight in net.state_dict().items()}
    trainer = Trainer(
        net, lambda net, x_0, prompt: controlled(unet, prompt, [(net, (x_0 > 0) * 1.0)]),
        IMAGES, PROMPTS, Recipe(8, 4), unet.schedule)
    assert all(trainer.step().dtype == torch.float32 for _ in range(5))
    assert fingerprint(unet.state_dict()) == before
    for name, weight in net.state_dict().items():
        assert not torch.equal(weight, fresh[name]) and weight.dtype == torch.float32, name


# fit: evaluations, files, stopping


def size_of(net):
    """A measure that the last bit of every weight can change."""
    return {"size": sum(p.double().square().sum() for p in net.parameters()).item()}


def fitted(path, eps_model_of=point_mass, evaluate=size_of, resume=False, **changes):
    """Train for 25 steps, evaluating after 9, 18 and 25. Return weights, history and seconds."""
    trainer = make_trainer(eps_model_of=eps_model_of, **changes)
    result = fit(trainer, path, {"kind": "base", "dataset": "drawn"}, evaluate, 3, resume)
    assert not trainer.net.training
    return fingerprint(trainer.net.state_dict()), *result


def at_call(number, action, function=point_mass):
    """`function`, except that its call of this number, counted from 1, begins with `action()`."""

    def wrapped(*args):
        calls.append(args)
        if len(calls) == number:
            action()
        return function(*args)

    calls = wrapped.calls = []
    return wrapped


def press_ctrl_c():
    signal.raise_signal(signal.SIGINT)


def without_losses(history):
    """Drop the loss, a mean since the last evaluation or since the run was resumed."""
    return [(result["step"], result["size"]) for result in history]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A finished training: its path, weights and history."""
    path = tmp_path_factory.mktemp("undisturbed") / "base.pt"
    weights, history, _ = fitted(path)
    return path, weights, history


def test_history_has_the_mean_loss_since_the_last_evaluation_and_what_the_average_scores(
        undisturbed):
    path, weights, history = undisturbed
    trainer, losses, sizes = make_trainer(), [], [size_of(PointMass())["size"]]
    for _ in range(25):
        losses.append(trainer.step().item())
        sizes.append(size_of(trainer.average)["size"])
    assert without_losses(history) == [(n, sizes[n]) for n in (0, 9, 18, 25)]
    means = [sum(part) / len(part) for part in (losses[:9], losses[9:18], losses[18:])]
    assert [result["loss"] for result in history[1:]] == pytest.approx(means, rel=1e-5)
    checkpoint = load_checkpoint(path, {"kind": "base", "dataset": "drawn", "seed": 0, "step": 25})
    assert checkpoint["history"] == history and "training" not in checkpoint
    average = fingerprint(trainer.average.state_dict())
    assert fingerprint(checkpoint["weights"]) == weights == average


def test_training_shows_its_progress_and_works_outside_the_main_thread(
        tmp_path, undisturbed, capsys):
    with ThreadPoolExecutor() as pool:
        assert pool.submit(fitted, tmp_path / "base.pt").result(60)[0] == undisturbed[1]
    bar = capsys.readouterr().err.splitlines()[-1]
    assert all(part in bar for part in ("base", "25/25", "loss ", "images/s"))


@pytest.mark.parametrize("stops", [
    [("eps_model_of", 1, 1)], [("evaluate", 4, 25)],
    [("eps_model_of", 14, 14), ("evaluate", 1, 18)]])
def test_a_run_stopped_by_ctrl_c_and_resumed_equals_one_that_was_not(tmp_path, undisturbed, stops):
    _, weights, history = undisturbed
    path, before = tmp_path / "base.pt", signal.getsignal(signal.SIGINT)
    for where, call, done in stops:
        function = {"eps_model_of": point_mass, "evaluate": size_of}[where]
        with pytest.raises(KeyboardInterrupt):
            fitted(path, resume=True, **{where: at_call(call, press_ctrl_c, function)})
        saved = load_checkpoint(path, {"kind": "base"})
        assert saved["step"] == done and signal.getsignal(signal.SIGINT) is before
    steps = at_call(None, None)
    resumed, resumed_history, seconds = fitted(path, steps, resume=True)
    assert len(steps.calls) == 25 - done and seconds >= saved["seconds"] > 0
    assert resumed == weights and without_losses(resumed_history) == without_losses(history)


def test_a_second_ctrl_c_stops_at_once_and_a_new_run_replaces_the_file(tmp_path, undisturbed):
    steps = at_call(14, lambda: (press_ctrl_c(), press_ctrl_c()))
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "base.pt", steps)
    saved, again = load_checkpoint(tmp_path / "base.pt", {"kind": "base"}), at_call(None, None)
    assert len(steps.calls) == 14 and saved["step"] == 9
    assert fitted(tmp_path / "base.pt", again)[1] == undisturbed[2] and len(again.calls) == 25


def test_resuming_a_finished_run_returns_its_result_and_writes_nothing(undisturbed):
    path, weights, history = undisturbed
    before, steps, evaluate = path.stat(), at_call(None, None), at_call(None, None, size_of)
    assert fitted(path, steps, evaluate, resume=True)[:2] == (weights, history)
    assert steps.calls == evaluate.calls == [] and path.stat().st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("changes, sentence", [
    (dict(seed=1), "seed 0 and not 1"), (dict(steps=30), "steps 25 and not 30"),
    (dict(images=IMAGES.flip(0)), "data '.*' and not"), (dict(prompts=PROMPTS.flip(0)), "data")])
def test_a_run_is_not_resumed_with_other_settings_or_data(undisturbed, changes, sentence):
    before = undisturbed[0].read_bytes()
    with pytest.raises(UserError, match=f"^[^\n]*made with {sentence}[^\n]*$"):
        fitted(undisturbed[0], resume=True, **changes)
    assert undisturbed[0].read_bytes() == before


def test_a_batch_that_processes_cannot_divide_equally_is_refused(monkeypatch):
    for name, value in dict(is_initialized=True, get_rank=0, get_world_size=3).items():
        monkeypatch.setattr(distributed, name, lambda value=value: value)
    with pytest.raises(UserError, match="3 processes cannot share a batch of 4: .* multiple of 3"):
        Recipe(10, batch_size=4)


@pytest.mark.parametrize("step, kept, value, message", [
    (3, None, math.nan, "loss became nan"), (10, 9, math.inf, "loss became inf"),
    (18, 9, math.nan, "loss became nan"), (25, 18, math.inf, "loss became inf"),
    (18, 9, "gradient", "weights are not finite after step 18")])
def test_numbers_that_are_not_finite_end_a_run_and_the_last_good_weights_are_kept(
        tmp_path, undisturbed, step, kept, value, message):
    steps = itertools.count(1)

    def broken(net, x_0, prompt):
        wrong = (0 * net.vector.sum()).sqrt() if value == "gradient" else value  # its slope is inf
        wrong = wrong if next(steps) == step else 0
        return lambda x_t, t: point_mass(net, x_0, prompt)(x_t, t) + wrong

    path = tmp_path / "base.pt"
    with pytest.raises(UserError, match=f"{message}.*: try another --seed"):
        fitted(path, broken)
    assert (load_checkpoint(path, {"kind": "base"})["step"] if path.exists() else None) == kept
    assert fitted(path, resume=True)[0] == undisturbed[1]


def test_moments_take_the_memory_layout_of_the_weights_when_a_run_goes_on_elsewhere():
    """AdamW's fused step pairs the raw memory of weights and moments."""
    def trainer(layout):
        torch.manual_seed(0)
        unet = UNet(channels=8, multipliers=(1,)).to(memory_format=layout)
        return Trainer(unet, lambda net, x_0, prompt: controlled(net, prompt), images, prompts,
                       Recipe(10, 4), unet.schedule)

    images, prompts = torch.rand(8, 1, 28, 28) * 2 - 1, torch.zeros(8, 1, 8, dtype=torch.int64)
    stopped = trainer(torch.contiguous_format)
    stopped.step()
    resumed = trainer(torch.channels_last)
    resumed.load_state_dict(stopped.state_dict())
    for optimizer in resumed.optimizers:
        for parameter, moments in optimizer.state.items():
            for moment in moments.values():
                assert moment.shape != parameter.shape or moment.stride() == parameter.stride()


# Speed

SHORT_TRAINING = """
import time
from minicnet.training import Recipe, Trainer
from minicnet.unet import UNet
import torch
torch.set_num_threads(2)
unet, images = UNet(), torch.zeros(64, 1, 28, 28)
trainer = Trainer(unet, lambda net, x_0, prompt: lambda x_t, t: net(x_t, t, prompt), images,
                  torch.zeros(64, 1, 8, dtype=torch.int64), Recipe(100, 32), unet.schedule)
trainer.step()
start = time.perf_counter()
for _ in range(15):
    trainer.step()
print(time.perf_counter() - start)
"""


def seconds_of_trainings(count):
    """Return the longest time of some trainings that run at once, with two threads each."""
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("GOMP_SPINCOUNT", "OMP_NUM_THREADS")}
    programs = [subprocess.Popen([sys.executable, "-c", SHORT_TRAINING], env=environment,
                                 stdout=subprocess.PIPE, text=True) for _ in range(count)]
    return max(float(program.communicate()[0]) for program in programs)


@pytest.mark.slow
@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two trainings would share one core")
def test_a_training_beside_another_one_is_slower_but_not_starved(alone):
    """It takes about eight times as long on two free cores, and eighty times without this."""
    assert min(seconds_of_trainings(2) / seconds_of_trainings(1) for _ in range(2)) < 30


# fit: the very last moment, and processes that disagree


def test_ctrl_c_during_the_last_save_still_stops_the_program(tmp_path, undisturbed, monkeypatch):
    save = at_call(3, press_ctrl_c, save_checkpoint)
    monkeypatch.setattr("minicnet.training.save_checkpoint", save)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "base.pt")
    assert load_checkpoint(tmp_path / "base.pt", {"kind": "base"})["step"] == 25
    assert fitted(tmp_path / "base.pt", resume=True)[0] == undisturbed[1] and len(save.calls) == 3


def test_processes_that_have_loaded_different_images_do_not_train_together(tmp_path, monkeypatch):
    trainer, path = make_trainer(), tmp_path / "base.pt"
    for name, value in dict(is_initialized=True, get_rank=0, get_world_size=2).items():
        monkeypatch.setattr(distributed, name, lambda value=value: value)

    def gather(values, value):  # from this process and from one that has other images
        values[:] = value, "another fingerprint"

    monkeypatch.setattr(distributed, "all_gather_object", gather)
    with pytest.raises(UserError, match="have loaded different images: name a --dataset"):
        fit(trainer, path, {"kind": "base"}, size_of)
    assert trainer.steps_done == 0 and not path.exists()
