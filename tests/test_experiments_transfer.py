"""The experiment on transfer to other bases, in a tiny setting."""

import json
import math

import pytest
import torch

from minicnet.controlnet import ControlNet, freeze
from minicnet.digits import draw_digits
from minicnet.experiments import lab as lab_module
from minicnet.experiments import transfer
from minicnet.unet import UNet


def test_styles_keep_the_range_of_images_and_change_them_as_they_say():
    x, _ = draw_digits(10)
    for restyle in transfer.STYLES.values():
        styled = restyle(x)
        assert styled.shape == x.shape and -1 <= styled.min() and styled.max() <= 1 and not torch.equal(styled, x)
    assert torch.equal(transfer.STYLES["inverted"](transfer.STYLES["inverted"](x)), x)
    assert (transfer.STYLES["thick"](x) >= x).all()
    assert transfer.STYLES["blurred"](x).std() < x.std()


def test_the_offset_moves_the_copy_as_the_base_has_moved_and_nothing_else(randomised):
    old, new = (freeze(randomised(UNet(channels=8, multipliers=(1,)), seed=seed)) for seed in (1, 2))
    net = freeze(randomised(ControlNet(old), seed=3))
    before = {name: weight.clone() for name, weight in net.state_dict().items()}
    moved = transfer.offset(net, old, new).state_dict()
    for name, weight in before.items():
        assert torch.equal(net.state_dict()[name], weight)
        if name.startswith("encoder."):
            part = name.removeprefix("encoder.")
            shift = new.encoder.state_dict()[part] - old.encoder.state_dict()[part]
            torch.testing.assert_close(moved[name], weight + shift)
            assert shift.any()
        else:
            assert torch.equal(moved[name], weight)
    same = transfer.offset(net, old, old).state_dict()
    assert all(torch.equal(same[name], weight) for name, weight in before.items())


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=2, batch_size=2, looks=1, images=2, reference=70,
                                                  classifier_steps=3))
    monkeypatch.setattr(lab_module, "load_dataset", lambda name, split: draw_digits(70, seed=len(split)))
    return tmp_path


def test_a_tiny_run_writes_a_row_for_each_style_variant_and_seed(tiny, monkeypatch):
    bases, trained = [], lab_module.Lab.trained

    def spy(lab, name, seed, *args, **options):
        if name.startswith("base-"):
            bases.append((name, seed))
        return trained(lab, name, seed, *args, **options)

    monkeypatch.setattr(lab_module.Lab, "trained", spy)
    lab = lab_module.Lab("transfer", transfer.BASE, tiny, True, torch.device("cpu"))
    before = {name: weight.clone() for name, weight in lab.unet.state_dict().items()}
    thick = transfer.styled_base(lab, "thick")
    assert not any(p.requires_grad for p in thick.parameters())
    assert any(not torch.equal(weight, before[name]) for name, weight in thick.state_dict().items())
    assert all(torch.equal(weight, before[name]) for name, weight in lab.unet.state_dict().items())
    result = lab_module.experiment("transfer", tiny, True, torch.device("cpu"))
    assert {seed for _, seed in bases} == {0} and {n for n, _ in bases} == {f"base-{s}" for s in transfer.STYLES}
    rows = json.loads((tiny / "transfer" / "result.json").read_text())["rows"]
    assert set(rows) == ({f"{style}, {variant}-{seed}" for style in transfer.STYLES for variant in transfer.VARIANTS
                          for seed in (0, 1)} | {f"digits, {v}-{seed}" for v in ("floor", "own") for seed in (0, 1)})
    assert all(math.isfinite(value) for row in rows.values() for value in row.values())
    assert (tiny / "transfer" / "figure.png").stat().st_size > 10_000
    assert result["verdict"] in ("reproduced", "mixed", "not reproduced")


def made_rows(old, own=0.98, frechet=5.0, styles=tuple(transfer.STYLES)):
    """Rows in which the base alone has edge-F1 0.7, its control gives `own`, and the old control `old` in `styles`."""
    rows = {}
    for seed in (0, 1, 2):
        def row(f1, frechet=5.0, wobble=0.01 * (seed - 1)):
            return {"edge_f1": f1 + wobble, "frechet": frechet, "label_accuracy": 1.0}

        rows |= {f"digits, floor-{seed}": row(0.7), f"digits, own-{seed}": row(own)}
        for style in transfer.STYLES:
            rows |= {f"{style}, alone-{seed}": row(0.7), f"{style}, offset-{seed}": row(0.9),
                     f"{style}, old-{seed}": row(old if style in styles else 0.7, frechet)}
    return rows


@pytest.mark.parametrize("made, word", [
    (dict(old=0.95), "reproduced"), (dict(old=0.75), "not reproduced"), (dict(old=0.95, frechet=7.0), "not reproduced"),
    (dict(old=0.95, styles=("thick",)), "mixed"), (dict(old=0.95, own=0.71), "not reproduced")])
def test_the_verdict_asks_for_half_of_the_effect_without_spoilt_images(made, word):
    assert transfer.verdict(made_rows(**made))[0] == word


def test_what_is_kept_is_a_share_of_the_gap_closed_on_the_own_base():
    rows = made_rows(old=0.84)
    assert math.isclose(transfer.kept(rows, "thick", "old"), 0.5) and "50% of its effect" in transfer.verdict(rows)[1]
