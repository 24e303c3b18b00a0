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

All with the same noise, labels and guidance. Classifier and Frechet distance are those of each style: the classifier
is trained on the styled training images, so distances compare within a style only. Unlike in the paper, where the
other bases are models of the community, shown without numbers, ours are made here and measured.
"""

import copy
import statistics

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.conditions import canny, gaussian_blur
from minicnet.controlnet import trainable_copy
from minicnet.evaluation import edge_f1, frechet_distance, label_accuracy, train_classifier
from minicnet.experiments.lab import across_seeds, clearly_better, controlled, main, mean, spread

BASE = "digits"
CLAIM = "A ControlNet works on other bases of the same topology without retraining (section 4.5, Fig. 12)."
STYLES = {
    "inverted": lambda x: -x,
    "thick": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "blurred": lambda x: gaussian_blur(x, 1.0).clamp(-1, 1),
}
VARIANTS = {"alone": "tab:gray", "old": "tab:blue", "offset": "tab:orange"}


def styled_base(lab, style):
    """The base, trained on for as many steps as a control on images of that style. Frozen."""
    images = STYLES[style](lab.train_images[:20_000])  # more than these steps will see
    return lab.trained(f"base-{style}", 0, lambda: trainable_copy(lab.unet),
                       lambda net, x_0, label: lambda x_t, t: net(x_t, t, label),
                       images, lab.train_labels[:20_000], drop_labels=0.1)[0]


def offset(net, old, new):
    """A copy of a ControlNet whose encoder has moved from its place as the encoder of `new` has from that of `old`."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for weight, before, after in zip(*(module.encoder.parameters() for module in (net, old, new)), strict=True):
            weight += after - before
    return net


def draw(lab, variant, seed, unet, edges, labels):
    """Images of labels and edges by that variant; the old base's if unet is lab.unet."""
    if variant in ("alone", "floor"):
        return lab.draw(unet, labels, seed=seed)
    net = lab.edge_control(seed)
    net = offset(net, lab.unet, unet) if variant == "offset" else net
    return lab.draw(controlled(unet, net), labels, edges, seed=seed)


def run(lab):
    labels = lab.test_labels
    for style, restyle in {"digits": lambda x: x, **STYLES}.items():
        if style == "digits":
            unet, variants, classifier = lab.unet, ("floor", "own"), lab.classifier
        else:
            unet, variants = styled_base(lab, style), VARIANTS
            classifier = train_classifier(restyle(lab.train_images[:20_000]), lab.train_labels[:20_000],
                                          steps=lab.classifier_steps)
        edges, reference = canny(restyle(lab.test_images)), restyle(lab.reference_images)

        def measures(variant, seed, unet=unet, edges=edges, classifier=classifier, reference=reference):
            images = draw(lab, variant, seed, unet, edges, labels)
            return {"edge_f1": edge_f1(images, edges), "label_accuracy": label_accuracy(classifier, images, labels),
                    "frechet": frechet_distance(classifier, images, reference)}

        for seed in lab.seeds:
            for variant in variants:
                lab.row(f"{style}, {variant}-{seed}", lambda variant=variant, seed=seed: measures(variant, seed))


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
    texts = [f"{style} {' / '.join(spread(rows, f'{style}, {v}', 'edge_f1') for v in VARIANTS)}, "
             f"{kept(rows, style, 'old'):.0%} of its effect kept, Frechet distance "
             f"{' / '.join(spread(rows, f'{style}, {v}', 'frechet', 1) for v in VARIANTS)}" for style in STYLES]
    return word, (f"edge-F1 of the new base alone / with the old control / with its offset: {'; '.join(texts)}; "
                  f"old base without and with its control {spread(rows, 'digits, floor', 'edge_f1')} / "
                  f"{spread(rows, 'digits, own', 'edge_f1')}")


def figure(rows, lab):
    fig = Figure(figsize=(12, 8.2), layout="constrained")
    grid = fig.add_gridspec(2, 3, height_ratios=[1, 1.5])
    titles = {"edge_f1": "edge-F1", "label_accuracy": "Label accuracy", "frechet": "Frechet distance (less is better)"}
    names = {"alone": "base alone", "old": "with the old control", "offset": "with the old control's offset"}
    for i, (name, title) in enumerate(titles.items()):
        ax = fig.add_subplot(grid[0, i])
        for j, (variant, colour) in enumerate(VARIANTS.items()):
            own = {"alone": ["digits, floor"], "old": ["digits, own"], "offset": []}[variant]
            bars = [across_seeds(rows, key, name) for key in (*(f"{style}, {variant}" for style in STYLES), *own)]
            places = [k + 0.26 * (j - 1) for k in range(len(bars))]
            ax.bar(places, [statistics.mean(v) for v in bars], 0.24, color=colour, alpha=0.7, label=names[variant])
            for place, v in zip(places, bars):
                ax.plot([place] * len(v), v, "k.", markersize=4)
        ax.set_xticks(range(4), [*STYLES, "old base"], fontsize=8)
        ax.set_title(title)
        ax.grid(alpha=0.3, axis="y")
    fig.legend(*ax.get_legend_handles_labels(), fontsize=8, ncols=3, loc="outside upper center")
    few, seed, columns = 5, lab.seeds[0], {}
    images, labels = lab.test_images[:few], lab.test_labels[:few]
    for style, restyle in STYLES.items():
        unet, edges = styled_base(lab, style), canny(restyle(images))
        drawn = [draw(lab, variant, seed, unet, edges, labels) for variant in VARIANTS]
        columns[style] = [edges * 2 - 1, *drawn, restyle(images)]
    edges = canny(images)
    drawn = [draw(lab, variant, seed, lab.unet, edges, labels) for variant in ("floor", "own", "own")]
    columns["old base"] = [edges * 2 - 1, *drawn, images]  # it has not moved: its offset is nothing
    strip = fig.add_subplot(grid[1, :])
    groups = [[F.pad(torch.cat(list(x[:, 0]), dim=1), (2, 2, 1, 1)) for x in column] for column in columns.values()]
    strip.imshow(torch.cat([torch.cat(column) for column in groups], dim=1).cpu(), cmap="gray", vmin=-1, vmax=1,
                 interpolation="nearest")
    height, width = groups[0][0].shape
    strip.set_yticks([height * (i + 0.5) for i in range(5)], ["edges", "base alone", "old control", "offset", "real"])
    strip.set_xticks([width * (i + 0.5) for i in range(len(columns))], columns)
    strip.tick_params(length=0)
    strip.set_title(f"The same noise in each group, seed {seed}")
    return fig


if __name__ == "__main__":
    main("transfer")
