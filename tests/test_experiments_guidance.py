"""The experiment on guidance without a prompt, in a tiny setting."""

import json
import math

import pytest
import torch

from minicnet.controlnet import Control, ControlNet, freeze
from minicnet.digits import draw_digits
from minicnet.experiments import guidance
from minicnet.experiments import lab as lab_module
from minicnet.unet import UNet


@pytest.fixture
def base(randomised):
    return freeze(randomised(UNet(channels=16, multipliers=(1, 2))))


@pytest.fixture
def net(base, randomised):
    return freeze(randomised(ControlNet(base), seed=1))


def inputs():
    null = torch.tensor([10, 10, 10])
    return torch.randn(3, 1, 8, 8), torch.tensor([0, 7, 900]), null, torch.rand(3, 1, 8, 8).round()


def test_each_residual_is_weighted_by_its_own_height():
    shapes = (14, 14, 7, 7)
    control = Control([torch.randn(2, 4, h, h) for h in shapes], torch.randn(2, 4, 7, 7))
    for variant, fine, coarse in [("only", 1, 1), ("weighted", 1, 2), ("reduced", 0.5, 1)]:
        found = guidance.reweighted(variant, control)
        for residual, before in zip([*found.skips, found.middle], [*control.skips, control.middle], strict=True):
            assert torch.equal(residual, (fine if before.shape[-1] == 14 else coarse) * before)
    wide = Control([torch.ones(1, 1, 64, 32), torch.ones(1, 1, 8, 16)], torch.ones(1, 1, 8, 16))
    assert guidance.reweighted("weighted", wide).middle.unique().tolist() == [64 / 8]


def test_at_w_1_only_is_both_and_at_w_0_all_are_the_base(base, net):
    x_t, t, label, edges = inputs()
    both, alone = guidance.eps_of(base, net, "both", 5)(x_t, t, label, edges), base(x_t, t, label)
    assert torch.equal(both, base(x_t, t, label, control=net(x_t, t, label, edges)))
    torch.testing.assert_close(guidance.eps_of(base, net, "only", 1)(x_t, t, label, edges), both, rtol=1e-3, atol=1e-3)
    for variant in guidance.VARIANTS:
        assert torch.equal(guidance.eps_of(base, net, variant, 0)(x_t, t, label, edges), alone)


def test_guidance_strengthens_what_the_edges_change_of_each_variant(base, net):
    x_t, t, label, edges = inputs()
    alone = base(x_t, t, label)
    found = []
    for variant in guidance.VARIANTS:
        eps = [guidance.eps_of(base, net, variant, w)(x_t, t, label, edges) for w in (1, 3)]
        torch.testing.assert_close(eps[1] - alone, 3 * (eps[0] - alone), rtol=1e-2, atol=1e-2)
        found.append(eps[1])
    assert not any(torch.allclose(found[i], found[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=2, batch_size=2, looks=1, images=2, reference=70,
                                                  classifier_steps=3))
    monkeypatch.setattr(guidance, "GUIDANCE", (2, 4))
    monkeypatch.setattr(lab_module, "load_dataset", lambda name, split: draw_digits(70, seed=len(split)))
    return tmp_path


def test_a_tiny_run_gives_no_label_anywhere_and_writes_a_row_for_each_variant_w_and_seed(tiny, monkeypatch):
    labels, draw = [], lab_module.Lab.draw

    def spy(lab, eps_model, label, *args, **options):
        labels.append(label)
        return draw(lab, eps_model, label, *args, **options)

    monkeypatch.setattr(lab_module.Lab, "draw", spy)
    result = lab_module.experiment("guidance", tiny, True, torch.device("cpu"))
    rows = json.loads((tiny / "guidance" / "result.json").read_text())["rows"]
    names = {"base", "both", *(f"{variant} {w}" for variant in guidance.VARIANTS for w in guidance.GUIDANCE)}
    assert set(rows) == {f"{name}-{seed}" for name in names for seed in (0, 1)}
    assert all((label == 10).all() for label in labels)
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    assert (tiny / "guidance" / "figure.png").stat().st_size > 10_000
    assert result["verdict"] in ("reproduced", "mixed", "not reproduced")


def made_rows(good):
    """Rows of variants that are this good (0 to 1) by both measures; all others 0.7. good: {"weighted 2": 0.9}"""
    names = ["both", *(f"{variant} {w}" for variant in guidance.VARIANTS for w in guidance.GUIDANCE)]
    return {f"{name}-{seed}": {"edge_f1": value, "frechet": 10 - 9 * value, "label_accuracy": value}
            for name in names for seed in (0, 1, 2)
            for value in [good.get(name, 0.7) + 0.005 * (seed - 1) * (-1 if name.startswith("weighted") else 1)]}


@pytest.mark.parametrize("good, word", [
    ({"weighted 2": 0.9, "weighted 4": 0.9}, "reproduced"), ({"weighted 2": 0.9}, "not reproduced"),
    ({"reduced 2": 0.9, "reduced 4": 0.9, "reduced 8": 0.9}, "not reproduced"), ({}, "not reproduced"),
    ({"weighted 2": 0.706, "weighted 4": 0.706}, "not reproduced"),
    ({"both": 0.9, "weighted 2": 0.8}, "not reproduced"),
    ({"weighted 2": 0.9, "only 2": 0.9, "weighted 4": 0.9, "only 4": 0.95}, "not reproduced")])
def test_the_verdict_asks_for_more_than_both_others_at_the_same_w(good, word):
    found, why = guidance.verdict(made_rows(good))
    assert found == word and len(why.split()) <= 60


def test_better_by_one_measure_alone_is_mixed():
    rows = made_rows({"weighted 2": 0.9, "weighted 4": 0.9})
    for key, row in rows.items():
        if key.startswith("weighted"):
            row["frechet"] = 5.0
    assert guidance.verdict(rows)[0] == "mixed"
