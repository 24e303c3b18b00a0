"""What the lessons share: pictures, things that move, the library's code, and a look at what you wrote."""

import base64
import inspect
import io
import re
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from IPython.display import HTML, Markdown, display
from IPython.display import Image as Picture
from matplotlib.animation import FuncAnimation, HTMLWriter
from PIL import Image

from minicnet.digits import lead_pens

plt.rcParams.update({"figure.dpi": 80, "font.size": 10, "axes.titlesize": 10})  # so that notebooks stay small files


def written(yours, reference, *arguments, **options):
    """The function that goes on from here: yours, if it gives what `reference` gives; the reference, if it is empty.

    Raises AssertionError if it gives something else, and says by how much.
    """
    expected, got = reference(*arguments, **options), yours(*arguments, **options)
    if got is None:
        print(f"{yours.__name__}: not written yet. The cells below take the library's.")
        return reference
    pairs = list(zip(expected, got, strict=True)) if isinstance(expected, tuple) else [(expected, got)]
    for right, mine in pairs:
        assert isinstance(mine, torch.Tensor), f"{yours.__name__} gives {type(mine).__name__}, not a tensor"
        assert mine.shape == right.shape, f"{yours.__name__} gives {tuple(mine.shape)}, not {tuple(right.shape)}"
        off = (mine - right).abs().max().item()
        assert off <= 1e-4 * (1 + right.abs().max().item()), f"{yours.__name__} is off by up to {off:.3g}"
    print(f"{yours.__name__}: right. The cells below take yours.")
    return yours


def source(*functions):
    """Shows code of the library as it is."""
    code = "\n".join(inspect.cleandoc("\n" + inspect.getsource(function)) + "\n" for function in functions)
    display(Markdown(f"```python\n{code}```"))


def show(fig, colours=64):
    """A figure as a small PNG."""
    display(Picture(_small(fig, colours)))
    plt.close(fig)


def _small(fig, colours, **options):
    """A figure as the bytes of a PNG of few colours, which takes a third of the space."""
    large, small = io.BytesIO(), io.BytesIO()
    fig.savefig(large, format="png", **options)
    method = Image.Quantize.FASTOCTREE if colours > 128 else Image.Quantize.MEDIANCUT  # the first keeps gradients
    few = Image.open(large).convert("RGB").quantize(colours, method, dither=Image.Dither.NONE)
    few.save(small, "png", optimize=True)
    return small.getvalue()


def image(ax, picture, title="", low=-1, high=1, cmap="gray"):
    """One image (H, W), (1, H, W) or, in colours, (3, H, W), without axes."""
    picture = torch.as_tensor(picture).detach().squeeze()
    if picture.ndim == 3:
        picture = ((picture.movedim(0, -1) - low) / (high - low)).clamp(0, 1)
    ax.imshow(picture, cmap=cmap, vmin=low, vmax=high, interpolation="nearest")
    ax.set_title(title)
    ax.set(xticks=[], yticks=[])


def rows(named, titles=(), inch=1.0, low=-1, high=1, cmap="gray", colours=64):
    """Rows of images: {name of the row: N images, each as for `image`}. titles: one for each column."""
    columns = max(map(len, named.values()))
    size = inch * columns + 1.2, inch * len(named) + 0.25 * bool(titles)
    fig, axes = plt.subplots(len(named), columns, figsize=size, layout="constrained", squeeze=False)
    for row, (line, (name, pictures)) in enumerate(zip(axes, named.items())):
        for i, ax in enumerate(line):
            ax.set(xticks=[], yticks=[])
            if i < len(pictures):
                image(ax, pictures[i], titles[i] if titles and row == 0 else "", low, high, cmap)
            else:
                ax.axis("off")
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    show(fig, colours)


def moving(draw, frames, moments, panels=1, size=(3.0, 3.0), fps=8, dpi=72, colours=64):
    """A strip of some moments, which every page shows, and a film of all of them, which needs scripts.

    draw(axes, i): paints moment i on `panels` axes. frames: the moments of the film, moments: those of the strip.
    """
    fig, axes = plt.subplots(panels, len(moments), figsize=(size[0] * len(moments) * 0.7, size[1] * panels * 0.75),
                             layout="constrained", squeeze=False)
    for column, i in zip(axes.T, moments):
        draw(column, i)
    show(fig, colours)

    fig, axes = plt.subplots(1, panels, figsize=(size[0] * panels, size[1]), layout="constrained", squeeze=False)

    def paint(i):
        for ax in axes[0]:
            ax.clear()
        draw(axes[0], i)

    paint(moments[-1])
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # laid out once: otherwise it would be at each frame
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "film.html")
        film = FuncAnimation(fig, paint, list(frames), init_func=lambda: None)
        film.save(path, writer=SmallFrames(fps, colours), dpi=dpi)
        html = path.read_text()
    plt.close(fig)
    for name, sign in SIGNS.items():
        html = html.replace(f'<i class="fa fa-{name}"></i>', sign)
    html = re.sub(r'<link rel="stylesheet"\s[^>]*>', "", html)  # its icons would come from the net
    assert len(html) < 400_000, f"a film of {len(html):,} bytes: fewer or smaller frames"
    display(HTML(html))


