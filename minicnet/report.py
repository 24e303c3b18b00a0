"""Writes the README's table of results from the metrics.json files of runs, so that no number in it is typed by hand:

    python -m minicnet.report .github/results/{mnist,drawn}/metrics.json
"""

import json
import sys
from pathlib import Path

from minicnet.checkpoints import CheckpointError, write_atomically

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- results: made by python -m minicnet.report -->", "<!-- end of results -->"
TITLES = {  # how well images follow their condition: the names of the measures, in words
    "edge_f1": "edge-F1 within one pixel", "edge_f1_strict": "edge-F1, strict", "mask_iou": "mask IoU",
    "colour_error": "colour error (less is better)", "depth_error": "depth error (less is better)",
    "scribble_f1": "edge-F1 within two pixels of the scribble"}
ROWS = (  # name; then the base alone, with control, real images
    ("label accuracy", "base.label_accuracy", "control.label_accuracy", "classifier_accuracy"),
    ("Frechet distance (less is better)", "base.frechet", "control.frechet", "frechet_real"),
)


def number(metrics, name):
    """The entry "a.b" of nested dicts, with three digits after the point."""
    for key in name.split("."):
        metrics = metrics[key]
    return f"{metrics:.3f}"


def table(metrics):
    """One run's numbers in Markdown."""
    seconds, control = metrics["seconds"], metrics["control"]
    rows = [(title, f"control.{name}_floor", f"control.{name}", f"control.{name}_ceiling")
            for name, title in TITLES.items() if name in control]
    base_seconds = f"in {seconds['base']:.0f} s"
    if not seconds["base"]:
        base_seconds = f"on {metrics['base_dataset']} in an earlier run"
    lines = [
        f"**{metrics['dataset']}, {metrics['condition']}**, seed {metrics['seed']}, {metrics['device']}, "
        f"torch {metrics['torch']}, {metrics['date']}, {metrics['images']} test images, "
        f"guidance {metrics['guidance']:g}",
        "",
        "| | base alone | with control | real images |",
        "|---|---|---|---|",
        *(f"| {name} | " + " | ".join(number(metrics, key) for key in keys) + " |" for name, *keys in (*rows, *ROWS)),
        "",
        f"Held-out loss {control['heldout_loss']:.4f} with the right condition, {control['heldout_loss_shuffled']:.4f} "
        f"with that of another image, {metrics['base']['heldout_loss']:.4f} without control. "
        f"{metrics['base']['steps']} steps of the base {base_seconds}, {control['steps']} of the control "
        f"in {seconds['control']:.0f} s; with loading and measuring {seconds['total'] / 60:.1f} minutes.",
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
    tables = []
    for path in paths:
        try:
            tables.append(table(json.loads(Path(path).read_text())))
        except (OSError, ValueError, KeyError, TypeError) as error:
            sys.exit(f"error: {path} is not the metrics.json of a finished run: {type(error).__name__}: {error}")
    try:
        update_readme(README, BEGIN, END, "\n\n".join(tables))
    except (ValueError, CheckpointError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main(sys.argv[1:] or sys.exit(f"usage: {__doc__}"))
