"""The pictures: sheets of images, and curves of what was learned when. Each function returns a matplotlib Figure."""

import io

import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.checkpoints import write_atomically
from minicnet.report import TITLES


def samples_sheet(columns, title):
    """Groups of images side by side. columns: {heading: images (R, K, C, H, W) in [-1, 1]}, K to each of R rows."""
    shares = [images.shape[1] for images in columns.values()]
    rows, inches = len(next(iter(columns.values()))), 0.6
    fig = Figure(figsize=(inches * (sum(shares) + 0.5 * len(shares)), inches * rows + 0.9), layout="constrained")
    axes = fig.subplots(1, len(columns), width_ratios=shares, squeeze=False)[0]
    for ax, (heading, images) in zip(axes, columns.items()):
        ax.imshow(tiled(images), interpolation="nearest")
        ax.set_title(heading.replace(" without", "\nwithout"), fontsize=9)
        ax.axis("off")
    fig.suptitle(title, fontsize=11)
    return fig


def tiled(images):
    """images (R, K, C, H, W) in [-1, 1] as one picture of R rows: an array (R (H + 2), K (W + 2), 3) in [0, 1]."""
    framed = F.pad((images.cpu() + 1) / 2, (1, 1, 1, 1), value=0.5)  # a gray hairline around each image
    R, K, C, H, W = framed.shape
    picture = framed.permute(0, 3, 1, 4, 2).reshape(R * H, K * W, C).clamp(0, 1)  # rows of pixels, colours last
    return picture.expand(-1, -1, 3).numpy()


def learning_curves(base, control, metrics, title):
    """What happened when. base, control: histories of `train`; metrics: those of the run, for floor and ceiling."""
    measure = metrics["measure"]
    fig = Figure(figsize=(11, 3.4), layout="constrained")
    left, middle, right = fig.subplots(1, 3)
    left.plot(*_curve(base, "loss"), color="tab:gray", label="training batches (late t more often)")
    left.plot(*_curve(base, "heldout_loss"), color="tab:blue", label="held-out images")
    left.set(title="The base learns to guess noise", ylabel="loss")
    left.set_ylim(0, 3 * base[-1]["heldout_loss"])
    middle.plot(*_curve(control, "heldout_loss_shuffled"), color="tab:red", label="condition of another image")
    middle.plot(*_curve(control, "heldout_loss"), color="tab:blue", label="right condition")
    middle.set(title="The control learns to use its condition", ylabel="held-out loss")
    right.axhline(metrics["control"][f"{measure}_ceiling"], color="tab:gray", linestyle=":", label="real images")
    right.plot(*_curve(control, measure), color="tab:green", marker=".", label="with control")
    right.axhline(metrics["control"][f"{measure}_floor"], color="tab:gray", linestyle="--", label="without control")
    right.set(title="The images follow their condition", ylabel=TITLES[measure])
    for ax in (left, middle, right):
        ax.set_xlabel("training step")
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8)
    fig.suptitle(title, fontsize=11)
    return fig


def _curve(history, name):
    rows = [row for row in history if name in row]
    return [row["step"] for row in rows], [row[name] for row in rows]


def save_figure(fig, path):
    """Writes a Figure as a PNG, whole or not at all. Raises CheckpointError if that cannot be done."""
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=150)
    write_atomically(path, buffer.getvalue())
