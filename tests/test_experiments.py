"""What experiments share, and those of sudden convergence and of many conditions, in a tiny setting."""

import ast
import importlib
import json
import math
from pathlib import Path

import matplotlib.image
import pytest
import torch

from minicnet import experiments
from minicnet.checkpoints import CheckpointError, fingerprint
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.data import colourise
from minicnet.digits import draw_digits
from minicnet.experiments import all as all_experiments
from minicnet.experiments import lab as lab_module
from minicnet.experiments import many_conditions, sudden_convergence
from minicnet.experiments.lab import Lab, across_seeds, clearly_better, control_eps, controlled, experiment, mean

CPU = torch.device("cpu")
FILES = {path.stem for path in Path(experiments.__file__).parent.glob("*.py")}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    def load_dataset(name, split):
        images, labels = draw_digits(70, seed=len(split))
        return (colourise(images, seed=len(split)) if name.startswith("coloured") else images), labels

    monkeypatch.setattr(lab_module, "QUICK", dict(seeds=[0, 1], steps=2, batch_size=2, looks=2, images=2, reference=70,
                                                  classifier_steps=3))
    monkeypatch.setattr(lab_module, "load_dataset", load_dataset)
    return tmp_path


@pytest.fixture
def lab(tiny):
    return Lab("some", "digits", tiny, True, CPU)


# The list of all


def test_all_runs_every_experiment_there_is():
    assert set(all_experiments.NAMES) == FILES - {"__init__", "all", "lab", "concatenated"}


@pytest.mark.parametrize("name", all_experiments.NAMES)
def test_an_experiment_says_what_it_claims_and_is_short_enough_to_read(name):
    module = importlib.import_module(f"minicnet.experiments.{name}")
    assert module.CLAIM.endswith(".") and module.BASE in ("digits", "coloured")
    source = Path(module.__file__).read_text()
    assert ast.get_docstring(ast.parse(source)).count("\n") >= 2 and source.count("\n") <= 230


# Rows that survive a stop


def test_a_row_is_computed_once_and_kept_when_run_again(lab, tiny):
    calls = []
    for _ in range(2):
        row = lab.row("a-0", lambda x: calls.append(x) or {"value": 0.5}, 7)
        assert row["value"] == 0.5
    again = Lab("some", "digits", tiny, True, CPU)
    assert again.row("a-0", calls.append)["value"] == 0.5 and calls == [7]


def test_a_row_that_was_stopped_is_computed_again(lab, tiny):
    def stopped():
        raise KeyboardInterrupt

    lab.row("a-0", lambda: {"value": 1.0})
    with pytest.raises(KeyboardInterrupt):
        lab.row("b-0", stopped)
    assert list(Lab("some", "digits", tiny, True, CPU).rows) == ["a-0"]


def test_rows_of_other_settings_are_refused(lab, tiny, monkeypatch):
    lab.row("a-0", lambda: {"value": 1.0})
    monkeypatch.setattr(lab_module, "QUICK", {**lab_module.QUICK, "steps": 3})
    with pytest.raises(CheckpointError, match="other settings: choose another --out"):
        Lab("some", "digits", tiny, True, CPU)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stamp": 1}'])
def test_damaged_rows_are_refused(lab, tiny, text):
    lab.row("a-0", lambda: {"value": 1.0})
    lab.file.write_text(text)
    with pytest.raises(CheckpointError, match="rows.json"):
        Lab("some", "digits", tiny, True, CPU)


# Training and drawing


def test_a_control_is_trained_once_from_its_seed_alone_and_the_base_stays(lab, tiny):
    before = fingerprint(lab.unet)
    net = lab.edge_control(1)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    assert fingerprint(net) != fingerprint(ControlNet(lab.unet)) and fingerprint(lab.unet) == before
    torch.manual_seed(55)
    assert fingerprint(lab.edge_control(1)) == fingerprint(net) != fingerprint(lab.edge_control(0))
    (tiny / "trained" / "digits-edges-1.pt").unlink()
    assert fingerprint(lab.edge_control(1)) == fingerprint(net)


