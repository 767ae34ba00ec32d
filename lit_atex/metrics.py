"""Metrics of n sampled answers per problem: pure functions, and thin torchmetrics shells; knows no text and no verdict.

avg@k, pass@k and G-Pass@k depend on counts alone, c correct of n. maj@k and the number of distinct answers depend on
which answers agree: those functions take the answers' canonical forms. pass@k is *not* "any of the first k is correct",
nor maj@k the vote of the first k: that would throw away n - k samples and depend on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor
from torchmetrics import Metric

from lit_atex.types import widest
from lit_atex.votes import Answers, Correct, distinct_answers, majority_at_k


def average_at_k(correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> Float[Tensor, " problems"]:
    """Share of correct samples per problem, c/n; its mean over problems is avg@k, and the expected pass@1.

    Args:
        correct: `[problems]` correct samples c, 0 <= c <= n.
        samples: `[problems]` samples n drawn, >= 1.

    Returns:
        `[problems]` in [0, 1], float64.

    Raises:
        ValueError: If a count is out of range.
    """
    _check(correct, samples)
    wide = widest(samples.device)
    return correct.to(wide) / samples.to(wide)


def pass_at_k(
    correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"], k: int
) -> Float[Tensor, " problems"]:
    """Probability per problem that at least one of k samples is correct: 1 - C(n-c, k) / C(n, k), unbiased.

    Written as a product of k ratios, so that no binomial coefficient is formed: it neither overflows nor cancels.

    Source: Chen et al., Evaluating Large Language Models Trained on Code, arXiv:2107.03374, equation 1.

    Args:
        correct: `[problems]` correct samples c, 0 <= c <= n.
        samples: `[problems]` samples n drawn, >= k.
        k: Samples that one may try, 1 <= k <= n.

    Returns:
        `[problems]` in [0, 1], float64; exactly 0 for c = 0 and exactly 1 for n - c < k.

    Raises:
        ValueError: If a count is out of range, k < 1, or k > n for any problem: what k samples would do cannot be
            estimated without bias from fewer.
    """
    _check(correct, samples, k, "pass@k")
    tries = torch.arange(k, device=samples.device)
    wrong, drawn = (samples - correct)[:, None] - tries, samples[:, None] - tries
    # A factor is 0 once the wrong samples are used up; the factors after it would be negative and must not count.
    wide = widest(samples.device)
    return 1 - (wrong.clamp(min=0).to(wide) / drawn.to(wide)).prod(dim=1)


def g_pass_at_k(
    correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"], k: int, tau: float
) -> Float[Tensor, " problems"]:
    """Probability per problem that at least the share tau of k samples is correct, unbiased: stability, not luck.

    With j = ceil(tau k) it is the sum over i >= j of C(c, i) C(n-c, k-i) / C(n, k): the upper tail of a hypergeometric
    distribution. tau <= 1/k gives pass@k; tau = 1 asks for all k.

    Source: Liu et al., Are Your LLMs Capable of Stable Reasoning?, arXiv:2412.13147, equation 3.

    Args:
        correct: `[problems]` correct samples c, 0 <= c <= n.
        samples: `[problems]` samples n drawn, >= k.
        k: Samples that are looked at, 1 <= k <= n.
        tau: Share of them that must be correct, in (0, 1].

    Returns:
        `[problems]` in [0, 1], float64.

    Raises:
        ValueError: If a count, k or tau is out of range.
    """
    if not 0 < tau <= 1:
        raise ValueError(f"G-Pass@k needs 0 < tau <= 1, got tau={tau}")
    _check(correct, samples, k, "G-Pass@k")
    return _at_least(correct, samples, k, max(1, math.ceil(tau * k - 1e-9)))  # 0.55 * 100 is a little more than 55


def mean_g_pass_at_k(
    correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"], k: int
) -> Float[Tensor, " problems"]:
    """mG-Pass@k: G-Pass@k averaged over the shares above one half, 2/k times the sum over i = ceil(k/2)+1 ... k.

    Source: Liu et al., arXiv:2412.13147, equation 5. For odd k its sum has (k-1)/2 terms, so that even a perfect model
    has (k-1)/k; kept, to agree with published numbers.

    Args:
        correct: `[problems]` correct samples c, 0 <= c <= n.
        samples: `[problems]` samples n drawn, >= k.
        k: Samples that are looked at, 2 <= k <= n.

    Returns:
        `[problems]` in [0, 1], float64.

    Raises:
        ValueError: If a count or k is out of range; at k = 1 the sum is empty.
    """
    if k < 2:
        raise ValueError(f"mG-Pass@k needs k >= 2, got k={k}")
    _check(correct, samples, k, "mG-Pass@k")
    tails = [_at_least(correct, samples, k, least) for least in range(math.ceil(k / 2) + 1, k + 1)]
    return torch.stack(tails).sum(0) * 2 / k


def curve_of(
    metric: Callable[[Tensor, Tensor, int], Tensor], n: int, k: int
) -> Callable[[NDArray[np.int64]], NDArray[np.float64]]:
    """A metric of correct samples, samples and k, such as `pass_at_k`, as a function of counts of correct ones of n."""
    return lambda c: metric(torch.as_tensor(c), torch.full((len(c),), n), k).numpy()


def _at_least(correct: Tensor, samples: Tensor, k: int, least: int) -> Tensor:
    """P(at least `least` of k drawn without replacement are correct); each term by its logarithm."""
    wide = widest(samples.device)
    hits = torch.arange(least, k + 1, device=samples.device).to(wide)
    c, n = correct.to(wide)[:, None], samples.to(wide)[:, None]
    possible = (hits <= c) & (k - hits <= n - c)
    hits = hits.expand(possible.shape)
    log = _log_choose(c, hits.minimum(c)) + _log_choose(n - c, (k - hits).minimum(n - c)) - _log_choose(n, n * 0 + k)
    found = log.exp().where(possible, torch.zeros_like(log)).sum(1).clamp(max=1.0)
    certain = (k - (n - c) >= least)[:, 0]  # there are too few others: 1, not 1 less what logarithms round
    return found.where(~certain, torch.ones_like(found))


def _log_choose(n: Tensor, k: Tensor) -> Tensor:
    return torch.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def _check(correct: Tensor, samples: Tensor, k: int | None = None, name: str = "") -> None:
    if not bool(((samples >= 1) & (correct >= 0) & (correct <= samples)).all()):
        raise ValueError("each problem needs samples >= 1 and 0 <= correct <= samples")
    if k is None:
        return
    fewest = int(samples.min()) if len(samples) else k
    if k < 1 or k > fewest:
        raise ValueError(
            f"{name} needs 1 <= k <= n, got k={k} and a problem with n={fewest} samples: draw more, or lower k"
        )


class MeanOverProblems(Metric):
    """Collects one value per problem, over updates and ranks, and averages them; nan over nothing.

    By itself it takes any value per problem: a length, a share. The subclasses compute theirs. In float64, also where
    the docstrings here say so: in float32 on a device that has no other (`types.widest`).

    Args:
        **kwargs: Those of `torchmetrics.Metric`.
    """

    full_state_update = False
    values: list[Tensor] | Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def update(self, values: Float[Tensor, " problems"]) -> None:
        """Add problems, each with its value."""
        self.values.append(values.to(widest(self.device)).to(self.device))  # type: ignore[union-attr]

    @property
    def update_called(self) -> bool:
        """True, also before the first update: the mean over nothing is defined here (nan) and needs no warning."""
        return True

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the values of all ranks; see torchmetrics.

        A rank without problems takes part with an empty float64 tensor. Left to itself torchmetrics sends an empty
        float32 one, and a collective over two dtypes is undefined.
        """
        if isinstance(self.values, list) and not self.values:
            self.values = [torch.zeros(0, dtype=widest(self.device), device=self.device)]
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        """The mean over all problems of all ranks, a float64 scalar; nan if there are none."""
        return self._gathered().mean()

    def per_problem(self) -> Float[Tensor, " problems"]:
        """The values of all problems of all ranks, float64, in the order rank, update, problem: what intervals need.

        Collective: with several ranks each of them must call it.
        """
        with self.sync_context(dist_sync_fn=self.dist_sync_fn, should_sync=self._to_sync and not self._is_synced):
            return self._gathered().clone()

    def _gathered(self) -> Tensor:
        if isinstance(self.values, Tensor):  # after a sync
            return self.values
        return torch.cat([torch.zeros(0, dtype=widest(self.device), device=self.device), *self.values])


