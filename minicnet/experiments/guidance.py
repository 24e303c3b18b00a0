"""Guidance without a prompt (the paper's section 3.4 and Fig. 5): to which branch does the condition belong?

The prompt is always empty, so all that guidance, eps_uncond + w (eps_cond - eps_uncond), can strengthen is the edges.
They can be in both branches, which are then one, and w does nothing. Or they are in eps_cond only, where the five
residuals, the finest first, can be weighted, so that there are four ways:

    only        1, 1, 1, 1, 1
    formula     1, 1, 2, 2, 2: CFG resolution weighting, the paper's w_i = 64 / h_i, for a network whose largest feature
                map is h high: h / h_i
    paper       1, 2, 4, 8, 8: the weights that the formula gives in Stable Diffusion, which has four sizes of maps and
                not two
    reduced     1/8, 1/4, 1/2, 1, 1: the same, but none above 1. The paper says that its weights reduce the strength;
                those of its published code run from 0.1 to 1

Noise, edges, nets (the edge controls of three seeds) and sampling steps are the same for all. Unlike the paper, which
shows one image of each at one w, we measure many at three.
"""

import statistics

from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.controlnet import Control
from minicnet.experiments.judging import across_seeds, clearly_better, in_figures, interval, mean
from minicnet.experiments.lab import main
from minicnet.experiments.plots import lines_of_images
from minicnet.words import tokenize

BASE = "digits"
CLAIM = "CFG resolution weighting improves images that are drawn without a prompt (section 3.4, Fig. 5)."
WHY_HERE = ("Our feature maps have two sizes and Stable Diffusion's four, so here the formula only doubles. It is for "
            "guidance that is too strong. Here a small w without weights draws the best images.")
GUIDANCE = (1.5, 3, 6)
WAYS = {"only": "tab:orange", "formula": "tab:blue", "paper": "tab:purple", "reduced": "tab:green"}


def weights(way, heights):
    """What to multiply residuals of these heights with, the finest first."""
    doubling = [min(2**i, 8) for i in range(len(heights))]
    return {"only": [1 for _ in heights], "formula": [max(heights) / h for h in heights], "paper": doubling,
            "reduced": [w / max(doubling) for w in doubling]}[way]


def weighted(way, control):
    residuals = [*control.skips, control.middle]
    *skips, middle = [w * x for w, x in zip(weights(way, [x.shape[-2] for x in residuals]), residuals)]
    return Control(skips, middle)


def strengthened(unet, way, w):
    """What stands in the base's place, so that guidance w strengthens what a control says, and not the prompt."""
    def eps_model(x_t, t, prompt, control):
        eps_cond, eps_uncond = unet(x_t, t, prompt, control=weighted(way, control)), unet(x_t, t, prompt)
        return eps_uncond + w * (eps_cond - eps_uncond)

    return eps_model


def draw(lab, way, w, seed, count):
    """The edges of the first `count` test images, drawn without a prompt. way: one of WAYS, "both", or "base"."""
    edges = canny(lab.test_images[:count])
    prompt = tokenize([""] * len(edges)).to(lab.device)
    controls = [] if way == "base" else [(lab.edge_control(seed), edges, 1)]
    unet = strengthened(lab.unet, way, w) if way in WAYS else lab.unet
    return lab.draw(prompt, controls, unet=unet, seed=seed, guidance=1.0)


def run(lab):
    edges, labels = canny(lab.test_images), lab.test_labels

    def measured(way, w, seed):
        return lab.score(draw(lab, way, w, seed, len(labels)), labels, edges)

    for seed in lab.seeds:
        for way in ("base", "both"):
            lab.row(f"{way}-{seed}", measured, way, 1, seed)
        for w in GUIDANCE:
            for way in WAYS:
                lab.row(f"{way} {w}-{seed}", measured, way, w, seed)


