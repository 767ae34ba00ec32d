"""Progress measures: one number, higher is better, that says how far the student is; rewards are made of its growth.

They read a Solver and know nothing of exposure. The probe, `data.probe`, is held out from training and from every
evaluation; each rank reads its share of it, and the sums are reduced, so every rank hears the same number.
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any

import lightning.pytorch as pl
import torch

from lit_atex.distil import scorer_of
from lit_atex.divergence import ForwardKL
from lit_atex.fused import fused_divergence
from lit_atex.module import SelfDistillation
from lit_atex.ranks import of_all_ranks
from lit_atex.rollout import evaluating
from lit_atex.scoring import completion_hidden, head_of, token_log_probs
from lit_atex.types import Problem, Rollouts, StepFeedback, Verdict, row_generators


class ProgressMeasure(ABC):
    """How far the student is."""

    needs_probe: bool = True
    """Whether it reads the probe."""

    def check(self, module: SelfDistillation) -> None:
        """Called before training.

        Raises:
            ValueError: If this cannot follow such a run; names the key.
        """

    def window_opens(self, module: SelfDistillation, batch: list[Problem]) -> None:
        """Called before the reading as a window opens; the last reading of a run, behind its last step, has none.

        Args:
            module: The student; `module.attempt(batch)` are the rollouts that the coming step will train on.
            batch: That step's first micro-batch. Its exposure is not chosen yet.
        """

    @abstractmethod
    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """The measure now, the same on every rank; None if it is not known yet.

        Args:
            module: The student, and how it samples and is graded.
            probe: This rank's share of the probe.
        """

    def update(self, feedback: StepFeedback) -> None:
        """Told after each optimizer step, reduced over ranks."""

    def scalars(self) -> dict[str, float]:
        """What else to log at each step, under `exposure/`."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class RolloutAccuracy(ProgressMeasure):
    """Share of correct rollouts since the last reading. Free, and what one wants in the end; noisy, a window late.

    A window's rollouts are sampled before its last update, with `hold: 1` before its only one: what that update brought
    shows in the window after, so let `horizon` be 2 at least.
    """

    needs_probe = False

    def __init__(self) -> None:
        self._correct = self._rollouts = 0

    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """The share; begins to count anew."""
        accuracy = self._correct / self._rollouts if self._rollouts else None
        self._correct = self._rollouts = 0
        return accuracy

    def update(self, feedback: StepFeedback) -> None:
        """Count the step's verdicts."""
        self._correct += sum(v is Verdict.CORRECT for v in feedback.verdicts)
        self._rollouts += len(feedback.verdicts)

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"correct": self._correct, "rollouts": self._rollouts}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put the counts back."""
        self._correct, self._rollouts = state["correct"], state["rollouts"]


class ProbeAccuracy(ProgressMeasure):
    """Share of correct answers on the probe, sampled as in evaluation with the same draws each time.

    Always the same problems, and not a window late as rollout accuracy is; costs rollouts of its own.
    """

    def __init__(self, samples: int = 1) -> None:
        """Set the effort.

        Args:
            samples: Completions per probe problem, >= 1.

        Raises:
            ValueError: If samples is below 1.
        """
        if samples < 1:
            raise ValueError(f"exposure.progress.init_args.samples must be at least 1, got {samples}.")
        self.samples = samples

    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """Sample and grade."""
        rows = module.answer(probe, self.samples, purpose="probe")
        verdicts = [v for row in rows for v in row["verdicts"]]
        return _mean(verdicts.count(Verdict.CORRECT.value), len(verdicts))


class ProbeNLL(ProgressMeasure):
    """Mean log-likelihood per token of the probe's reference solutions, given the student's prompt; nats, at most 0.

    One forward pass, hardly any noise; but it rewards imitation: it also rises where the student learns the
    references' style and solves fewer problems.
    """

    @torch.no_grad()
    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """Score the solutions, each followed by an end token, as far as they fit into the context."""
        prompts = [module.prompts.evaluation(p, module.tokenizer) for p in probe]
        fits = [len(ids) <= module.eval_room for ids in prompts]
        encoded = [module.prompts.solution(p, module.tokenizer) for p in probe]
        limit = module.eval_sampling.max_new_tokens
        rows = [(prompt, [*ids, module.end_id][:limit]) for prompt, ids, fit in zip(prompts, encoded, fits) if fit]
        total, tokens = 0.0, 0
        for start in range(0, len(rows), CHUNK):
            part = rows[start : start + CHUNK]
            rollouts = Rollouts.of([ids for _, ids in part], module.end_ids, module.device)
            with evaluating(module.student):
                scores = token_log_probs(module.student, [p for p, _ in part], rollouts, module.chunk_tokens)
            total, tokens = total + float(scores.cpu().double().sum()), tokens + len(scores)
        return _mean(total, tokens)


class ProbeMatch(ProgressMeasure):
    """Minus the mean forward KL per token to the teacher at full exposure, on rollouts of the first student; nats.

    Low noise; says how much of what full exposure could teach has been taken over, whether or not that is good.
    """

    def __init__(self) -> None:
        self._ids: dict[str, list[int]] | None = None  # rollouts of the whole probe, by source and id of the problem

    @torch.no_grad()
    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """Score both sides; the first time, sample the rollouts."""
        room = min(module.prompts.max_prompt_tokens, module.train_room)
        encoded = [(p, module.prompts.student(p, module.tokenizer)) for p in probe]
        probe, prompts = [p for p, ids in encoded if len(ids) <= room], [x for _, x in encoded if len(x) <= room]
        if self._ids is not None and (new := [p.id for p in probe if _key(p) not in self._ids]):
            raise ValueError(
                f"data.probe: {len(new)} problems, {new[0]} first, were not in it as this run began, or too long, and "
                "have no rollout of the first student: set data.probe and model.prompts back."
            )
        if self._ids is None:
            generators = row_generators(module.seed, "probe", [(p.source, p.id) for p in probe], 1)
            rows: list[list[int]] = []
            for at in range(0, len(probe), CHUNK):
                part = slice(at, at + CHUNK)
                rows += module.generate(prompts[part], 1, module.sampling, generators[part]).lists()
            self._ids = dict(pair for pairs in of_all_ranks(list(zip(map(_key, probe), rows))) for pair in pairs)
        teachers = module.prompts.teachers(probe, [1.0] * len(probe), module.tokenizer, module.train_room)
        total, tokens = 0.0, 0
        for at in range(0, len(probe), CHUNK):
            part = slice(at, at + CHUNK)
            rollouts = Rollouts.of([self._ids[_key(p)] for p in probe[part]], module.end_ids, module.device)
            with scorer_of(module.teacher, module.student) as teacher:
                teacher_hidden = completion_hidden(teacher, [t.ids for t in teachers[part]], rollouts)
                teacher_head = head_of(teacher)
            with evaluating(module.student):
                hidden, head = completion_hidden(module.student, prompts[part], rollouts), head_of(module.student)
            ids = rollouts.ids[rollouts.mask]
            _, scores = fused_divergence(
                ForwardKL(), hidden, head, teacher_hidden, teacher_head, ids, module.chunk_tokens
            )
            total, tokens = total - float(scores.value.cpu().double().sum()), tokens + len(ids)
        return _mean(total, tokens)

    def state_dict(self) -> dict[str, Any]:
        """The rollouts."""
        return {"ids": self._ids}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put them back."""
        self._ids = state["ids"]


CHUNK = 32
"""Probe problems at a time."""


def _key(problem: Problem) -> str:
    return f"{problem.source} {problem.id}"


def _mean(total: float, count: int) -> float | None:
    """Total by count, over all ranks; None if there is nothing to count."""
    sums = of_all_ranks((total, count))
    counted = sum(n for _, n in sums)
    return sum(t for t, _ in sums) / counted if counted else None


def digest_of(problems: list[Problem]) -> str:
    """Tells one list of problems from another."""
    told = json.dumps([[p.source, p.id, p.question, p.solution] for p in problems])
    return hashlib.sha256(told.encode()).hexdigest()


def probe_of(trainer: pl.Trainer) -> list[Problem]:
    """The probe of the run's data module; empty without one."""
    return getattr(getattr(trainer, "datamodule", None), "probe_problems", [])
