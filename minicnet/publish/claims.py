"""The results page of this folder, and the table of claims in the main README.

Both are made from the results in .github/results/experiments alone, and by the claims as they are
now. A result is shown if it was measured under today's rule, by today's code and weights; every
other claim is listed as not measured yet, with its rule.
"""

import importlib
import json
import shutil
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from minicnet.checkpoints import write_atomically
from minicnet.experiments import lab
from minicnet.experiments.claim import spread, title
from minicnet.experiments.measures import MEASURES
from minicnet.figures import save_figure
from minicnet.publish.report import update_readme

ROOT = Path(__file__).parents[2]
RESULTS = Path(".github") / "results" / "experiments"
BEGIN = "<!-- claims: made by python -m minicnet.experiments.all -->"
END = "<!-- end of claims -->"
VERDICTS = {"reproduced": "#7bbf7b", "mixed": "#f3d37a", "not reproduced": "#e58a7f",
            "cannot tell": "#d5d5d5"}
WHOSE = {"the paper": "of the paper", "the authors' notes": "of the authors' notes",
         "another paper": "of other papers", "users": "asked by users", "minicnet": "our own"}
HOLDS = {True: "holds", False: "fails", None: "open"}
INTRODUCTION = """# The paper's claims, measured

One file for each claim, with the rule that decides it, fixed before measuring. There are four
verdicts: *reproduced* (every test of the rule holds), *not reproduced* (every test fails), *mixed*
(some hold and some fail), and *cannot tell*, where an interval is too wide, or where a measure has
no room left between its floor and its ceiling. `python -m minicnet.experiments.all` writes this
page.

How to read the tables. Every arm starts from a base that comes with the repository. A value is the
mean over images and trainings, and ± is its standard deviation over trainings, which differ in
their seed. An interval of a difference resamples trainings and images. It aims at 95%. In
simulations it holds the true difference in 95 to 100 of 100 experiments with three trainings. With
a single training, it speaks of other images, and not of another training.

The first testbed of a claim is the closest to its source, and decides; the others show how far the
claim reaches. *adamw* trains as the paper does, at a constant rate and without averaged weights.
*muon* is the recipe of this library.
"""


def load(name):
    """Return a claim and its published result, or None for one that is missing or outdated."""
    claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
    path = ROOT / RESULTS / f"{name}.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    return claim, result if result and current(claim, result) else None


def current(claim, result):
    """Return whether a result was measured under today's rule, by today's code and weights."""
    settings = lab.FULL | {"images": claim.images}
    return result["rule"] == claim.rule and all(
        result["testbeds"].get(f"{base} {optimizer}", {}).get("stamp")
        == lab.stamp(base, settings, lab.what(claim)) for base, optimizer in claim.testbeds)


def verdicts(claim, result):
    """Return {testbed: verdict}; the first one decides."""
    return {testbed: claim.judge(found["arms"])[0] for testbed, found in result["testbeds"].items()}


def deciding(claim, result):
    """Return the verdict and the outcome that decided it: the first that does not hold, if any."""
    verdict, outcomes = claim.judge(next(iter(result["testbeds"].values()))["arms"])
    wanted = {"reproduced": True, "cannot tell": None}.get(verdict, False)
    return verdict, next(outcome for outcome in outcomes if outcome.holds is wanted)


def answer(claim, result):
    """Return the verdict and the number that decided it, as a sentence."""
    verdict, outcome = deciding(claim, result)
    test, titles = outcome.test, claim.titles
    reason = f", but {outcome.why}" if outcome.holds is None else ""
    return (f"{verdict.capitalize()}: in {MEASURES[test.measure].title}, "
            f"{title(test.ours, titles)} minus {title(test.theirs, titles)} is "
            f"{outcome.difference}{reason}.")


def section(name, claim, result):
    """Return one claim as Markdown."""
    rule = [f"> {claim.quote}\n>\n> {claim.source} ({claim.whose})"]
    command = f"`python -m minicnet.experiments.{name}` ([{name}.py]({name}.py))"
    if result is None:
        tests = "\n".join(f"- {test.text(claim.titles)}" for test in claim.tests)
        return "\n\n".join([f"## {name}: not measured yet", *rule,
                            f"The rule of {claim.dated}:", tests, command])
    testbed, found = next(iter(result["testbeds"].items()))
    verdict, outcomes = claim.judge(found["arms"])
    tests = "\n".join(f"- {HOLDS[o.holds]}: {o.test.text(claim.titles)}. Difference "
                      f"{o.difference}{'; ' + o.why if o.holds is None else ''}" for o in outcomes)
    elsewhere = ", ".join(f"{place}: {word}" for place, word in verdicts(claim, result).items()
                          if place != testbed)
    amendments = [f"Amended: {reason}" for reason in claim.amendments]
    seconds = sum(one["seconds"] for one in result["testbeds"].values())
    return "\n\n".join([
        f"## {name}: {verdict}", *rule, f"**{answer(claim, result)}**", table(claim, found["arms"]),
        f"The rule of {claim.dated}, on {testbed} ({claim.trainings} trainings, {claim.images} "
        f"images):", tests, *amendments, *([f"Elsewhere: {elsewhere}."] if elsewhere else []),
        f"![{name}: {verdict}](../../{RESULTS.as_posix()}/{name}.png)",
        f"Why it may differ elsewhere: {claim.why}",
        f"{command}: {seconds / 60:.0f} minutes, {result['device']}, torch {result['torch']}, "
        f"{result['date']}."])


