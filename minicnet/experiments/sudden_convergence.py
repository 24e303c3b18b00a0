"""Sudden convergence (the paper's Fig. 4): does a ControlNet start to follow its condition all at once? And why then?

The same noise, edges and prompts are drawn every few training steps: when does edge-F1 rise, and do the images stay
good meanwhile? Two habits of our training could fake a sudden rise or hide one. So three nets are watched:

    averaged             the averaged weights, which all other experiments use; they lag behind
    raw                  the weights themselves, of the same training: as in the paper, which averages none
    raw, no warm-up      the weights of a training that starts at its full learning rates

At each look we also ask each zero convolution: how large are its residuals, against the features of the base that they
are added to? And which share of them depends on the edges: the variance over edges, where x_t, t and prompt stay the
same, against the mean square? A training of 300 steps is watched through its first half.
"""

import statistics

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.controlnet import ControlNet
from minicnet.experiments.lab import control_eps, main
from minicnet.experiments.plots import lines_of_images
from minicnet.sampling import seeded_noise
from minicnet.training import WARM_UP, make_optimizers, train

BASE = "digits"
CLAIM = ("The model does not learn the control gradually. It starts to follow the condition abruptly, and draws good "
         "images before, during and after (Fig. 4).")
WHY_HERE = ("In any ControlNet the condition must pass two convolutions that start at zero. Control sets in when the "
            "product of all that it passes has grown (notebook 5). How long that takes depends on the training. The "
            "paper's example follows its condition from step 6,133 on; ours has Muon and a far smaller network.")
NETS = {"averaged": "tab:blue", "raw": "tab:orange", "raw, no warm-up": "tab:green"}
DRAWN = 48  # images at each look
FEW = 8  # images whose residuals are looked at, each under the edges of each


