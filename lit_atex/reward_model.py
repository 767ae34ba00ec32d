"""What an exposure is worth at a state of training: a small Bayesian regression over few, noisy, drifting rewards.

It knows nothing of policies. The model, for the reward y of an exposure u at the standardised state z and at time t:

    y = trend(t) + c.z              what happens whatever the exposure is: the student saturates, problems get harder
      + sum_d  w_d U_d(u)           the effect of exposure: Legendre polynomials of degree 1..3, orthonormal on [0, 1]
      + sum_d  v_d U_d(u) z_f       how *one* statistic f moves that effect (d = 1, 2), or none does
      + noise of variance s2 * exp(age / memory)     forgetting: an old decision says less, not something else

Which f, and how large the effect is against the noise, are hypotheses. Each is a conjugate (normal-inverse-gamma)
regression in closed form (Gelman et al., Bayesian Data Analysis, ch. 14), and they are averaged by their evidence: with
eleven statistics and a few dozen rewards, one weight per statistic would drown the one that matters. For this too the
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
NUISANCE = 1.0
"""Prior SD of the trend, and of all statistics together, over that of the noise."""
STATIC = 0.5
"""Prior probability that no statistic moves the effect; each statistic is half as likely to as the one before it."""


class Effect(NamedTuple):
    """The posterior of exposure's effect at one state, in units of the given rewards, without the part common to all u.

    Attributes:
        mean: `[exposures]` expected effect.
        covariance: `[exposures exposures]` what is not known of it; the noise of a reward is not in it. A hypothesis
            has a Student's t, and gives its squared scale: a third less than its covariance after four decisions, a
            tenth after twenty. So it was when the learner was tuned, and so it stayed.
        relevance: `[features]` posterior probability that this statistic moves the effect; the rest to 1: none does.
    """

    mean: Array
    covariance: Array
    relevance: Array


def polynomials(u: Array) -> Array:
    """`[..., 3]` Legendre polynomials of degree 1..3, orthonormal on [0, 1]."""
    x = 2 * u - 1
    return np.stack([3**0.5 * x, 5**0.5 * (3 * x**2 - 1) / 2, 7**0.5 * (5 * x**3 - 3 * x) / 2], axis=-1)


def effect(states: Array, exposures: Array, rewards: Array, now: Array, memory: float, at: Array) -> Effect:
    """The effect of the exposures `at`, at the state `now`.

    Args:
        states: `[decisions features]` standardised, oldest first.
        exposures: `[decisions]` in [0, 1].
        rewards: `[decisions]`, of about unit variance.
        now: `[features]` the state to predict for.
        memory: Decisions until one weighs 1/e.
        at: `[exposures]` where to predict.
    """
    count, features = states.shape
    age = np.arange(count)[::-1]
    weight = np.exp(-age / memory)
    time = np.arange(count) / max(count - 1, 1)
    trend = np.stack([np.ones(count), 2**0.5 * np.cos(np.pi * time), 2**0.5 * np.cos(2 * np.pi * time)], axis=1)
    nuisance = np.concatenate([trend, states], axis=1)
    u = polynomials(exposures)
    moved = (states[:, :, None] * u[:, None, :MOVED]).reshape(count, -1)
    columns = np.concatenate([u, moved, rewards[:, None]], axis=1)

    # What is common to all hypotheses is integrated out once: it leaves moments of the columns (Schur complement).
    precision = np.concatenate([[1e-2, *[NUISANCE**-2] * 2], np.full(features, features * NUISANCE**-2)])
    cross = (nuisance * weight[:, None]).T @ columns
    common = (nuisance * weight[:, None]).T @ nuisance + np.diag(precision)
    moments = (columns * weight[:, None]).T @ columns - cross.T @ np.linalg.solve(common, cross)

    # One row of `index`, `prior` and `log_prior` per hypothesis: first "none" (feature 0, shut off), then each feature.
    first = DEGREE + MOVED * np.array([0, *range(features)])[:, None] + np.arange(MOVED)
    index = np.concatenate([np.tile(np.arange(DEGREE), (features + 1, 1)), first], axis=1)
    index = np.tile(index, (len(EFFECTS), 1))
    shape = np.array([np.concatenate([PRIOR, MOVED_PRIOR if f >= 0 else [1e-9] * MOVED]) for f in range(-1, features)])
    prior = np.concatenate([size**2 * shape for size in EFFECTS])
    halves = 0.5 ** np.arange(features)
    log_prior = np.tile(np.log([STATIC, *(1 - STATIC) * halves / halves.sum()]), len(EFFECTS))

    inverse = np.linalg.inv(moments[index[:, :, None], index[:, None, :]] + np.eye(DEGREE + MOVED) / prior[:, :, None])
    target = moments[index, -1]
    weights = np.einsum("hij,hj->hi", inverse, target)
    shape_n = 1 + count / 2
    scale_n = 1 + np.maximum(moments[-1, -1] - (weights * target).sum(1), 0) / 2
    evidence = log_prior + (np.linalg.slogdet(inverse)[1] - np.log(prior).sum(1)) / 2 - shape_n * np.log(scale_n)
    share = np.exp(evidence - evidence.max())
    share /= share.sum()

    # Coefficients of the polynomials at the state now, mixed over hypotheses: mean and covariance.
    value = np.tile(np.concatenate([[0.0], now]), len(EFFECTS))
    to_now = np.zeros((len(share), DEGREE, DEGREE + MOVED))
    to_now[:, :, :DEGREE] = np.eye(DEGREE)
    for d in range(MOVED):
        to_now[:, d, DEGREE + d] = value
    means = np.einsum("hij,hj->hi", to_now, weights)
    within = to_now @ inverse @ to_now.transpose(0, 2, 1) * (scale_n / shape_n)[:, None, None]
    mean = share @ means
    apart = means - mean
    covariance = np.einsum("h,hij->ij", share, within + apart[:, :, None] * apart[:, None, :])
    basis = polynomials(at)
    relevance = share.reshape(len(EFFECTS), features + 1).sum(0)[1:]
    return Effect(basis @ mean, basis @ covariance @ basis.T, relevance)
