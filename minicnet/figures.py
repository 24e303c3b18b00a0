"""Pictures: sheets of images, and the curves of a training. Each function returns a Figure."""

import io
import textwrap
from pathlib import Path

import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.checkpoints import write_atomically
from minicnet.errors import UserError
from minicnet.results import TITLES

INCHES = 0.6  # the side of an image on a sheet
LETTERS = 14  # letters of 9 points that fit into an inch
MAX_IMAGES = 512  # on a sheet


def samples_sheet(columns, title, rows=()):
    """Draw groups of images side by side.

    columns: {heading: images (R, K, C, H, W) in [-1, 1]}, K images in each of R rows. rows: a text
    at the left of each row, such as its prompt.
    """
    widths = [images.shape[1] for images in columns.values()]  # in images
    height = len(next(iter(columns.values())))
    width = INCHES * (sum(widths) + 0.5 * len(widths))
    margin = max(map(len, rows), default=0) / LETTERS
    fig = Figure(figsize=(width + margin, INCHES * height + 0.9), layout="constrained")
    axes = fig.subplots(1, len(columns), width_ratios=widths, squeeze=False)[0]
    for ax, count, (heading, images) in zip(axes, widths, columns.items()):
        show_images(ax, images, rows if ax is axes[0] else ())
        letters = int(LETTERS * INCHES * (count + 0.5))
        ax.set_title(textwrap.fill(heading, letters), fontsize=9, parse_math=False)
        ax.spines[:].set_visible(False)
    fig.suptitle(textwrap.fill(title, int(LETTERS * (width + margin))), fontsize=11,
                 parse_math=False)
    return fig


def show_images(ax, images, rows=()):
    """Show images (R, K, C, H, W) in [-1, 1] in R rows, with a gray hairline around each image.

    rows: a text at the left of each row.
    """
    framed = F.pad((images.cpu() + 1) / 2, (1, 1, 1, 1), value=0.5)
    R, K, C, H, W = framed.shape
    picture = framed.permute(0, 3, 1, 4, 2).reshape(R * H, K * W, C).clamp(0, 1)
    ax.imshow(picture.expand(-1, -1, 3).numpy(), interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([H * (row + 0.5) for row in range(len(rows))], rows, fontsize=9)
    ax.tick_params(length=0)


def learning_curves(base, control, results, title):
    """Plot the losses of base and control, and how well images follow their condition, over steps.

    base, control: the logs of their trainings. results: the run's Results.
    """
    name = results.measure
    fig = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    left.plot(*_curve(base, "loss"), color="tab:gray", label="training batches")
    left.plot(*_curve(base, "heldout_loss"), color="tab:blue", label="held-out images")
    left.set(title="The base learns to predict the noise", ylabel="loss",
             ylim=(0, 3 * base[-1]["heldout_loss"]))
    middle.plot(*_curve(control, "heldout_loss_shuffled"), color="tab:red",
                label="condition of another image")
    middle.plot(*_curve(control, "heldout_loss"), color="tab:blue", label="right condition")
    middle.set(title="The control learns to use its condition", ylabel="held-out loss")
    right.axhline(results.real[name], color="tab:gray", linestyle=":", label="real images")
    right.plot(*_curve(control, name), color="tab:green", marker=".",
               label="with control\n(16 images)")
    right.axhline(results.base[1][name], color="tab:gray", linestyle="--", label="without control")
    right.set(title="The images follow their condition", ylabel=TITLES[name])
    for ax in (left, middle, right):
        ax.set_xlabel("training step")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    fig.suptitle(title, fontsize=11)
    return fig


def _curve(history, name):
    entries = [entry for entry in history if name in entry]
    return [entry["step"] for entry in entries], [entry[name] for entry in entries]


def figure_format(path):
    """Return "png", "jpg", "jpeg", "pdf" or "svg", the ending of a figure's file name.

    Raises UserError for another ending.
    """
    ending = Path(path).suffix.lower().removeprefix(".")
    if ending not in ("png", "jpg", "jpeg", "pdf", "svg"):
        raise UserError(f"cannot write {path}: a picture's name must end in .png, .jpg, .jpeg, "
                        ".pdf or .svg")
    return ending


def save_figure(fig, path):
    """Write a Figure as PNG, JPEG, PDF or SVG, whole or not at all; the file's name decides which.

    Raises UserError for another ending, and if the file cannot be written.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format=figure_format(path), dpi=150)
    write_atomically(path, buffer.getvalue())