SIGNS = {"minus": "&minus;", "fast-backward": "|&lt;", "step-backward": "&lt;", "play fa-flip-horizontal": "&#9664;",
         "pause": "||", "play": "&#9654;", "step-forward": "&gt;", "fast-forward": "&gt;|", "plus": "+"}


class SmallFrames(HTMLWriter):
    """Matplotlib's player, with frames of few colours."""

    def __init__(self, fps, colours):
        super().__init__(fps, embed_frames=True, default_mode="loop")
        self.colours = colours

    def grab_frame(self, **options):
        frame = _small(self.fig, self.colours, dpi=self.dpi, **options)
        self._saved_frames.append(base64.encodebytes(frame).decode())


def mean_of_world(world, schedule, x_t, t):
    """E[x_0 | x_t] in the world of images or points world (N, ...), each as often as the others, and their weights.

    x_t: (B, ...), t: (B,) -> (B, ...), (B, N). It is the solution of the last part that you write in notebook 1.
    """
    signal = schedule.sqrt_alpha_bar[t].view(-1, 1)
    noise = schedule.sqrt_one_minus_alpha_bar[t].view(-1, 1)
    points, x = world.flatten(1), x_t.flatten(1)
    squares = x.square().sum(1, keepdim=True) - 2 * signal * x @ points.T + signal**2 * points.square().sum(1)  # (B, N)
    weights = (-squares / (2 * noise**2)).softmax(-1)
    return (weights @ points).view_as(x_t), weights


# Worlds in the plane (notebook 2): points near a path.

ARROWS = torch.cartesian_prod(torch.linspace(-2, 2, 11), torch.linspace(-2, 2, 11))  # (121, 2), where arrows are drawn


def pen_path(digit, seed=0):
    """Points on the path of a pen that draws a digit: (72, 2), about as wide and high as N(0, I)."""
    labels, paths, *_ = next(lead_pens(10, seed))
    return _centred(paths[labels == digit][0] * torch.tensor([1.0, -1.0]))


def spiral(count=100):
    turn = torch.linspace(0.04, 1, count).sqrt() * 5 * torch.pi
    return _centred(turn[:, None] * torch.stack([turn.cos(), turn.sin()], dim=1))


def heart(count=100):
    u = torch.linspace(0, 2 * torch.pi, count + 1)[:-1]
    y = 13 * u.cos() - 5 * (2 * u).cos() - 2 * (3 * u).cos() - (4 * u).cos()
    return _centred(torch.stack([16 * u.sin() ** 3, y], dim=1))


def _centred(path):
    path = path - path.mean(0)
    return path / path.std()


def noise_of_world(schedule, x_t, t, centres, spread):
    """E[eps | x_t] of points x_t (B, 2) at t (B,), in a world of centres (K, 2) with a spread. You write it, too."""
    signal = schedule.sqrt_alpha_bar[t][:, None]
    noise = schedule.sqrt_one_minus_alpha_bar[t][:, None]
    variance = (signal * spread) ** 2 + noise**2
    means = signal[:, None] * centres  # (B, K, 2)
    weights = (-(x_t[:, None] - means).square().sum(-1) / (2 * variance)).softmax(-1)
    return noise / variance * (x_t - (weights[..., None] * means).sum(1))


def density(ax, schedule, t, centres, spread):
    """The blurred picture that the points of a world make at timestep t."""
    side = torch.linspace(-2.4, 2.4, 60)
    grid = torch.cartesian_prod(side, side)
    signal, variance = schedule.sqrt_alpha_bar[t], schedule.alpha_bar[t] * spread**2 + 1 - schedule.alpha_bar[t]
    squares = (grid[:, None] - signal * centres).square().sum(-1)
    picture = (-squares / (2 * variance)).exp().mean(1).view(60, 60).T
    picture = (10 * picture / picture.max()).round()  # few shades make small files
    ax.imshow(picture, origin="lower", extent=(-2.4, 2.4, -2.4, 2.4), cmap="Blues", vmax=1.4 * picture.max(),
              interpolation="nearest")
    _plane(ax)


def arrows_on(ax, arrows):
    ax.quiver(*ARROWS.T, *arrows.T, color="tab:red", angles="xy", scale_units="xy", scale=5, width=0.006)


def field(ax, schedule, t, centres, spread, title=""):
    """The blurred picture of a world, and arrows against the noise in it, which point uphill."""
    density(ax, schedule, t, centres, spread)
    arrows_on(ax, -noise_of_world(schedule, ARROWS, torch.full((len(ARROWS),), t), centres, spread))
    ax.set_title(title)


