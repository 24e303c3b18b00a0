"""A maintainer's tools: weights are exported whole or not at all, and no number is typed."""

import json

import pytest
import torch
from saved import change, contents, save_networks

from minicnet.checkpoints import load_base, load_control
from minicnet.errors import UserError
from minicnet.publish import report
from minicnet.publish.export import export
from minicnet.publish.strip import strip
from minicnet.results import Results


@pytest.fixture
def runs(tmp_path, unet, nets):
    """Two runs with one base: one for edges, one for colours."""
    for net, (name, condition) in zip(nets, [("edges", "canny"), ("colours", "colour")]):
        folder = save_networks(tmp_path / name, unet, {condition: net})
        (folder / f"{condition}.pt").rename(folder / "control.pt")
        (tmp_path / name / "metrics.json").write_text(f'"{name}"\n', encoding="utf-8")
    return [tmp_path / "edges", tmp_path / "colours"]


def test_exported_weights_are_half_as_large_and_belong_to_the_exported_base(runs, tmp_path):
    weights = tmp_path / "weights"
    for _ in range(2):  # a second export replaces the first
        export(weights, runs)
    for before, after in [(runs[0] / "base.pt", "base.pt"), (runs[0] / "control.pt", "canny.pt"),
                          (runs[1] / "control.pt", "colour.pt")]:
        assert (weights / after).stat().st_size < 0.75 * before.stat().st_size
        exact, rounded = (torch.load(path, weights_only=True)["weights"]
                          for path in (before, weights / after))
        torch.testing.assert_close({name: weight.float() for name, weight in rounded.items()},
                                   exact, rtol=1e-3, atol=1e-6)
    for name, run in (("canny", "edges"), ("colour", "colours")):
        assert json.loads((weights / f"{name}.json").read_text(encoding="utf-8")) == run
        load_control(weights / f"{name}.pt", load_base(weights / "base.pt")[0])


@pytest.mark.parametrize("break_it, match", [
    (lambda edges, colours: change(edges / "base.pt", training={}), "not finished: --resume"),
    (lambda edges, colours: change(colours / "control.pt", training={}), "not finished"),
    (lambda edges, colours: (colours / "metrics.json").unlink(), "not finished"),
    (lambda edges, colours: change(colours / "control.pt", base="other"), "another base"),
    (lambda edges, colours: change(colours / "control.pt", condition="canny"), "two runs"),
    (lambda edges, colours: change(colours / "control.pt", condition="base"), "unknown condition"),
    (lambda edges, colours: change(colours / "control.pt", condition="../x"), "unknown condition"),
])
def test_runs_that_cannot_be_exported_together_are_refused_before_anything_is_written(
        runs, tmp_path, break_it, match):
    break_it(*runs)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=match):
        export(tmp_path / "weights", runs)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("target, exported, match", [
    ("edges", slice(1, None), "is a run and would be overwritten"),  # the target was forgotten
    ("weights", slice(1), "colour.pt would be left without its base")])
def test_a_folder_that_is_a_run_or_would_keep_a_control_without_its_base_is_no_target(
        runs, tmp_path, target, exported, match):
    export(tmp_path / "weights", runs)
    before = contents(tmp_path)
    with pytest.raises(UserError, match=match):
        export(tmp_path / target, runs[exported])
    assert contents(tmp_path) == before


# -- The README --------------------------------------------------------------------------------


def results(**changes):
    """Return a run's Results."""
    column = {"edge_f1": 0.61, "all": 0.9, "frechet": 30.04}
    control = {"edge_f1": 0.98765, "all": 0.8, "frechet": 7.0}
    return Results(**{
        "dataset": "drawn", "condition": "canny", "base_dataset": "drawn", "device": "cpu",
        "seed": 3, "torch": "2.0", "date": "2024-01-02", "images": 500, "batch_size": 64,
        "base_steps": 70, "control_steps": 80, "base": {1: column, 2: column},
        "control": {1: control, 2: control},
        "real": {"edge_f1": 1.0, "all": 0.995, "frechet": 12.26},
        "heldout_loss": {"base": 0.11111, "control": 0.22222, "shuffled": 0.33333},
        "seconds": {"base": 61.2, "control": 30.7, "total": 150.0}, **changes})


def test_the_table_and_the_summary_hold_the_numbers_of_the_run_and_where_they_come_from():
    table = results().as_table()
    for line in ("| | base, guidance 1 | base, guidance 2 | with control, guidance 1 "
                 "| with control, guidance 2 | real images |",
                 "| edge-F1 | 0.610 | 0.610 | 0.988 | 0.988 | 1.000 |",
                 "| all of the prompt is shown | 0.900 | 0.900 | 0.800 | 0.800 | 0.995 |"):
        assert f"{line}\n" in table
    for fact in ("drawn, canny", "seed 3", "cpu", "torch 2.0", "2024-01-02", "500 test images",
                 "0.2222 with the right condition", "0.3333 with that of another image",
                 "0.1111 without control", "70 steps of the base in 61 s",
                 "80 steps of the control in 31 s", "batches of 64", "2.5 minutes"):
        assert fact in table
    other = results(seconds={"base": 0.0, "control": 1.0, "total": 1.0}, base_dataset="mnist")
    assert "The base comes from an earlier run on mnist" in other.as_table()
    assert report.summary([results()] * 2).splitlines()[2:] == [
        "| drawn, canny | edge-F1: 0.610 → 0.988 | 0.900 → 0.800 "
        "| 30.0 → 7.0 (12.3) |"] * 2


def test_a_readme_is_rewritten_between_the_marks_and_nowhere_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_bytes("# é\n\ntext \nBEGIN\nold | numbers\nEND\n\n  the end".encode())
    report.update_readme(path, "BEGIN", "END", "→ new")
    assert path.read_bytes().decode() == "# é\n\ntext \nBEGIN\n→ new\nEND\n\n  the end"
    with pytest.raises(UserError, match="must hold the lines START and END once each"):
        report.update_readme(path, "START", "END", "lost")


@pytest.mark.parametrize("name, content", [
    ("nowhere.json", ""), *(("metrics.json", text) for text in (
        "# é", "[1]", "{}", json.dumps({**vars(results()), "base": {"1": {}}})))])
def test_what_is_no_finished_run_is_refused(tmp_path, name, content):
    (tmp_path / "metrics.json").write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"{name} is not the metrics.json of a finished run"):
        report.load_results(tmp_path / name)


def test_our_readme_and_the_page_of_all_results_hold_what_the_runs_measured():
    runs = [report.load_results(report.PAGE.parent / name / "metrics.json") for name in report.RUNS]
    page = report.PAGE.read_text(encoding="utf-8")
    section = f"{report.BEGIN}\n{report.summary(runs)}\n{report.END}"
    assert section in report.README.read_text(encoding="utf-8")
    assert all(run.as_table() in page for run in runs)


@pytest.mark.slow
def test_the_strip_starts_from_one_noise_and_ends_in_two_images():
    edges, ways = (ax.images[0].get_array() for ax in strip().axes)
    apart = abs(ways[1:29] - ways[31:59])
    assert apart[:, 1:29].max() == 0 and apart[:, -29:-1].mean() > 0.05
    assert edges[1:29].max() == 1 and edges[31:59, 1:29].max() == 0
