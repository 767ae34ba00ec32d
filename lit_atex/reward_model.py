"""What an exposure is worth at a state of training: a small Bayesian regression over few, noisy, drifting readings.

It knows nothing of policies. The model, for what progress P gained in window k, which was spent at exposure u_k and
opened at the standardised state z_k, at a level P_k:

    P_(k+1) - P_k = trend(k) + l P_k + c.z_k  what happens whatever the exposure is: a student saturates and falls back
      + sum_(i<J) sum_d  w_id U_d(u_(k-i))    the effect of exposure, in its own window and J - 1 later ones: Legendre
                                              polynomials of degree 1..3, orthonormal on [0, 1]
      + sum_(i<J) sum_d  v_d U_d(u_(k-i)) z_(k-i)f / sqrt(J)  how *one* statistic f moves it (d = 1, 2), or none does
      + e_k - theta e_(k-1), e of variance s2 * exp(age / memory)   forgetting: an old window says less, not else

An exposure is worth sum_(i<J) discount^i of its effects: the discounted learning progress that it brings, apart from
what the other decisions bring, which the rewards of its neighbours share, and before the student falls back (l): that
makes all exposures worth less alike, if their effects come in the same windows.

Theta is where the noise is. If what a window brings is noisy, it is 0. If readings are, as an accuracy over a few
rollouts is, a reading too high is one gain too large and the next too small: with theta near 1 a gain is judged against
the average of the readings before it, and many windows tell what two readings do not (an exponentially weighted moving
average; Muth 1960).

Theta, f, and how large the effect is against the noise, are hypotheses. Each is a conjugate (normal-inverse-gamma)
regression in closed form (Gelman et al., Bayesian Data Analysis, ch. 14), and they are averaged by their evidence: with
eleven statistics and a few dozen windows, one weight per statistic would drown the one that matters. For this too the
statistics are taken to stand in order, the likeliest to move the effect first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

DEGREE = 3
MOVED = 2
"""Of these polynomials, the first two may depend on a statistic: where the optimum lies, and how sharp it is."""
PRIOR = np.array([1.0, 0.5, 0.05])
"""Prior variance of w by degree: smooth effects are likelier than wiggly ones."""
MOVED_PRIOR = np.array([1.0, 0.3])
EFFECTS = (0.1, 0.3, 1.0)
"""Prior SD of the effect over that of the noise, one hypothesis each: from hardly visible to plain."""
THETAS = (0.0, 0.5, 0.8, 0.95)
"""Hypotheses of where the noise is; the last averages some twenty readings."""
TREND, LEVEL, STATISTICS = 0.1, 0.3, 0.1
"""Prior SD of the trend, of what the level brings, and of all statistics together, over that of the noise. More would
explain by them what a few dozen windows say of exposure: a student that rises, and falls when less is shown."""
STATIC = 0.8
"""Prior probability that no statistic moves the effect; each statistic is half as likely to as the one before it."""

OUTLIER = 6.0
"""Gains are kept within this many SD of their median: normal ones hardly ever reach it."""


class Effect(NamedTuple):
    """The posterior of exposure's effect at one state, in units of the given gains, without the part common to all u.

    Attributes:
        mean: `[exposures]` expected effect.
        covariance: `[exposures exposures]` what is not known of it; the noise of a gain is not in it. A hypothesis has
            a Student's t, and gives its squared scale: a third less than its covariance after four windows, a tenth
            after twenty. So it was when the learner was tuned, and so it stayed.
        relevance: `[features]` posterior probability that this statistic moves the effect; the rest to 1: none does.
    """

    mean: Array
    covariance: Array
    relevance: Array


def polynomials(u: Array) -> Array:
    """`[..., 3]` Legendre polynomials of degree 1..3, orthonormal on [0, 1]."""
    x = 2 * u - 1
    return np.stack([3**0.5 * x, 5**0.5 * (3 * x**2 - 1) / 2, 7**0.5 * (5 * x**3 - 3 * x) / 2], axis=-1)


def lagged(x: Array, by: int) -> Array:
    """`[windows ...]` as it was that many windows before; 0 before the first."""
    return np.concatenate([np.zeros_like(x[:by]), x[: max(len(x) - by, 0)]])


def undone(x: Array, theta: float) -> Array:
    """`[windows ...]` e of x_k = e_k - theta e_(k-1), if what was before the first is 0.

    1 / (1 - theta B) is (1 + theta B)(1 + theta^2 B^2)(1 + theta^4 B^4)... for B, one window earlier.
    """
    by = 1
    while by < len(x):
        x, by = x + theta**by * lagged(x, by), 2 * by
    return x


def integrated(columns: Array, common: int, precision: Array, weight: Array) -> tuple[Array, Array]:
    """What is common to all hypotheses of a theta is integrated out once, which leaves moments of the other columns.

    Args:
        columns: `[windows columns]`, those that are common first.
        common: How many they are.
        precision: `[common + 1]` of their coefficients' prior; the last is of e before the first window.
        weight: `[windows 1]` of each.

    Returns:
        `[thetas others others]` the moments (Schur complement), and `[thetas]` the log determinant of what was left
        out.
    """
    moments, sizes = [], []
    for theta in THETAS:
        e = undone(columns, theta)
        before = theta ** (1.0 + np.arange(len(columns)))[:, None]
        nuisance, x = np.concatenate([e[:, :common], before], axis=1), e[:, common:]
        cross, inner = (nuisance * weight).T @ x, (nuisance * weight).T @ nuisance + np.diag(precision)
        moments.append((x * weight).T @ x - cross.T @ np.linalg.solve(inner, cross))
        sizes.append(np.linalg.slogdet(inner)[1])
    return np.stack(moments), np.array(sizes)


def effect(
    states: Array,
    exposures: Array,
    levels: Array,
    gains: Array,
    now: Array,
    memory: float,
    horizon: int,
    discount: float,
    at: Array,
) -> Effect:
    """The effect of the exposures `at`, at the state `now`.

    Args:
        states: `[windows features]` standardised, oldest first.
        exposures: `[windows]` in [0, 1].
        levels: `[windows]` the sum of the gains before them, of zero mean and about unit variance.
        gains: `[windows]` how much it rose in them, of about unit variance; NaN for the first ones: not known.
        now: `[features]` the state to predict for.
        memory: Windows until one weighs 1/e.
        horizon: Windows in which an exposure has its effect (J), >= 1.
        discount: Weight of each further one.
        at: `[exposures]` where to predict.
    """
    total, features = states.shape
    u, order = polynomials(exposures), DEGREE * horizon
    by_state = (states[:, :, None] * u[:, None, :MOVED]).reshape(total, -1)
    own = np.concatenate([lagged(u, i) for i in range(horizon)], axis=1)
    moved = sum((lagged(by_state, i) for i in range(horizon)), np.zeros_like(by_state)) / horizon**0.5
    known = slice(int(np.isnan(gains).sum()), None)
    count = len(gains[known])
    time = np.arange(count) / max(count - 1, 1)
    trend = np.stack([np.ones(count), 2**0.5 * np.cos(np.pi * time), 2**0.5 * np.cos(2 * np.pi * time)], axis=1)
    given = [x[known] for x in (levels[:, None], states, own, moved, gains[:, None])]
    common = 4 + features
    precision = np.array([1e-2, TREND**-2, TREND**-2, LEVEL**-2, *[features * STATISTICS**-2] * features, 1.0])

    weight = np.exp(-np.arange(count)[::-1] / memory)[:, None]
    moments, sizes = integrated(np.concatenate([trend, *given], axis=1), common, precision, weight)
    m = moments[:, None]  # [thetas 1 columns columns], columns: own, moved by each feature, gain

    # First the regression on exposure alone, for each theta and size [thetas sizes ...] ...
    scale = np.array(EFFECTS)[:, None, None] ** 2
    prior = np.tile(PRIOR, horizon)
    inverse = np.linalg.inv(m[..., :order, :order] + np.diag(1 / prior) / scale)
    target = m[..., :order, -1:]
    weights = inverse @ target
    fit = (weights * target).sum((-2, -1))
    log_det = np.linalg.slogdet(inverse)[1] - np.log(scale[:, 0, 0] * prior[:, None]).sum(0)
    evidence = np.log(STATIC) + (log_det - sizes[:, None]) / 2
    # ... then what each statistic adds to it (block elimination), [thetas sizes features ...].
    shape, each = (len(THETAS), 1, features, MOVED), np.arange(features)
    across = m[..., :order, order:-1].reshape(len(THETAS), 1, order, features, MOVED).swapaxes(2, 3)
    block = m[..., order:-1, order:-1].reshape(*shape, features, MOVED).swapaxes(3, 4)[:, :, each, each]
    through = inverse[:, :, None] @ across
    left = np.linalg.inv(block + np.diag(1 / MOVED_PRIOR) / scale[:, None] - across.swapaxes(-1, -2) @ through)
    rest = m[..., order:-1, -1:].reshape(*shape, 1) - across.swapaxes(-1, -2) @ weights[:, :, None]
    added = left @ rest
    halves = 0.5 ** np.arange(features)
    more = np.linalg.slogdet(left)[1] - np.log(scale[:, 0] * MOVED_PRIOR).sum(-1)[:, None]
    with_state = evidence[..., None] - np.log(STATIC) + np.log((1 - STATIC) * halves / halves.sum()) + more / 2

    # The worth of exposure at the state now, as coefficients of the polynomials; [thetas sizes 1 + features ...].
    to_worth = np.concatenate([discount**i * np.eye(DEGREE) for i in range(horizon)], axis=1)
    summed = (discount ** np.arange(horizon)).sum() / horizon**0.5
    through = now[:, None, None] * summed * np.eye(DEGREE, MOVED) - to_worth @ through
    alone = to_worth @ weights
    means = np.concatenate([alone[:, :, None], alone[:, :, None] + through @ added], axis=2)[..., 0]
    spread = (to_worth @ inverse @ to_worth.T)[:, :, None]
    spread = np.concatenate([spread, spread + through @ left @ through.swapaxes(-1, -2)], axis=2)
    fits = np.concatenate([fit[..., None], fit[..., None] + (added * rest).sum((-2, -1))], axis=2)
    shape_n = 1 + count / 2
    scale_n = 1 + np.maximum(m[..., -1:, -1] - fits, 0) / 2
    share = np.concatenate([evidence[..., None], with_state], axis=2) - shape_n * np.log(scale_n)
    share = np.exp(share - share.max())
    share /= share.sum()
    mean = np.einsum("tsf,tsfi->i", share, means)
    apart = means - mean
    covariance = spread * (scale_n / shape_n)[..., None, None] + apart[..., :, None] * apart[..., None, :]
    basis = polynomials(at)
    within = basis @ np.einsum("tsf,tsfij->ij", share, covariance) @ basis.T
    return Effect(basis @ mean, within, share.sum((0, 1))[1:])


def within_reach(gains: Array) -> Array:
    """Without outliers, of which one would make all others look alike.

    The SD is that of the middle half, as a normal distribution has it (1.4826 times the median absolute deviation),
    since an outlier would raise its own limit. Where more than half are equal, it is that of those that differ.
    """
    middle = float(np.median(gains))
    apart = abs(gains - middle)
    differ = apart[apart > 1e-9 * max(abs(middle), float(np.quantile(apart, 0.9)))]  # by more than rounding
    usual = 1.4826 * float(np.median(apart if 2 * differ.size > apart.size else differ)) if differ.size else 0.0
    return gains.clip(middle - OUTLIER * usual, middle + OUTLIER * usual)


def unit(x: Array, of: Array) -> Array:
    """In SD from the mean of some; 0 if those are equal: they differ by rounding, which says nothing."""
    scale = of.std()
    return (x - of.mean()) / scale if scale > 1e-9 * abs(of).max() else x * 0.0