def test_noise_depends_on_the_seed_alone_and_the_base_under_a_fresh_control_is_the_base(lab):
    labels, edges = lab.test_labels, canny(lab.test_images)
    plain = lab.draw(controlled(lab.unet), labels, seed=3)
    fresh = freeze(ControlNet(lab.unet))
    assert torch.equal(lab.draw(controlled(lab.unet, fresh), labels, edges, seed=3), plain)
    assert torch.equal(lab.draw(lab.unet, labels, seed=3), plain)
    assert not torch.equal(lab.draw(lab.unet, labels, seed=4), plain)


def test_scores_of_real_images_are_the_best_there_are(lab):
    images, labels = lab.test_images, lab.test_labels
    scores = lab.score(images, labels, canny(images), reference=images)
    assert scores["edge_f1"] == 1 and scores["frechet"] == pytest.approx(0, abs=1e-3)
    assert set(lab.score(images, labels)) == {"label_accuracy", "frechet"}


def test_the_condition_of_a_training_batch_is_made_of_its_own_images(lab, randomised):
    net, x_0 = randomised(ControlNet(lab.unet), std=0.05), lab.train_images[:3]
    label, t, x_t = lab.train_labels[:3], torch.tensor([5, 500, 999]), torch.randn(3, 1, 28, 28)
    found = control_eps(lab.unet, canny)(net, x_0, label)(x_t, t)
    assert torch.equal(found, lab.unet(x_t, t, label, control=net(x_t, t, label, canny(x_0))))


def test_means_and_deviations_are_over_the_rows_of_one_variant():
    rows = {"a b-0": {"x": 1.0}, "a b-1": {"x": 2.0}, "a b-12": {"x": 6.0}, "a-0": {"x": 9.0}}
    assert across_seeds(rows, "a b", "x") == [1, 2, 6] and mean(rows, "a b", "x") == 3
    assert lab_module.spread(rows, "a b", "x", 2) == f"3.00 ± {math.sqrt(7):.2f}"
    assert lab_module.spread(rows, "a", "x") == "9.000"


# The experiments


@pytest.mark.parametrize("name", ["sudden_convergence", "many_conditions"])
def test_a_tiny_run_leaves_a_result_and_a_figure_and_runs_again_at_once(tiny, name, monkeypatch):
    result = experiment(name, tiny, True, CPU)
    written = json.loads((tiny / name / "result.json").read_text())
    assert written == json.loads(json.dumps(result)) and written["verdict"] in (
        "reproduced", "mixed", "not reproduced")
    assert {"name", "claim", "why", "dataset", "seeds", "device", "torch", "date", "seconds"} <= set(written)
    for row in written["rows"].values():
        for value in row.values():
            assert all(map(math.isfinite, value if isinstance(value, list) else [value]))
    assert matplotlib.image.imread(tiny / name / "figure.png")[..., :3].std() > 0.05
    monkeypatch.setattr(lab_module.Lab, "score", None)  # nothing is left to be measured
    assert experiment(name, tiny, True, CPU)["rows"] == result["rows"]


def history(f1):
    return [{"step": 10 * i, "edge_f1": value, "gap": 0.1} for i, value in enumerate(f1)]


def test_the_rise_is_measured_between_a_tenth_and_nine_tenths_of_it():
    row = sudden_convergence.summary(history([0.5, 0.5, 0.5, 0.56, 0.8, 0.96, 1.0, 0.99, 1.0, 1.0, 1.0]))
    assert (row["begins"], row["ends"]) == (30, 50) and row["width"] == 0.2
    steady = sudden_convergence.summary(history([0.5 + i / 20 for i in range(11)]))
    assert steady["width"] == pytest.approx(0.8)


@pytest.mark.parametrize("f1, word", [
    ([0.5] * 5 + [0.99] * 6, "reproduced"), ([0.5 + i / 20 for i in range(11)], "not reproduced"),
    ([0.5, 0.5, 0.5, 0.7, 0.8, 0.9, 1, 1, 1, 1, 1], "mixed"), ([0.6] * 11, "not reproduced")])
