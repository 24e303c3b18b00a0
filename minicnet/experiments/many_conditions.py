"""Many conditions (the paper's section 3.4 and Fig. 6): do ControlNets that were trained apart work together by adding?

On coloured digits, edges say where and the colour map says which colours. One ControlNet is trained for each, alone.
Then their residuals are added, with no weights and no training. All draw the same prompts, which name the digit and no
colours, from the same noise. The same is done with one net for the left half of the edges and one for the right half.

Two strains on the sum, which may fail: edges of one digit and the colour map of an image with another place for its
ink; and four times the same condition, a residual four times as strong as any that was seen in training.
"""

from functools import partial

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny, colour
from minicnet.controlnet import ControlNet
from minicnet.evaluation import colour_error
from minicnet.experiments.lab import across_seeds, clearly_better, control_eps, in_figures, main, mean
from minicnet.experiments.plots import columns_of_images

BASE = "coloured"
CLAIM = "Conditions compose by adding the outputs of their ControlNets, without weights (section 3.4, Fig. 6)."


def left(images):
    """The left half of the edges."""
    edges = canny(images)
    return edges * (torch.arange(edges.shape[-1], device=edges.device) < edges.shape[-1] // 2)


def right(images):
    """The right half of the edges."""
    return canny(images) - left(images)


LONGER = 2.5  # times the usual steps for the net for colour: it sets in slowly, as colours hardly lessen the loss
CONDITIONS = {"edges": canny, "colour": colour, "left": left, "right": right}
SUMS = [(), ("edges",), ("colour",), ("edges", "colour"), ("left",), ("right",), ("left", "right")]


def nets(lab, seed):
    """The four ControlNets of this seed, each trained alone."""
    trained = {}
    for name, condition_of in CONDITIONS.items():
        make = partial(ControlNet, lab.unet, condition_of(lab.test_images[:1]).shape[1])
        steps = int(lab.steps * (LONGER if name == "colour" else 1))
        eps_model = control_eps(lambda net: (lab.unet, net), condition_of)
        trained[name] = lab.edge_control(seed) if name == "edges" else \
            lab.trained(name, seed, make, eps_model, steps=steps)[0]
    return trained


def drawing(lab, seed, names, count=None, colours_of=None):
    """The first test images' prompts under the sum of the named conditions of these images.

    colours_of: images to take the colour map from instead.
    """
    trained, images = nets(lab, seed), lab.test_images[:count]
    given = [CONDITIONS[name](images if name != "colour" or colours_of is None else colours_of) for name in names]
    controls = [(trained[name], condition, 1) for name, condition in zip(names, given)]
    return lab.draw(lab.test_prompts[:count], controls, seed=seed)


def run(lab):
    images = lab.test_images
    edges, other = canny(images), images.roll(1, 0)

    def measured(seed, names, colours_of=None):
        drawn = drawing(lab, seed, names, colours_of=colours_of)
        colours = colour(images if colours_of is None else colours_of)
        return {**lab.score(drawn, lab.test_labels, edges), "colour_error": colour_error(drawn, colours)}

    for seed in lab.seeds:
        for names in SUMS:
            lab.row(f"{title(names)}-{seed}", measured, seed, names)
        lab.row(f"edges + another image's colour-{seed}", measured, seed, ("edges", "colour"), other)
        lab.row(f"4 x edges-{seed}", measured, seed, ("edges",) * 4)


def title(names):
    return " + ".join(names) or "neither"


def verdict(rows):
    # Adding works if the sum keeps at least 90% of what each net reaches alone, measured from the base without any, and
    # two halves of the edges together are clearly better than either.
    def gain(start, measure):
        return abs(mean(rows, start, measure) - mean(rows, "neither", measure))

    if gain("edges", "edge_f1") < 0.05 or gain("colour", "colour_error") < 0.25 * mean(rows, "neither", "colour_error"):
        return "not reproduced", "the nets do not even follow their conditions alone"
    kept = [gain("edges + colour", measure) >= 0.9 * gain(alone, measure)
            for alone, measure in (("edges", "edge_f1"), ("colour", "colour_error"))]
    both, *halves = (across_seeds(rows, name, "edge_f1") for name in ("left + right", "left", "right"))
    good = sum(kept) + all(clearly_better(both, half) for half in halves)
    word = {3: "reproduced", 0: "not reproduced"}.get(good, "mixed")

    def pair(start):
        return f"{in_figures(rows, start, 'edge_f1')}, {in_figures(rows, start, 'colour_error')}"

    other = "edges + another image's colour"
    return word, (
        f"edge-F1, colour error: neither {pair('neither')}; edges {pair('edges')}; colour {pair('colour')}; edges + "
        f"colour {pair('edges + colour')}. Left and right half of the edges: edge-F1 "
        f"{in_figures(rows, 'left', 'edge_f1')}, {in_figures(rows, 'right', 'edge_f1')}, added "
        f"{in_figures(rows, 'left + right', 'edge_f1')}. Strained: {other} {pair(other)}; edges four times "
        f"{pair('4 x edges')}")


def figure(rows, lab):
    fig = Figure(figsize=(12, 6.2), layout="constrained")
    points, pictures = fig.subplots(1, 2, width_ratios=[1, 1.5])
    for names in SUMS:
        x, y = mean(rows, title(names), "edge_f1"), mean(rows, title(names), "colour_error")
        points.plot(x, y, "o", color="tab:blue" if len(names) < 2 else "tab:green")
        below = names in (("left",), ("edges",))  # which lie beside others
        points.annotate(title(names), (x, y), xytext=(4, -11 if below else 4), textcoords="offset points", fontsize=8)
    for name in ("edges + another image's colour", "4 x edges"):
        x, y = mean(rows, name, "edge_f1"), mean(rows, name, "colour_error")
        points.plot(x, y, "x", color="tab:red")
        points.annotate(name, (x, y), xytext=(4, -10), textcoords="offset points", fontsize=8)
    points.plot(1, 0, "*", color="tab:orange", markersize=12, label="real images")
    points.set(xlabel="edge-F1 (1 is best)", ylabel="colour error (0 is best)", title="Mean of the seeds")
    points.margins(0.15)
    points.legend(fontsize=8)
    points.grid(alpha=0.3)
    count, images = 8, lab.test_images[:8]
    columns = {"real": images, "edges\ngiven": canny(images) * 2 - 1, "colour\ngiven": colour(images) * 2 - 1}
    for names in ((), ("edges",), ("colour",), ("edges", "colour"), ("left", "right")):
        columns[title(names)] = drawing(lab, lab.seeds[0], names, count)
    columns["edges +\nother\ncolour"] = drawing(lab, lab.seeds[0], ("edges", "colour"), count, images.roll(1, 0))
    columns["4 x\nedges"] = drawing(lab, lab.seeds[0], ("edges",) * 4, count)
    columns = {name.replace(" + ", " +\n"): pictures for name, pictures in columns.items()}
    columns_of_images(pictures, columns, fontsize=7.5)
    return fig


if __name__ == "__main__":
    main("many_conditions")
