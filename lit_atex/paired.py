"""Two runs on the same problems: is the difference more than chance, how small a one could be seen? Numbers only."""

from __future__ import annotations

from itertools import product
from math import ceil, log2, sqrt
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from lit_atex.types import seeded

EXACT = 14
"""So many problems that differ have few enough sign patterns (2 to their power) to try them all."""
LOST = 4
"""So many problems the test wastes, next to one with normal differences of known spread: a t test wastes 2
(z²/2 at 5 %: Guenther, 1981), and ties and the steps of an exact p-value as many again, as was measured."""


def sign_flip_p(differences: ArrayLike, draws: int = 20_000, seed: int = 0) -> float:
    """Two-sided p-value of a mean of paired differences, by permutation.

    If the two runs were the same, each problem's difference could as well have had the other sign. The p-value is the
    share of sign patterns whose mean is at least as far from 0 as the one seen: all patterns where few problems differ,
    else `draws` random ones and the one seen, so that it is never 0 and its level holds (Phipson and Smyth, 2010).

    Args:
        differences: `[problems]` of any metric.
        draws: Random patterns, >= 1; with 20,000 a p-value of 0.05 has a standard error of 0.0015.
        seed: Seed of the draws.

    Returns:
        In (0, 1]; 1 if no problem differs, or there is none; nan with a nan.
    """
    given = np.asarray(differences, dtype=np.float64)
    if np.isnan(given).any():
        return float("nan")
    moved = np.abs(given[given != 0])
    if not moved.size:
        return 1.0
    far = abs(given.sum()) - 1e-9 * moved.sum()  # sums of the same numbers in another order round differently
    if moved.size <= EXACT:
        signs = np.array(list(product((-1, 1), repeat=moved.size)))
        return float((np.abs(signs @ moved) >= far).mean())
    rng, hits, chunk = seeded(seed, "permutation"), 0, max(1, 2_000_000 // moved.size)
    for start in range(0, draws, chunk):
        signs = rng.integers(0, 2, (min(chunk, draws - start), moved.size), dtype=np.int8) * 2.0 - 1
        hits += int((np.abs(signs @ moved) >= far).sum())
    return (hits + 1) / (draws + 1)


def holm(p_values: ArrayLike) -> list[float]:
    """P-values of several tests, raised so that the chance of any false alarm among them stays what it says.

    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    raised = np.maximum.accumulate(np.minimum(p[order] * (p.size - np.arange(p.size)), 1.0))
    found = np.empty_like(p)
    found[order] = raised
    return found.tolist()


def fewest(level: float = 0.05) -> int:
    """Problems without which `sign_flip_p` cannot be as low as `level`: of m, all of one sign, it is 2 / 2^m."""
    return 1 + ceil(-log2(level))


def enough(level: float = 0.05) -> int:
    """Problems from which on `detectable` holds, as was measured at 5 %; with fewer, ties leave too few patterns."""
    return 2 * fewest(level)


def detectable(differences: ArrayLike, power: float = 0.8, level: float = 0.05) -> float:
    """The smallest true difference that would be called one with about this power, given how differences spread.

    (z_{1-level/2} + z_power) standard errors of the mean paired difference, as of four problems fewer: of shares of
    eight samples, even or skewed, 12 problems then find it in 75 to 87 % of trials, 60 in 78 to 80 %; of one sample
    (-1, 0 or 1), where the test is stricter than its level, in 62 and 71 %.

    Args:
        differences: `[problems]`.
        power: Chance of finding it, in (0, 1).
        level: Of the two-sided test, in (0, 1).

    Returns:
        In the unit of the differences; nan where nothing says how they spread, as all are equal, and where there are
        fewer than `enough`.
    """
    given = np.asarray(differences, dtype=np.float64)
    if given.size < enough(level) or (given == given[0]).all():
        return float("nan")
    return _reach(power, level) * float(given.std(ddof=1)) / sqrt(given.size - LOST)


def problems_needed(differences: ArrayLike, size: float, power: float = 0.8, level: float = 0.05) -> int | None:
    """Problems of this kind, at least `enough`, whose `detectable` is `size`.

    None for a size of 0, of fewer than `fewest` differences, and of equal ones.
    """
    given = np.asarray(differences, dtype=np.float64)
    if given.size < fewest(level) or (given == given[0]).all() or abs(size) < 1e-9:  # a mean that rounding keeps from 0
        return None
    return max(enough(level), LOST + ceil((_reach(power, level) * float(given.std(ddof=1)) / size) ** 2))


def _reach(power: float, level: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)
