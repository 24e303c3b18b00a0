"""How sure is a difference between two arms? A bootstrap over trainings and over images.

A measure of an arm is a table of numbers (T, I): one for each of T trainings, which differ in their
seed, and each of I images, which are drawn from the same noise in every arm. If somebody repeated
the experiment, the network would be trained again, and other images would be drawn. The interval
resamples both (Efron 1979; Davison and Hinkley 1997, section 3.8).

Everything is computed in float64. A plain bootstrap of three trainings underestimates their spread,
because it cannot see more than these three. Deviations between trainings are therefore stretched,
as Student's t distribution is wider than the normal one. A test simulates how often the interval
holds the true difference.
"""

import functools
from typing import NamedTuple

import numpy as np

RESAMPLES = 10_000
STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365,
           9: 2.306}  # 97.5% quantiles of t for T - 1
NORMAL = 1.960  # the same quantile of the normal distribution


class Interval(NamedTuple):
    """A difference and its interval. As text: "+0.0120 (+0.0030 to +0.0210)"."""

    by: float
    low: float
    high: float

    def __str__(self):
        digits = decimals(max(abs(self.low), abs(self.high)))
        return f"{self.by:+.{digits}f} ({self.low:+.{digits}f} to {self.high:+.{digits}f})"


def decimals(size):
    """Return how many decimals to print of numbers up to a size: more, the smaller they are."""
    return 3 if size >= 0.1 or not size else 4 if size >= 0.01 else 5


@functools.lru_cache(4)  # because a table of many images needs much memory
def resamples(T, I):
    """Return the weights (RESAMPLES, T) of trainings and (RESAMPLES, I) of images in resamples."""
    generator = np.random.default_rng(0)
    trainings = generator.multinomial(T, np.full(T, 1 / T), size=RESAMPLES) / T  # sums to 1
    images = generator.multinomial(I, np.full(I, 1 / I), size=RESAMPLES) / I
    if T > 1:
        stretch = (T / (T - 1)) ** 0.5 * STUDENT[T] / NORMAL
        trainings = 1 / T + stretch * (trainings - 1 / T)
    return trainings, images


def interval(ours, theirs):
    """Return the difference of the means, ours - theirs, with its interval.

    ours, theirs: (T, I) tables of the same images. An arm with a single training is compared with
    every training of the other arm, and a plain number with every image.
    """
    table = np.atleast_2d(np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64))
    trainings, images = resamples(*table.shape)
    means = (trainings * (images @ table.T)).sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(table.mean()), float(low), float(high))
