"""avg@k and pass@k: pure functions of counts, and thin torchmetrics shells; knows no text, no verdict, only how many.

pass@k is *not* "any of the first k is correct": that throws away n - k samples and depends on their order.
Everything here depends on the counts alone, c correct of n.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric


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
    return correct.double() / samples.double()


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
    _check(correct, samples)
    fewest = int(samples.min()) if len(samples) else k
    if k < 1 or k > fewest:
        raise ValueError(
            f"pass@k needs 1 <= k <= n, got k={k} and a problem with n={fewest} samples: draw more, or lower k"
        )
    tries = torch.arange(k, device=samples.device)
    wrong, drawn = (samples - correct)[:, None] - tries, samples[:, None] - tries
    # A factor is 0 once the wrong samples are used up; the factors after it would be negative and must not count.
    return 1 - (wrong.clamp(min=0).double() / drawn.double()).prod(dim=1)


class _MeanOverProblems(Metric):
    """Collects one float64 value per problem, over updates and ranks, and averages them; nan over nothing."""

    full_state_update = False
    higher_is_better = True
    values: list[Tensor] | Tensor

    def __init__(self, k: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        self.k = k
        self.add_state("values", default=[], dist_reduce_fx="cat")

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
            self.values = [torch.zeros(0, dtype=torch.float64, device=self.device)]
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
        return torch.cat([torch.zeros(0, dtype=torch.float64, device=self.device), *self.values])


class AverageAtK(_MeanOverProblems):
    """avg@k over problems (the paper's Average@12): the mean share of correct samples.

    Args:
        k: Samples per problem, >= 1. Fixed, so that a table never mixes averages of different k.
        **kwargs: Those of `torchmetrics.Metric`.
    """

    def update(self, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> None:
        """Add problems, each with its counts; `ValueError` unless each has exactly k samples."""
        values = average_at_k(correct, samples)
        if (samples != self.k).any():
            raise ValueError(f"avg@{self.k} needs {self.k} samples of each problem, got n={samples.unique().tolist()}")
        self.values.append(values.to(self.device))  # type: ignore[union-attr]


class PassAtK(_MeanOverProblems):
    """pass@k over problems, by the unbiased estimator of `pass_at_k`.

    Args:
        k: Samples that one may try, >= 1.
        **kwargs: Those of `torchmetrics.Metric`.
    """

    def update(self, correct: Int[Tensor, " problems"], samples: Int[Tensor, " problems"]) -> None:
        """Add problems, each with its counts; `ValueError` if one has fewer than k samples."""
        self.values.append(pass_at_k(correct, samples, self.k).to(self.device))  # type: ignore[union-attr]


def _check(correct: Tensor, samples: Tensor) -> None:
    if not bool(((samples >= 1) & (correct >= 0) & (correct <= samples)).all()):
        raise ValueError("each problem needs samples >= 1 and 0 <= correct <= samples")
