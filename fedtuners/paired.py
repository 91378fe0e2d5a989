"""Paired differences of scores: mean, Student's 95 % interval and two-sided p.

Pairing takes out what two runs share, above all the seed's rows and their split. Below three pairs
there is neither interval nor p: with two, the interval of a t with one degree of freedom says
nothing. Student, "The probable error of a mean", Biometrika 6 (1908).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean, stdev

from scipy.stats import t

FEWEST = 3  # pairs for an interval


@dataclass(frozen=True)
class Difference:
    """A mean of paired differences, with its interval and p where there are enough pairs."""

    pairs: int
    mean: float
    low: float | None = None
    high: float | None = None
    p: float | None = None  # None also where all differences are equal, whose t is infinite


def paired(differences: Sequence[float]) -> Difference:
    """Student's paired test of the differences of n ≥ 1 pairs. Raises ValueError for none."""
    if not differences:
        raise ValueError("there are no pairs to compare")
    n, mean = len(differences), fmean(differences)
    if n < FEWEST:
        return Difference(n, mean)
    error = stdev(differences) / sqrt(n)
    half = float(t.ppf(0.975, n - 1)) * error
    p = 2 * float(t.sf(abs(mean) / error, n - 1)) if error else None
    return Difference(n, mean, mean - half, mean + half, p)
