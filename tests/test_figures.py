"""The pictures, pixel by pixel and point by point, and the table of results that the README shows."""

import copy
import json
import warnings
from pathlib import Path

import matplotlib.image
import pytest
import torch

from minicnet import report
from minicnet.checkpoints import CheckpointError
from minicnet.figures import learning_curves, samples_sheet, save_figure

BASE = [{"step": 0, "heldout_loss": 1.0}, {"step": 10, "loss": 0.7, "heldout_loss": 0.5},
        {"step": 20, "loss": 0.4, "heldout_loss": 0.3}]
METRICS = {
    "dataset": "drawn", "base_dataset": "drawn", "condition": "canny", "measure": "edge_f1", "device": "cpu", "seed": 3,
    "torch": "2.0", "date": "2024-01-02", "images": 500, "batch_size": 64, "base_steps": 70, "control_steps": 80,
    "seconds": {"base": 61.2, "control": 30.7, "total": 150.0},
    "heldout_loss": {"base": 0.11111, "control": 0.22222, "shuffled": 0.33333},
    "measured": {"base, guidance 1": {"edge_f1": 0.61, "digit": 0.21, "frechet": 31.0},
                 "with control, guidance 1": {"edge_f1": 0.9116, "digit": 0.97, "frechet": 17.25},
                 "real images": {"edge_f1": 1.0, "digit": 0.995, "frechet": 12.0}}}
CONTROL = [{"step": 0, "heldout_loss": 0.3, "heldout_loss_shuffled": 0.31, "edge_f1": 0.6},
           {"step": 7, "loss": 0.2, "heldout_loss": 0.2, "heldout_loss_shuffled": 0.4, "edge_f1": 0.9}]


def columns(C=1, H=4, W=6):
    """Two rows: one column of edges, three of images, all of them different."""
    generator = torch.Generator().manual_seed(0)
    return {"edges": torch.rand(2, 1, 1, H, W, generator=generator) * 2 - 1,
            "without control": torch.rand(2, 3, C, H, W, generator=generator) * 2 - 1}


# Sheets


@pytest.mark.parametrize("C", [1, 3])
def test_every_image_is_at_its_place_in_a_gray_frame(C):
    fig = samples_sheet(columns(C), "drawn, seed 0")
    for ax, images in zip(fig.axes, columns(C).values(), strict=True):
        picture = torch.tensor(ax.images[0].get_array())
        assert picture.shape == (2 * 6, images.shape[1] * 8, 3)
        inside = torch.zeros(picture.shape[:2], dtype=torch.bool)
        for row in range(2):
            for k in range(images.shape[1]):
                place = slice(6 * row + 1, 6 * row + 5), slice(8 * k + 1, 8 * k + 7)
                for colour in range(3):
                    shown, image = picture[..., colour][place], images[row, k, colour % images.shape[2]]
                    torch.testing.assert_close(shown, (image + 1) / 2)
                inside[place] = True
        assert (picture[~inside] == 0.5).all()


def test_a_sheet_has_its_title_and_a_heading_over_each_column():
    fig = samples_sheet(columns(), "drawn, seed 0: edge-F1 0.912")
    assert fig.get_suptitle() == "drawn, seed 0: edge-F1 0.912"
    assert [" ".join(ax.get_title().split()) for ax in fig.axes] == ["edges", "without control"]
    for ax in fig.axes:
        assert not [*ax.get_xticks(), *ax.get_yticks()] and not any(line.get_visible() for line in ax.spines.values())


def test_a_sheet_grows_with_its_images_and_these_are_square():
    square = {name: images[..., :4] for name, images in columns().items()}
    fig, large = samples_sheet(square, ""), samples_sheet({k: v.repeat(4, 1, 1, 1, 1) for k, v in square.items()}, "")
    fig.draw_without_rendering()
    for ax, images in zip(fig.axes, (1, 3)):
        side = ax.get_window_extent()
        assert side.width / images == pytest.approx(side.height / 2, rel=0.02)
    assert large.get_figwidth() == fig.get_figwidth() and large.get_figheight() > 2 * fig.get_figheight()


