"""The records that parts of lit_atex hand to each other; it knows no tensor library's model and no algorithm.

Shape names, the same in every signature:

    problems    P   problems in a batch
    samples     G   rollouts per problem; rollout r belongs to problem r // G
    rollouts    R   = P * G
    tokens      T   completion tokens, right-padded; or N tokens of several rollouts packed in one row
    vocab       V   entries of the output head
    hidden      D   width of the model
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Collection, Sequence
from enum import Enum
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor


class Problem(NamedTuple):
    """One problem with its reference solution: text only, no token ids.

    A NamedTuple, because Lightning rebuilds dataclasses that it finds in a batch.

    Attributes:
        id: Stable and unique within its source; seeds the rollouts of this problem.
        question: What the student sees.
        solution: The reference solution, which ends in the final answer; what hints are cut from.
        answer: The final answer alone, as `verify` compares it.
        source: Name of the source it came from.
        level: Difficulty label for tables ("8", "Level 5"); empty if the source has none.
    """

    id: str
    question: str
    solution: str
    answer: str
    source: str = ""
    level: str = ""


class BadRow(NamedTuple):
    """A row that could not become a `Problem`: counted, shown, skipped; never silently dropped.

    Attributes:
        reason: A short fixed phrase, e.g. "empty question"; rows are counted by it.
        detail: Where the row stands and the start of its text, for the reader of the report.
    """

    reason: str
    detail: str


class Verdict(str, Enum):
    """What became of one answer. "unparsed" and "timeout" are kept apart from "wrong"."""

    CORRECT = "correct"
    WRONG = "wrong"
    UNPARSED = "unparsed"
    TIMEOUT = "timeout"


class Rollouts(NamedTuple):
    """Completions that the student sampled.

    Attributes:
        ids: `[rollouts, tokens]` completion token ids, right-padded with an arbitrary id.
        lengths: `[rollouts]` number of valid ids, the end token included.
        ended: `[rollouts]` True if the rollout produced an end token, False if it was cut at the limit.
    """

    ids: Int64[Tensor, "rollouts tokens"]
    lengths: Int64[Tensor, " rollouts"]
    ended: Bool[Tensor, " rollouts"]

    @property
    def mask(self) -> Bool[Tensor, "rollouts tokens"]:
        """Valid positions, from `lengths`; never from comparing ids with a pad id, which may equal the end id."""
        return torch.arange(self.ids.shape[1], device=self.ids.device) < self.lengths[:, None]

    def lists(self) -> list[list[int]]:
        """The valid ids of each rollout."""
        return [row[:length] for row, length in zip(self.ids.tolist(), self.lengths.tolist())]

    def some(self, places: slice | list[int]) -> Rollouts:
        """Those at these places, in this order."""
        index = places if isinstance(places, slice) else torch.tensor(places, device=self.ids.device)
        return Rollouts(*(x[index] for x in self))

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], end_ids: Collection[int], device: torch.device) -> Rollouts:
        """Completions given as lists of ids, at least one; those whose last id is in `end_ids` have ended."""
        width = max(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        return cls(ids, lengths, torch.tensor([bool(row) and row[-1] in end_ids for row in rows], device=device))

    @classmethod
    def nothing(cls, count: int, device: torch.device) -> Rollouts:
        """`count` rollouts without a token."""
        zeros = torch.zeros(count, dtype=torch.long, device=device)
        return cls(zeros[:, None], zeros, zeros.bool())


class StepFeedback(NamedTuple):
    """What one training batch tells competence estimators and exposure strategies: numbers, no tensors, no model.

    Attributes:
        step: Optimizer step that the batch belongs to, from 0.
        problem_ids: `P` ids.
        levels: `P` level labels.
        exposures: `P` ratios in [0, 1] that the hints were cut with.
        verdicts: `P * G` verdicts, grouped by problem.
        loss: Mean divergence per completion token of this batch, as optimised.
        mismatch: Mean forward KL(teacher || student) per completion token, whatever the loss is; nats.
        student_entropy: Mean entropy of the student's next-token distribution; nats.
        teacher_entropy: The same of the teacher's.
        mean_length: Completion tokens per rollout.
        share_cut: Share of rollouts that were cut at the length limit.
        max_new_tokens: That limit.
    """

    step: int
    problem_ids: list[str]
    levels: list[str]
    exposures: list[float]
    verdicts: list[Verdict]
    loss: float
    mismatch: float
    student_entropy: float
    teacher_entropy: float
    mean_length: float
    share_cut: float
    max_new_tokens: int

    @property
    def accuracy(self) -> float:
        """Share of rollouts whose final answer is correct; 0.0 if there are none."""
        return sum(v is Verdict.CORRECT for v in self.verdicts) / max(len(self.verdicts), 1)


@cache
def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 on a device that has none, as Apple's (MPS) and some of Intel's."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.float32
    return torch.float64


def seeded(seed: int, purpose: str, *counters: int | str) -> np.random.Generator:
    """A generator that depends on its arguments alone, so that a resumed run draws what the undisturbed one drew.

    Args:
        seed: The run's seed, >= 0.
        purpose: What the numbers are for ("rollout", "shuffle", ...); streams of different purposes are independent.
        counters: What else sets this draw apart: optimizer step, rank, problem id, sample index.

    Returns:
        A NumPy generator, the same on every platform.
    """
    words = [zlib.crc32(c.encode()) if isinstance(c, str) else c for c in (purpose, *counters)]
    return np.random.default_rng(np.random.SeedSequence([seed, *words]))


def row_generators(
    seed: int,
    purpose: str,
    keys: Sequence[tuple[int | str, ...]],
    samples: int,
    seen: Counter[tuple[int | str, ...]] | None = None,
) -> list[np.random.Generator]:
    """One generator per rollout, `samples` for each key in turn; a key that comes again goes on in its own samples.

    Args:
        seed: The run's seed.
        purpose: As in `seeded`.
        keys: What tells the problems of a batch apart.
        samples: Rollouts per problem.
        seen: How often each key came before; counted on.
    """
    seen = Counter() if seen is None else seen
    found = []
    for key in keys:
        found += [seeded(seed, purpose, *key, seen[key] * samples + g) for g in range(samples)]
        seen[key] += 1
    return found
