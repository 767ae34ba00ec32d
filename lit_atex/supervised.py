"""Supervised fine-tuning, a control: the references' tokens in place of rollouts, and their likelihood as the loss.

The two compose with all else: references under a divergence from the teacher are off-policy distillation, and after the
teacher's prompt (`model.completions: hinted_reference`) they teach a model to use a hint, before it becomes a teacher.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lit_atex.divergence import Divergence, Entries, Ids, Values
from lit_atex.types import Rollouts


@dataclass(frozen=True, kw_only=True)
class NegativeLogLikelihood(Divergence):
    """-log q(y) of the token y: cross-entropy with the tokens as they stand. The teacher has no say in it.

    On the student's own rollouts its expected gradient is 0, but under a weighting (`weighting.py`): it is meant for
    these, and for references.
    """

    def _value(self, log_p: Entries, log_q: Entries, ids: Ids) -> tuple[Values, Values]:
        value = -log_q.gather(-1, ids[:, None]).squeeze(-1)
        return value, torch.zeros_like(value)


def references(solutions: list[list[int]], samples: int, end: int, limit: int, device: torch.device) -> Rollouts:
    """The token ids of reference solutions as completions, `samples` of each, with the end token; cut at `limit`."""
    rows = [[*ids, end][:limit] for ids in solutions for _ in range(samples)]
    return Rollouts.of(rows, [end], device)
