"""The results page of the experiments, and the chart of claims in the main README.

Both are made from the results in .github/results/experiments alone, and by the claims as they are
now. A result is shown if it was measured under today's rule, by today's code and weights, at least
on the testbed that decides; every other claim is listed as not measured yet, with its rule.
"""

import importlib
import inspect
import json
import shutil
import textwrap
from collections import Counter
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle

from minicnet.checkpoints import write_atomically
from minicnet.experiments import lab
from minicnet.experiments.claim import Better, Fit, Same, spread, title
from minicnet.experiments.measures import MEASURES
from minicnet.figures import save_figure
from minicnet.publish.report import update_readme

ROOT = Path(__file__).parents[2]
RESULTS = Path(".github") / "results" / "experiments"
BEGIN = "<!-- claims: made by python -m minicnet.experiments.all -->"
END = "<!-- end of claims -->"
VERDICTS = {"reproduced": ("#8fcc8f", "✓"), "mixed": ("#f3d37a", "~"),
            "not reproduced": ("#eb9c92", "✗"), "cannot tell": ("#d5d5d5", "?")}
WHOSE = {"the paper": "of the paper", "the authors' notes": "of the authors' notes",
         "another paper": "of other papers", "users": "asked by users", "minicnet": "our own"}
PROMPTS = {"label": "with the label as prompt", "caption": "with the caption as prompt",
           "none": "without a prompt"}
HOLDS = {True: ("holds", "hold"), False: ("fails", "fail"), None: ("is open", "are open")}
INTRODUCTION = """# The paper's claims, measured

Most claims here are the paper's; others come from the authors' notes, from other papers, from users
and from ourselves. Each has a file with the rule that decides it, written before it was measured on
the networks of today; *Amended* marks what was changed after a first look, with the reason. There
are four verdicts: *reproduced* (every test of the rule holds), *not reproduced* (every test fails),
*mixed* (some hold and some fail), and *cannot tell*, where an interval does not decide, where a
measure cannot tell an arm that is known to be bad from the best one, or where the best arm is
nearly perfect already. A side condition is a test that says little by itself, such as that nothing
gets worse. If it fails, it can make a claim mixed, but that it holds is no evidence for a claim
whose other tests fail.

`python -m minicnet.experiments.all` writes this page.

How to read the tables. Every arm starts from a base that comes with the repository. A value is the
mean over images and trainings, and ± is its standard deviation over trainings, which differ in
their seed. An interval stands in brackets after its difference. It resamples trainings and images
(or trainings alone, where a measure gives one number for each), and aims at 95%: in simulated
experiments with three to nine trainings, 93 to 100 of 100 intervals hold the true difference. With
a single training, it speaks of other images, and not of another training. Where trainings were
added after a look at the first ones, the interval does not know of the look. A test that asks for a
lead holds if the interval excludes 0 and the mean reaches the lead, and fails if even the upper end
of the interval falls short of it. A limit holds only if the whole interval keeps it. The Frechet
distance compares with other real images than those whose conditions were given. It is corrected for
the number of images (by a jackknife), though not perfectly, so it may be negative, and compares
only within a table.

The first testbed of a claim decides; where another one did before, *Amended* says so. The others
show how far the claim reaches. In the chart, the sign of the one that decides is bold. An empty
field is not measured, or not with as many trainings as the rule asks for. *adamw* trains as the
paper does, at a constant rate and without averaged weights. *muon* is the recipe of this library.

How to read the figures. A dot is a difference and its line is the interval, green where the test
holds, red where it fails and gray where it is open. The black line means "equal", and a dotted line
is the smallest difference that the rule asks for, or the largest that it allows. The rows "given"
show the conditions, computed from the real images in the last row.
"""


def read(claim, path):
    """Return a claim's result, without the testbeds that were measured by other code or weights.

    None if there is no result, if it is older than the rule, or outdated where it decides.
    """
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
    if not result or result["rule"] != claim.rule:
        return None
    settings, current = lab.FULL | {"images": claim.images}, {}
    for base, optimizer in claim.testbeds:
        testbed, stamp = f"{base} {optimizer}", lab.stamp(base, settings, lab.what(claim))
        if result["testbeds"].get(testbed, {}).get("stamp") == stamp:
            current[testbed] = result["testbeds"][testbed]
    return {**result, "testbeds": current} if " ".join(claim.testbeds[0]) in current else None


def verdicts(claim, result):
    """Return {testbed: verdict}; the first one decides."""
    return {testbed: claim.judge(found["arms"])[0] for testbed, found in result["testbeds"].items()}


def decided(claim, result):
    """Return the verdict on the testbed that decides, and the outcomes of the rule's tests."""
    return claim.judge(next(iter(result["testbeds"].values()))["arms"])


def italic(claim):
    """Return the names of a claim's arms, set apart from the sentence around them."""
    return {name: f"*{text}*" for name, text in claim.titles.items()}


