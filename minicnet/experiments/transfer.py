"""Transfer (the paper's Fig. 12): does a ControlNet control other bases of the same topology, without retraining?

The base is trained on, to draw in another style, once (seed 0) for each style:

    inverted    black digits on white paper: -x
    thick       strokes a pixel wider on all sides
    blurred     strokes without a sharp rim (a Gaussian blur of one pixel)

Then the edge controls of three seeds, which know the old base only, draw the edges of styled test images. The new base
alone is the floor. The old base and its control stand beside them: they say how well a base should draw, and how much a
control does. A base that draws worse than the old one says nothing of transfer, and does not count.

Labels are read, and Frechet distances taken, by one classifier that was trained on all styles. The paper's other bases
are models of the community, shown in pictures.
"""

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

from minicnet.conditions import canny, gaussian_blur
from minicnet.controlnet import trainable_copy
from minicnet.evaluation import train_classifier
from minicnet.experiments.judging import across_seeds, in_figures, interval, mean
from minicnet.experiments.lab import main
from minicnet.experiments.plots import grouped_bars, lines_of_images

BASE = "digits"
CLAIM = "A ControlNet works on other bases of the same topology without retraining (section 4.5, Fig. 12)."
WHY_HERE = ("The new bases were trained on from the old one for a few hundred steps, the paper's by others and for "
            "longer. All three styles change the pixels that the encoder reads; Stable Diffusion's reads latents.")
STYLES = {
    "thick": lambda x: F.max_pool2d(x, 3, stride=1, padding=1),
    "blurred": lambda x: gaussian_blur(x, 1.0).clamp(-1, 1),
    "inverted": lambda x: -x,
    "old base": lambda x: x,
}
LONGER = {"inverted": 2}  # times the usual steps, as nothing of it looks like the old style
VARIANTS = {"alone": "base alone", "control": "with the old control"}
MANY = 10_000  # training images


def styled_base(lab, style):
    """The base, trained on to draw in that style. Frozen."""
    if style == "old base":
        return lab.unet
    return lab.trained(f"base-{style}", 0, lambda: trainable_copy(lab.unet),
                       lambda net, x_0, prompt: lambda x_t, t: net(x_t, t, prompt),
                       STYLES[style](lab.train_images[:MANY]), lab.train_prompts[:MANY], drop_prompts=0.1,
                       steps=lab.steps * LONGER.get(style, 1))[0]


def reader_of_all_styles(lab):
    images = torch.cat([restyle(lab.train_images[:MANY]) for restyle in STYLES.values()])
    return train_classifier(images, lab.train_labels[:MANY].repeat(len(STYLES)), steps=lab.classifier_steps)


def draw(lab, style, seed, with_control, edges):
    """Images of the first test prompts by the base of that style, with the old control for edges or without."""
    controls = [(lab.edge_control(seed), edges, 1)] if with_control else []
    return lab.draw(lab.test_prompts[: len(edges)], controls, unet=styled_base(lab, style), seed=seed)


def run(lab):
    lab.classifier = reader_of_all_styles(lab)

    def measured(style, seed, with_control):
        restyle = STYLES[style]
        edges, reference = canny(restyle(lab.test_images)), restyle(lab.reference_images)
        return lab.score(draw(lab, style, seed, with_control, edges), lab.test_labels, edges, reference)

    for style in STYLES:
        for seed in lab.seeds:
            lab.row(f"{style}, alone-{seed}", measured, style, seed, False)
            lab.row(f"{style}, control-{seed}", measured, style, seed, True)


def draws_well(rows, style):
    """Are the digits of the new base alone read as well as the old base's, within 0.05?"""
    return mean(rows, f"{style}, alone", "label_accuracy") >= mean(rows, "old base, alone", "label_accuracy") - 0.05


def closed(rows, style):
    """The share of the gap between the base alone and a perfect edge-F1 that the control closes."""
    floor = mean(rows, f"{style}, alone", "edge_f1")
    return (mean(rows, f"{style}, control", "edge_f1") - floor) / (1 - floor)


def kept(rows, style):
    """The share of the gap that the control closes on a new base, over that which it closes on its own base."""
    return closed(rows, style) / closed(rows, "old base")


def works(rows, style):
    """Does the control keep half of its effect, and clearly follow edges better than the new base alone, without
    spoiling the images (Frechet distance at most a quarter above that of the new base alone)?"""
    gain = interval(rows, f"{style}, control", f"{style}, alone", "edge_f1")
    spoilt = mean(rows, f"{style}, control", "frechet") > 1.25 * mean(rows, f"{style}, alone", "frechet")
    return kept(rows, style) >= 0.5 and gain.low > 0 and not spoilt


def verdict(rows):
    """Reproduced if the old control works (see `works`) on all bases that draw well, not reproduced if on none."""
    new = [style for style in STYLES if style != "old base"]
    good = [works(rows, style) for style in new if draws_well(rows, style)]
    if closed(rows, "old base") < 0.2:
        return "not reproduced", "the control does not even follow edges on the base that it was trained on"
    if not good:
        return "mixed", "no new base draws as well as the old one, so nothing is known"

    def told(style):
        gain = interval(rows, f"{style}, control", f"{style}, alone", "edge_f1")
        spoilt = [in_figures(rows, f"{style}, {variant}", "frechet", 1) for variant in VARIANTS]
        return (f"on the {style} base it keeps {kept(rows, style):.0%} of its effect: edge-F1 {gain}, Frechet distance "
                f"{spoilt[0]} without and {spoilt[1]} with it")

    read = ", ".join(f"{style} {in_figures(rows, f'{style}, alone', 'label_accuracy')}" +
                     (not draws_well(rows, style)) * " (worse, so it does not count)" for style in STYLES)
    return "reproduced" if all(good) else "mixed" if any(good) else "not reproduced", (
        f"on its own base the control lifts edge-F1 from {in_figures(rows, 'old base, alone', 'edge_f1')} to "
        f"{in_figures(rows, 'old base, control', 'edge_f1')}; {'; '.join(map(told, new))}. The bases alone draw well "
        f"if their digits are read as often as the old one's: {read}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 6), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.2, 1])
    titles = {"edge_f1": "edge-F1", "label_accuracy": "label accuracy", "frechet": "Frechet distance (less is better)"}
    for ax, (name, title) in zip(top.subplots(1, 3), titles.items()):
        grouped_bars(ax, STYLES, {words: [across_seeds(rows, f"{style}, {variant}", name) for style in STYLES]
                                  for variant, words in VARIANTS.items()}, title)
    top.legend(*ax.get_legend_handles_labels(), fontsize=10, ncols=3, loc="outside upper center")
    seed, images, columns = lab.seeds[0], lab.test_images[:5], {}
    for style, restyle in STYLES.items():
        edges = canny(restyle(images))
        columns[style] = [edges * 2 - 1, draw(lab, style, seed, False, edges), draw(lab, style, seed, True, edges),
                          restyle(images)]
    lines = dict(zip(["edges", "base alone", "old control", "real"], zip(*columns.values())))
    lines_of_images(bottom.subplots(), lines, columns, f"The same noise in each group, seed {seed}")
    return fig


if __name__ == "__main__":
    main("transfer")