def verdict(rows):
    """`formula` wins at a w if it is clearly better than `only` at that w, and than `both`: in the digits that images
    show, or in Frechet distance, and clearly worse in neither. Reproduced if it wins at two w of three at least, mixed
    if at one, or if `paper` or `reduced` wins at two."""
    def lead(ours, theirs):
        read = interval(rows, ours, theirs, "label_accuracy")
        ours, theirs = (across_seeds(rows, start, "frechet") for start in (ours, theirs))
        return {(read.low > 0) - (read.high < 0), clearly_better(ours, theirs, -1) - clearly_better(theirs, ours, -1)}

    def wins(way):
        leads = {w: (lead(f"{way} {w}", f"only {w}"), lead(f"{way} {w}", "both")) for w in GUIDANCE}
        return [w for w, some in leads.items() if all(1 in signs and -1 not in signs for signs in some)]

    def told(label, start):
        return f"{label} {mean(rows, start, 'label_accuracy'):.3f} and {in_figures(rows, start, 'frechet', 1)}"

    won = {way: wins(way) for way in WAYS}
    word = ("reproduced" if len(won["formula"]) > 1 else
            "mixed" if won["formula"] or max(len(won["paper"]), len(won["reduced"])) > 1 else "not reproduced")
    best = {way: min(GUIDANCE, key=lambda w, way=way: mean(rows, f"{way} {w}", "frechet")) for way in WAYS}
    more = interval(rows, f"formula {best['formula']}", f"only {best['only']}", "label_accuracy")
    return word, (
        "how many images show the digit of the edges, and the Frechet distance: "
        f"{told('base alone', 'base')}; {told('edges in both branches', 'both')}; at the best w, by Frechet distance, "
        f"{'; '.join(told(f'{way} (w = {w})', f'{way} {w}') for way, w in best.items())}. Formula at its best shows "
        f"{more} more digits than only. It beats both ways without weights at "
        f"{len(won['formula'])} of {len(GUIDANCE)} w, paper at {len(won['paper'])}, reduced at {len(won['reduced'])}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 7.4), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1, 1.3])
    titles = {"label_accuracy": "Images that show\nthe digit of the edges",
              "frechet": "Frechet distance\n(less is better)", "edge_f1": "edge-F1"}
    for i, (measure, title) in enumerate(titles.items()):
        ax = fig.add_subplot(grid[0, i])
        for way, colour in WAYS.items():
            values = [across_seeds(rows, f"{way} {w}", measure) for w in GUIDANCE]
            ax.plot(range(len(GUIDANCE)), [statistics.mean(v) for v in values], marker="o", color=colour, label=way)
            ax.fill_between(range(len(GUIDANCE)), [min(v) for v in values], [max(v) for v in values], color=colour,
                            alpha=0.15)
        for way, style in {"both": "-", "base": "--"}.items():
            ax.axhline(mean(rows, way, measure), color="black", linestyle=style,
                       label={"both": "both (any w)", "base": "base alone"}[way])
        ax.set_xticks(range(len(GUIDANCE)), [f"w = {w}" for w in GUIDANCE], fontsize=9)
        ax.set_title(title, fontsize=10)
        if measure == "frechet":
            ax.set_yscale("log", subs=[2, 5])
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
        ax.grid(alpha=0.3)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=9, ncols=6, loc="outside upper center")
    strip, few, seed = fig.add_subplot(grid[1, :]), 6, lab.seeds[0]
    both = draw(lab, "both", 1, seed, few)
    lines = {"edges": [canny(lab.test_images[:few]) * 2 - 1] * len(GUIDANCE), "both": [both] * len(GUIDANCE),
             **{way: [draw(lab, way, w, seed, few) for w in GUIDANCE] for way in WAYS}}
    lines_of_images(strip, lines, [f"w = {w}" for w in GUIDANCE],
                    f"Each column from the same noise, no prompt, seed {seed}")
    return fig


if __name__ == "__main__":
    main("guidance")
