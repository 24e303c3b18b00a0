"""A claim: what is quoted, what is compared, and the rule that decides, fixed before measuring.

A rule consists of tests, `Better` and `Same`, which print themselves in English, and of a check of
headroom: a measure on which every arm is nearly perfect decides nothing. There are four verdicts:

    reproduced        every test holds
    not reproduced    every test fails
    mixed             some tests hold, and some fail
    cannot tell       interval or headroom leave a test open that could change the verdict

Quote, tests, headroom and date are hashed (`Claim.rule`) and stored with every result, so that a
result that is older than its rule is refused. Whoever changes a rule changes its date and says why
in `amendments`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np

from minicnet.controlnet import ControlNet
from minicnet.experiments.measures import MEASURES
from minicnet.experiments.stats import Interval, decimals, interval

NEARLY_PERFECT = 0.95  # of the way from floor to ceiling: beyond, a measure decides nothing


# -- Arms: how networks are trained and draw ---------------------------------------------------


@dataclass(frozen=True)
class Fit:
    """How to train a network.

    net: make(unet, condition_channels) -> the network: ControlNet, or one of networks.py.
    condition: a key of CONDITIONS, or "" for a base. steps, rate: factors on the usual ones;
    base_steps: how many times the base's own training is added to the steps, for a network from
    scratch. images: how many training images, 0 for all; labels: only images of these.
    drop_prompts, drop_condition: fractions of a batch that are trained without. style: of the
    images, a key of STYLES. start: another Fit or Shipped, whose weights training starts from.
    objective: (eps_model, schedule, x_0) -> the eps_model to train (consistency.py). optimizer:
    "muon", the library's recipe; "adamw", as the paper trains; "" is the testbed's.
    """

    net: Callable = ControlNet
    condition: str = "canny"
    steps: float = 1.0
    base_steps: float = 0.0
    batch_size: int = 32
    images: int = 0
    labels: tuple = ()
    drop_prompts: float = 0.5
    drop_condition: float = 0.0
    rate: float = 1.0
    style: str = ""
    start: object = None
    objective: Callable | None = None
    optimizer: str = ""


@dataclass(frozen=True)
class Shipped:
    """A control that comes with the repository, named after its condition."""

    condition: str


@dataclass(frozen=True)
class Use:
    """One control of an arm: a Fit or Shipped, its strength, and when it acts.

    change: a function of the conditions (N, K, H, W), such as one that mixes them up.
    """

    control: object
    scale: float = 1.0
    start: float = 0.0
    end: float = 1.0
    change: Callable | None = None


@dataclass(frozen=True)
class Arm:
    """One way to draw: by the base, or another network in its place (`unet`, a Fit), with controls.

    prompt: "label" ("a three"), "caption", "none", or a function of the labels that returns texts.
    labels: only test images of these. style: of the images behind conditions, of the reference, and
    of the classifier, a key of STYLES. eps_model: (unet, prompt, controls) -> eps_model, in place
    of guidance. real: draws nothing; its images are the real ones, which are the ceiling.
    """

    title: str = field(repr=False)  # no part of hashes: a name changes nothing
    controls: tuple = ()
    unet: Fit | None = None
    prompt: object = "label"
    labels: tuple = ()
    guidance: float = 1.0
    style: str = ""
    eps_model: Callable | None = None
    real: bool = False

    @property
    def trained(self):
        """Whether the arm depends on the seed, because it trains a network."""
        fits = [self.unet, *(use.control for use in self.controls)]
        return any(isinstance(fit, Fit) for fit in fits)


BASE = Arm("base alone")
UNTOLD = Arm("base alone, no prompt", prompt="none")
REAL = Arm("real images", real=True)


# -- The rule ----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What a test found. holds: True, False, or None where it is open; why: the reason."""

    test: object
    difference: Interval
    holds: bool
    why: str


@dataclass(frozen=True)
class Test:
    """A comparison of an arm with another, or with a number. "a - b" is the difference of two."""

    ours: str
    theirs: str | float
    measure: str

    def subject(self, titles):
        """Return whose test it is, in English. titles: {arm: its name}."""
        return title(self.ours, titles) + " (a side condition)" * self.side


@dataclass(frozen=True)
class Better(Test):
    """One arm is better than another, or than a number, by at least `by`.

    It holds if the interval of the lead lies above 0 and the lead is at least `by`; it fails if the
    whole interval lies below `by`, or at or below 0. A negative `by` asks less: that an arm is not
    worse by more than that. It holds if the whole interval lies above `by`. side: a side condition,
    which can spoil a claim and supports none.
    """

    by: float = 0.0
    side: bool = False

    def text(self, titles):
        """Return the rule in English. titles: {arm: its name}."""
        measure, ours = MEASURES[self.measure], self.subject(titles)
        theirs = title(self.theirs, titles)
        if self.by < 0:
            return (f"{ours}: {measure.title} not more than {-self.by:g} "
                    f"{'higher' if measure.less else 'lower'} than {theirs}, interval included")
        lead = f"at least {self.by:g} " if self.by else ""
        return (f"{ours}: {measure.title} {lead}{'lower' if measure.less else 'higher'} than "
                f"{theirs}, and the interval excludes 0")

    def holds(self, lead):
        """Judge the interval of the lead, which is positive where ours is better."""
        if lead.low > min(0, self.by) and lead.by >= self.by:
            return True
        return False if lead.high < self.by or lead.high <= min(0, self.by) else None


