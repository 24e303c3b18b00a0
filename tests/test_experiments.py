"""What experiments share: rows and networks that are kept as long as they are what the code would make, and the README.

The bases are tiny ones of random weights, so that no test depends on those that travel with the repository.
"""

import functools
import importlib
import json
import math
import shutil
from pathlib import Path

import matplotlib.image
import pytest
import torch
from torch import nn

from minicnet import experiments
from minicnet.checkpoints import WEIGHTS, CheckpointError, fingerprint, save_checkpoint
from minicnet.colours import colourise
from minicnet.conditions import canny
from minicnet.controlnet import ControlNet, freeze
from minicnet.digits import describe_digits, draw_digits
from minicnet.experiments import all as all_experiments
from minicnet.experiments import cost, judging
from minicnet.experiments import lab as lab_module
from minicnet.experiments.judging import across_seeds, clearly_better, mean
from minicnet.experiments.lab import Lab, control_eps, experiment
from minicnet.unet import UNet
from minicnet.words import VOCABULARY

CPU = torch.device("cpu")
FOLDER = Path(experiments.__file__).parent
TINY = dict(seeds=[0, 1], steps=2, batch_size=2, drop_prompts=0.5, looks=2, images=4, reference=70, classifier_steps=3,
            sampling_steps=2)


@functools.cache
def digits(name, split):
    """70 digits of a dataset that is drawn or coloured-drawn, or 70 of no kind: images, labels, captions."""
    if name == "cifar10":
        return torch.rand(70, 3, 32, 32) * 2 - 1, torch.arange(70) % 10, ["a horse"] * 70
    images, labels = draw_digits(70, seed=len(split))
    if name == "drawn":
        return images, labels, describe_digits(70, seed=len(split))[0]
    images, prompts = colourise(images, labels, seed=len(split))
    return images, labels, prompts


@pytest.fixture(scope="module")
def weights(tmp_path_factory, randomised):
    """The folder of three tiny bases, each with two controls."""
    folder = tmp_path_factory.mktemp("weights")
    for base, channels, dataset, side in (("digits", 1, "drawn", 28), ("coloured", 3, "coloured-drawn", 28),
                                          ("cifar10", 3, "cifar10", 32)):
        unet = randomised(UNet(in_channels=channels, channels=8, multipliers=(1,), patch=4), std=0.1)
        save_checkpoint(folder / base / "base.pt", dict(
            kind="base", vocabulary=list(VOCABULARY), image_shape=[channels, side, side], schedule=["cosine", 1000],
            dataset=dataset, model=unet.settings, weights=unet.state_dict()))
        for condition, count in (("canny", 1), ("colour", 3)):
            net = randomised(ControlNet(unet, count), std=0.1)
            save_checkpoint(folder / base / f"{condition}.pt", dict(
                kind="control", base=fingerprint(unet), condition=condition, condition_channels=count,
                weights=net.state_dict()))
    return folder


@pytest.fixture
def tiny(monkeypatch, tmp_path, weights):
    """Settings, data and bases for a run in seconds, and a folder for it."""
    shutil.copytree(weights, tmp_path / "weights")
    for name in all_experiments.NAMES:
        module = importlib.import_module(f"minicnet.experiments.{name}")
        if hasattr(module, "WEIGHTS"):
            monkeypatch.setattr(module, "WEIGHTS", tmp_path / "weights")
    for name, value in dict(QUICK=TINY, WEIGHTS=tmp_path / "weights",
                            load_dataset=lambda name, split: digits(name, split)[:2],
                            captions=lambda name, split: digits(name, split)[2]).items():
        monkeypatch.setattr(lab_module, name, value)
    return tmp_path


@pytest.fixture
def make_lab(tiny):
    return lambda name="guidance": Lab(name, "digits", tiny, True, CPU)


def trained(lab, seed=0):
    """The least network that can be trained, in the file digits-least-SEED.pt of all experiments."""
    return lab.trained("least", seed, lambda: nn.Sequential(nn.Conv2d(1, 1, 1)),
                       lambda net, x_0, prompt: lambda x_t, t: net(x_t), shared="lab")[0]


# Rows and networks that survive a stop


def test_a_row_is_computed_once_and_kept_when_run_again(make_lab):
    calls = []
    for _ in range(2):
        assert make_lab().row("a-0", lambda x: calls.append(x) or {"value": 0.5}, 7)["value"] == 0.5
    assert calls == [7]


