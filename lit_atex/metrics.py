"""Metrics of n sampled answers per problem as pure functions; knows no text and no verdict.

avg@k, pass@k and G-Pass@k depend on counts alone, c correct of n. maj@k and the number of distinct answers depend on
which answers agree: those functions take the answers' canonical forms. pass@k is *not* "any of the first k is correct",
nor maj@k the vote of the first k: that would throw away n - k samples and depend on their order.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from lit_atex.types import widest


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