def table(claim, arms):
    """Return the arms of a testbed as Markdown: a line for each, a column for each measure."""
    measures = [name for name in claim.measured if any(name in one for one in arms.values())]
    lines = ["| arm | " + " | ".join(MEASURES[name].title for name in measures) + " |",
             "|---|" + "---|" * len(measures)]
    for arm, values in arms.items():
        cells = []
        for name in measures:
            paper = claim.paper.get((arm, name))
            cell = spread(values[name]) if name in values else ""
            cells.append(f"{cell} (paper: {paper})" if paper else cell)
        lines.append(f"| {claim.titles[arm]} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def summary(loaded):
    """Return the counts of verdicts, a line for each kind of claim, as Markdown."""
    lines = ["| claims | reproduced | mixed | not reproduced | cannot tell | not measured yet |",
             "|---|---|---|---|---|---|"]
    for whose, words in WHOSE.items():
        found = Counter(deciding(claim, result)[0] if result else "not measured yet"
                        for claim, result in loaded.values() if claim.whose == whose)
        counts = " | ".join(str(found[word]) for word in (*VERDICTS, "not measured yet"))
        lines.append(f"| {words} | {counts} |")
    return "\n".join(lines)


def readme_table(loaded):
    """Return the table of the main README: each measured claim in full, its verdict, and what
    decided it. Claims without a current result are counted below."""
    lines = ["| claim | verdict | what decided |", "|---|---|---|"]
    waiting = 0
    for name, (claim, result) in loaded.items():
        if not result:
            waiting += 1
            continue
        verdict, _ = deciding(claim, result)
        place = f"minicnet/experiments/README.md#{name}-{verdict.replace(' ', '-')}"
        reason = answer(claim, result).partition(": ")[2]
        lines.append(f"| [{claim.short}]({place}) ({claim.source}) | {verdict} | {reason} |")
    if waiting:
        page = "[the page of all claims](minicnet/experiments/README.md)"
        lines += ["", f"{waiting} further claims are declared, with their rules, and not measured "
                      f"yet on the present networks: see {page}."]
    return "\n".join(lines)


def matrix(verdicts):
    """Draw where claims hold. verdicts: {claim: {testbed: verdict}}."""
    testbeds = list(dict.fromkeys(name for row in verdicts.values() for name in row))
    fig = Figure(figsize=(1.7 * len(testbeds) + 2.6, 0.36 * len(verdicts) + 0.8),
                 layout="constrained")
    ax = fig.subplots()
    for i, row in enumerate(verdicts.values()):
        for j, testbed in enumerate(testbeds):
            if testbed in row:
                ax.add_patch(Rectangle((j - 0.48, -i - 0.46), 0.96, 0.92,
                                       color=VERDICTS[row[testbed]]))
                ax.text(j, -i, row[testbed], ha="center", va="center", fontsize=9)
    ax.set_xlim(-0.5, len(testbeds) - 0.5)
    ax.set_ylim(-len(verdicts) + 0.5, 0.5)
    ax.set_xticks(range(len(testbeds)), [name.replace(" ", "\n") for name in testbeds], fontsize=9)
    ax.set_yticks([-i for i in range(len(verdicts))], verdicts, fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig


def publish(out, names):
    """Copy current results from `out` into the checkout, and write both pages."""
    (ROOT / RESULTS).mkdir(parents=True, exist_ok=True)
    for name in names:
        claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
        measured = out / f"{name}.json"
        if measured.exists() and current(claim, json.loads(measured.read_text(encoding="utf-8"))):
            shutil.copy(measured, ROOT / RESULTS / measured.name)
            shutil.copy(measured.with_suffix(".png"), ROOT / RESULTS / f"{name}.png")
    loaded = {name: load(name) for name in names}
    parts = [INTRODUCTION.strip(), summary(loaded)]
    rows = {name: verdicts(*pair) for name, pair in loaded.items() if pair[1]}
    if rows:
        save_figure(matrix(rows), ROOT / RESULTS / "matrix.png")
        parts.append(f"![Where each claim holds](../../{RESULTS.as_posix()}/matrix.png)")
    parts += [section(name, *pair) for name, pair in loaded.items()]
    page = ROOT / "minicnet" / "experiments" / "README.md"
    write_atomically(page, ("\n\n".join(parts) + "\n").encode())
    update_readme(ROOT / "README.md", BEGIN, END, readme_table(loaded))
    print(page)
