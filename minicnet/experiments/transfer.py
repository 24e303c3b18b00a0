"""Transfer (the paper's Fig. 12): does a ControlNet control other bases of the same topology, without retraining?

The base is trained on, to draw in another style, once (seed 0) for each style:

    inverted    black digits on white paper: -x
    thick       strokes a pixel wider on all sides
    blurred     strokes without a sharp rim (a Gaussian blur of one pixel)

Then the edge controls of three seeds, which know the old base only, draw the edges of styled test images with:

    alone       the new base without control: the floor
    old         the new base, and the control as it is
    offset      the new base, and the control with its copy of the encoder moved as the base's encoder has moved:
                control's weights + (new base's - old base's)
    own         the old base and its control, on edges and images of the old style, for comparison; and `floor`,
                the old base without control

All with the same noise, prompts and guidance. Classifier and Frechet distance are those of each style: the classifier
is trained on the styled training images, so distances compare within a style only. Unlike in the paper, where the
other bases are models of the community, shown without numbers, ours are made here and measured.
"""

import copy

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.conditions import canny, gaussian_blur
from minicnet.controlnet import trainable_copy
from minicnet.evaluation import edge_f1, frechet_distance, label_accuracy, train_classifier
from minicnet.experiments.lab import across_seeds, clearly_better, in_figures, main, mean
from minicnet.experiments.plots import grouped_bars, lines_of_images

BASE = "digits"
CLAIM = "A ControlNet works on other bases of the same topology without retraining (section 4.5, Fig. 12)."
STYLES = {
    "inverted": lambda x: -x,
    "thick": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "blurred": lambda x: gaussian_blur(x, 1.0).clamp(-1, 1),
}
VARIANTS = {"alone": "base alone", "old": "with the old control", "offset": "with the old control's offset"}
MANY = 20_000  # training images, more than the steps in another style will see


def styled_base(lab, style):
    """The base, trained on for as many steps as a control on images of that style. Frozen."""
    return lab.trained(f"base-{style}", 0, lambda: trainable_copy(lab.unet),
                       lambda net, x_0, prompt: lambda x_t, t: net(x_t, t, prompt),
                       STYLES[style](lab.train_images[:MANY]), lab.train_prompts[:MANY], drop_prompts=0.1)[0]


def offset(net, old, new):
    """A copy of a ControlNet whose encoder has moved from its place as the encoder of `new` has from that of `old`."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for weight, before, after in zip(*(module.encoder.parameters() for module in (net, old, new)), strict=True):
            weight += after - before
    return net


def draw(lab, variant, seed, unet, edges):
    """Images of the first test prompts under edges by that variant; the old base's if unet is lab.unet."""
    prompt = lab.test_prompts[: len(edges)]
    if variant in ("alone", "floor"):
        return lab.draw(prompt, unet=unet, seed=seed)
    net = lab.edge_control(seed)
    net = offset(net, lab.unet, unet) if variant == "offset" else net
    return lab.draw(prompt, [(net, edges, 1)], unet=unet, seed=seed)


def run(lab):
    for style, restyle in {"digits": lambda x: x, **STYLES}.items():
        if style == "digits":
            unet, variants, classifier = lab.unet, ("floor", "own"), lab.classifier
        else:
            unet, variants = styled_base(lab, style), VARIANTS
            classifier = train_classifier(restyle(lab.train_images[:MANY]), lab.train_labels[:MANY],
                                          steps=lab.classifier_steps)
        edges, reference = canny(restyle(lab.test_images)), restyle(lab.reference_images)

        def measures(variant, seed, unet=unet, edges=edges, classifier=classifier, reference=reference):
            images = draw(lab, variant, seed, unet, edges)
            return {"edge_f1": edge_f1(images, edges),
                    "label_accuracy": label_accuracy(classifier, images, lab.test_labels),
                    "frechet": frechet_distance(classifier, images, reference)}

        for seed in lab.seeds:
            for variant in variants:
                lab.row(f"{style}, {variant}-{seed}", measures, variant, seed)