@dataclass(frozen=True)
class Same(Test):
    """An arm equals another, or a number, up to `within`: the whole interval lies in ± `within`.

    It fails if the whole interval lies outside.
    """

    within: float
    side: bool = False

    def text(self, titles):
        return (f"{self.subject(titles)}: {MEASURES[self.measure].title} within "
                f"{self.within:g} of {title(self.theirs, titles)}, interval included")

    def holds(self, lead):
        if -self.within <= lead.low and lead.high <= self.within:
            return True
        return False if lead.low > self.within or lead.high < -self.within else None


@dataclass(frozen=True)
class Headroom:
    """The floor and the ceiling of a measure, arms or numbers, and an arm that is known to be bad.

    The measure decides only if it shows `bad` to be worse than the best arm tested, and if that arm
    lies below 95% of the way from floor to ceiling. Without a ceiling, only the first is checked.
    """

    floor: str | float
    ceiling: str | float | None
    bad: str


@dataclass(frozen=True)
class Claim:
    """Everything that is decided before a measurement.

    short: the claim in one sentence, for the README. quote, source: verbatim, and where it stands.
    whose: who claims it ("the paper", "the authors' notes", "another paper", "users", "minicnet").
    testbeds: pairs (base, optimizer), of which the first decides and the others show how far the
    claim reaches. arms: {name: Arm}. tests, headroom {measure: Headroom}: the rule. why: why the
    outcome may differ elsewhere. dated: the day of the rule. trainings: how many seeds an arm that
    trains has. images: how many test images. measures: what else is shown. paper: {(arm, measure):
    its value in the paper}. amendments: what was changed later in the rule, and why. picture:
    (claim, result) -> the figure, in place of the usual one.
    """

    short: str
    quote: str
    source: str
    whose: str
    testbeds: tuple
    arms: dict
    tests: tuple
    headroom: dict
    why: str
    dated: str
    trainings: int = 3
    images: int = 192
    measures: tuple = ()
    paper: dict = field(default_factory=dict)
    amendments: tuple = ()
    picture: Callable | None = None

    @property
    def titles(self):
        return {name: arm.title for name, arm in self.arms.items()}

    @property
    def measured(self):
        """The names of all measures, those of the tests first."""
        return tuple(dict.fromkeys([test.measure for test in self.tests] + list(self.measures)))

    @property
    def conditions(self):
        """The names of all conditions that arms are given, in order."""
        uses = (use for arm in self.arms.values() for use in arm.controls)
        return tuple(dict.fromkeys(use.control.condition for use in uses if use.control.condition))

    @property
    def rule(self):
        """A hash of what the claim promises to judge by."""
        parts = [self.quote, self.dated, repr((sorted(self.headroom.items()), self.testbeds[0]))]
        parts += [test.text(self.titles) for test in self.tests]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]

    def judge(self, tables):
        """Return the verdict and the outcomes. tables: {arm: {measure: (T, I) table}}."""
        outcomes = [self._outcome(test, tables) for test in self.tests]
        held = [outcome.holds for outcome in outcomes if not outcome.test.side]
        if all(held):
            held = [outcome.holds for outcome in outcomes]
        if True in held and False in held:
            return "mixed", outcomes
        if None in held:
            return "cannot tell", outcomes
        return "reproduced" if held[0] else "not reproduced", outcomes

    def _outcome(self, test, tables):
        found = interval(*(value(tables, name, test.measure) for name in (test.ours, test.theirs)))
        lead = (Interval(-found.by, -found.high, -found.low) if MEASURES[test.measure].less
                else found)
        obstacle = test.measure in self.headroom and self._obstacle(test.measure, tables)
        holds = None if obstacle else test.holds(lead)
        unclear = obstacle or "the interval does not decide"
        why = {True: "holds", False: "fails", None: unclear}[holds]
        return Outcome(test, found, holds, why)

    def _obstacle(self, measure, tables):
        """Return why a measure decides nothing here, or None if it does."""
        room = self.headroom[measure]
        sign = -1 if MEASURES[measure].less else 1
        tested = {name for test in self.tests if test.measure == measure
                  for name in (test.ours, test.theirs) if name in self.arms and name != room.floor}
        if not tested:
            return None
        best = max(tested, key=lambda name: sign * np.mean(tables[name][measure]))
        lead = interval(*(sign * value(tables, name, measure) for name in (best, room.bad)))
        if lead.low <= 0:  # the best arm may be the bad one itself
            return ("this measure does not tell the known-bad arm, "
                    f'"{self.titles[room.bad]}", from the best one')
        if room.ceiling is None:
            return None
        floor, ceiling, found = (np.mean(value(tables, name, measure))
                                 for name in (room.floor, room.ceiling, best))
        reached = (found - floor) / ((ceiling - floor) or 1e-9)
        if reached > NEARLY_PERFECT:
            return f"the best arm reaches {reached:.0%} of the way from floor to ceiling"
        return None


def title(name, titles):
    """Return the name of an arm, of a difference "a - b" of two arms, or a number."""
    if not isinstance(name, str):
        return f"{name:g}"
    parts = [titles[part] for part in name.split(" - ")]
    return f"({' minus '.join(parts)})" if len(parts) > 1 else parts[0]


def value(tables, name, measure):
    """Return an arm's table (T, I), the difference of two arms' for "a - b", or a number itself."""
    if not isinstance(name, str):
        return name
    first, *others = (np.array(tables[part][measure]) for part in name.split(" - "))
    return first - sum(others)


def main(name):
    """Run the command line of one claim."""
    from minicnet.experiments import lab  # not above, because the lab imports this file
    lab.main(name)


def spread(table):
    """Return the mean as text, with ± the standard deviation over trainings where there are
    several."""
    means = [mean(row) for row in table]
    digits = decimals(abs(mean(means)))
    return f"{mean(means):.{digits}f}" + (f" ± {stdev(means):.{digits}f}" if len(means) > 1 else "")
