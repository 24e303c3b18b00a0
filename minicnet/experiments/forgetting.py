"""Does fine-tuning forget what the locked base keeps (the paper's sections 1 and 3.1)?

The base knows ten digits. It is taught edges with images of three of them only, with their captions, and then asked
for the other seven: with their edges, and without any. It is taught in three ways (teaching.py):

    control       ControlNet: the base is locked
    unlocked      ControlNet, and the base's decoder trains too
    finetuned     all of the base trains; the edges are more channels of its input

Fine-tuning gets the learning rate and the length that suit it: of three rates, and of a third of the steps or all, it
has those under which it follows edges of the digits shown best, on the first seed. `unlocked` gets that rate, too.

Without edges means strength 0, which for fine-tuning is an empty edge map: it has never seen one. So the digits shown
are asked for without edges, too: if they come out badly as well, drawing without edges is forgotten, and not just the
seven digits. The paper argues with pictures and with users' preferences; it has no such experiment. No guidance.
"""

import torch
from matplotlib.figure import Figure

from minicnet.conditions import canny
from minicnet.experiments.judging import across_seeds, in_figures, interval, mean
from minicnet.experiments.lab import main, prompts_of
from minicnet.experiments.plots import lines_of_images
from minicnet.experiments.teaching import TRIALS, WAYS, chosen, taught

BASE = "digits"
CLAIM = ("Fine-tuning a base directly on narrow data forgets; with ControlNet the base keeps what it knows (sections "
         "1, 3.1).")
WHY_HERE = ("At strength 0 a ControlNet is the base, bit for bit, so it cannot forget. Fine-tuning at a lower rate, or "
            "with other digits mixed in, may forget less. The base is small, and ten digits are all that it knows.")
SHOWN = (0, 1, 2)  # the digits that training shows


def shown(labels):
    return torch.isin(labels, torch.tensor(SHOWN, device=labels.device))


def trained(lab, way, seed, trial):
    """What draws, and what controls it, after training on the digits SHOWN with rate and length of that trial."""
    few, data = shown(lab.train_labels), f"digits-{''.join(map(str, SHOWN))}"
    return taught(lab, way, data, seed, lab.train_images[few], lab.train_prompts[few], trial)


def best(rows, way):
    return chosen(rows, way, "shown_with_edge_f1")


