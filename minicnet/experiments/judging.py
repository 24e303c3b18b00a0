"""What rows say: means over seeds, and whether a difference is more than chance. Verdicts and figures use it."""

import statistics
from typing import NamedTuple

import torch


def across_seeds(rows, start, name):
    """The values called `name` in all rows whose key is "start-SEED", in order."""
    return [row[name] for key, row in rows.items() if key.rpartition("-")[0] == start]


def mean(rows, start, name):
    return statistics.mean(across_seeds(rows, start, name))


def mean_and_deviation(values, digits=3):
    """Mean and standard deviation of a list of values, one for each seed, as text: "0.981 ± 0.002"."""
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{deviation}"


def in_figures(rows, start, name, digits=3):
    return mean_and_deviation(across_seeds(rows, start, name), digits)


class Interval(NamedTuple):
    """A difference `by`, and the 95% interval low .. high around it. As text: "+0.012 (+0.003 to +0.021)"."""

    by: float
    low: float
    high: float

    def __format__(self, digits):
        return "{} ({} to {})".format(*(format(value, digits or "+.3f") for value in self))


def interval(rows, ours, theirs, name):
    """By how much is "ours" above "theirs" in the measure called `name`, all seeds together? -> Interval

    Both drew the same images from the same noise, and so did all seeds: what counts is the difference in each block of
    images (`lab.blocks`), as a mean over the seeds. low .. high is the 95% bootstrap interval of the blocks' mean
    (Efron 1979). With eight blocks it holds the true difference in about 9 cases of 10. It tells how sure the
    difference is between these networks, on other images, and not between networks that are trained anew.
    """
    ours, theirs = (torch.tensor(across_seeds(rows, start, f"{name}_blocks")).mean(0) for start in (ours, theirs))
    differences = ours - theirs
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randint(len(differences), (10_000, len(differences)), generator=generator)
    low, high = differences[chosen].mean(1).quantile(torch.tensor([0.025, 0.975])).tolist()
    return Interval(differences.mean().item(), low, high)


def clearly_better(ours, theirs, sign=1):
    """Is one variant better than another by more than chance would give? Two lists of values, seed by seed.

    Both drew from the same noise, so the differences count: their mean must be more than twice their standard deviation
    over the seeds. sign: -1 where less is better.
    """
    differences = [sign * (a - b) for a, b in zip(ours, theirs, strict=True)]
    return statistics.mean(differences) > 2 * statistics.stdev(differences)
