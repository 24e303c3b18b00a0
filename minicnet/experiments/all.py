"""All experiments in turn, and the README of this folder, with their verdicts; a line for each in the main README:

    python -m minicnet.experiments.all              # about two hours on two CPU cores; can be stopped and run again
    python -m minicnet.experiments.all --readme     # runs nothing: only writes the README, of the results there are
    python -m minicnet.experiments.all --quick      # a smoke run: a minute, no meaning, and no README

Results and figures that the code here and now made are copied from the folder --out into .github/results/experiments.
The README shows what lies there, and says of each result whether that is still what the code would measure.
"""

import importlib
import json
import shutil
from pathlib import Path

from minicnet import cli
from minicnet.checkpoints import write_atomically
from minicnet.experiments import lab
from minicnet.report import update_readme

NAMES = {  # and what is claimed, in a few words
    "zero_convolution": "Gaussian convolutions in place of zero ones spoil ControlNet",
    "sudden_convergence": "control is learned all at once, and images stay good",
    "cost": "a step costs 1.34 times the base's time, and 1.23 times its memory",
    "data_size": "1,000 images are enough, and more are better",
    "forgetting": "fine-tuning forgets what a locked base keeps",
    "many_conditions": "conditions are added, with no weights",
    "photos": "the same, on photographs",
    "transfer": "a control works on other bases, without retraining",
    "guidance": "weights by resolution improve guidance without a prompt",
    "reconstruction": "masks are found again better than with ControlNet-lite or from scratch",
    "quality": "so are images, and they show what the prompt says",
    "no_prompt": "a condition alone says what to draw",
    "prompt_dropping": "dropping half of the prompts helps to read the condition",
    "batch_size": "a larger batch is better than more steps (the authors' notes)",
    "adapter": "once per image is as good as once per step (T2I-Adapter)",
    "consistency": "a loss on the condition of the guessed image helps (ControlNet++)",
    "composition": "words compose (ours)",
    "attention": "each place looks at the words that concern it (ours)"}
ROOT = Path(__file__).parents[2]
RESULTS = Path(".github") / "results" / "experiments"
BEGIN, END = "<!-- claims: made by python -m minicnet.experiments.all -->", "<!-- end of claims -->"
INTRODUCTION = """# The paper's claims, measured

One file for each claim, with the rule by which it decides: *reproduced*, *mixed* or *not reproduced*. Claims that are
not the paper's say so. All start from the small weights that come with the repository. A figure is a mean ± its
standard deviation over the seeds. Behind a difference stands its 95% interval. This page is written by
`python -m minicnet.experiments.all`."""


def is_current(result):
    """Did the weights, settings and code that are here now make this result?"""
    module = importlib.import_module(f"minicnet.experiments.{result['name']}")
    return result.get("stamp") == lab.stamp_of(module.BASE, lab.FULL, result["name"])


def told(result):
    """A published result. If it is current, its rows are judged again: the rule may have changed since."""
    if not is_current(result):
        return result
    verdict, why = importlib.import_module(f"minicnet.experiments.{result['name']}").verdict(result["rows"])
    return {**result, "verdict": verdict, "why": why}


def section(result):
    """One claim in Markdown: verdict, evidence, figure, and where, when and how it was measured."""
    name, mark = result["name"], ""
    module = importlib.import_module(f"minicnet.experiments.{name}")
    here = f"\n\nWhy here, and perhaps not there: {module.WHY_HERE}" if hasattr(module, "WHY_HERE") else ""
    if "stamp" not in result:
        mark = ("> **To be measured again.** This was measured before prompts became words and training got its new "
                "recipe: with labels, and on bases that drew worse.\n\n")
    elif not is_current(result):
        mark = "> **To be measured again.** Code, settings or weights have changed since this was measured.\n\n"
    return (f"## {name}: {result['verdict']}\n\nThe claim: {result['claim']}\n\n{mark}"
            f"{result['why'][0].upper()}{result['why'][1:]}.{here}\n\n"
            f"![{name}: {result['verdict']}](../../{RESULTS.as_posix()}/{name}.png)\n\n"
            f"`python -m minicnet.experiments.{name}` ([{name}.py]({name}.py)): {result['seconds'] / 60:.0f} minutes, "
            f"{result['dataset']}, seeds {', '.join(map(str, result['seeds']))}, {result['images']} images each, "
            f"{result['device']}, torch {result['torch']}, {result['date']}.")


def line(result):
    """One claim in a line of a table, with a link to its section."""
    name, verdict = result["name"], result["verdict"]
    link = f"minicnet/experiments/README.md#{name}-{verdict.replace(' ', '-')}"  # as GitHub names a heading's place
    return f"| [{NAMES[name]}]({link}) | {verdict if is_current(result) else 'to be measured again'} |"


def publish(out, root):
    """Copies current results from the folder `out` into the checkout `root`, and writes what its READMEs say of all."""
    (root / RESULTS).mkdir(parents=True, exist_ok=True)
    sections, lines = [], ["| claim | verdict |", "|---|---|"]
    for name in NAMES:
        made, published = out / name / "result.json", root / RESULTS / f"{name}.json"
        if made.exists() and is_current(json.loads(made.read_text())):
            shutil.copy(made, published)
            shutil.copy(out / name / "figure.png", published.with_suffix(".png"))
        if published.exists():
            result = told(json.loads(published.read_text()))
            sections.append(section(result))
            lines.append(line(result))
        else:
            sections.append(f"## {name}: not measured yet\n\n`python -m minicnet.experiments.{name}`")
            lines.append(f"| {NAMES[name]} | not measured yet |")
    update_readme(root / "README.md", BEGIN, END, "\n".join(lines))
    readme = root / "minicnet" / "experiments" / "README.md"
    write_atomically(readme, ("\n\n".join([INTRODUCTION, *sections]) + "\n").encode())
    print(readme)


def main(args):
    if not args.readme:
        lab.run(args, *NAMES)
    if not args.quick:
        publish(args.out or Path("runs/experiments"), ROOT)


if __name__ == "__main__":
    parser = lab.parser(__doc__)
    parser.add_argument("--readme", action="store_true", help="run nothing, write the README of the results there are")
    cli.run(main, parser.parse_args(), stopped="stopped: the same command goes on")