def test_a_row_that_was_stopped_is_computed_again(make_lab):
    def stopped():
        raise KeyboardInterrupt

    lab = make_lab()
    lab.row("a-0", lambda: {"value": 1.0})
    with pytest.raises(KeyboardInterrupt):
        lab.row("b-0", stopped)
    assert list(make_lab().rows) == ["a-0"]


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"stamp": 1}'])
def test_damaged_rows_are_refused(make_lab, text):
    lab = make_lab()
    lab.row("a-0", lambda: {"value": 1.0})
    lab.file.write_text(text)
    with pytest.raises(CheckpointError, match="rows.json is damaged"):
        make_lab()


def change_settings(monkeypatch, tiny):
    monkeypatch.setattr(lab_module, "QUICK", {**TINY, "steps": 3})


def change_base(monkeypatch, tiny):
    path = tiny / "weights" / "digits" / "base.pt"
    path.write_bytes(path.read_bytes() + b"\0")


def change_source(monkeypatch, tiny, module="unet", by="new = 1"):
    name = f"minicnet.{module}"
    monkeypatch.setitem(lab_module.SOURCES, name, lab_module.SOURCES[name] + f"\n{by}\n")


@pytest.mark.parametrize("change", [change_settings, change_base, change_source])
def test_rows_and_networks_of_anything_else_are_set_aside_and_made_anew(make_lab, tiny, monkeypatch, capsys, change):
    lab = make_lab()
    lab.row("a-0", lambda: {"value": 1.0})
    trained(lab)
    with monkeypatch.context() as patch:
        change(patch, tiny)
        if change is change_base:  # what was appended is no part of the archive
            patch.setattr(lab_module, "load_base", lambda path: (lab.unet, {
                "dataset": "drawn", "schedule": ["cosine", 1000]}))
            patch.setattr(lab_module, "schedule_of", lambda checkpoint: lab.schedule)
        lab = make_lab()
        assert lab.rows == {} and lab.row("a-0", lambda: {"value": 2.0})["value"] == 2
        trained(lab)
    assert capsys.readouterr().out.count("is of other code, settings or weights") == 2
    assert (tiny / "guidance" / "rows-earlier-1.json").exists()
    assert (tiny / "trained" / "digits-least-0-earlier-1.pt").exists()


def stamps(make_lab):
    return lab_module.stamp_of("digits", TINY), make_lab("cost").stamp, make_lab("guidance").stamp


def test_what_experiments_share_outlives_a_change_of_one_of_them_and_their_own_does_not(make_lab, monkeypatch):
    shared, cost, guidance = stamps(make_lab)
    change_source(monkeypatch, None, "experiments.guidance")
    assert stamps(make_lab)[:2] == (shared, cost) and stamps(make_lab)[2] != guidance


@pytest.mark.parametrize("module, text", [
    ("unet", "# a comment"), ("unet", "'a docstring'"), ("report", "new = 1"), ("figures", "new = 1"),
    ("experiments.plots", "new = 1"), ("experiments.judging", "new = 1"),
    ("experiments.guidance", "from minicnet.experiments.plots import columns_of_images"),
    ("experiments.guidance", "def figure(rows, lab):\n    return None")])
def test_what_no_row_depends_on_makes_none_stale(monkeypatch, module, text):
    before = lab_module.code_of("minicnet.experiments.guidance", {})
    change_source(monkeypatch, None, module, text)
    assert lab_module.code_of("minicnet.experiments.guidance", {}) == before


def test_an_interval_holds_the_true_difference_in_about_9_of_10_cases_though_seeds_share_their_images():
    torch.manual_seed(0)
    held = []
    for _ in range(300):
        hard = 0.1 * torch.randn(2, 1, 8)  # what a block of images does to either variant, whatever the seed
        values = hard + 0.03 * torch.randn(2, 3, 8) + torch.tensor([0.03, 0.0])[:, None, None]
        rows = {f"{name}-{seed}": {"x_blocks": values[i, seed].tolist()} for i, name in enumerate("ab")
                for seed in range(3)}
        difference, low, high = judging.interval(rows, "a", "b", "x")
        assert low < difference < high and difference == pytest.approx((values[0] - values[1]).mean().item(), abs=1e-6)
        held.append(low < 0.03 < high)
    assert 0.85 < sum(held) / 300 < 0.97


