"""A progress measure of little noise that samples nothing of its own: importance sampling over training batches."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lit_atex.attempts import Attempts
from lit_atex.measures import ProgressMeasure
from lit_atex.micro import split
from lit_atex.module import SelfDistillation
from lit_atex.ranks import of_all_ranks
from lit_atex.rollout import evaluating
from lit_atex.scoring import token_log_probs
from lit_atex.types import Problem, StepFeedback, Verdict

log = logging.getLogger("lit_atex")

MOST = 3.0
"""A rollout counts for no more than three: beyond, few rollouts would decide all."""


def gained(rollouts: list[tuple[bool, float, float]]) -> float:
    """What accuracy has gained, by rollouts of the student now.

    Args:
        rollouts: Of each whether it is correct, its log-likelihood now, and that under the student of before.

    Returns:
        Minus the covariance of being correct with the weight min(before / now, MOST), the odds that it had been drawn
        then. But for MOST its expectation is the accuracy now less that of before. NaN for fewer than two rollouts.
    """
    if len(rollouts) < 2:
        return math.nan
    share = sum(correct for correct, _, _ in rollouts) / len(rollouts)
    weighed = ((correct - share) * weight(now, before) for correct, now, before in rollouts)
    return -sum(weighed) / (len(rollouts) - 1)


def weight(now: float, before: float) -> float:
    """What a rollout counts for, by its log-likelihoods in nats."""
    return math.exp(min(before - now, math.log(MOST)))


class ReweightedAccuracy(ProgressMeasure):
    """Accuracy followed from window to window, each time by the same rollouts for the student before and after.

    Where the accuracies of two batches are compared, what a window brings drowns in the luck of the draw. Here the
    first batch of the next window, which no step has seen, is drawn before the window's exposure is chosen, and tells
    what has changed: if correct rollouts have become likelier since the last window opened and wrong ones less so,
    accuracy has risen by that much (importance sampling, truncated: Ionides 2008; see `gained`).

    Costs two forward passes over a micro-batch a window, and a copy of the trainable weights, which is in checkpoints
    too. It begins as the accuracy of the first batch and adds up from there: read its growth. It is for windows that
    move the student little: where log-likelihoods of whole rollouts change by far more than 1 nat, as in long windows
    or over very long completions, the limit makes gains too small, and `exposure/mean_weight`, which should be 1, says
    so.
    """

    needs_probe = False

    def __init__(self) -> None:
        self._level: float | None = None
        self._known = self._told = False
        self._before: dict[str, Tensor] = {}  # trainable weights as the last window opened
        self._scalars: dict[str, float] = {}

    def check(self, module: SelfDistillation) -> None:
        """Refuse completions that are not drawn from the student."""
        if module.completions != "student" or module.sampling.temperature == 0:
            raise ValueError(
                "exposure.progress: ReweightedAccuracy weighs rollouts that the student has drawn: set "
                "model.completions to student and model.sampling.temperature above 0, or take RolloutAccuracy."
            )

    @torch.no_grad()
    def window_opens(self, module: SelfDistillation, batch: list[Problem]) -> None:
        """Draw the window's first rollouts, and weigh them."""
        attempts = module.attempt(batch)
        correct = [v is Verdict.CORRECT for v in attempts.verdicts]
        now = before = [math.nan if attempts.broke else 0.0] * len(correct)
        if self._before and not attempts.broke:
            now = likelihoods(module, attempts)
            with exchanged(module, self._before):
                before = likelihoods(module, attempts)
        rollouts = [row for rows in of_all_ranks(list(zip(correct, now, before))) for row in rows]
        gain = gained(rollouts)  # 0 as the first window opens
        self._known, self._scalars = math.isfinite(gain), {}
        if not self._known:  # the weights of before stay, and the next gain has this one
            if len(rollouts) < 2 and not self._told:
                told = "exposure.progress: ReweightedAccuracy compares the rollouts of a window's first micro-batch: %d"
                log.warning(told + " here; set data.batch_size or model.samples to 2 or more.", len(rollouts))
                self._told = True
            return
        if self._level is None:
            self._level = sum(correct for correct, _, _ in rollouts) / len(rollouts)
        self._level += gain
        self._scalars["mean_weight"] = sum(weight(now, before) for _, now, before in rollouts) / len(rollouts)
        for name, p in trainable(module):  # one by one: no more than one tensor is there twice
            self._before[name] = p.detach().clone()

    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """The level as the window opened; None behind the last step, where nothing has been drawn."""
        return self._level if self._known else None

    def update(self, feedback: StepFeedback) -> None:
        """What the level was before the step is not what it is now."""
        self._known = False

    def scalars(self) -> dict[str, float]:
        """The mean weight of the rollouts that were compared last."""
        return dict(self._scalars)

    def state_dict(self) -> dict[str, Any]:
        """The level, and the weights of before."""
        return {"level": self._level, "before": dict(self._before), "scalars": dict(self._scalars)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._level, self._before, self._scalars = state["level"], dict(state["before"]), dict(state["scalars"])


def trainable(module: SelfDistillation) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The weights that steps change."""
    return ((name, p) for name, p in module.student.named_parameters() if p.requires_grad)


@contextmanager
def exchanged(module: SelfDistillation, weights: dict[str, Tensor]) -> Iterator[None]:
    """The student with these weights in place of its own."""
    own = {name: p.data for name, p in trainable(module)}
    try:
        for name, p in trainable(module):
            p.data = weights[name].to(p.device)
        yield
    finally:
        for name, p in trainable(module):
            p.data = own[name]


def likelihoods(module: SelfDistillation, attempts: Attempts) -> list[float]:
    """Of each rollout the log-likelihood in nats, as rollouts are drawn; 0 for an empty one."""
    prompts = [prompt for prompt in attempts.prompts for _ in range(module.samples)]
    lengths, found = attempts.rollouts.lengths.tolist(), list[float]()
    for part in split([(len(p), n) for p, n in zip(prompts, lengths)], module.samples, module.part_tokens):
        if not max(lengths[part]):
            found += [0.0] * len(lengths[part])
            continue
        with evaluating(module.student):
            settings = (module.chunk_tokens, module.sampling)
            scores = token_log_probs(module.student, prompts[part], attempts.rollouts.some(part), *settings)
        found += [float(row.sum()) for row in scores.cpu().double().split(lengths[part])]
    return found
