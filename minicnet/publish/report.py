"""Write the results of runs into the README and a page of their own, so that no number is typed:

    python -m minicnet.publish.report
"""

import json
from pathlib import Path

from minicnet import cli
from minicnet.checkpoints import write_atomically
from minicnet.errors import UserError
from minicnet.results import TITLES, Results

README = Path(__file__).parents[2] / "README.md"
PAGE = README.with_name(".github") / "results" / "README.md"
RUNS = ("mnist", "drawn", "coloured", "colour", "cifar10", "cifar10-colour")
INTRODUCTION = """# All results

One table for each run, written by `python -m minicnet.publish.report`. *Edge-F1* is 1 if the edges
that are found in an image agree with the given ones; an edge may lie one pixel away, or none for
*strict edge-F1*. The Frechet distance compares with the images whose conditions were given, so
images with control can come closer to these than other real images, the last column, do."""
BEGIN = "<!-- results: made by python -m minicnet.publish.report -->"
END = "<!-- end of results -->"


def load_results(path):
    """Read a run's metrics.json. Raises UserError if it is not one."""
    try:
        results = Results(**json.loads(Path(path).read_text(encoding="utf-8")))
        results.as_table(), summary([results])
        return results
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not the metrics.json of a finished run "
                        f"({type(error).__name__}: {error})") from error


def summary(runs):
    """Return one line of Markdown for each of the Results: what control changes at guidance 2."""
    lines = ["| dataset, condition | condition followed, without → with control | prompt shown, "
             "without → with | Frechet distance (less is better), without → with (other real "
             "images) |", "|---|---|---|---|"]
    for run in runs:
        base, control = run.base[2], run.control[2]
        name = run.measure
        lines.append(
            f"| {run.dataset}, {run.condition} | {TITLES[name]}: {base[name]:.3f} → "
            f"{control[name]:.3f} | {base['all']:.3f} → {control['all']:.3f} | "
            f"{base['frechet']:.1f} → {control['frechet']:.1f} ({run.real['frechet']:.1f}) |")
    return "\n".join(lines)


def update_readme(readme, begin, end, section):
    """Replace the text between two marks of a README. Raises UserError unless each occurs once."""
    text = readme.read_text(encoding="utf-8")
    if text.count(begin) != 1 or text.count(end) != 1:
        raise UserError(f"the README must hold the lines {begin} and {end} once each")
    before, rest = text.split(begin)
    _, after = rest.split(end)
    write_atomically(readme, f"{before}{begin}\n{section}\n{end}{after}".encode())


def main():
    cli.parser(__doc__, device=False).parse_args()
    runs = [load_results(PAGE.parent / name / "metrics.json") for name in RUNS]
    tables = [INTRODUCTION]
    for name, run in zip(RUNS, runs):
        tables += [run.as_table(), f"![Images of this run, with control and without]({name}/"
                   f"samples.png)\n![What was learned when]({name}/learning.png)"]
    update_readme(README, BEGIN, END, summary(runs))
    write_atomically(PAGE, ("\n\n".join(tables) + "\n").encode())


if __name__ == "__main__":
    cli.run(main)
