"""The metrics as thin torchmetrics shells, which collect values over updates and ranks.

Apart from the functions, as torchmetrics takes long to import, and those who read results do without.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torchmetrics import Metric

from lit_atex.metrics import average_at_k, g_pass_at_k, mean_g_pass_at_k, pass_at_k
from lit_atex.types import widest
from lit_atex.votes import Answers, Correct, distinct_answers, majority_at_k


class MeanOverProblems(Metric):
    """Collects one value per problem, over updates and ranks, and averages them; nan over nothing.

    By itself it takes any value per problem: a length, a share. The subclasses compute theirs. In float64, also where
    the docstrings here say so: in float32 on a device that has no other (`types.widest`).

    In a `torchmetrics.MetricCollection` set compute_groups=False: it takes two whose first values agree for one.

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