def trainings(lab, seed, warm_up):
    """Trains a ControlNet for edges, and now and then yields (step, averaged weights, weights), step 0 first."""
    torch.manual_seed(seed)
    net = ControlNet(lab.unet).to(lab.device)
    start = 0 if warm_up else WARM_UP  # it takes itself for resumed at a step when the warm-up is over
    snapshot = {"step": start, "parts": [part.state_dict() for part in (net, net, *make_optimizers(net))]}
    eps_model = control_eps(lambda net: (lab.unet, net), canny)
    yield 0, net, net
    for step, _, averaged, _ in train(
            net, eps_model, lab.schedule, lab.train_images, lab.train_prompts, steps=lab.steps + start,
            batch_size=lab.batch_size, drop_prompts=lab.drop_prompts, seed=seed, snapshot=snapshot):
        step -= start
        if step > lab.steps // 2:
            return
        if step % (lab.steps // lab.looks) == 0:
            yield step, averaged, net


@torch.no_grad()
def residuals(lab, net):
    """How large each zero convolution's residuals are, against the base's features, and which share hangs on edges."""
    x_0, prompt = lab.test_images[:FEW], lab.test_prompts[:FEW]
    few = len(x_0)
    t = torch.linspace(0, len(lab.schedule) - 1, few, device=lab.device).long()
    x_t = lab.schedule.add_noise(x_0, seeded_noise(x_0.shape, 0, lab.device), t)
    skips, middle, *_ = lab.unet.encoder(x_t, t, prompt)
    control = net(*(x.repeat_interleave(few, 0) for x in (x_t, t, prompt)), canny(x_0).repeat(few, 1, 1, 1))
    found = {}
    for i, (feature, residual) in enumerate(zip([*skips, middle], [*control.skips, control.middle])):
        residual = residual.unflatten(0, (few, few))  # (x_t, edges, C, h, w)
        square = residual.square().mean()
        found[f"size {i}"] = (square / feature.square().mean()).sqrt().item()
        found[f"share {i}"] = (residual.var(1, correction=0).mean() / square.clamp(min=1e-20)).item()
    return found


def draw(lab, net, count):
    """The first `count` test images' edges, drawn under their prompts, from the same noise at every step."""
    return lab.draw(lab.test_prompts[:count], [(net, canny(lab.test_images[:count]), 1)], guidance=1.0)


def curves(lab, seed, warm_up):
    """What each net shows at each look: {"steps": list, "raw edge_f1": list, "raw size 0": list, ...}"""
    edges, labels, found = canny(lab.test_images[:DRAWN]), lab.test_labels[:DRAWN], {"of": lab.steps, "steps": []}
    for step, averaged, raw in trainings(lab, seed, warm_up):
        found["steps"].append(step)
        for name, net in {"averaged": averaged, "raw": raw}.items() if warm_up else [("raw, no warm-up", raw)]:
            score = lab.score(draw(lab, net, DRAWN), labels, edges)
            numbers = {"edge_f1": score["edge_f1"], "frechet": score["frechet"], **residuals(lab, net)}
            for measure, value in numbers.items():
                found.setdefault(f"{name} {measure}", []).append(value)
    return found


def run(lab):
    for seed in lab.seeds:
        lab.row(f"warm-up-{seed}", curves, lab, seed, True)
        lab.row(f"no warm-up-{seed}", curves, lab, seed, False)


def span(f1):
    """Between which looks does a curve go from 10% to 90% of its rise? Their places in the list."""
    low, high = f1[0], max(f1)
    return [next(i for i, value in enumerate(f1) if value >= low + share * (high - low)) for share in (0.1, 0.9)]


def over_seeds(rows, name):
    """The curves called `name`, one for each seed; name begins with one of NETS."""
    return [row[name] for row in rows.values() if name in row]


def average(curves):
    return [statistics.mean(values) for values in zip(*curves)]


def verdict(rows):
    """A rise is sudden if it takes at most a fifth of the training, and begins no sooner than it lasts: a curve that
    rises at once and levels off is not. Images stay good if the mean Frechet distance is never more than 1.5 times that
    of the base, which is that of step 0. Reproduced if each net of every seed rises suddenly, and images stay good. Not
    reproduced if the averaged weights do not rise suddenly."""
    first = next(iter(rows.values()))
    steps, training, sudden, texts = first["steps"], first["of"], {}, []
    for net in NETS:
        f1 = over_seeds(rows, f"{net} edge_f1")
        spans = [[steps[i] for i in span(curve)] for curve in f1]
        rise = min(max(curve) - curve[0] for curve in f1)
        sudden[net] = rise >= 0.05 and all(b - a <= min(a, training / 5) for a, b in spans)
        texts.append(f"{net} {', '.join(f'{a} to {b}' for a, b in spans)}")
    frechet = [average(over_seeds(rows, f"{net} frechet")) for net in NETS]
    start, worst = frechet[0][0], max(map(max, frechet))
    word = ("reproduced" if all(sudden.values()) and worst <= 1.5 * start else
            "mixed" if sudden["averaged"] else "not reproduced")
    before, after = span(average(over_seeds(rows, "raw edge_f1")))
    before = max(before - 1, 0)
    size, share = (average(average(over_seeds(rows, name)) for name in first if name.startswith(f"raw {what}"))
                   for what in ("size", "share"))
    return word, (
        f"edge-F1 goes from 10% to 90% of its rise within these steps, one span per seed: {'; '.join(texts)}. A steady "
        f"rise over the training would take {0.8 * training:.0f} steps. The Frechet distance is {start:.1f} at step 0, "
        f"and at most {worst:.1f} on the way. At step {steps[before]}, the last look before the rise, raw residuals "
        f"are {size[before]:.0%} of the base's features, but only {share[before]:.1%} of their mean square depends on "
        f"the edges. At step {steps[after]} they are {size[after]:.0%}, and {share[after]:.0%} depends on the edges")


def figure(rows, lab):
    fig = Figure(figsize=(10, 9), layout="constrained")
    grid = fig.add_gridspec(3, 2, height_ratios=[1, 1, 0.9])
    steps = next(iter(rows.values()))["steps"]

    def panel(row, column, lines, title):
        ax = fig.add_subplot(grid[row, column])
        for (label, colour), name in lines.items():
            curves = over_seeds(rows, name)
            for curve in curves:
                ax.plot(steps, curve, color=colour, linewidth=0.6, alpha=0.5)
            ax.plot(steps, average(curves), color=colour, label=label, linewidth=2)
        ax.set_title(title, fontsize=10)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=9)
        return ax

    panel(0, 0, {(net, colour): f"{net} edge_f1" for net, colour in NETS.items()}, "edge-F1 (thin: each seed)")
    right = panel(0, 1, {(net, colour): f"{net} frechet" for net, colour in NETS.items()}, "Frechet distance")
    right.set_ylim(bottom=0)
    last = len(lab.unet.encoder.skip_channels)
    convs = {("middle" if i == last else f"skip {i}", f"C{i}"): i for i in range(last + 1)}
    for column, (name, title) in enumerate({"size": "Residuals against the base's features (raw)",
                                            "share": "Share of them that depends on the edges (raw)"}.items()):
        ax = panel(1, column, {look: f"raw {name} {i}" for look, i in convs.items()}, title)
        ax.set_xlabel("training step")
    few = 4
    columns = {"edges": canny(lab.test_images[:few]) * 2 - 1}
    for step, averaged, _ in trainings(lab, lab.seeds[0], warm_up=True):  # the same again: drawn images are not kept
        columns[f"{step}"] = draw(lab, averaged, few)
    strip = fig.add_subplot(grid[2, :])
    lines_of_images(strip, {" " * i: [x[i : i + 1] for x in columns.values()] for i in range(few)}, columns,
                    f"The same noise after so many training steps (averaged weights, seed {lab.seeds[0]})")
    return fig


if __name__ == "__main__":
    main("sudden_convergence")