def test_an_interval_is_told_with_signs_and_as_many_digits_as_asked_for():
    told = judging.Interval(0.0123, -0.003, 0.021)
    assert f"{told}" == "+0.012 (-0.003 to +0.021)" and f"{told:+.4f}" == "+0.0123 (-0.0030 to +0.0210)"


def test_blocks_are_of_24_images_each_and_their_mean_is_that_of_all():
    images, labels = torch.arange(60.0), torch.arange(60.0)
    found = lab_module.blocks(lambda x, y: (x + y).mean().item(), images, labels)
    assert found == [23.0, 71.0, 107.0]


# Training, drawing, measuring


def test_a_network_is_trained_once_and_depends_on_its_seed_alone(make_lab, tiny):
    lab = make_lab()
    net = trained(lab, 1)
    assert not any(parameter.requires_grad for parameter in net.parameters())
    torch.manual_seed(55)
    assert fingerprint(trained(lab, 1)) == fingerprint(net) != fingerprint(trained(lab, 0))
    (tiny / "trained" / "digits-least-1.pt").unlink()
    assert fingerprint(trained(lab, 1)) == fingerprint(net)


def test_the_edge_control_learns_and_leaves_the_base_alone(make_lab):
    lab = make_lab()
    before, net = fingerprint(lab.unet), lab.edge_control(0)
    assert any(weight.any() for weight in net.zero_middle.parameters()) and fingerprint(lab.unet) == before


def test_noise_depends_on_the_seed_alone_and_the_base_under_a_fresh_control_is_the_base(make_lab):
    lab = make_lab()
    prompt, edges = lab.test_prompts, canny(lab.test_images)
    plain, fresh = lab.draw(prompt, seed=3), freeze(ControlNet(lab.unet))
    assert torch.equal(lab.draw(prompt, [(fresh, edges, 1)], seed=3), plain)
    assert not torch.equal(lab.draw(prompt, seed=4), plain)


def test_the_condition_of_a_training_batch_is_made_of_its_own_images(make_lab, randomised):
    lab = make_lab()
    net, x_0, prompt = randomised(ControlNet(lab.unet), std=0.05), lab.train_images[:3], lab.train_prompts[:3, 0]
    t, x_t = torch.tensor([5, 500, 999]), torch.randn(3, 1, 28, 28)
    found = control_eps(lambda net: (lab.unet, net), canny)(net, x_0, prompt)(x_t, t)
    torch.testing.assert_close(found, lab.unet(x_t, t, prompt, control=net(x_t, t, prompt, canny(x_0))))


def test_means_and_deviations_are_over_the_rows_of_one_variant():
    rows = {"a b-0": {"x": 1.0}, "a b-1": {"x": 2.0}, "a b-12": {"x": 6.0}, "a-0": {"x": 9.0}}
    assert across_seeds(rows, "a b", "x") == [1, 2, 6] and mean(rows, "a b", "x") == 3
    assert judging.in_figures(rows, "a b", "x", 2) == f"3.00 ± {math.sqrt(7):.2f}"
    assert judging.in_figures(rows, "a", "x") == "9.000"


def test_better_is_only_what_is_better_in_all_seeds_alike():
    assert clearly_better([3, 4, 5], [1, 2, 3]) and clearly_better([1, 2, 3], [3, 4, 5], sign=-1)
    assert not clearly_better([1, 2, 3], [1, 2, 3]) and not clearly_better([3, 4, 2], [1, 2, 3])


# The experiments, and their README


def test_every_experiment_starts_from_weights_that_travel_with_the_repository():
    for name in all_experiments.NAMES:
        assert (WEIGHTS / importlib.import_module(f"minicnet.experiments.{name}").BASE / "base.pt").exists()


def test_all_runs_every_experiment_there_is():
    shared = {"__init__", "all", "judging", "lab", "plots", "concatenated", "teaching"}
    assert set(all_experiments.NAMES) == {path.stem for path in FOLDER.glob("*.py")} - shared