class _OfCounts(MeanOverProblems):
    """What depends on k and on counts of correct samples."""

    higher_is_better = True

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k


class AverageAtK(_OfCounts):
    """avg@k over problems (the paper's Average@12): the mean share of correct samples.

    Args:
        k: Samples per problem, >= 1. Fixed, so that a table never mixes averages of different k.
        **kwargs: Those of `torchmetrics.Metric`.
    """

    def update(self, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> None:  # type: ignore[override]
        """Add problems, each with its counts; `ValueError` unless each has exactly k samples."""
        values = average_at_k(correct, samples)
        if (samples != self.k).any():
            raise ValueError(f"avg@{self.k} needs {self.k} samples of each problem, got n={samples.unique().tolist()}")
        super().update(values)


class PassAtK(_OfCounts):
    """pass@k over problems, by the unbiased estimator of `pass_at_k`.

    Args:
        k: Samples that one may try, >= 1.
        **kwargs: Those of `torchmetrics.Metric`.
    """

    def update(self, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> None:  # type: ignore[override]
        """Add problems, each with its counts; `ValueError` if one has fewer than k samples."""
        super().update(pass_at_k(correct, samples, self.k))


class GPassAtK(_OfCounts):
    """G-Pass@k_tau over problems; see `g_pass_at_k`.

    Args:
        k: Samples that are looked at, >= 1.
        tau: Share of them that must be correct, in (0, 1]; None: mG-Pass@k, the mean over shares above one half.
        **kwargs: Those of `torchmetrics.Metric`.
    """

    def __init__(self, k: int, tau: float | None = None, **kwargs: Any) -> None:
        super().__init__(k, **kwargs)
        self.tau = tau

    def update(self, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> None:  # type: ignore[override]
        """Add problems, each with its counts; `ValueError` if one has fewer than k samples."""
        mean = self.tau is None
        given = (correct, samples, self.k)
        super().update(mean_g_pass_at_k(*given) if mean else g_pass_at_k(*given, self.tau))  # type: ignore[arg-type]


class MajorityAtK(_OfCounts):
    """maj@k over problems; see `votes.majority_at_k`.

    Args:
        k: Samples that vote, >= 1.
        **kwargs: Those of `torchmetrics.Metric`.
    """

    def update(self, answers: Sequence[Answers], correct: Sequence[Correct]) -> None:  # type: ignore[override]
        """Add problems, each with the canonical answers of its samples and which of them are correct."""
        super().update(torch.tensor(majority_at_k(answers, correct, self.k), dtype=torch.float64))


class DistinctAnswers(MeanOverProblems):
    """Number of different answers per problem; see `votes.distinct_answers`."""

    def update(self, answers: Sequence[Answers]) -> None:  # type: ignore[override]
        """Add problems, each with the canonical answers of its samples."""
        super().update(torch.tensor(distinct_answers(answers), dtype=torch.float64))