def test_each_row_has_its_text_at_its_left_and_nothing_is_cut():
    rows = ["WWW " * 10 + "a red seven on navy paper", ""]
    fig = samples_sheet(columns(), "a title " * 20, rows)
    fig.draw_without_rendering()
    labels = fig.axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == rows and not fig.axes[1].get_yticklabels()
    frame, sheet = fig.bbox, fig.axes[0].get_window_extent()
    for text in (labels[0], fig._suptitle):
        box = text.get_window_extent()
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
    box = labels[0].get_window_extent()
    assert box.x1 < sheet.x0 and (box.y0 + box.y1) / 2 == pytest.approx(sheet.y0 + 0.75 * sheet.height, abs=5)


def test_values_outside_the_range_are_clipped():
    fig = samples_sheet({"images": torch.full((1, 1, 1, 2, 2), 1.5)}, "")
    assert fig.axes[0].images[0].get_array().max() == 1


# Curves


def test_curves_go_through_the_numbers_of_the_histories():
    fig = learning_curves(BASE, CONTROL, METRICS, "drawn, seed 0")
    left, middle, right = ({line.get_label(): line.get_xydata().tolist() for line in ax.lines} for ax in fig.axes)
    batches, heldout = left.values()
    assert batches == [[10, 0.7], [20, 0.4]] and heldout == [[0, 1], [10, 0.5], [20, 0.3]]
    assert middle["right condition"] == [[0, 0.3], [7, 0.2]]
    assert middle["condition of another image"] == [[0, 0.31], [7, 0.4]]
    assert right["with control\n(few, strength 1)"] == [[0, 0.6], [7, 0.9]]
    assert [y for _, y in right["without control"]] == [0.61, 0.61]
    assert [y for _, y in right["real images"]] == [1, 1]


def test_curves_say_what_they_show():
    fig = learning_curves(BASE, CONTROL, METRICS, "drawn, seed 0")
    assert fig.get_suptitle() == "drawn, seed 0"
    for ax in fig.axes:
        assert ax.get_title() and ax.get_ylabel() and ax.get_xlabel() == "training step"
        assert {text.get_text() for text in ax.get_legend().get_texts()} == {line.get_label() for line in ax.lines}


def test_the_last_losses_are_in_view():
    left = learning_curves(BASE, CONTROL, METRICS, "").axes[0]
    assert left.get_ylim()[0] == 0 and left.get_ylim()[1] > 0.4


# Files


@pytest.mark.parametrize("make", [
    lambda: samples_sheet(columns(), "a title", ["a one", "a two"]),
    lambda: learning_curves(BASE[:1], CONTROL[:1], METRICS, "a title")], ids=["sheet", "curves of one point"])
def test_a_figure_is_saved_without_a_warning_and_without_another_file(tmp_path, make):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_figure(fig := make(), tmp_path / "deep" / "figure.png")
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["figure.png"]
    picture = matplotlib.image.imread(tmp_path / "deep" / "figure.png")
    assert picture.shape[1] == pytest.approx(150 * fig.get_figwidth(), abs=1) and picture[..., :3].std() > 0.05