@pytest.mark.slow
@pytest.mark.parametrize("name", all_experiments.NAMES)
def test_a_tiny_run_leaves_a_result_and_a_figure_and_runs_again_at_once(tiny, monkeypatch, name):
    result = experiment(name, tiny, True, CPU)
    written = json.loads((tiny / name / "result.json").read_text())
    assert written == json.loads(json.dumps(result)) and written["verdict"] in (
        "reproduced", "mixed", "not reproduced")
    assert {key.rpartition("-")[2] for key in written["rows"]} == {"0", "1"}
    for row in written["rows"].values():
        for value in row.values():
            assert all(map(math.isfinite, value if isinstance(value, list) else [value]))
    assert matplotlib.image.imread(tiny / name / "figure.png")[..., :3].std() > 0.05
    monkeypatch.setattr(lab_module.Lab, "score", None)  # nothing is left to be measured
    assert experiment(name, tiny, True, CPU)["rows"] == result["rows"]


RESULT = {"name": "cost", "claim": "It costs.", "verdict": "mixed", "why": "more: 0.9 and 1.1", "dataset": "drawn",
          "seeds": [0, 1], "images": 128, "device": "cpu", "torch": "2", "date": "2026-01-02", "seconds": 90,
          "rows": {"a-0": {"x": 0.9}}}


def publish(tmp_path, made=None, published=None):
    """The section on cost in a README that is written when one result was made now and another published before."""
    for result, file in ((made, tmp_path / "out" / "cost" / "result.json"),
                         (published, tmp_path / all_experiments.RESULTS / "cost.json")):
        if result:
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(result))
            (file.parent / "figure.png").write_bytes(b"png")
    (tmp_path / "README.md").write_text(f"# us\n{all_experiments.BEGIN}\nold\n{all_experiments.END}\nend")
    all_experiments.publish(tmp_path / "out", tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert lines[0] == "# us" and lines[-1] == "end" and len(lines) == 6 + len(all_experiments.NAMES)
    verdict = "to be measured again" if published else "mixed"
    short = all_experiments.NAMES["cost"]
    assert f"| [{short}](minicnet/experiments/README.md#cost-mixed) | {verdict} |" in lines
    assert "| words compose (ours) | not measured yet |" in lines
    text = (tmp_path / "minicnet" / "experiments" / "README.md").read_text()
    assert all(f"## {name}:" in text for name in all_experiments.NAMES)
    return text.split("## cost: ")[1].split("## ")[0]


def test_a_section_holds_claim_verdict_evidence_figure_and_how_it_was_measured(tiny, monkeypatch):
    monkeypatch.setattr(cost, "verdict", lambda rows: ("mixed", f"more: {rows['a-0']['x']} and 1.1"))
    monkeypatch.setattr(cost, "WHY_HERE", "It is small.", raising=False)
    current = {**RESULT, "stamp": lab_module.stamp_of("digits", lab_module.FULL, "cost")}
    text = publish(tiny, made=current)
    assert text.startswith("mixed\n") and "To be measured again" not in text
    for fact in ("It costs.", "More: 0.9 and 1.1.", "Why here, and perhaps not there: It is small.",
                 "(../../.github/results/experiments/cost.png)", "drawn, seeds 0, 1", "2 minutes",
                 "128 images each, cpu, torch 2, 2026-01-02", "`python -m minicnet.experiments.cost`"):
        assert fact in text
    assert (tiny / all_experiments.RESULTS / "cost.png").read_bytes() == b"png"


@pytest.mark.parametrize("stamp, mark", [({}, "before prompts became words"),
                                         ({"stamp": {"code": "other"}}, "have changed since this was measured")])
def test_a_stale_result_is_never_published_and_one_that_was_is_marked(tiny, stamp, mark):
    text = publish(tiny, made={**RESULT, **stamp, "verdict": "reproduced"}, published={**RESULT, **stamp})
    assert text.startswith("mixed\n") and "**To be measured again.**" in text and mark in text


def test_our_readme_is_the_one_of_the_published_results(tiny, monkeypatch):
    monkeypatch.undo()
    sections = [json.loads(path.read_text())
                for path in (all_experiments.ROOT / all_experiments.RESULTS).glob("*.json")]
    text = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"## {result['name']}: {result['verdict']}\n\nThe claim: {result['claim']}" in text
               for result in sections)
    monkeypatch.setattr(all_experiments, "is_current", lambda result: True)  # or its verdict is not told
    page = (all_experiments.ROOT / "README.md").read_text("utf-8")
    assert all(all_experiments.line(result).rsplit("|", 2)[0] in page for result in sections)
