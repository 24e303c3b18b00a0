"""The pictures: every image at its place, every curve through its numbers, nothing cut off."""

import pytest
import torch
from matplotlib.image import imread

from minicnet.errors import UserError
from minicnet.figures import learning_curves, samples_sheet, save_figure
from minicnet.results import Results

BASE = [{"step": 0, "heldout_loss": 1.0}, {"step": 10, "loss": 0.7, "heldout_loss": 0.5},
        {"step": 20, "loss": 0.4, "heldout_loss": 0.3}]
CONTROL = [{"step": 0, "heldout_loss": 0.3, "heldout_loss_shuffled": 0.31, "edge_f1": 0.6},
           {"step": 7, "heldout_loss": 0.2, "heldout_loss_shuffled": 0.4, "edge_f1": 0.9}]
RESULTS = Results(**dict.fromkeys(Results.__annotations__, 0) | {
    "condition": "canny", "base": {1: {"edge_f1": 0.61}}, "control": {}, "real": {"edge_f1": 1.0}})


@pytest.fixture
def columns():
    """Two rows: one column of edges, and three of colour images, all of them different."""
    return {"edges": torch.rand(2, 1, 1, 4, 6) * 2 - 1,
            "without control": torch.rand(2, 3, 3, 4, 6) * 2 - 1}


def test_every_image_is_clipped_and_at_its_place_in_a_gray_frame(columns):
    columns["edges"][0] = 1.5
    for ax, images in zip(samples_sheet(columns, "").axes, columns.values(), strict=True):
        picture = torch.tensor(ax.images[0].get_array())
        framed = torch.full((*images.shape[:2], 3, 6, 8), 0.5)
        framed[..., 1:-1, 1:-1] = (images.clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(picture, torch.cat([torch.cat([*row], -1) for row in framed],
                                                      -2).permute(1, 2, 0))


@pytest.mark.parametrize("rows", [2, 8])
def test_a_sheet_of_any_size_shows_square_images_under_their_headings(columns, rows):
    square = {heading: images[..., :4].repeat(rows // 2, 1, 1, 1, 1)
              for heading, images in columns.items()}
    fig = samples_sheet(square, "a title")
    fig.draw_without_rendering()
    for ax, heading, count in zip(fig.axes, square, (1, 3)):
        side = ax.get_window_extent()
        assert side.width / count == pytest.approx(side.height / rows, rel=0.02)
        assert " ".join(ax.get_title().split()) == heading
        assert not [*ax.get_xticks(), *ax.get_yticks()]


def test_long_texts_stand_beside_the_images_and_are_not_cut(columns):
    rows = ["WWW " * 10 + "a red seven on navy paper", ""]
    fig = samples_sheet(columns, "a title, " * 20 + "$\\frac{$", rows)  # a title is no formula
    fig.draw_without_rendering()
    label, sheet = fig.axes[0].get_yticklabels()[0], fig.axes[0].get_window_extent()
    assert label.get_text() == rows[0] and not fig.axes[1].get_yticklabels()
    inches = fig.get_tightbbox()  # of everything
    assert 0 <= inches.x0 and inches.x1 <= fig.get_figwidth()
    assert 0 <= inches.y0 and inches.y1 <= fig.get_figheight()
    box = label.get_window_extent()
    assert box.x1 < sheet.x0
    assert (box.y0 + box.y1) / 2 == pytest.approx(sheet.y0 + 0.75 * sheet.height, abs=5)


def test_curves_go_through_the_numbers_of_the_logs_and_say_what_they_show():
    fig = learning_curves(BASE, CONTROL, RESULTS, "drawn, seed 0")
    left, middle, right = (
        {line.get_label(): line.get_xydata().tolist() for line in ax.lines} for ax in fig.axes)
    assert left == {"training batches": [[10, 0.7], [20, 0.4]],
                    "held-out images": [[0, 1], [10, 0.5], [20, 0.3]]}
    assert middle == {"right condition": [[0, 0.3], [7, 0.2]],
                      "condition of another image": [[0, 0.31], [7, 0.4]]}
    assert right["with control\n(16 images)"] == [[0, 0.6], [7, 0.9]]
    assert right["without control"][0][1] == 0.61 and right["real images"][0][1] == 1
    assert fig.axes[0].get_ylim()[0] == 0 and fig.axes[0].get_ylim()[1] > 0.4
    assert all(ax.get_title() and ax.get_ylabel() and ax.get_legend() for ax in fig.axes)


@pytest.mark.parametrize("name, start", [
    ("a.JPG", b"\xff\xd8"), ("a.jpeg", b"\xff\xd8"), ("a.pdf", b"%PDF"), ("a.svg", b"<?xml")])
def test_a_figure_is_saved_in_the_format_that_its_name_says(tmp_path, columns, name, start):
    save_figure(samples_sheet(columns, "a title", ["one", "two"]), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.xyz", "a", ""])
def test_a_figure_whose_name_ends_in_no_format_is_refused(tmp_path, columns, name):
    with pytest.raises(UserError, match="must end in .png, .jpg, .jpeg, .pdf or .svg"):
        save_figure(samples_sheet(columns, ""), tmp_path / name)


@pytest.mark.filterwarnings("error")
def test_curves_of_a_single_point_become_a_picture_of_150_dots_per_inch(tmp_path):
    fig = learning_curves(BASE[:1], CONTROL[:1], RESULTS, "drawn, seed 0")
    save_figure(fig, tmp_path / "a.png")
    picture = imread(tmp_path / "a.png")
    assert picture.shape[1] == pytest.approx(150 * fig.get_figwidth(), abs=1)
    assert picture[..., :3].std() > 0.05
