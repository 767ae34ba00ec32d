"""A progress measure of little noise that samples nothing of its own: importance sampling over training batches."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from lit_atex.measures import CHUNK, ProgressMeasure
from lit_atex.module import SelfDistillation
from lit_atex.ranks import of_all_ranks, share_of
from lit_atex.rollout import evaluating
from lit_atex.scoring import token_log_probs
from lit_atex.types import Problem, Rollouts, Verdict


class Drawn(NamedTuple):
    """A rollout and its prompt, as token ids; whether it is correct; its log-likelihood at the last reading."""

    prompt: list[int]
    ids: list[int]
    correct: bool
    score: float = math.nan


MOST = 3.0
"""A rollout counts for no more than three: beyond, few rollouts would decide all."""


def gained(batch: list[Drawn], scores: list[float]) -> float:
    """What accuracy has gained since the batch was scored, by its log-likelihoods now; NaN for a single rollout."""
    share = sum(row.correct for row in batch) / len(batch)
    weights = [math.exp(min(score - row.score, math.log(MOST))) for row, score in zip(batch, scores)]
    total = sum((row.correct - share) * weight for row, weight in zip(batch, weights))
    return total / (len(batch) - 1) if len(batch) > 1 else math.nan


class ReweightedAccuracy(ProgressMeasure):
    """Accuracy followed from window to window on the same rollouts, by how much likelier each has become.

    Where the accuracies of two batches are compared, what a window brings drowns in the luck of the draw. So the latest
    batch is scored as a window opens, and again as the next one does. With q_k the student as window k opens, and b the
    share of the batch that is correct,

        P_(k+1) - P_k = sum over the batch of (correct_i - b) min(q_(k+1)(y_i) / q_k(y_i), MOST) / (n - 1):

    the covariance of being correct with the weight, which without the limit has the gain in accuracy as its expectation
    (importance sampling, truncated: Ionides 2008). Two forward passes over a batch, which the window does not train on;
    and not a window late. P begins as the accuracy of the first batch and adds up from there: read its growth. Filters
    of the sampling (top-p and the like) are left out of q.
    """

    needs_probe = False

    def __init__(self) -> None:
        self._level: float | None = None
        self._latest: list[Drawn] = []  # of all ranks
        self._scored: list[Drawn] = []

    @torch.no_grad()
    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """Weigh the batch that was scored at the last reading; score the latest.

        Raises:
            ValueError: If completions are not drawn from the student.
        """
        if module.completions != "student" or module.sampling.temperature == 0:
            raise ValueError(
                "exposure.progress: ReweightedAccuracy weighs rollouts that the student has drawn: set "
                "model.completions to student and model.sampling.temperature above 0, or take RolloutAccuracy."
            )
        gain = 0.0
        if self._scored:
            gain = gained(self._scored, self._score(module, self._scored))
        elif self._latest:
            self._level = sum(row.correct for row in self._latest) / len(self._latest)
        self._scored = [row._replace(score=x) for row, x in zip(self._latest, self._score(module, self._latest))]
        if self._level is None or not math.isfinite(gain):
            return None
        self._level += gain
        return self._level

    def _score(self, module: SelfDistillation, rows: list[Drawn]) -> list[float]:
        """Log-likelihoods, as the student samples; each rank does its share."""
        mine, found = share_of(rows), list[float]()
        for at in range(0, len(mine), CHUNK):
            part = mine[at : at + CHUNK]
            rollouts = Rollouts.of([row.ids for row in part], module.end_ids, module.device)
            with evaluating(module.student):
                prompts, settings = [row.prompt for row in part], (module.chunk_tokens, module.sampling.temperature)
                scores = token_log_probs(module.student, prompts, rollouts, *settings)
            found += [float(row.sum()) for row in scores.cpu().double().split(rollouts.lengths.tolist())]
        every, all_found = of_all_ranks(found), [math.nan] * len(rows)
        for rank, scores_of_rank in enumerate(every):
            all_found[rank :: len(every)] = scores_of_rank
        return all_found

    def see(self, module: SelfDistillation) -> None:
        """Keep the batch in place of the one before."""
        assert module.seen is not None  # a step has been taken
        prompts = [prompt for prompt in module.seen.student_prompts for _ in range(module.samples)]
        rows = zip(prompts, module.seen.rollouts.lists(), module.seen.verdicts)
        mine = [Drawn(prompt, ids, verdict is Verdict.CORRECT) for prompt, ids, verdict in rows if ids]
        self._latest = [row for rank in of_all_ranks(mine) for row in rank]

    def state_dict(self) -> dict[str, Any]:
        """Level and batches."""
        return {"level": self._level} | {
            name: [list(row) for row in rows] for name, rows in (("latest", self._latest), ("scored", self._scored))
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._level = state["level"]
        self._latest, self._scored = ([Drawn(*row) for row in state[name]] for name in ("latest", "scored"))
