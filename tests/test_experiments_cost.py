"""The experiment on what a control's training step costs, in a tiny setting."""

import math

import pytest
import torch

from minicnet.checkpoints import fingerprint
from minicnet.digits import draw_digits
from minicnet.experiments import cost
from minicnet.experiments import lab as lab_module


def test_it_measures_the_base_of_the_experiments_and_leaves_it_alone(monkeypatch, tmp_path):
    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=1, batch_size=2, looks=1, images=4, reference=20,
                                                  classifier_steps=3))
    monkeypatch.setattr(lab_module, "load_dataset", lambda name, split: draw_digits(20, seed=len(split)))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    lab = lab_module.Lab("cost", cost.BASE, tmp_path, True, torch.device("cpu"))
    before = fingerprint(lab.unet)
    cost.run(lab)
    assert fingerprint(lab.unet) == before and not any(parameter.requires_grad for parameter in lab.unet.parameters())
    assert list(lab.rows) == ["cpu-0", "cpu-1"]
    assert all(math.isfinite(value) and value > 0 for row in lab.rows.values() for value in row.values())
    first, second = lab.rows.values()
    counted = [name for name in first if name not in ("time", "base ms", "control ms", "seconds")]
    assert len(counted) == 14 and all(first[name] == second[name] for name in counted)  # what is counted has no spread

    size = sum(parameter.nbytes for parameter in lab.unet.parameters()) / 1e6  # MB
    assert first["base weights"] == first["base gradients"] == pytest.approx(size)
    assert first["base optimizer"] == pytest.approx(2 * size)
    trained = first["trained parameters"]
    assert 0.4 < trained < 0.6  # a copy of the encoder, and little more
    assert first["control gradients"] == pytest.approx(trained * size)
    assert first["control weights"] == pytest.approx((1 + trained) * size)  # both nets are there
    total = {kind: sum(first[f"{kind} {part}"] for part in cost.PARTS) for kind in ("base", "control")}
    assert first["memory"] == pytest.approx(total["control"] / total["base"])
    assert first["time"] == pytest.approx(first["control ms"] / first["base ms"])
    assert cost.verdict(lab.rows)[0] in ("reproduced", "mixed", "not reproduced")
    cost.figure(lab.rows, lab).savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def rows_of(device, time, memory):
    return {f"{device}-{seed}": {"time": time + noise, "memory": memory, "arithmetic": 1.01, "trained parameters": 0.51}
            for seed, noise in enumerate((-0.01, 0.0, 0.01))}


@pytest.mark.parametrize("time, memory, word", [
    (1.34, 1.23, "reproduced"), (1.45, 1.13, "reproduced"), (1.05, 0.85, "not reproduced"),
    (1.30, 0.85, "not reproduced"),
    (1.60, 1.23, "not reproduced"), (1.34, 1.50, "not reproduced"), (1.60, 0.85, "not reproduced")])
def test_the_verdict_comes_from_the_rows(time, memory, word):
    found, why = cost.verdict(rows_of("cpu", time, memory))
    assert found == word
    assert f"time {time:.2f} ± 0.01, memory {memory:.2f} ± 0.00" in why and len(why.split()) <= 70
    for value, name, paper in ((time, "time", 1.34), (memory, "memory", 1.23)):
        how = "within 0.15 of" if abs(value - paper) <= 0.15 else "less than" if value < paper else "more than"
        assert f"{how} the paper's {paper} in {name}" in why


def test_a_gpu_decides_where_there_is_one_and_both_are_told():
    found, why = cost.verdict({**rows_of("cpu", 2.0, 2.0), **rows_of("cuda", 1.34, 1.23)})
    assert found == "reproduced" and "on cpu: time 2.00" in why and "on cuda: time 1.34" in why
