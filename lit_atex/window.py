"""Adds up what happened between two optimizer steps, over micro-batches and ranks; knows no model and no logger.

All means are over the tokens, rollouts or problems of the *whole* optimizer step, so they do not depend on how it was
cut into micro-batches or spread over ranks.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor

from lit_atex.prompts import TeacherPrompt
from lit_atex.ranks import of_all_ranks
from lit_atex.types import Problem, Rollouts, StepFeedback, Verdict

log = logging.getLogger("lit_atex")


class Batch(NamedTuple):
    """What one micro-batch contributes. Sums are over completion tokens unless said otherwise.

    Attributes:
        problem_ids: The problems.
        levels: Their level labels.
        exposures: Their exposure ratios.
        verdicts: One per rollout, grouped by problem.
        rollouts: What was sampled.
        sums: Sums by name: "loss", "mismatch", "student_entropy", "teacher_entropy", "clipped", "negative";
            under a weighting "weighted", the rollouts whose weight is not 0.
        truncated: Teacher prompts that lost steps of their hint.
        skipped: Problems left out since their prompt is too long.
        seconds: Wall-clock seconds by phase: "rollout", "teacher", "student", "verify".
    """

    problem_ids: list[str]
    levels: list[str]
    exposures: list[float]
    verdicts: list[Verdict]
    rollouts: Rollouts
    sums: dict[str, Tensor]
    truncated: int
    skipped: int
    seconds: dict[str, float]


class Seen(NamedTuple):
    """The latest micro-batch, for callbacks that show samples. `values` holds the loss of each completion token."""

    problems: list[Problem]
    student_prompts: list[list[int]]
    teacher_prompts: list[TeacherPrompt]
    exposures: list[float]
    rollouts: Rollouts
    completions: list[str]
    verdicts: list[Verdict]
    values: Tensor


class PhaseClock:
    """What a micro-batch is doing, and how long that takes.

    Attributes:
        phase: A name of `time/...`, or empty; for meters.
        seconds: Wall-clock seconds by phase.
        wait: Called before the clock is read. A GPU works on while the host has gone ahead, and making the host wait
            costs time, so nothing does but a benchmark, which puts its own here.
    """

    def __init__(self) -> None:
        self.phase, self.seconds = "", dict[str, float]()
        self.wait: Callable[[], None] = lambda: None
        self._began = 0.0

    def begin(self, phase: str) -> None:
        """Enter a phase."""
        self.wait()
        self.phase, self._began = phase, time.perf_counter()

    def end(self) -> float:
        """Leave the phase; returns the seconds that it took."""
        self.wait()
        self.phase = ""
        return time.perf_counter() - self._began

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Count what is done inside."""
        self.begin(phase)
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + self.end()


class BadSteps:
    """Optimizer steps that were skipped: a loss or gradient was not finite, or no problem could be trained on.

    Attributes:
        total: How many, in the whole run.
        in_a_row: How many of them were not finite since the last step that was not skipped.
    """

    MOST = 3
    """In a row, after which the run stops."""

    def __init__(self) -> None:
        self.total = self.in_a_row = 0

    def add(self, step: int, problem_ids: list[str], empty: bool, teacher: bool = False) -> None:
        """Count one.

        Args:
            step: Which, from 0.
            problem_ids: Its problems.
            empty: Whether it had no rollout, as no prompt fitted.
            teacher: Whether it is the teacher's logits that were not finite, and not the student's.

        Raises:
            FloatingPointError: If there are too many in a row.
            ValueError: If no step of the run had a problem to train on.
        """
        self.total += 1
        if empty:
            log.warning("step %d skipped: there is nothing to train on", step)
        if empty and self.total == step + 1 >= self.MOST:
            raise ValueError(
                f"no problem of the first {self.MOST} optimizer steps could be trained on: prompts are longer than "
                "model.prompts.init_args.max_prompt_tokens, or than the model's context leaves room for "
                "(model.sampling.max_new_tokens)."
            )
        if empty:
            return
        self.in_a_row += 1
        what = "what the teacher scored" if teacher else "loss or gradient"
        log.warning("step %d skipped: %s is not finite; problems: %s", step, what, problem_ids)
        if self.in_a_row >= self.MOST:
            mend = "Lower the learning rate (model.optimizer), set trainer.gradient_clip_val, or train in float32."
            if teacher:
                mend = "The student's logits are: look at model.teacher and at the teacher's prompts (prompts.txt)."
            raise FloatingPointError(
                f"{what} was not finite in {self.MOST} optimizer steps in a row (last problems: {problem_ids}). {mend}"
            )


