"""Guidance without a prompt (the paper's section 3.4 and Fig. 5): to which branch does the condition belong?

The prompt is always empty, so all that guidance, eps_uncond + w (eps_cond - eps_uncond), can strengthen is the edges:

    both       they are in eps_cond and eps_uncond, which are then one, and w does nothing: one draw stands for all w
    only       they are in eps_cond only
    weighted   as `only`, each residual times w_i = h_max / h_i: CFG resolution weighting, the paper's 64 / h_i for a
               network whose largest feature map is h_max high. Here 14 / 14 = 1 and 14 / 7 = 2
    reduced    as `only`, each residual times h_min / h_i, here 1/2 and 1: the same proportions, but none above 1. The
               paper says that its weights reduce the strength, and those of its published code are at most 1

Noise, edges, nets (the edge controls of three seeds) and sampling steps are the same for all. Unlike the paper, which
shows one image of each at one w, we measure many at several.
"""

import statistics

from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.controlnet import Control
from minicnet.experiments.lab import across_seeds, clearly_better, in_figures, main, mean
from minicnet.experiments.plots import lines_of_images
from minicnet.words import tokenize

BASE = "digits"
CLAIM = "CFG resolution weighting improves images that are drawn without a prompt (section 3.4, Fig. 5)."
GUIDANCE = (1.5, 2, 4, 8)
VARIANTS = {"only": "tab:orange", "weighted": "tab:blue", "reduced": "tab:green"}
BETTER = {"edge_f1": 1, "frechet": -1}  # 1: more is better


def weighted(control, largest):
    """The residuals of a Control times largest / h_i, h_i the height of each."""
    def weight(residual):
        return largest / residual.shape[-2] * residual

    return Control([weight(skip) for skip in control.skips], weight(control.middle))


def reweighted(variant, control):
    heights = [skip.shape[-2] for skip in control.skips]
    return {"only": lambda: control, "weighted": lambda: weighted(control, max(heights)),
            "reduced": lambda: weighted(control, min(heights))}[variant]()


def strengthened(unet, variant, w):
    """What stands in the base's place, so that guidance w strengthens what a control says, and not the prompt."""
    def eps_model(x_t, t, prompt, control):
        if variant == "both":  # eps_cond = eps_uncond
            return unet(x_t, t, prompt, control=control)
        eps_cond, eps_uncond = unet(x_t, t, prompt, control=reweighted(variant, control)), unet(x_t, t, prompt)
        return eps_uncond + w * (eps_cond - eps_uncond)

    return eps_model


def draw(lab, variant, w, seed, count):
    """The edges of the first `count` test images, drawn without a prompt."""
    edges = canny(lab.test_images[:count])
    prompt = tokenize([""] * len(edges)).to(lab.device)
    if variant == "base":
        return lab.draw(prompt, seed=seed, guidance=1.0)
    unet = strengthened(lab.unet, variant, w)
    return lab.draw(prompt, [(lab.edge_control(seed), edges, 1)], unet=unet, seed=seed, guidance=1.0)


def run(lab):
    edges, labels = canny(lab.test_images), lab.test_labels
    cells = [("base", None), ("both", None), *((variant, w) for w in GUIDANCE for variant in VARIANTS)]

    def measured(variant, w, seed):
        return lab.score(draw(lab, variant, w, seed, len(labels)), labels, edges)

    for seed in lab.seeds:
        for variant, w in cells:
            lab.row(f"{name(variant, w)}-{seed}", measured, variant, w, seed)


def name(variant, w):
    return variant if w is None else f"{variant} {w}"


def wins(rows, variant):
    """At which w is the variant clearly better than `only` at that w, and than `both`, by each measure?"""
    def better(w, other, measure):
        ours, theirs = (across_seeds(rows, start, measure) for start in (name(variant, w), other))
        return clearly_better(ours, theirs, BETTER[measure])

    return {measure: [w for w in GUIDANCE if better(w, name("only", w), measure) and better(w, "both", measure)]
            for measure in BETTER}


def verdict(rows):
    """Reproduced if at half of the values of w at least the weighted residuals are clearly better than both others by
    Frechet distance and by edge-F1, mixed if so by one of them. `reduced` is shown, and not judged."""
    literal = wins(rows, "weighted")
    by_both = set(literal["edge_f1"]) & set(literal["frechet"])
    word = ("reproduced" if 2 * len(by_both) >= len(GUIDANCE) else
            "mixed" if any(2 * len(ws) >= len(GUIDANCE) for ws in literal.values()) else "not reproduced")

    def best(variant):
        w = min(GUIDANCE, key=lambda w: mean(rows, name(variant, w), "frechet"))
        return f"{variant} {w}: {figures(name(variant, w))}"

    def figures(start):
        return f"{in_figures(rows, start, 'edge_f1')}, {in_figures(rows, start, 'frechet', 2)}"

    return word, (f"edge-F1 and Frechet distance: both {figures('both')}; at the best w (Frechet) "
                  f"{'; '.join(best(variant) for variant in VARIANTS)}; weighted is clearly best by both "
                  f"measures at {len(by_both)} of {len(GUIDANCE)} w")


def figure(rows, lab):
    fig = Figure(figsize=(12, 7.8), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1, 1.5])
    titles = {"edge_f1": "edge-F1", "frechet": "Frechet distance (less is better)",
              "label_accuracy": "Share read as the digit of the edges"}
    for i, (measure, title) in enumerate(titles.items()):
        ax = fig.add_subplot(grid[0, i])
        for variant, colour in VARIANTS.items():
            values = [across_seeds(rows, name(variant, w), measure) for w in GUIDANCE]
            ax.plot(range(len(GUIDANCE)), [statistics.mean(v) for v in values], marker="o", color=colour, label=variant)
            ax.fill_between(range(len(GUIDANCE)), [min(v) for v in values], [max(v) for v in values], color=colour,
                            alpha=0.2)
        for variant, style in {"both": "-", "base": "--"}.items():
            ax.axhline(mean(rows, variant, measure), color="black", linestyle=style,
                       label={"both": "both (any w)", "base": "base alone"}[variant])
        ax.set_xticks(range(len(GUIDANCE)), GUIDANCE)
        ax.set(xlabel="guidance w", title=title)
        if measure == "frechet":
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("{x:g}")
        ax.grid(alpha=0.3)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=8, ncols=5, loc="outside upper center")
    strip, few, seed = fig.add_subplot(grid[1, :]), 5, lab.seeds[0]
    both = draw(lab, "both", None, seed, few)
    lines = {"edges": [canny(lab.test_images[:few]) * 2 - 1] * len(GUIDANCE), "both": [both] * len(GUIDANCE),
             **{variant: [draw(lab, variant, w, seed, few) for w in GUIDANCE] for variant in VARIANTS}}
    lines_of_images(strip, lines, [f"w = {w}" for w in GUIDANCE],
                    f"Each column from the same noise, no prompt, seed {seed}")
    return fig


if __name__ == "__main__":
    main("guidance")
