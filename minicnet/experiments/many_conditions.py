"""Many conditions (the paper's section 3.4 and Fig. 6): do ControlNets that were trained apart work together by adding?

On coloured digits, edges say where and the colour map says which colours. The two ControlNets that come with the base
were trained apart. Here their residuals are added, without any training. The prompts name the digit and no colours;
noise and prompts are the same in all rows, and there is no guidance.

Is 1 + 1 the best sum? On the first seed, each of the two gets strengths from 0 to 2. And two sums contradict
themselves: edges with the colours of another image, and the edges of two digits at once. The paper shows pictures of
sums that agree.
"""

import itertools

from matplotlib.figure import Figure

from minicnet.conditions import canny, colour
from minicnet.evaluation import colour_error, edge_f1
from minicnet.experiments.composition import nets
from minicnet.experiments.judging import in_figures, interval, mean
from minicnet.experiments.lab import blocks, main
from minicnet.experiments.plots import columns_of_images

BASE = "coloured"
CLAIM = "Conditions compose by adding the outputs of their ControlNets, without weights (section 3.4, Fig. 6)."
WHY_HERE = ("Edges and colour map are made of the same image, and hardly speak of the same thing. Both controls were "
            "trained on the same base and images. Controls of other bases or of rivalling conditions may need weights.")
STRENGTHS = (0, 0.5, 1, 1.5, 2)
CONTRARY, TWO = "edges, colours of another", "edges of two digits"


def key(edges, colours):
    """The name of a sum in which edges and colours have these strengths."""
    return f"{edges:g} x edges + {colours:g} x colour"


NEITHER, EDGES, COLOUR, BOTH = (key(*strengths) for strengths in ((0, 0), (1, 0), (0, 1), (1, 1)))


def draw(lab, seed, *controls, count=None):
    """Images of the first test prompts under triples (net, condition, strength). Those of strength 0 are left out."""
    return lab.draw(lab.test_prompts[:count], [control for control in controls if control[2]], seed=seed, guidance=1)


def run(lab):
    edge_net, colour_net = nets(lab)
    edges, colours = canny(lab.test_images), colour(lab.test_images)
    other_edges, other_colours = edges.roll(1, 0), colours.roll(1, 0)  # of the image before

    def measured(seed, controls, colours=colours):
        images = draw(lab, seed, *controls)
        return {"edge_f1": edge_f1(images, edges), "edge_f1_blocks": blocks(edge_f1, images, edges),
                "other_f1": edge_f1(images, other_edges), "colour_error": colour_error(images, colours),
                "colour_error_blocks": blocks(colour_error, images, colours)}

    for seed in lab.seeds:
        for a, b in itertools.product(STRENGTHS if seed == lab.seeds[0] else (0, 1), repeat=2):
            lab.row(f"{key(a, b)}-{seed}", measured, seed, [(edge_net, edges, a), (colour_net, colours, b)])
        contrary = [(edge_net, edges, 1), (colour_net, other_colours, 1)]
        lab.row(f"{CONTRARY}-{seed}", measured, seed, contrary, other_colours)
        lab.row(f"{TWO}-{seed}", measured, seed, [(edge_net, edges, 1), (edge_net, other_edges, 1)])


def grid(rows, name):
    """What the measure called `name` is for all strengths, edges downwards, on the first seed."""
    return [[rows[f"{key(a, b)}-0"][name] for b in STRENGTHS] for a in STRENGTHS]


def verdict(rows):
    """Reproduced if the sum keeps at least 90% of what each control alone gains over the base, mixed if of one."""
    def gain(start, name):
        return abs(mean(rows, start, name) - mean(rows, NEITHER, name))

    alone = (EDGES, "edge_f1"), (COLOUR, "colour_error")
    if gain(*alone[0]) < 0.05 or gain(*alone[1]) < 0.25 * mean(rows, NEITHER, "colour_error"):
        return "not reproduced", "the controls do not even follow their conditions alone"
    kept = sum(gain(BOTH, name) >= 0.9 * gain(start, name) for start, name in alone)

    def against(ours, theirs, name):
        return interval(rows, ours, theirs, name)

    def both(start):
        return f"{in_figures(rows, start, 'edge_f1')} and {in_figures(rows, start, 'colour_error')}"

    best = max(itertools.chain(*grid(rows, "edge_f1"))), min(itertools.chain(*grid(rows, "colour_error")))
    here = rows[f"{BOTH}-0"]
    return ("not reproduced", "mixed", "reproduced")[kept], (
        f"edge-F1 and colour error are {both(NEITHER)} without control, {both(EDGES)} under edges, {both(COLOUR)} "
        f"under colours, {both(BOTH)} under their sum. The sum changes the edge-F1 of edges alone by "
        f"{against(BOTH, EDGES, 'edge_f1')}, and the colour error of colours alone by "
        f"{against(BOTH, COLOUR, 'colour_error')}. Over all strengths, of seed 0, the best are {best[0]:.3f} and "
        f"{best[1]:.3f}, where 1 + 1 has {here['edge_f1']:.3f} and {here['colour_error']:.3f}. With the colours of "
        f"another image edge-F1 changes by {against(CONTRARY, BOTH, 'edge_f1')} and colour error by "
        f"{against(CONTRARY, BOTH, 'colour_error')}. Under the edges of two digits at once, edge-F1 is "
        f"{in_figures(rows, TWO, 'edge_f1')} for the digit that the prompt names and "
        f"{in_figures(rows, TWO, 'other_f1')} for the other; under the first's alone it is "
        f"{in_figures(rows, EDGES, 'edge_f1')} and {in_figures(rows, EDGES, 'other_f1')}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 10), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 2.2])
    looks = {"edge_f1": ("edge-F1 (1 is best)", "viridis", "linear"),
             "colour_error": ("colour error (0 is best)", "viridis_r", "log")}
    for ax, (name, (title, cmap, norm)) in zip(top.subplots(1, 2), looks.items()):
        ticks = range(len(STRENGTHS))
        shown = ax.imshow(grid(rows, name), origin="lower", cmap=cmap, norm=norm)
        ax.plot(STRENGTHS.index(1), STRENGTHS.index(1), "s", color="white", fillstyle="none", markersize=26)
        ax.set_xticks(ticks, STRENGTHS)
        ax.set_yticks(ticks, STRENGTHS)
        ax.set(xlabel="strength of colours", ylabel="strength of edges", title=title)
        bar = top.colorbar(shown, ax=ax, ticks=[0.03, 0.05, 0.1, 0.2, 0.3] if norm == "log" else None, format="%.2f")
        bar.minorticks_off()
    seed, count, (edge_net, colour_net) = lab.seeds[0], 6, nets(lab)
    images = lab.test_images[:count]
    edges, colours = (edge_net, canny(images), 1), (colour_net, colour(images), 1)
    other_edges, other_colours = ((net, condition.roll(1, 0), 1) for net, condition, _ in (edges, colours))
    sums = {"neither": (), "edges": (edges,), "colours": (colours,), "edges +\ncolours": (edges, colours),
            "edges +\ncolours of\nrow above": (edges, other_colours),
            "edges +\nedges of\nrow above": (edges, other_edges)}
    columns = {"real": images, "its edges": edges[1] * 2 - 1, "its colours": colours[1] * 2 - 1}
    columns |= {name: draw(lab, seed, *controls, count=count) for name, controls in sums.items()}
    columns_of_images(bottom.subplots(), columns)
    return fig


if __name__ == "__main__":
    main("many_conditions")
