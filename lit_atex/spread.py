"""What runs with several seeds are worth: intervals over seeds, and differences paired by seed and by problem.

Numbers only. Two sources of chance, two answers: another seed would train another model (Student's t over the few seeds
that there are), another draw of problems would measure it otherwise (bootstrap and sign flips over problems, seeds
averaged). A difference counts as one only if it holds against both: its p-value is the larger of the two. That is a
test of "either kind of chance explains it" at its level (an intersection-union test: Berger, 1982), and loses power
for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, cos, isnan, pi, sin, sqrt
from statistics import fmean

import numpy as np
from numpy.typing import ArrayLike

from lit_atex.evaluation import is_share
from lit_atex.paired import sign_flip_p
from lit_atex.stats import beta_quantile, paired_interval

Interval = tuple[float, float]
UNKNOWN: Interval = (float("nan"), float("nan"))


def t_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of a mean over seeds.

    With two seeds it reaches 12.7 standard errors, with three 4.3: that is how much so few say. A bootstrap of three
    seeds would be narrower, and wrong: it knows ten different means.

    Args:
        values: `[seeds]`, any unit; nearly normal is enough.
        level: Coverage, in (0, 1).

    Returns:
        `(low, high)`; nan for fewer than two values, and for equal ones: neither says anything of the spread.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.size < 2 or _equal(given):
        return UNKNOWN
    mean, error = float(given.mean()), float(given.std(ddof=1)) / sqrt(given.size)
    freedom = given.size - 1
    # t² = ν (1 - x) / x, where x ~ Beta(ν/2, 1/2): its lower tail holds both tails of t.
    x = beta_quantile(freedom / 2, 0.5, 1 - level)
    reach = sqrt(freedom * (1 - x) / x) * error
    return mean - reach, mean + reach


def mean_of(values: Sequence[float]) -> float:
    """The mean; nan of nothing."""
    return fmean(values) if values else float("nan")


def ends(name: str, interval: Interval) -> dict[str, float]:
    """An interval as two columns of a table."""
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}


def over_seeds(metric: str, values: ArrayLike, least: float = 0.0) -> Interval:
    """`t_interval` of a metric ("SET/METRIC"); without what no share can be, which takes nothing from its coverage.

    Args:
        metric: Its name tells whether it is a share.
        values: `[seeds]`.
        least: The smallest value there could be of a share: 0, or -1 for a difference of two.
    """
    low, high = t_interval(values)
    if not is_share(metric.rpartition("/")[2]):
        return low, high
    return float(np.clip(low, least, 1)), float(np.clip(high, least, 1))


def _equal(values: np.ndarray) -> bool:
    return bool(np.ptp(values) <= 1e-12 * np.abs(values).max())


def t_p(values: ArrayLike) -> float:
    """Two-sided p-value of "the mean over seeds is 0" by Student's t; nan for fewer than two values, or with a nan.

    Equal values have no spread to hold their mean against: that of the sign test is given, 2 / 2^seeds.

    Source: the finite sums 26.7.3 and 26.7.4 of Abramowitz and Stegun (1964), for whole degrees of freedom.
    """
    given = np.asarray(values, dtype=np.float64)
    if given.size < 2 or np.isnan(given).any():
        return float("nan")
    mean, error = float(given.mean()), float(given.std(ddof=1)) / sqrt(given.size)
    if _equal(given):
        return 1.0 if mean == 0 else 2.0 ** (1 - given.size)
    freedom = given.size - 1
    angle = atan(abs(mean) / error / sqrt(freedom))
    odd = freedom % 2
    term = cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom, 2):
        term *= (k - 1) / k * cos(angle) ** 2
        total += term
    inside = 2 / pi * (angle + sin(angle) * total) if odd else sin(angle) * total
    return max(0.0, 1 - inside)


@dataclass
class Gap:
    """A metric of a cell less that of the baseline.

    Attributes:
        seeds: That both have.
        problems: That all of them have; 0 where the metric is not one of single problems.
        difference: Mean over seeds.
        over_seeds: Its 95 % t interval, paired by seed.
        over_problems: Its 95 % BCa bootstrap interval, paired by problem, seeds averaged.
        p_seeds: p-value of the t test; nan for one seed.
        p_problems: p-value of the sign-flip test; nan where problems are not known.
        p_holm: The larger of the two, raised for the number of comparisons; filled in by who knows the number.
    """

    seeds: int
    problems: int
    difference: float
    over_seeds: Interval
    over_problems: Interval
    p_seeds: float
    p_problems: float
    p_holm: float = float("nan")

    @property
    def p(self) -> float:
        """The larger of what is known."""
        return max((p for p in (self.p_seeds, self.p_problems) if not isnan(p)), default=float("nan"))


NOT_COMPARED = Gap(0, 0, float("nan"), UNKNOWN, UNKNOWN, float("nan"), float("nan"))


def gap(
    values: tuple[dict[int, float], dict[int, float]],
    problems: tuple[dict[int, dict[str, float]], dict[int, dict[str, float]]],
    comparisons: int = 1,
    metric: str = "",
) -> Gap | None:
    """The difference, paired by seed and by problem; None if no seed is common.

    Args:
        values: The metric by seed, of the cell and of the baseline.
        problems: The metric of each problem, by seed, of both; empty where it is none of single problems.
        comparisons: That are made in all: the more, the finer must a p-value be told, to be one after correction.
        metric: Its name, "SET/METRIC"; of a share the interval is cut at what a difference can be.
    """
    (cell, baseline), (by_problem, baseline_by_problem) = values, problems
    seeds = sorted(cell.keys() & baseline.keys())
    if not seeds:
        return None
    moved = np.round([cell[s] - baseline[s] for s in seeds], 12)
    known = [s for s in seeds if by_problem.get(s) and baseline_by_problem.get(s)]
    common = sorted(set.intersection(*(by_problem[s].keys() & baseline_by_problem[s].keys() for s in known), *[])
                    if len(known) == len(seeds) else ())  # fmt: skip
    # Rounded, so that equal differences are equal, and none is none: 7/12 - 4/12 is 3/12.
    paired = np.round([np.mean([by_problem[s][i] - baseline_by_problem[s][i] for s in known]) for i in common], 12)
    return Gap(
        seeds=len(seeds),
        problems=len(common),
        difference=float(moved.mean()),
        over_seeds=over_seeds(metric, moved, -1.0),
        over_problems=paired_interval(paired) if len(common) else UNKNOWN,
        p_seeds=t_p(moved),
        p_problems=_p_problems(paired, comparisons) if len(common) else float("nan"),
    )


def _p_problems(paired: np.ndarray, comparisons: int) -> float:
    """The sign-flip p-value; the least that its draws can tell is drawn finer, so that it survives the correction."""
    p, finer = sign_flip_p(paired), 400 * comparisons
    return sign_flip_p(paired, finer) if finer > 20_000 and p <= 2 / 20_001 else p