def test_convergence_is_called_sudden_only_if_it_is(f1, word):
    rows = {f"edges-{seed}": sudden_convergence.summary(history(f1)) for seed in range(3)}
    assert sudden_convergence.verdict(rows)[0] == word


def test_the_halves_of_the_edges_add_up_to_the_edges():
    images, _ = draw_digits(20)
    left, right = many_conditions.left(images), many_conditions.right(images)
    assert torch.equal(left + right, canny(images)) and left.any() and right.any()
    assert not left[..., 14:].any() and not right[..., :14].any()


def rows_of_many(both, left_and_right=0.9):
    f1, error = both
    values = {"neither": (0.5, 0.4), "edges": (0.95, 0.4), "colour": (0.55, 0.05), "edges + colour": (f1, error),
              "left": (0.7, 0.4), "right": (0.7, 0.4), "left + right": (left_and_right, 0.4), "4 x edges": (0.4, 0.5),
              "edges + another image's colour": (0.9, 0.1)}
    return {f"{name}-{seed}": {"edge_f1": a + seed / 1000, "colour_error": b, "label_accuracy": 0.9}
            for name, (a, b) in values.items() for seed in range(3)}


@pytest.mark.parametrize("rows, word", [
    (rows_of_many((0.94, 0.06)), "reproduced"), (rows_of_many((0.94, 0.3)), "mixed"),
    (rows_of_many((0.6, 0.06)), "mixed"), (rows_of_many((0.6, 0.3), 0.65), "not reproduced"),
    (rows_of_many((0.94, 0.06), 0.65), "mixed")])
def test_conditions_compose_only_if_the_sum_keeps_both(rows, word):
    assert many_conditions.verdict(rows)[0] == word


def test_nets_that_learned_nothing_compose_nothing():
    rows = {key: {"edge_f1": 0.5, "colour_error": 0.4, "label_accuracy": 0.9} for key in rows_of_many((0.5, 0.4))}
    assert many_conditions.verdict(rows)[0] == "not reproduced"


def test_better_is_only_what_is_better_in_all_seeds_alike():
    assert clearly_better([3, 4, 5], [1, 2, 3]) and clearly_better([1, 2, 3], [3, 4, 5], sign=-1)
    assert not clearly_better([1, 2, 3], [1, 2, 3]) and not clearly_better([3, 4, 2], [1, 2, 3])


# The README's table


RESULT = {"name": "cost", "claim": "It costs.", "verdict": "mixed", "why": "0.9 and 1.1", "dataset": "drawn",
          "seeds": [0, 1], "device": "cpu", "torch": "2", "date": "2024-01-02", "seconds": 90, "rows": {}}


def test_the_table_holds_claim_verdict_evidence_and_how_it_was_measured():
    text = all_experiments.table([RESULT])
    for fact in ("It costs.", "**mixed**", "0.9 and 1.1", "drawn, seeds 0, 1, cpu, torch 2, 2024-01-02, 2 min"):
        assert fact in text


def test_publishing_puts_the_table_into_the_readme_and_figures_beside_it(tmp_path):
    (tmp_path / "out" / "cost").mkdir(parents=True)
    (tmp_path / "out" / "cost" / "figure.png").write_bytes(b"png")
    (tmp_path / "out" / "cost" / "result.json").write_text("{}")
    begin, end = all_experiments.MARKS
    (tmp_path / "README.md").write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    all_experiments.publish([RESULT], tmp_path / "out", tmp_path)
    assert (tmp_path / "README.md").read_text() == (
        f"before\n{begin}\n{all_experiments.table([RESULT])}\n{end}\nafter\n")
    published = tmp_path / ".github" / "results" / "experiments"
    assert (published / "cost.png").read_bytes() == b"png" and (published / "cost.json").read_text() == "{}"


def test_our_readme_has_a_place_for_the_claims():
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert all(text.count(mark) == 1 for mark in all_experiments.MARKS)
