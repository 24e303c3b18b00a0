"""What the figures of the experiments are made of: bars with a point for each seed, lines and columns of images."""

import statistics

import torch
import torch.nn.functional as F

from minicnet.figures import tiled


def grouped_bars(ax, names, groups, title):
    """At each of the places called `names` a bar for each group: the mean over the seeds, which are points.

    groups: {label: a list with a list of values for each place, or for the first places}.
    """
    width = 0.8 / len(groups)
    for j, (label, values) in enumerate(groups.items()):
        places = [i + width * (j - (len(groups) - 1) / 2) for i in range(len(values))]
        ax.bar(places, [statistics.mean(v) for v in values], 0.9 * width, alpha=0.7, label=label)
        for place, v in zip(places, values):
            ax.plot([place] * len(v), v, "k.", markersize=4)
    ax.set_xticks(range(len(names)), names, fontsize=9)
    ax.set_title(title, fontsize=10)
    ax.grid(alpha=0.3, axis="y")
    ax.set_axisbelow(True)


def lines_of_images(ax, lines, columns, title):
    """Lines of gray images. lines: {name: a list with images (N, 1, H, W) in [-1, 1] for each of the columns}."""
    groups = [[F.pad(torch.cat(list(x[:, 0]), dim=1).cpu(), (2, 2, 1, 1)) for x in line] for line in lines.values()]
    picture = torch.cat([torch.cat(line, dim=1) for line in groups]).numpy()
    ax.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="nearest")
    height, width = groups[0][0].shape
    ax.set_yticks([height * (i + 0.5) for i in range(len(lines))], lines, fontsize=9)
    ax.set_xticks([width * (i + 0.5) for i in range(len(columns))], columns, fontsize=9)
    ax.tick_params(length=0)
    ax.set_title(title, fontsize=10)


def columns_of_images(ax, columns, rows=(), fontsize=10):
    """Columns of images. columns: {heading: images (N, 1 or 3, H, W) in [-1, 1]}; rows: a text for each of the N."""
    sheet = torch.stack([images.cpu().expand(-1, 3, -1, -1) for images in columns.values()], dim=1)
    side = sheet.shape[-1] + 2  # with the hairline around each
    ax.imshow(tiled(sheet), interpolation="nearest")
    ax.set_xticks([side * (i + 0.5) for i in range(len(columns))], columns, fontsize=fontsize)
    ax.set_yticks([side * (i + 0.5) for i in range(len(rows))], rows, fontsize=fontsize)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
