"""How many images does a control need (the paper's section 4.5, Fig. 10)? Not many, it says, and more are better.

ControlNets for edges are trained on 100, 1,000 and all images of the training set, and measured on edges of test
images. Beside them, on the first seed, stand two other ways to teach a base edges (teaching.py):

    unlocked      ControlNet, and the base's decoder trains too; on 100 images
    finetuned     all of the base trains; the edges are more channels of its input; on 100 images and on all

Fine-tuning gets the learning rate and the length that suit it: of three rates, and of a third of the steps or all, it
has those under which it follows edges best after training on 100 (edges of images that nothing else is measured on; the
least loss would choose nets that follow no edges at all). `unlocked` gets that rate, too, and all steps.

The paper trains on 1k, 50k and 3m images and shows pictures. Training is short here: it draws 150 batches of 32 images.
So of all hardly one is seen twice, and 100 are seen 48 times each (16 times in a third of the steps). The images are
drawn without guidance.
"""

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.controlnet import controlled
from minicnet.evaluation import edge_f1
from minicnet.experiments.judging import across_seeds, in_figures, interval, mean
from minicnet.experiments.lab import main, prompts_of
from minicnet.experiments.plots import lines_of_images
from minicnet.experiments.teaching import TRIALS, WAYS, chosen, taught

BASE = "digits"
CLAIM = "Training a ControlNet does not collapse with 1,000 images, and gains with more (section 4.5, Fig. 10)."
WHY_HERE = ("The images are drawn digits, which are more alike than photographs: fewer may suffice. Training is short: "
            "in a longer one, few images may harm more and many help more.")
SIZES = {"100": 100, "1,000": 1000, "all": None}
RIVALS = (("unlocked", "100"), ("finetuned", "100"), ("finetuned", "all"))  # on the first seed


def trained(lab, way, size, seed, trial):
    """What draws, and what controls it, after training on so many images with rate and length of that trial."""
    order = torch.randperm(len(lab.train_images), generator=torch.Generator().manual_seed(seed))
    few = order[: SIZES[size]].to(lab.device)
    return taught(lab, way, f"on-{SIZES[size] or 'all'}", seed, lab.train_images[few], lab.train_prompts[few], trial)


def best(rows, way):
    return chosen(rows, way, "edge_f1")


def run(lab):
    edges = canny(lab.test_images)

    def loss(unet, control):
        return lab.heldout(controlled(unet, [(control, edges, 1)]))

    def tried(trial):
        unet, control = trained(lab, "finetuned", "100", lab.seeds[0], trial)
        others = slice(lab.images, 2 * lab.images)
        given = canny(lab.reference_images[others])
        drawn = lab.draw(prompts_of(lab.reference_labels[others]), [(control, given, 1)], unet=unet, guidance=1)
        return {"loss": loss(unet, control), "edge_f1": edge_f1(drawn, given)}

    def measured(way, size, seed):
        unet, control = trained(lab, way, size, seed, best(lab.rows, way))
        drawn = lab.draw(lab.test_prompts, [(control, edges, 1)], unet=unet, seed=seed, guidance=1)
        return {**lab.score(drawn, lab.test_labels, edges), "loss": loss(unet, control)}

    def floor(seed):
        return lab.score(lab.draw(lab.test_prompts, seed=seed, guidance=1), lab.test_labels, edges)

    for trial in TRIALS:
        lab.row(f"{trial}-0", tried, trial)
    for seed in lab.seeds:
        lab.row(f"base-{seed}", floor, seed)
        for size in SIZES:
            lab.row(f"control {size}-{seed}", measured, "control", size, seed)
    for way, size in RIVALS:
        lab.row(f"{way} {size}-0", measured, way, size, lab.seeds[0])


def verdict(rows):
    """Reproduced if 1,000 images do not collapse and all are clearly better, mixed if they only do not collapse.

    No collapse: with 1,000 images the control has at least 80% of what all images add to the base's edge-F1, and
    labels are read as well, within 0.1.
    """
    floor, few, all_ = (mean(rows, start, "edge_f1") for start in ("base", "control 1,000", "control all"))
    read, read_all = (mean(rows, start, "label_accuracy") for start in ("control 1,000", "control all"))
    learned = all_ - floor > 0.05
    holds = learned and few - floor >= 0.8 * (all_ - floor) and read >= read_all - 0.1
    gain = interval(rows, "control all", "control 1,000", "edge_f1")
    first = {key: row for key, row in rows.items() if key.endswith("-0")}
    ahead = [interval(first, "control 100", f"{way} 100", "edge_f1") for way in ("finetuned", "unlocked")]
    collapse = "do not collapse" if holds else "collapse" if learned else "tell nothing, as no training worked"
    return "reproduced" if holds and gain.low > 0 else "mixed" if holds else "not reproduced", (
        f"edge-F1 with {', '.join(SIZES)} images is "
        f"{', '.join(in_figures(rows, f'control {size}', 'edge_f1') for size in SIZES)}; the base alone has "
        f"{floor:.3f}. So 1,000 images {collapse}, and all add {gain} to them. With "
        f"100 images, on one seed, ControlNet's lead in edge-F1 is {ahead[0]} over all fine-tuned, at its best "
        f"({best(rows, 'finetuned')}), and {ahead[1]} over the decoder unlocked, at that rate. All fine-tuned "
        f"reaches {rows['finetuned 100-0']['edge_f1']:.3f} with 100 images and "
        f"{rows['finetuned all-0']['edge_f1']:.3f} with all")


def figure(rows, lab):
    fig = Figure(figsize=(10, 8), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1, 1.5])
    titles = {"edge_f1": "edge-F1", "label_accuracy": "label accuracy", "loss": "loss on test images (less is better)"}
    places = dict(zip(SIZES, range(len(SIZES))))
    for ax, (name, title) in zip(top.subplots(1, len(titles)), titles.items()):
        for way, (mark, shift) in {"control": ("o", 0), "unlocked": ("^", 0.1), "finetuned": ("s", 0.2)}.items():
            values = {size: across_seeds(rows, f"{way} {size}", name) for size in SIZES}
            points = [(places[size] + shift, value) for size, some in values.items() for value in some]
            ax.plot(*zip(*points), mark, alpha=0.7, label=WAYS[way])
        if name != "loss":
            ax.axhline(mean(rows, "base", name), color="tab:gray", linestyle="--", label="base alone")
        ax.set_xticks(range(len(SIZES)), SIZES)
        ax.set_xlabel("images trained on")
        ax.set_title(title, fontsize=10)
        ax.margins(x=0.2)
        ax.grid(alpha=0.3)
    top.legend(*top.axes[0].get_legend_handles_labels(), fontsize=10, ncols=4, loc="outside upper center")
    few, seed = slice(0, 16), lab.seeds[0]
    prompt, edges = lab.test_prompts[few], canny(lab.test_images[few])
    lines = {"edges": [edges * 2 - 1], "base alone": [lab.draw(prompt, seed=seed, guidance=1)]}
    for way, size in (*(("control", size) for size in SIZES), *RIVALS):
        unet, control = trained(lab, way, size, seed, best(rows, way))
        lines[f"{WAYS[way]},\n{size}"] = [lab.draw(prompt, [(control, edges, 1)], unet=unet, seed=seed, guidance=1)]
    lines_of_images(bottom.subplots(), lines, [""], f"The same noise, seed {seed}, after training on 100, 1,000 or all")
    return fig


if __name__ == "__main__":
    main("data_size")
