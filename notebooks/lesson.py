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

from minicnet.diffusion import NoiseSchedule, sample_ddim
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
    longest = max(len(re.sub(r"\\[a-z]+|[${}_^]", "", line)) for name in named for line in name.split("\n"))
    size = inch * columns + 0.3 + longest / 11, inch * len(named) + 0.25 * bool(titles)  # 11 letters in an inch
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


def library_step(x_t, eps, z, alpha_bar, alpha_bar_prev, sigma):
    """One step of the library's `sample_ddim`, from alpha_bar to alpha_bar_prev, with fresh noise z of strength sigma.

    It is the first of two steps in a schedule of two timesteps, with the sampler's own noise exchanged for z.
    """
    schedule, seen = NoiseSchedule([1 - float(alpha_bar_prev), 1 - float(alpha_bar) / float(alpha_bar_prev)]), []
    sample_ddim(lambda x_t, t: eps, schedule, x_t, steps=2, eta=float(sigma / schedule.posterior_variance[1].sqrt()),
                generator=torch.Generator().manual_seed(0), clip=False, hook=lambda t, x_t, x_0: seen.append(x_t))
    return seen[1] + sigma * (z - torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0)))


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


# Inside a network (notebooks 3 to 5). Blue is positive, red is negative, white is zero.


def u_shape(unet, x_t, t, prompt):
    """Draws a UNet. Returns {its place in the U: (shape that goes in, shape that comes out)}."""
    encoder, decoder = [unet.encoder.conv_in, *unet.encoder.stages], [*unet.decoder.stages][::-1]  # by the skip's row
    shapes, hooks, levels = {}, [], len(encoder)
    places = {**{("down", row): module for row, module in enumerate(encoder)}, "middle": unet.encoder.middle,
              **{("up", row): module for row, module in enumerate(decoder)}}
    for place, module in places.items():
        def remember(module, inputs, output, place=place):
            shapes[place] = (tuple(inputs[0].shape[1:]), tuple(output.shape[1:]))
        hooks.append(module.register_forward_hook(remember))
    with torch.no_grad():
        unet(x_t, t, prompt)
    for hook in hooks:
        hook.remove()

    fig, ax = plt.subplots(figsize=(11.4, 6.2), layout="constrained")
    ax.set(xlim=(-1.75, 2.55), ylim=(-0.5, levels + 1.45), title="The U: channels x height x width of its feature maps")
    ax.axis("off")

    def box(x, y, text, color):
        return ax.text(x, y, text, ha="center", va="center", linespacing=1.3,
                       bbox=dict(boxstyle="round,pad=0.4", facecolor=color, edgecolor="gray")), (x, y)

    def arrow(start, end, text="", color="dimgray", **style):
        (a, at), (b, to) = start, end
        ax.annotate("", to, at, arrowprops=dict(arrowstyle="->", color=color, patchA=a.get_bbox_patch(),
                                                patchB=b.get_bbox_patch(), shrinkA=4, shrinkB=4, **style))
        ax.text((at[0] + to[0]) / 2, at[1] + 0.06, text, ha="center", va="bottom", color=color)

    def size(shape):
        return " x ".join(map(str, shape))

    def parts(module):
        names = [type(part).__name__ for part in (module if hasattr(module, "__iter__") else [module])]
        return " +\n".join([" + ".join(names[:2]), " + ".join(names[2:])]).removesuffix(" +\n")

    noisy = box(0, levels + 1, f"$x_t$  {size(x_t.shape[1:])}\nfolded to {size(shapes['down', 0][0])}", "white")
    noise = box(2, levels + 1, f"last convolution, unfolded:\n$\\varepsilon$  {size(x_t.shape[1:])}", "white")
    downs = [box(0, levels - i, f"{parts(module)}\n{size(shapes['down', i][1])}", "#cfe2f3")
             for i, module in enumerate(encoder)]
    ups = [box(2, levels - i, f"{parts(module)}\n{size(shapes['up', i][0])}  to  {size(shapes['up', i][1])}", "#d9ead3")
           for i, module in enumerate(decoder)]
    middle = box(1, 0, f"middle\n{parts(unet.encoder.middle)}\n{size(shapes['middle'][1])}", "#fff2cc")
    words = box(-1.2, 1, "prompt\ntext encoder\na vector for each word", "#ead1dc")
    emb = box(-1.2, 3, "timestep\n+ the sum of the words\n= emb, for every ResBlock\nand for the share", "#ead1dc")
    fig.draw_without_rendering()  # from here on boxes have a size
    for start, end in zip([noisy, *downs], downs):
        arrow(start, end)
    for start, end in zip([*ups[::-1]], [*ups[-2::-1], noise]):
        arrow(start, end)
    for i, (down, up) in enumerate(zip(downs, ups)):
        arrow(down, up, f"skip {i + 1}", linestyle="dashed")
    arrow(downs[-1], middle, connectionstyle="angle,angleA=-90,angleB=180,rad=0")
    arrow(middle, ups[-1], connectionstyle="angle,angleA=0,angleB=-90,rad=0")
    arrow(noisy, noise, "a learned share of $x_t$, added", "tab:red", linestyle="dashed")
    arrow(words, emb, color="tab:purple")
    arrow(words, downs[-1], color="tab:purple")
    arrow(words, (middle[0], (1, -0.2)), color="tab:purple", connectionstyle="angle,angleA=-90,angleB=180,rad=0")
    show(fig, colours=128)
    return shapes


def pairs_of_bars(groups, title, ylabel="loss"):
    """groups: {name: {name of a bar: value}}, the same bars in each, side by side; on a logarithmic scale."""
    fig, ax = plt.subplots(figsize=(9.4, 3.2), layout="constrained")
    width = 0.8 / len(groups)
    for i, (name, values) in enumerate(groups.items()):
        at = [place - 0.4 + width * (i + 0.5) for place in range(len(values))]
        ax.bar_label(ax.bar(at, values.values(), width, label=name), fmt="%.3f", fontsize=9)
    ax.set(title=title, ylabel=ylabel, yscale="log", xticks=range(len(values)), xticklabels=values)
    ax.margins(y=0.25)
    ax.legend(ncols=len(groups), loc="upper left")
    show(fig)


def maps(named, inch=1.15):
    """{name: (..., H, W)}: the first picture of each, side by side, in colours about zero."""
    fig, axes = plt.subplots(1, len(named), figsize=(inch * len(named), inch + 0.25), layout="constrained")
    for ax, (name, values) in zip(axes, named.items()):
        picture = values.detach().reshape(-1, *values.shape[-2:])[0]
        most = picture.abs().max().item() or 1
        image(ax, picture, name, -most, most, "RdBu")
    show(fig)


def gradients_of_parts(net, gradients):
    """{part of a ControlNet: the norm of its gradients}, from the condition to the exits. gradients: of all weights."""
    squares = dict.fromkeys(["condition encoder", "its zero convolution", "copy of the encoder",
                             "zero convolutions at the exits"], 0.0)
    entrance = f"condition_encoder.{len(net.condition_encoder) - 1}."
    for (name, _), gradient in zip(net.named_parameters(), gradients, strict=True):
        part = 3 if name.startswith("zero") else 2 if name.startswith("encoder") else int(name.startswith(entrance))
        squares[[*squares][part]] += gradient.square().sum().item()
    return {part: square**0.5 for part, square in squares.items()}


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
