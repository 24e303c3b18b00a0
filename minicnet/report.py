"""Writes the results of runs, so that no number is typed by hand: a line for each into the README, all into a page.

    python -m minicnet.report .github/results/{mnist,drawn,coloured,colour,cifar10,cifar10-colour}/metrics.json
"""

import json
import sys
from pathlib import Path

from minicnet.checkpoints import CheckpointError, write_atomically

README = Path(__file__).parents[1] / "README.md"
PAGE = README.with_name(".github") / "results" / "README.md"
BEGIN, END = "<!-- results: made by python -m minicnet.report -->", "<!-- end of results -->"
TITLES = {  # what is measured of images, in words
    "edge_f1": "edge-F1 within one pixel", "edge_f1_strict": "edge-F1, strict", "mask_iou": "mask IoU",
    "colour_error": "colour error (less is better)", "depth_error": "depth error (less is better)",
    "scribble_f1": "edge-F1 within two pixels of the scribble", "digit": "the prompt's digit is read",
    "label": "the prompt's thing is read", "ink": "its ink is seen", "paper": "its paper is seen",
    "stroke": "its stroke is seen", "lean": "it leans as told", "all": "all that the prompt says",
    "frechet": "Frechet distance (less is better)"}


def summary(runs):
    """Lines of Markdown, one for each of the runs' metrics: what control changes, with guidance 2."""
    lines = ["| images, condition | condition followed, without → with control | prompt shown | "
             "Frechet distance (real images) | steps of base + control, minutes |", "|---|---|---|---|---|"]
    for metrics in runs:
        base, control, real = (metrics["measured"][name] for name in
                               ("base, guidance 2", "with control, guidance 2", "real images"))
        name, digits = metrics["measure"], (3, 3, 1)
        cells = [f"{base[of]:.{n}f} → {control[of]:.{n}f}" for of, n in zip((name, "all", "frechet"), digits)]
        strength = "" if metrics.get("scale", 1) == 1 else f", strength {metrics['scale']}"
        lines.append(f"| {metrics['dataset']}, {metrics['condition']}{strength} | {TITLES[name]}: {cells[0]} | "
                     f"{cells[1]} | {cells[2]} ({real['frechet']:.1f}) | {metrics['base_steps']:,} + "
                     f"{metrics['control_steps']:,}, {metrics['seconds']['total'] / 60:.0f} |")
    return "\n".join(lines)


def table(metrics):
    """One run's numbers in Markdown."""
    columns, loss, seconds = metrics["measured"], metrics["heldout_loss"], metrics["seconds"]
    names = [name for name in TITLES if name in columns["real images"]]
    base = f"{metrics['base_steps']} steps of the base in {seconds['base']:.0f} s" if seconds["base"] else \
        f"The base is of an earlier run on {metrics['base_dataset']}"
    strength = "" if metrics.get("scale", 1) == 1 else f", strength of the control {metrics['scale']}"
    lines = [
        f"**{metrics['dataset']}, {metrics['condition']}**, seed {metrics['seed']}, {metrics['device']}, "
        f"torch {metrics['torch']}, {metrics['date']}, {metrics['images']} test images{strength}",
        "",
        f"| | {' | '.join(columns)} |",
        "|---|" + "---|" * len(columns),
        *(f"| {TITLES[name]} | " + " | ".join(f"{column[name]:.3f}" for column in columns.values()) + " |"
          for name in names),
        "",
        f"Held-out loss {loss['control']:.4f} with the right condition, {loss['shuffled']:.4f} with that of another "
        f"image, {loss['base']:.4f} without control. {base}, {metrics['control_steps']} steps of the control in "
        f"{seconds['control']:.0f} s, batches of {metrics['batch_size']}; with loading and measuring "
        f"{seconds['total'] / 60:.1f} minutes.",
    ]
    return "\n".join(lines)


def replace_section(text, begin, end, section):
    """The text with what stands between two marks replaced. Raises ValueError unless it has each of them once."""
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"the README must hold the lines {begin} and {end}, once each")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{section}\n{end}{after}"


def update_readme(readme, begin, end, section):
    """Puts a section between two marks of a README. Raises ValueError as above, CheckpointError if it cannot write."""
    write_atomically(readme, replace_section(readme.read_text(encoding="utf-8"), begin, end, section).encode())


def main(paths):
    runs, tables = [], ["# All results", "One table for each run. Written by `python -m minicnet.report`."]
    for path in paths:
        try:
            runs.append(json.loads(Path(path).read_text()))
            tables.append(table(runs[-1]))
            lines = summary(runs)
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"error: {path} is not the metrics.json of a finished run: {type(error).__name__}: {error}")
    try:
        update_readme(README, BEGIN, END, lines)
        write_atomically(PAGE, ("\n\n".join(tables) + "\n").encode())
    except (ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(f"usage: {__doc__}"))
