"""The experiment on what fine-tuning forgets, in a tiny setting."""

import math

import pytest
import torch

from minicnet.controlnet import freeze
from minicnet.digits import draw_digits
from minicnet.experiments import forgetting
from minicnet.experiments import lab as lab_module
from minicnet.training import make_optimizer
from minicnet.unet import UNet


def test_unlocked_starts_from_the_base_and_trains_its_decoder_and_the_control_only(randomised):
    unet = freeze(randomised(UNet(channels=8, multipliers=(1,))))
    before = {name: weight.clone() for name, weight in unet.state_dict().items()}
    net = forgetting.Unlocked(unet)
    x_t, t, label = torch.randn(2, 1, 8, 8), torch.tensor([3, 400]), torch.tensor([1, 10])
    edges = torch.ones(2, 1, 8, 8)
    assert torch.equal(net(x_t, t, label, edges), unet(x_t, t, label))
    assert torch.equal(net(x_t, t, label), unet(x_t, t, label))
    optimizer = make_optimizer(net.train(), 1e-2)
    for _ in range(4):  # the condition encoder wakes last, at the third step
        optimizer.zero_grad()
        net(x_t, t, label, edges).square().mean().backward()
        optimizer.step()
    changed = {name for name, weight in net.unet.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if name.startswith("decoder.")}
    assert all(parameter.requires_grad and parameter.grad is not None for parameter in net.control_net.parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in unet.state_dict().items())
    assert not torch.equal(net(x_t, t, label, edges), net(x_t, t, label))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=1, batch_size=2, looks=1, images=4, reference=70,
                                                  classifier_steps=3))
    monkeypatch.setattr(lab_module, "load_dataset", lambda name, split: draw_digits(70, seed=len(split)))


def test_training_shows_three_digits_and_the_measures_ask_for_the_others(tiny, monkeypatch, tmp_path):
    trained, draw, learned, asked = lab_module.Lab.trained, lab_module.Lab.draw, [], []

    def spy(lab, name, seed, make, eps_model, images, labels, **options):
        learned.append((images, labels))
        return trained(lab, name, seed, make, eps_model, images, labels, **options)

    def drawn(lab, eps_model, label, *conditions, **options):
        asked.append(label)
        return draw(lab, eps_model, label, *conditions, **options)

    monkeypatch.setattr(lab_module.Lab, "trained", spy)
    monkeypatch.setattr(lab_module.Lab, "draw", drawn)
    lab = lab_module.Lab("forgetting", forgetting.BASE, tmp_path, True, torch.device("cpu"))
    base = {name: weight.clone() for name, weight in lab.unet.state_dict().items()}
    forgetting.run(lab)
    assert all(set(labels.tolist()) == {0, 1, 2} and len(images) == len(labels) for images, labels in learned)
    sets = [set(labels.tolist()) for labels in asked]
    assert all(digits <= {0, 1, 2} or digits <= {3, 4, 5, 6, 7, 8, 9} for digits in sets)
    assert len(asked) == 2 * (2 + 3 * 4) and sum(min(digits) > 2 for digits in sets) == len(asked) / 2

    assert list(lab.rows) == [f"{method}-{seed}" for seed in (0, 1) for method in ("base", *forgetting.METHODS)]
    assert all(math.isfinite(value) for row in lab.rows.values() for value in row.values())
    for seed in (0, 1):  # at strength 0 there is nothing but the base, after training as before
        base_row, control_row = lab.rows[f"base-{seed}"], lab.rows[f"control-{seed}"]
        without = [name for name in base_row if "without" in name]
        assert len(without) == 5 and all(base_row[name] == control_row[name] for name in without)
        assert any(base_row[name] != lab.rows[f"finetuned-{seed}"][name] for name in without)
        assert any(base_row[name] != lab.rows[f"unlocked-{seed}"][name] for name in without)
    assert all(torch.equal(weight, base[name]) for name, weight in lab.unet.state_dict().items())
    assert forgetting.verdict(lab.rows)[0] in ("reproduced", "mixed", "not reproduced")
    figure = forgetting.figure(lab.rows, lab)
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def rows_of(lost, ahead, lost_shown=0.0):
    """Rows in which fine-tuning reads `lost` fewer labels without edges, and the control is `ahead` with edges."""
    rows = {}
    for seed, noise in enumerate((-0.005, 0.0, 0.005)):
        for method in ("base", *forgetting.METHODS):
            fall = lost if method == "finetuned" else 0.0
            fall_shown = lost_shown if method == "finetuned" else 0.0
            behind, own = (0, noise) if method == "control" else (ahead, 0)
            rows[f"{method}-{seed}"] = {
                "without_label_accuracy": 0.95 - fall + noise * (method == "finetuned"),
                "without_frechet": 5 + 20 * fall, "shown_without_label_accuracy": 0.9 - fall_shown,
                "with_label_accuracy": 0.9 - behind - own, "with_edge_f1": 0.97 - behind - own,
                "with_frechet": 4 + behind + own}
    return rows


@pytest.mark.parametrize("numbers, word", [
    ((0.5, 0.1), "reproduced"),
    ((0.5, 0.1, 0.45), "mixed"),  # what it forgot is to draw without edges
    ((0.5, 0.0), "mixed"),  # forgets, but draws what it was not shown as well as the control
    ((0.5, 0.006), "mixed"),  # a lead within the seeds' spread is none
    ((0.0, 0.1), "mixed"),
    ((0.05, 0.1), "mixed"),  # too little to be called forgetting
    ((0.0, 0.0), "not reproduced"),
    ((0.0, -0.1), "not reproduced"),
])
def test_the_verdict_comes_from_the_rows(numbers, word):
    found, why = forgetting.verdict(rows_of(*numbers))
    assert found == word
    assert f"{0.95 - numbers[0]:.3f} ± 0.005" in why and len(why.split()) <= 70