def closed(rows, alone, control):
    """The share of the gap between the base alone and a perfect edge-F1 that control closes."""
    floor = mean(rows, alone, "edge_f1")
    return (mean(rows, control, "edge_f1") - floor) / (1 - floor)


def kept(rows, style, variant):
    """The share of the gap that control closes on a new base, over that which it closes on its own base."""
    return closed(rows, f"{style}, alone", f"{style}, {variant}") / closed(rows, "digits, floor", "digits, own")


def works(rows, style, variant="old"):
    """Does the control keep half of its effect, and clearly follow edges better than the new base alone, without
    spoiling the images (Frechet distance at most a quarter above that of the new base alone)?"""
    clear = clearly_better(*(across_seeds(rows, f"{style}, {v}", "edge_f1") for v in (variant, "alone")))
    spoilt = mean(rows, f"{style}, {variant}", "frechet") > 1.25 * mean(rows, f"{style}, alone", "frechet")
    return kept(rows, style, variant) >= 0.5 and clear and not spoilt


def verdict(rows):
    """Reproduced if the old control works (see `works`) in all styles, not reproduced if in none."""
    if mean(rows, "digits, own", "edge_f1") - mean(rows, "digits, floor", "edge_f1") < 0.05:
        return "not reproduced", "the control does not even follow edges on the base that it was trained on"
    good = [works(rows, style) for style in STYLES]
    word = "reproduced" if all(good) else "mixed" if any(good) else "not reproduced"
    texts = [f"{style} {' / '.join(in_figures(rows, f'{style}, {v}', 'edge_f1') for v in VARIANTS)}, "
             f"{kept(rows, style, 'old'):.0%} of its effect kept, Frechet distance "
             f"{' / '.join(in_figures(rows, f'{style}, {v}', 'frechet', 1) for v in VARIANTS)}" for style in STYLES]
    return word, (f"edge-F1 of the new base alone / with the old control / with its offset: {'; '.join(texts)}; "
                  f"old base without and with its control {in_figures(rows, 'digits, floor', 'edge_f1')} / "
                  f"{in_figures(rows, 'digits, own', 'edge_f1')}")


def figure(rows, lab):
    fig = Figure(figsize=(12, 8.2), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1, 1.5])
    titles = {"edge_f1": "edge-F1", "label_accuracy": "Label accuracy", "frechet": "Frechet distance (less is better)"}
    own = {"alone": ["digits, floor"], "old": ["digits, own"], "offset": []}  # of the old base, which has not moved
    for i, (name, title) in enumerate(titles.items()):
        ax = fig.add_subplot(grid[0, i])
        bars = {words: [across_seeds(rows, start, name) for start in
                        (*(f"{style}, {variant}" for style in STYLES), *own[variant])]
                for variant, words in VARIANTS.items()}
        grouped_bars(ax, [*STYLES, "old base"], bars, title)
    fig.legend(*ax.get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside upper center")
    seed, images, columns = lab.seeds[0], lab.test_images[:5], {}
    for style, restyle in STYLES.items():
        unet, edges = styled_base(lab, style), canny(restyle(images))
        columns[style] = [edges * 2 - 1, *(draw(lab, variant, seed, unet, edges) for variant in VARIANTS),
                          restyle(images)]
    edges = canny(images)
    drawn = [draw(lab, variant, seed, lab.unet, edges) for variant in ("floor", "own", "own")]
    columns["old base"] = [edges * 2 - 1, *drawn, images]
    lines = dict(zip(["edges", "base alone", "old control", "offset", "real"], zip(*columns.values())))
    lines_of_images(fig.add_subplot(grid[1, :]), lines, columns, f"The same noise in each group, seed {seed}")
    return fig


if __name__ == "__main__":
    main("transfer")