class StepWindow:
    """The micro-batches of one optimizer step.

    Attributes:
        is_open: Whether there is one whose step has not been taken.
        drawn: How often each problem was sampled in it, by this rank; see `types.row_generators`.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin the next optimizer step."""
        self.totals: Counter[str] = Counter()
        self.problem_ids: list[str] = []
        self.levels: list[str] = []
        self.exposures: list[float] = []
        self.verdicts: list[Verdict] = []
        self.is_open = False
        self.drawn: Counter[tuple[int | str, ...]] = Counter()

    def add(self, batch: Batch) -> None:
        """Count one micro-batch."""
        self.is_open = True
        self.problem_ids += batch.problem_ids
        self.levels += batch.levels
        self.exposures += batch.exposures
        self.verdicts += batch.verdicts
        lengths, ended = batch.rollouts.lengths, batch.rollouts.ended
        self.totals.update(
            {
                "tokens": int(lengths.sum()),
                "rollouts": len(lengths),
                "cut": int((~ended).sum()),
                "empty": int(((lengths == 0) | (ended & (lengths == 1))).sum()),
                "problems": len(batch.problem_ids),
                "truncated": batch.truncated,
                "skipped": batch.skipped,
            }
        )
        self.totals.update({f"sum/{name}": float(value) for name, value in batch.sums.items()})
        self.totals.update({f"seconds/{name}": value for name, value in batch.seconds.items()})

    def reduce(self) -> None:
        """Add the other ranks' counts to ours; afterwards every rank holds the same, in the same order."""
        verdicts = [v.value for v in self.verdicts]
        gathered = of_all_ranks((dict(self.totals), self.problem_ids, self.levels, self.exposures, verdicts))
        if len(gathered) == 1:
            return
        self.clear()
        for totals, ids, levels, exposures, verdicts in gathered:
            self.totals.update(totals)
            self.problem_ids += ids
            self.levels += levels
            self.exposures += exposures
            self.verdicts += [Verdict(v) for v in verdicts]
        for name in list(self.totals):
            if name.startswith("seconds/"):
                self.totals[name] /= len(gathered)  # type: ignore[assignment]

    def per_token(self, name: str) -> float:
        """Mean of a sum over completion tokens; 0 if there were none."""
        return self.totals[f"sum/{name}"] / max(self.totals["tokens"], 1)

    @property
    def teacher_broke(self) -> bool:
        """Whether the teacher's logits were not finite somewhere, and the student's everywhere: entropies tell."""
        return math.isnan(self.totals["sum/teacher_entropy"]) and math.isfinite(self.totals["sum/student_entropy"])

    def feedback(self, step: int, max_new_tokens: int) -> StepFeedback:
        """The record for competence estimators and exposure strategies."""
        rollouts = max(self.totals["rollouts"], 1)
        return StepFeedback(
            step=step,
            problem_ids=list(self.problem_ids),
            levels=list(self.levels),
            exposures=list(self.exposures),
            verdicts=list(self.verdicts),
            loss=self.per_token("loss"),
            mismatch=self.per_token("mismatch"),
            student_entropy=self.per_token("student_entropy"),
            teacher_entropy=self.per_token("teacher_entropy"),
            mean_length=self.totals["tokens"] / rollouts,
            share_cut=self.totals["cut"] / rollouts,
            max_new_tokens=max_new_tokens,
        )

    def scalars(self, seconds: float) -> dict[str, float]:
        """What is logged for the step, grouped as TensorBoard shows it.

        Args:
            seconds: Wall-clock time since the step before, without evaluations between the two.
        """
        rollouts = max(self.totals["rollouts"], 1)
        verdicts = Counter(self.verdicts)
        return {
            "loss/divergence": self.per_token("loss"),
            "loss/clipped_share": self.per_token("clipped"),
            "loss/negative_share": self.per_token("negative"),
            **(
                {"loss/weighted_share": self.totals["sum/weighted"] / rollouts} if "sum/weighted" in self.totals else {}
            ),
            "mismatch/forward_kl": self.per_token("mismatch"),
            "entropy/student": self.per_token("student_entropy"),
            "entropy/teacher": self.per_token("teacher_entropy"),
            "exposure/ratio": sum(self.exposures) / max(len(self.exposures), 1),
            "teacher/truncated": float(self.totals["truncated"]),
            "data/prompt_too_long": float(self.totals["skipped"]),
            **{f"competence/{v.value}": verdicts[v] / rollouts for v in Verdict},
            "length/mean": self.totals["tokens"] / rollouts,
            "length/share_cut": self.totals["cut"] / rollouts,
            "length/share_empty": self.totals["empty"] / rollouts,
            "throughput/completion_tokens_per_s": self.totals["tokens"] / max(seconds, 1e-9),
            "throughput/problems_per_step": float(self.totals["problems"]),
            **{f"time/{n.removeprefix('seconds/')}": v for n, v in self.totals.items() if n.startswith("seconds/")},
            "time/step": seconds,
        }