@pytest.mark.parametrize("name, start", [("a.png", b"\x89PNG"), ("a.JPG", b"\xff\xd8"), ("a.jpeg", b"\xff\xd8"),
                                         ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_a_file_is_of_the_kind_that_its_name_says(tmp_path, name, start):
    save_figure(samples_sheet(columns(), ""), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.xyz", "a", ""])
def test_an_unknown_kind_of_file_is_refused_in_one_sentence(tmp_path, name):
    with pytest.raises(ValueError, match=r"^cannot write .*must end in .png, .jpg, .jpeg, .pdf or .svg$"):
        save_figure(samples_sheet(columns(), ""), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_figure_that_cannot_be_saved_says_so(tmp_path):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(CheckpointError, match="cannot write"):
        save_figure(samples_sheet(columns(), ""), tmp_path / "folder.png")


# The README's table

def rows(text):
    return {cells[0]: cells[1:] for line in text.splitlines() if line.startswith("| ")
            for cells in [[cell.strip() for cell in line.strip("|").split("|")]]}


def test_the_table_holds_the_numbers_of_the_run():
    assert rows(report.table(METRICS)) == {
        "": ["base, guidance 1", "with control, guidance 1", "real images"],
        "edge-F1 within one pixel": ["0.610", "0.912", "1.000"],
        "the prompt's digit is read": ["0.210", "0.970", "0.995"],
        "Frechet distance (less is better)": ["31.000", "17.250", "12.000"]}


def test_the_table_says_what_was_run_where_and_when():
    first, *_, last = report.table(METRICS).splitlines()
    for fact in ("drawn", "canny", "seed 3", "cpu", "torch 2.0", "2024-01-02", "500 test images"):
        assert fact in first
    for fact in ("0.2222 with the right condition", "0.3333 with that of another image", "0.1111 without control",
                 "70 steps of the base in 61 s", "80 steps of the control in 31 s", "batches of 64", "2.5 minutes"):
        assert fact in last
    reused = {**METRICS, "seconds": {**METRICS["seconds"], "base": 0.0}}
    assert "The base is of an earlier run on drawn" in report.table(reused)


def test_the_summary_has_a_line_for_each_run_with_what_control_changes():
    measured = {"base, guidance 2": {"edge_f1": 0.6, "all": 0.9, "frechet": 30.04},
                "with control, guidance 2": {"edge_f1": 0.98765, "all": 0.8, "frechet": 7.0},
                "real images": {"edge_f1": 1.0, "all": 0.995, "frechet": 12.26}}
    *_, line = report.summary([METRICS | {"measured": measured}] * 3).splitlines()
    assert [cell.strip() for cell in line.strip("|").split("|")] == [
        "drawn, canny", "edge-F1 within one pixel: 0.600 → 0.988", "0.900 → 0.800", "30.0 → 7.0 (12.3)", "70 + 80, 2"]


@pytest.fixture
def readme(monkeypatch, tmp_path):
    """A README to be rewritten, and two runs' metrics.json."""
    monkeypatch.setattr(report, "README", tmp_path / "README.md")
    monkeypatch.setattr(report, "PAGE", tmp_path / "results" / "README.md")
    text = f"# é\n\ntext \n{report.BEGIN}\nold | numbers\n{report.END}\n\n  the end"
    (tmp_path / "README.md").write_text(text, "utf-8")
    for name in ("a", "b"):
        metrics = copy.deepcopy(METRICS)
        metrics["dataset"] = f"dataset {name}"
        for column, found in list(metrics["measured"].items()):
            found["all"] = 0.5
            metrics["measured"][column.replace("1", "2")] = found
        (tmp_path / f"{name}.json").write_text(json.dumps(metrics))
    return tmp_path / "README.md"


def test_the_readme_is_rewritten_between_the_markers_and_nowhere_else(readme, tmp_path):
    for _ in range(2):  # the second time changes nothing
        report.main([str(tmp_path / "b.json"), str(tmp_path / "a.json")])
        runs = [json.loads((tmp_path / name).read_text()) for name in ("b.json", "a.json")]
        assert readme.read_text("utf-8") == (
            f"# é\n\ntext \n{report.BEGIN}\n{report.summary(runs)}\n{report.END}\n\n  the end")
        assert (tmp_path / "results" / "README.md").read_text("utf-8").endswith(
            f"\n\n{report.table(runs[0])}\n\n{report.table(runs[1])}\n")


@pytest.mark.parametrize("paths", [["nowhere.json"], ["a.json", "README.md"], ["stopped.json"], ["list.json"]])
def test_a_run_that_cannot_be_read_ends_in_one_sentence_and_leaves_the_readme_alone(readme, tmp_path, paths):
    (tmp_path / "stopped.json").write_text('{"seconds": {"base": 3.0}}')
    (tmp_path / "list.json").write_text("[1]")
    before = readme.read_bytes()
    with pytest.raises(SystemExit, match=f"error: .*{paths[-1]} is not the metrics.json of a finished run"):
        report.main([str(tmp_path / path) for path in paths])
    assert readme.read_bytes() == before


def test_a_readme_without_markers_is_left_alone(readme, tmp_path):
    readme.write_text("# é", "utf-8")
    with pytest.raises(SystemExit, match="error: the README must hold the lines"):
        report.main([str(tmp_path / "a.json")])
    assert readme.read_text("utf-8") == "# é"


def test_our_readme_has_a_place_for_the_table():
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    assert text.index(report.BEGIN) < text.index(report.END)


def test_our_readme_and_the_page_of_all_results_say_what_the_runs_files_say():
    root = Path(__file__).parent.parent
    runs = [json.loads(path.read_text()) for path in (root / ".github" / "results").glob("*/metrics.json")]
    lines = (root / "README.md").read_text("utf-8").splitlines()
    assert all(line in lines for line in report.summary(runs).splitlines())
    page = (root / ".github" / "results" / "README.md").read_text("utf-8") if runs else ""
    assert all(report.table(run) in page for run in runs)