def answer(claim, arms):
    """Return what the rule's tests found on a testbed, and the number that decided, as sentences.

    arms: the tables of the testbed's arms.
    """
    verdict, outcomes = claim.judge(arms)
    wanted = {"reproduced": True, "cannot tell": None}.get(verdict, False)
    first, *more = (one for one in outcomes if one.holds is wanted)
    test, found, holds, why = first
    measure = MEASURES[test.measure]
    ours, theirs = (title(arm, italic(claim)) for arm in (test.ours, test.theirs))
    asked = ""
    if isinstance(test, Same):
        asked = f", where up to ±{test.within:g} is allowed"
    elif test.by:
        asked = (f", where at least {test.by:g} better is asked for" if test.by > 0 else
                 f", where up to {-test.by:g} worse is allowed")
    which = "it" if len(outcomes) == 1 else (
        f"the {'first' if more else 'one'} that {HOLDS[holds][0]}")
    unclear = f", but {why}" if holds is None else ""
    less = " (less is better)" if measure.less and isinstance(test, Better) else ""
    return (f"{tally(outcomes)}: {which} compares {ours} with {theirs} in "
            f"{measure.title}{less}: the difference is {found}{asked}{unclear}.")


def tally(outcomes):
    """Return how many tests of a rule hold, fail and are open, as the beginning of a sentence."""
    found = Counter(outcome.holds for outcome in outcomes if not outcome.test.side)
    counts = [f"{found[holds]} {words[found[holds] > 1]}" for holds, words in HOLDS.items()
              if found[holds]]
    side = "".join(f", and a side condition {HOLDS[outcome.holds][0]}" for outcome in outcomes
                   if outcome.test.side)
    if found.total() == 1:
        return f"The only test {HOLDS[next(iter(found))][0]}{side}"
    *some, last = counts
    return f"Of {found.total()} tests, {', '.join(some)}{' and ' * bool(some)}{last}{side}"


def setting(claim, optimizer):
    """Return what the arms of a claim are given, and how long they train, as a sentence."""
    prompts = dict.fromkeys(PROMPTS.get(arm.prompt, "with prompts of its own")
                            for arm in claim.arms.values() if not arm.real)
    fits = [fit for arm in claim.arms.values()
            for fit in (arm.unet, *(use.control for use in arm.controls)) if isinstance(fit, Fit)]
    steps = {round(fit.steps * lab.FULL[f"{fit.optimizer or optimizer}_steps"])
             for fit in fits if fit.steps}
    training = (f" A whole training has {' or '.join(map(str, sorted(steps)))} steps of "
                f"{' or '.join(map(str, sorted({fit.batch_size for fit in fits})))} images"
                f"{', and more from scratch' * any(fit.base_steps for fit in fits)}.")
    return (f"Conditions: {', '.join(claim.conditions) or 'none'}; images are drawn "
            f"{' or '.join(prompts)}.{training * bool(fits)}")


def section(name, claim, result):
    """Return one claim as Markdown."""
    explained = inspect.getdoc(importlib.import_module(f"minicnet.experiments.{name}"))
    rule = [f"> {claim.quote}\n>\n> {claim.source} ({claim.whose})", explained,
            setting(claim, claim.testbeds[0][1])]
    amended = [f"Amended: {reason}" for reason in claim.amendments]
    command = f"`python -m minicnet.experiments.{name}` ([{name}.py]({name}.py))"
    if result is None:
        tests = "\n".join(f"- {test.text(italic(claim))}" for test in claim.tests)
        return "\n\n".join([f"### {name}: not measured yet", *rule,
                            f"The rule of {claim.dated}:", tests, *amended, command])
    (testbed, found), *others = result["testbeds"].items()
    verdict, outcomes = decided(claim, result)
    elsewhere = [f"Elsewhere, on {place}: {claim.judge(other['arms'])[0]}. "
                 f"{answer(claim, other['arms'])}" for place, other in others]
    trained = any(arm.trained for arm in claim.arms.values())
    trainings = (f"{claim.trainings} trainings of what is trained here" if trained
                 else "the shipped networks")
    seconds = sum(one["seconds"] for one in result["testbeds"].values())
    return "\n\n".join([
        f"## {name}: {verdict}", *rule, answer(claim, found["arms"]),
        table(claim, found["arms"]),
        f"The rule of {claim.dated}, on {testbed} ({trainings}, {claim.images} images):",
        rule_table(claim, outcomes), *amended,
        *elsewhere,
        f"![{name}: {verdict}](../../{RESULTS.as_posix()}/{name}.png)",
        f"Why it may differ elsewhere: {claim.why}",
        f"{command}: {seconds / 60:.1f} minutes, {result['device']}, torch {result['torch']}, "
        f"{result['date']}."])