def cloud(ax, points, title=None):
    ax.scatter(*points.T, s=3, color="black", linewidths=0, zorder=3)
    _plane(ax)
    if title is not None:
        ax.set_title(title)


def paths_on(ax, way, places, count, title):
    """The ways (steps + 1, N, 2) of some points, coloured by the place where they end, and the ends of all."""
    home = torch.cdist(way[-1], places).argmin(1)
    often = max(1, len(way) // 100)  # a hundred points of a path are enough to see it
    for i in range(count):
        ax.plot(*way[::often, i].T, color=plt.cm.hsv(home[i].item() / len(places)), lw=0.8, alpha=0.8)
    ax.scatter(*way[-1].T, s=1, color="black", zorder=3)
    ax.scatter(*way[0, :count].T, s=12, facecolors="none", edgecolors="gray")
    ax.set(title=title, xlim=(-3, 3), ylim=(-3, 3), aspect="equal")


def _plane(ax):
    ax.set(xlim=(-2.4, 2.4), ylim=(-2.4, 2.4), xticks=[], yticks=[], aspect="equal")


# Inside a network (notebook 4). Blue is positive, red is negative, white is zero.


def maps(named, inch=1.15):
    """{name: (..., H, W)}: the first picture of each, side by side, in colours about zero."""
    fig, axes = plt.subplots(1, len(named), figsize=(inch * len(named), inch + 0.25), layout="constrained")
    for ax, (name, values) in zip(axes, named.items()):
        picture = values.detach().reshape(-1, *values.shape[-2:])[0]
        most = picture.abs().max().item() or 1
        image(ax, picture, name, -most, most, "RdBu")
    show(fig)


def gradient_maps(groups, norms, shown):
    """For each step of norms and shown, and each of the groups: the size of a gradient, and a picture of it."""
    size = 1.35 * len(norms) + 1.6, 1.4 * len(groups) + 0.2
    fig, axes = plt.subplots(len(groups), len(norms), figsize=size, layout="constrained")
    cmap = plt.get_cmap("viridis").with_extremes(bad="black")
    for step, (sizes, pictures) in enumerate(zip(norms, shown)):
        for ax, name, size, picture in zip(axes[:, step], groups, sizes, pictures):
            ax.imshow(picture.where(picture > 0, torch.nan).log10(), cmap=cmap, vmin=-8, vmax=-2, aspect="auto")
            ax.set(xticks=[], yticks=[], title="0" if size == 0 else f"{size:.1g}", box_aspect=1)
            if step == 0:
                ax.set_ylabel(name, rotation=0, ha="right", va="center")
    for step, ax in enumerate(axes[0]):
        ax.annotate(f"step {step}", (0.5, 1.3), xycoords="axes fraction", ha="center", weight="bold")
    show(fig)


def tile(images, frame=1):
    """Rows of images, each (N, C, H, W), as one picture (C, ...), with gray lines between."""
    rows = torch.stack([torch.nn.functional.pad(row, (frame,) * 4, value=0.0) for row in images])  # (R, N, C, h, w)
    R, N, C, H, W = rows.shape
    return rows.permute(2, 0, 3, 1, 4).reshape(C, R * H, N * W)


# Many conditions (notebook 6).


def dots(table):
    """{name of a row: {name of a measure: value}}: a panel for each measure, with a dot and its value for each row."""
    measures = [*next(iter(table.values()))]
    fig, axes = plt.subplots(1, len(measures), figsize=(10, 0.36 * len(table) + 0.6), sharey=True, layout="constrained")
    for ax, measure in zip(axes, measures):
        values = [row[measure] for row in table.values()]
        ax.hlines(range(len(values)), 0, values, color="lightgray", zorder=0)
        ax.plot(values, range(len(values)), "o")
        for place, value in enumerate(values):
            ax.annotate(f"{value:.3f}", (value, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
        ax.set(title=measure, xlim=(0, 1.45 * max(values) or 1), xticks=[])
        ax.spines[["top", "right", "bottom"]].set_visible(False)
    axes[0].set_yticks(range(len(table)), table)
    axes[0].invert_yaxis()
    show(fig)


def curves(panels, xlabel):
    """{title of a panel: {name of a curve: its values}}, side by side."""
    fig, axes = plt.subplots(1, len(panels), figsize=(4.6 * len(panels), 3.0), layout="constrained")
    for ax, (title, named) in zip(axes, panels.items()):
        for name, values in named.items():
            ax.plot(range(1, len(values) + 1), values, label=name)
        ax.set(title=title, xlabel=xlabel, xscale="log")
        ax.minorticks_off()
        ax.set_xticks(ticks := [n for n in (1, 2, 5, 10, 20, 50) if n <= len(values)], ticks)
    axes[-1].legend()
    show(fig)
