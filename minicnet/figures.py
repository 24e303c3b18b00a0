"""The pictures: sheets of images, and curves of what was learned when. Each function returns a matplotlib Figure."""

import io
import textwrap
from pathlib import Path

import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.checkpoints import write_atomically
from minicnet.report import TITLES

INCHES = 0.6  # the side of an image on a sheet
LETTERS = 14  # of 9 points fit into an inch


def samples_sheet(columns, title, rows=()):
    """Groups of images side by side. columns: {heading: images (R, K, C, H, W) in [-1, 1]}, K to each of R rows.

    rows: a text for each row, such as its prompt, which stands at its left.
    """
    shares = [images.shape[1] for images in columns.values()]
    first = next(iter(columns.values()))
    width = INCHES * (sum(shares) + 0.5 * len(shares))
    margin = max(map(len, rows), default=0) / LETTERS
    fig = Figure(figsize=(width + margin, INCHES * len(first) + 0.9), layout="constrained")
    axes = fig.subplots(1, len(columns), width_ratios=shares, squeeze=False)[0]
    for ax, share, (heading, images) in zip(axes, shares, columns.items()):
        ax.imshow(tiled(images), interpolation="nearest")
        ax.set_title(textwrap.fill(heading, int(LETTERS * INCHES * (share + 0.5))), fontsize=9)
        ax.spines[:].set_visible(False)
        ax.set(xticks=[], yticks=[])
    middles = [(first.shape[-2] + 2) * (row + 0.5) for row in range(len(rows))]  # in pixels, with the frames
    axes[0].set_yticks(middles, rows, fontsize=9)
    axes[0].tick_params(length=0)
    fig.suptitle(textwrap.fill(title, int(LETTERS * (width + margin))), fontsize=11)
    return fig


def tiled(images):
    """images (R, K, C, H, W) in [-1, 1] as one picture of R rows: an array (R (H + 2), K (W + 2), 3) in [0, 1]."""
    framed = F.pad((images.cpu() + 1) / 2, (1, 1, 1, 1), value=0.5)  # a gray hairline around each image
    R, K, C, H, W = framed.shape
    picture = framed.permute(0, 3, 1, 4, 2).reshape(R * H, K * W, C).clamp(0, 1)  # rows of pixels, colours last
    return picture.expand(-1, -1, 3).numpy()


def learning_curves(base, control, metrics, title):
    """What happened when. base, control: the histories of training; metrics: the run's, for floor and ceiling."""
    name, measured = metrics["measure"], metrics["measured"]
    fig = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    left.plot(*_curve(base, "loss"), color="tab:gray", label="training batches, weighted")
    left.plot(*_curve(base, "heldout_loss"), color="tab:blue", label="held-out images")
    left.set(title="The base learns to guess noise", ylabel="loss")
    left.set_ylim(0, 3 * base[-1]["heldout_loss"])
    middle.plot(*_curve(control, "heldout_loss_shuffled"), color="tab:red", label="condition of another image")
    middle.plot(*_curve(control, "heldout_loss"), color="tab:blue", label="right condition")
    middle.set(title="The control learns to use its condition", ylabel="held-out loss")
    right.axhline(measured["real images"][name], color="tab:gray", linestyle=":", label="real images")
    right.plot(*_curve(control, name), color="tab:green", marker=".", label="with control\n(few, strength 1)")
    right.axhline(measured["base, guidance 1"][name], color="tab:gray", linestyle="--", label="without control")
    right.set(title="The images follow their condition", ylabel=TITLES[name])
    for ax in (left, middle, right):
        ax.set_xlabel("training step")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    fig.suptitle(title, fontsize=11)
    return fig


def _curve(history, name):
    rows = [row for row in history if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def figure_format(path):
    """ "png", "jpg", "jpeg", "pdf" or "svg": what the name of a figure's file ends in. ValueError for another name."""
    kind = Path(path).suffix.lower().removeprefix(".")
    if kind not in ("png", "jpg", "jpeg", "pdf", "svg"):
        raise ValueError(f"cannot write {path}: the name of a picture must end in .png, .jpg, .jpeg, .pdf or .svg")
    return kind


def save_figure(fig, path):
    """Writes a Figure as PNG, JPEG, PDF or SVG, as the file's name says, whole or not at all.

    Raises ValueError for another kind of name, CheckpointError if the file cannot be written.
    """
    buffer = io.BytesIO()
    fig.savefig(buffer, format=figure_format(path), dpi=150)
    write_atomically(path, buffer.getvalue())
