"""The experiment on zero convolutions, in a tiny setting."""

import json
import math

import pytest
import torch
from torch import nn

from minicnet.controlnet import ControlNet, freeze
from minicnet.digits import draw_digits
from minicnet.experiments import lab as lab_module
from minicnet.experiments import zero_convolution as zc
from minicnet.unet import UNet


@pytest.fixture
def base(randomised):
    return freeze(randomised(UNet(channels=16, multipliers=(1, 2))))


def inputs():
    return torch.randn(3, 1, 8, 8), torch.tensor([0, 7, 900]), torch.tensor([1, 9, 10])


def edges():
    return torch.rand(3, 1, 8, 8).round()


@pytest.mark.parametrize("variant", zc.VARIANTS)
def test_before_training_only_gaussian_convolutions_change_the_base(base, variant):
    net, (x_t, t, label) = zc.MAKE[variant](base), inputs()
    expected = base(x_t, t, label)
    controlled = base(x_t, t, label, control=net(x_t, t, label, edges()))
    assert torch.equal(controlled, expected) == (variant != "gaussian")


def test_the_gaussian_variant_is_a_control_net_but_for_its_zero_convolutions(base):
    net, plain = zc.gaussian_control(base), ControlNet(base)
    convs = [net.condition_encoder[-1], *net.zero_skips, net.zero_middle]
    for conv in convs:
        assert not conv.bias.any()
    scaled = torch.cat([conv.weight.flatten() * conv.in_channels**0.5 for conv in convs])
    assert abs(scaled.mean()) < 0.1 and abs(scaled.std() - 1) < 0.1
    for name, weight in plain.encoder.state_dict().items():
        assert torch.equal(weight, net.encoder.state_dict()[name])
    assert {name: p.shape for name, p in net.named_parameters()} == {n: p.shape for n, p in plain.named_parameters()}


def test_control_net_lite_has_one_convolution_for_each_block_and_learns_with_all_of_them(base, randomised):
    net, (x_t, t, label) = zc.ControlNetLite(base), inputs()
    control, full = net(x_t, t, label, edges()), ControlNet(base)(x_t, t, label, edges())
    assert [s.shape for s in control.skips] == [s.shape for s in full.skips]
    assert control.middle.shape == full.middle.shape
    assert len(net.stages) == len(base.encoder.stages)
    assert not any(isinstance(module, nn.Embedding) for module in net.modules())
    randomised(net)
    base(x_t, t, label, control=net(x_t, t, label, edges())).square().mean().backward()
    assert all(p.grad is not None and p.grad.any() for p in net.parameters())
    assert all(p.grad is None for p in base.parameters())
    a, b = net(x_t, t, label, edges()), net(x_t, t // 2, label.flip(0), edges() * 0)
    assert not torch.equal(a.middle, b.middle)
    condition = edges()
    assert torch.equal(net(x_t, t, label, condition).middle, net(x_t, t // 2, label.flip(0), condition).middle)


def test_an_insufficient_prompt_does_not_tell_which_label_of_a_pair_is_meant(base):
    labels = torch.arange(10)
    assert torch.equal(zc.rival(zc.rival(labels)), labels) and not (zc.rival(labels) == labels).any()
    pairs, (x_t, t, _) = zc.with_pairs(base), inputs()
    assert base.encoder.num_labels == 10 and len(base.encoder.label.weight) == 11
    for label in (torch.tensor([0, 4, 10]), torch.tensor([9, 5, 3])):
        assert torch.equal(pairs(x_t, t, label), base(x_t, t, label))
    one, other = torch.tensor([3, 4, 0]), torch.tensor([8, 9, 5])
    torch.testing.assert_close(pairs(x_t, t, 11 + one), pairs(x_t, t, 11 + other))
    assert not torch.allclose(pairs(x_t, t, 11 + one), base(x_t, t, one))
    old, new = base.encoder.label.weight, pairs.encoder.label.weight
    for k in range(10):
        mean = (old[k] + old[(k + 5) % 10]) / 2
        assert torch.cosine_similarity(new[11 + k], mean, dim=0) > 0.9999
        assert math.isclose(new[11 + k].norm(), (old[k].norm() + old[(k + 5) % 10].norm()) / 2, rel_tol=1e-4)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=2, batch_size=2, looks=1, images=2, reference=70,
                                                  classifier_steps=3))
    monkeypatch.setattr(lab_module, "load_dataset", lambda name, split: draw_digits(70, seed=len(split)))
    return tmp_path


def test_a_tiny_run_writes_a_row_for_each_variant_prompt_and_seed(tiny):
    result = lab_module.experiment("zero_convolution", tiny, True, torch.device("cpu"))
    rows = json.loads((tiny / "zero_convolution" / "result.json").read_text())["rows"]
    starts = {f"{variant}, start-{seed}" for variant in zc.VARIANTS for seed in (0, 1)}
    drawn = {f"{variant}, {prompt}-{seed}" for variant in zc.VARIANTS for prompt in zc.PROMPTS for seed in (0, 1)}
    assert set(rows) == starts | drawn | {f"base, {prompt}-0" for prompt in zc.PROMPTS}
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    for seed in (0, 1):
        for variant in ("zero", "lite"):
            start = rows[f"{variant}, start-{seed}"]
            assert start["loss_change"] == start["pixel_change"] == 0
        assert rows[f"gaussian, start-{seed}"]["pixel_change"] > 0.01
    assert (tiny / "zero_convolution" / "figure.png").stat().st_size > 10_000
    assert result["verdict"] in ("reproduced", "mixed", "not reproduced")


def made_rows(zero, gaussian, lite, jump=0.1):
    """Rows in which every measure of a variant is this good, from 0 to 1."""
    rows = {}
    for seed in (0, 1, 2):
        for variant, good in dict(zero=zero, gaussian=gaussian, lite=lite).items():
            rows[f"{variant}, start-{seed}"] = {"loss_change": jump if variant == "gaussian" else 0.0}
            for prompt in zc.PROMPTS:
                f1 = good + 0.005 * (seed - 1) * (-1 if variant == "gaussian" else 1)
                rows[f"{variant}, {prompt}-{seed}"] = {"edge_f1": f1, "label_accuracy": f1, "frechet": 10 - 9 * f1}
    return rows


@pytest.mark.parametrize("values, word", [
    ((0.9, 0.7, 0.7), "reproduced"), ((0.9, 0.65, 0.7), "reproduced"), ((0.9, 0.5, 0.95), "mixed"),
    ((0.9, 0.85, 0.5), "mixed"),
    ((0.9, 0.898, 0.7), "not reproduced"), ((0.7, 0.9, 0.7), "not reproduced"), ((0.9, 0.7, 0.7, 0.0), "mixed")])
def test_the_verdict_asks_for_harm_at_the_start_and_a_fall_to_the_level_of_lite(values, word):
    found, why = zc.verdict(made_rows(*values))
    assert found == word and f"{values[0]:.3f} ± 0.005" in why and len(why.split()) <= 60


def test_one_measure_that_is_better_with_gaussian_convolutions_makes_the_verdict_mixed():
    rows = made_rows(0.9, 0.7, 0.7)
    for key, row in rows.items():
        if key.startswith("gaussian") and "frechet" in row:
            row["frechet"] = 0.5
    assert zc.verdict(rows)[0] == "mixed"