def run(lab):
    old = shown(lab.reference_labels)
    new_images, new_labels = (x[~old][: lab.images] for x in (lab.reference_images, lab.reference_labels))
    old_images, old_labels = (x[old][: lab.images // 2] for x in (lab.reference_images, lab.reference_labels))

    def measured(way, seed, trial=None):
        unet, control = trained(lab, way, seed, trial) if trial else (lab.unet, None)

        def score(start, images, labels, strength):
            edges = canny(images)
            controls = [(control, edges, strength)] if control else []
            drawn = lab.draw(prompts_of(labels), controls, unet=unet, seed=seed, guidance=1)
            scores = lab.score(drawn, labels, edges)
            return {f"{start}_{name}": value for name, value in scores.items() if name != "frechet"}

        row = {**score("without", new_images, new_labels, 0), **score("shown_without", old_images, old_labels, 0)}
        if control:
            row |= {**score("with", new_images, new_labels, 1), **score("shown_with", old_images, old_labels, 1)}
        return row

    for trial in TRIALS:
        lab.row(f"{trial}-0", measured, "finetuned", lab.seeds[0], trial)
    for seed in lab.seeds:
        lab.row(f"base-{seed}", measured, "base", seed)
        for way in WAYS:
            lab.row(f"{way}-{seed}", measured, way, seed, best(lab.rows, way))


def verdict(rows):
    """Does fine-tuning forget, and is the control ahead? Reproduced if both, mixed if one.

    It forgets if without edges the base's labels are read better by 0.1 or more, and by 0.1 more than with the digits
    shown (or it is drawing without edges that was forgotten). The control is ahead if with edges of the digits not
    shown its edge-F1 or its label accuracy is clearly better than fine-tuning's, and neither is clearly worse.
    """
    lost = interval(rows, "base", "finetuned", "without_label_accuracy")
    lost_shown = mean(rows, "base", "shown_without_label_accuracy") - mean(
        rows, "finetuned", "shown_without_label_accuracy")
    forgets = lost.low > 0 and lost.by >= 0.1 and lost.by - lost_shown >= 0.1
    leads = [interval(rows, "control", "finetuned", name) for name in ("with_edge_f1", "with_label_accuracy")]
    ahead = any(lead.low > 0 for lead in leads) and all(lead.high > 0 for lead in leads)

    mildest = max(TRIALS, key=lambda trial: rows[f"{trial}-0"]["without_label_accuracy"])

    def texts(name, *ways):
        return ", ".join(in_figures(rows, way, name) for way in ways)

    return ("not reproduced", "mixed", "reproduced")[forgets + ahead], (
        f"asked without edges for digits that training did not show, the base is read right in "
        f"{texts('without_label_accuracy', 'base')} of the images, ControlNet, decoder unlocked and all fine-tuned in "
        f"{texts('without_label_accuracy', *WAYS)}. The base is ahead of fine-tuning, at its best "
        f"({best(rows, 'finetuned')}), by {lost}, and with the digits shown by {lost_shown:.3f}. With edges of "
        f"digits not shown, ControlNet's lead over it is {leads[0]} in edge-F1 and {leads[1]} in label accuracy "
        f"(edge-F1 {texts('with_edge_f1', *WAYS)}). Of all trials of fine-tuning, on one seed, {mildest} keeps most: "
        f"{rows[f'{mildest}-0']['without_label_accuracy']:.3f} are read right without edges, and with them edge-F1 is "
        f"{rows[f'{mildest}-0']['with_edge_f1']:.3f}")


def figure(rows, lab):
    fig = Figure(figsize=(10, 6.6), layout="constrained")
    top, bottom = fig.subfigures(2, 1, height_ratios=[1.3, 1])
    ax = top.subplots()
    learned, kept = "with_edge_f1", "without_label_accuracy"
    for trial, colour in zip(TRIALS, ("tab:red", "tab:red", "tab:orange", "tab:orange", "gold", "gold")):
        row = rows[f"{trial}-0"]
        ax.plot(row[learned], row[kept], "s", color=colour, fillstyle="full" if "all" in trial else "none",
                label=f"fine-tuned, {trial}, seed 0")
    for way, mark in {"finetuned": "kx", "unlocked": "b^", "control": "bo"}.items():
        ax.plot(across_seeds(rows, way, learned), across_seeds(rows, way, kept), mark,
                label=WAYS[way] + ", at its best" * (way == "finetuned"))
    ax.axhline(mean(rows, "base", kept), color="tab:gray", linestyle="--", label="base")
    ax.set_xlabel("learned: edge-F1 with edges", fontsize=11)
    ax.set_ylabel("kept: label accuracy without edges", fontsize=11)
    ax.set_title("Digits that training did not show", fontsize=11)
    ax.set_ylim(0, 1)
    ax.grid(alpha=0.3)
    top.legend(fontsize=10, loc="outside right center")
    seed, other = lab.seeds[0], ~shown(lab.test_labels)
    prompt, edges = lab.test_prompts[other][:8], canny(lab.test_images[other][:8])
    for ax, kind in zip(bottom.subplots(1, 2), ("with", "without")):
        lines = {"edges": edges * 2 - 1} if kind == "with" else {"base": lab.draw(prompt, seed=seed, guidance=1)}
        for way, words in WAYS.items():
            unet, control = trained(lab, way, seed, best(rows, way))
            lines[words] = lab.draw(prompt, [(control, edges, kind == "with")], unet=unet, seed=seed, guidance=1)
        lines_of_images(ax, {name: [images] for name, images in lines.items()}, [""],
                        f"{kind} edges: the same noise, seed {seed}")
    return fig


if __name__ == "__main__":
    main("forgetting")
