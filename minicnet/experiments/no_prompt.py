"""What does a ControlNet read off its condition alone, without a prompt (the paper's Figs. 7 and 11)?

The prompt is "" and there is no guidance. So what an image shows, it has from the condition, or by chance. Edges,
scribbles, masks, reliefs and coarse colours are made of test images, which are coloured digits. Are the digit, the ink
and the paper of the images drawn from them those of the test image? Digits are read by a classifier of another seed
than that of all other experiments. The floor is the base alone, the ceiling are the test images themselves.

And how much is there to be read? For each condition a classifier is trained on the maps themselves. It reads the
digits off those of test images.

The nets for edges and colours come with the base, and were trained for longer than the others, which are trained here.
The paper shows pictures, of scenes with many contents, and counts nothing. We take two seeds, as nets are dear.
"""

import functools

import torch
from matplotlib.figure import Figure

from minicnet.adherence import prompt_accuracy
from minicnet.conditions import canny, colour, depth, mask, scribble
from minicnet.data import captions
from minicnet.evaluation import label_accuracy, train_classifier
from minicnet.experiments import composition, reconstruction
from minicnet.experiments.judging import across_seeds, in_figures, interval, mean
from minicnet.experiments.lab import blocks, main
from minicnet.experiments.plots import columns_of_images, grouped_bars
from minicnet.words import tokenize

BASE = "coloured"
CLAIM = ("Without a prompt, ControlNet robustly interprets content semantics in diverse input conditioning images "
         "(section 4.1, Figs. 7 and 11).")
WHY_HERE = ("The paper shows pictures and sets no bar. Ours is nine tenths of what a classifier reads off the map; "
            "edges, mask and depth miss it by little. Here an image holds one digit. Maps of scenes may say more, and "
            "be more ambiguous.")
CONDITIONS = {"edges": canny, "scribble": scribble, "mask": mask, "depth": depth, "colour": colour}
SAID = ("digit", "ink", "paper")
ENOUGH = 0.9  # of what can be read off a map


def trained(lab, name, seed):
    """The ControlNet for the condition of this name."""
    if name in ("edges", "colour"):
        return composition.nets(lab)[name == "colour"]
    if name == "mask":
        return reconstruction.trained(lab, "control", seed)[1]
    return lab.trained_control(name, seed, condition_of=CONDITIONS[name])[0]


def draw(lab, name, seed, count):
    """Images without a prompt from the conditions of the first test images, or of the base alone."""
    controls = [] if name == "base" else [(trained(lab, name, seed), CONDITIONS[name](lab.test_images[:count]), 1)]
    return lab.draw(tokenize([""] * count).to(lab.device), controls, seed=seed, guidance=1.0)


def held(lab, condition_of):
    """How often a classifier that is trained on maps reads the digit off those of test images."""
    def maps(images):
        return torch.cat([condition_of(part) for part in images.split(500)]) * 2 - 1

    few = slice(0, 10_000)
    classifier = train_classifier(maps(lab.train_images[few]), lab.train_labels[few], steps=lab.classifier_steps)
    return {"digit": label_accuracy(classifier, maps(lab.reference_images), lab.reference_labels)}


def run(lab):
    lab.seeds = lab.seeds[:2]
    texts = captions(lab.dataset, "test")[: lab.images]

    @functools.cache
    def classifier(seed):
        return train_classifier(lab.train_images, lab.train_labels, steps=lab.classifier_steps, seed=100 + seed)

    def measured(name, seed):
        images = lab.test_images if name == "real" else draw(lab, name, seed, lab.images)
        share = functools.partial(label_accuracy, classifier(seed))
        return {**prompt_accuracy(images, texts, classifier(seed)),
                "digit_blocks": blocks(share, images, lab.test_labels)}

    for name, condition_of in CONDITIONS.items():
        lab.row(f"map of {name}-{lab.seeds[0]}", held, lab, condition_of)
    for seed in lab.seeds:
        for name in ("real", "base", *CONDITIONS):
            lab.row(f"{name}-{seed}", measured, name, seed)


def verdict(rows):
    """The digit is read off a condition if it is right ENOUGH times as often as the map's own classifier is, and more
    often than with the base alone (the interval lies above 0). Reproduced if it is read off all, mixed if off some."""
    shares = {name: mean(rows, name, "digit") / mean(rows, f"map of {name}", "digit") for name in CONDITIONS}
    count = sum(share >= ENOUGH and interval(rows, name, "base", "digit").low > 0 for name, share in shares.items())
    word = {0: "not reproduced", len(CONDITIONS): "reproduced"}.get(count, "mixed")

    def told(said):
        by_condition = ", ".join(f"{in_figures(rows, name, said)} ({name})" for name in CONDITIONS)
        return f"{by_condition}; by the base alone {in_figures(rows, 'base', said)}"

    held = ", ".join(f"{mean(rows, f'map of {name}', 'digit'):.3f} ({name})" for name in CONDITIONS)
    least = min(shares, key=shares.get)
    return word, (f"the share of images that show the right digit is {told('digit')}. Off the maps themselves a "
                  f"classifier reads {held}. Of what it reads, the images show least from {least}: {shares[least]:.0%}"
                  f". The right ink is shown by {told('ink')}. The right paper is shown by {told('paper')}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 7.6), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.3])
    ax, names = top.subplots(), ("base", *CONDITIONS, "real")
    grouped_bars(ax, ["base alone", *CONDITIONS, "real images"],
                 {said: [across_seeds(rows, name, said) for name in names] for said in SAID},
                 "Share of images that show the right digit, ink and paper, without a prompt")
    for i, name in enumerate(CONDITIONS, start=1):
        ax.hlines(mean(rows, f"map of {name}", "digit"), i - 0.42, i - 0.14, color="black",
                  label="digit, read off the map itself" if i == 1 else None)
    ax.set_ylim(0, 1.25)
    ax.legend(fontsize=9, ncols=4, loc="upper left")
    images = lab.test_images[:5]
    columns = {"real": images}
    for name, condition_of in CONDITIONS.items():
        columns |= {name: condition_of(images) * 2 - 1, f"from\n{name}": draw(lab, name, lab.seeds[0], len(images))}
    columns_of_images(bottom.subplots(), columns, fontsize=9)
    return fig


if __name__ == "__main__":
    main("no_prompt")