def rule_table(claim, outcomes):
    """Return the tests of the rule and what they found, as Markdown."""
    lines = ["| what the rule asks | difference (interval) | outcome |", "|---|---|---|"]
    for test, difference, holds, why in outcomes:
        outcome = f"open: {why}" if holds is None else why
        lines.append(f"| {test.text(italic(claim))} | {difference} | {outcome} |")
    return "\n".join(lines)


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
        found = Counter(decided(claim, result)[0] if result else "not measured yet"
                        for claim, result in loaded.values() if claim.whose == whose)
        counts = " | ".join(str(found[word]) for word in (*VERDICTS, "not measured yet"))
        lines.append(f"| {words} | {counts} |")
    return "\n".join(lines)


def overview(loaded):
    """Return each measured claim in full, its verdict and what decided it, as Markdown."""
    lines = ["| claim | verdict | what decided |", "|---|---|---|"]
    for name, (claim, result) in loaded.items():
        if result:
            verdict, first = decided(claim, result)[0], next(iter(result["testbeds"].values()))
            place = f"#{name}-{verdict.replace(' ', '-')}"
            lines.append(f"| [{claim.short}]({place}) ({claim.source}) | {verdict} | "
                         f"{answer(claim, first['arms'])} |")
    return "\n".join(lines)


def front(loaded):
    """Return the section of the main README: the chart, and how many claims it shows."""
    found = Counter(decided(claim, result)[0] for claim, result in loaded.values() if result)
    counts = ", ".join(f"{found[verdict]} {verdict}" for verdict in VERDICTS)
    return (f"[![The verdict on each claim, by testbed]({RESULTS.as_posix()}/matrix.png)]"
            f"(minicnet/experiments/README.md)\n\n*Of {len(loaded)} claims, {found.total()} are "
            f"measured on the present networks: {counts}. The [page of all claims]"
            "(minicnet/experiments/README.md) has each with its quote, its rule, a table and a "
            "figure.*")


def matrix(loaded):
    """Draw where claims hold: a line for each measured claim, and a column for each testbed."""
    rows = {claim.short: verdicts(claim, result) for claim, result in loaded.values() if result}
    testbeds = sorted({" ".join(names) for claim, _ in loaded.values() for names in claim.testbeds})
    fig = Figure(figsize=(0.95 * len(testbeds) + 6, 0.3 * len(rows) + 1.2), layout="constrained")
    ax = fig.subplots()
    for i, row in enumerate(rows.values()):
        for testbed, verdict in row.items():
            j, (colour, symbol) = testbeds.index(testbed), VERDICTS[verdict]
            ax.add_patch(Rectangle((j - 0.47, i - 0.45), 0.94, 0.9, color=colour))
            ax.text(j, i, symbol, ha="center", va="center", fontsize=11,
                    weight="bold" if testbed == next(iter(row)) else "normal")
    ax.set_xlim(-0.5, len(testbeds) - 0.5)
    ax.set_ylim(max(1, len(rows)) - 0.5, -0.5)
    ax.set_xticks(range(len(testbeds)), [name.replace(" ", "\n") for name in testbeds], fontsize=9)
    ax.set_yticks(range(len(rows)), [textwrap.shorten(short, 95) for short in rows], fontsize=9)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    patches = [Patch(color=colour, label=f"{symbol}  {verdict}")
               for verdict, (colour, symbol) in VERDICTS.items()]
    fig.legend(handles=patches, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return fig


def publish(out, names):
    """Copy current results from `out` into the checkout, and write both pages."""
    (ROOT / RESULTS).mkdir(parents=True, exist_ok=True)
    loaded = {}
    for name in names:
        claim = importlib.import_module(f"minicnet.experiments.{name}").CLAIM
        measured, published = out / f"{name}.json", ROOT / RESULTS / f"{name}.json"
        if new := read(claim, measured):
            old = read(claim, published) or {"testbeds": {}}
            new["testbeds"] = {**old["testbeds"], **new["testbeds"]}
            write_atomically(published, json.dumps(new).encode())
            shutil.copy(measured.with_suffix(".png"), published.with_suffix(".png"))
        loaded[name] = claim, read(claim, published)
    save_figure(matrix(loaded), ROOT / RESULTS / "matrix.png")
    sections = {name: section(name, *pair) for name, pair in loaded.items()}
    measured, others = ([sections[name] for name in names if bool(loaded[name][1]) is yes]
                        for yes in (True, False))
    parts = [INTRODUCTION.strip(), summary(loaded),
             f"![The verdict on each testbed](../../{RESULTS.as_posix()}/matrix.png)",
             overview(loaded), *measured, *["## Not measured yet"] * bool(others), *others]
    page = ROOT / "minicnet" / "experiments" / "README.md"
    write_atomically(page, ("\n\n".join(parts) + "\n").encode())
    update_readme(ROOT / "README.md", BEGIN, END, front(loaded))
    print(page)
