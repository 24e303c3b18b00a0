"""Edges and colours, added (section 3.4), on small photographs: CIFAR-10 at 32x32.

The base and the two ControlNets are those that travel with the repository. Each net was trained alone. All draw the
same prompts, such as "a horse", from the same noise: with neither, with one, and with the sum of both.
"""

from matplotlib.figure import Figure

from minicnet.checkpoints import WEIGHTS, load_control
from minicnet.conditions import CONDITIONS, canny, colour
from minicnet.evaluation import colour_error, edge_f1
from minicnet.experiments.judging import in_figures, mean
from minicnet.experiments.lab import main
from minicnet.experiments.plots import columns_of_images
from minicnet.words import THINGS, tokenize, with_article

BASE = "cifar10"
WHY_HERE = ("Edges and coarse colours of a photograph speak of different things, and agree. The base draws many "
            "animals as blots: it is measured whether both conditions are followed, not whether the picture is good.")
SUMS = {"neither": (), "edges": ("canny",), "colour": ("colour",), "edges + colour": ("canny", "colour")}
CLAIM = "Conditions compose by adding the outputs of their ControlNets, without weights: on photographs."


def prompts(labels):
    return [with_article(THINGS[label]) for label in labels.tolist()]


def drawing(lab, names, count=None, seed=0):
    """The first test images' prompts under the sum of the named conditions of these images."""
    images = lab.test_images[:count]
    controls = [(load_control(WEIGHTS / BASE / f"{name}.pt", lab.unet)[0].to(lab.device), CONDITIONS[name](images), 1)
                for name in names]
    return lab.draw(tokenize(prompts(lab.test_labels[:count])).to(lab.device), controls, seed=seed)


def measured(lab, names, seed):
    drawn = drawing(lab, names, seed=seed)
    return {"edge_f1": edge_f1(drawn, canny(lab.test_images)),
            "colour_error": colour_error(drawn, colour(lab.test_images))}


def run(lab):
    for seed in lab.seeds:
        for title, names in SUMS.items():
            lab.row(f"{title}-{seed}", measured, lab, names, seed)


def verdict(rows):
    """Reproduced if the sum keeps at least 90% of what each net alone gains over the base, mixed if of one."""
    def gain(start, measure):
        sign = {"edge_f1": 1, "colour_error": -1}[measure]
        return sign * (mean(rows, start, measure) - mean(rows, "neither", measure))

    kept = [gain("edges + colour", measure) >= 0.9 * gain(alone, measure)
            for alone, measure in (("edges", "edge_f1"), ("colour", "colour_error"))]
    word = ("not reproduced", "mixed", "reproduced")[sum(kept)]
    return word, "edge-F1, colour error: " + "; ".join(
        f"{title} {in_figures(rows, title, 'edge_f1')}, {in_figures(rows, title, 'colour_error')}" for title in SUMS)


def figure(rows, lab):
    images = lab.test_images[:8]
    columns = {"edges": canny(images) * 2 - 1, "colour map": colour(images) * 2 - 1,
               **{f"drawn:\n{title}": drawing(lab, names, 8) for title, names in SUMS.items()}, "real": images}
    fig = Figure(figsize=(8, 9), layout="constrained")
    columns_of_images(fig.subplots(), columns, prompts(lab.test_labels[:8]))
    return fig


if __name__ == "__main__":
    main("photos")
