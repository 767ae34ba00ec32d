"""The student's attempts at a batch: prompts, rollouts, grades. Exposure has no part in them: hints come later."""

from __future__ import annotations

import logging
from itertools import compress
from typing import TYPE_CHECKING, NamedTuple

from lit_atex.supervised import references
from lit_atex.types import Problem, Rollouts, Verdict, row_generators

if TYPE_CHECKING:
    from lit_atex.module import SelfDistillation

log = logging.getLogger("lit_atex")


class Attempts(NamedTuple):
    """What the student made of a batch.

    Attributes:
        fits: Of each problem of the batch, whether its prompt fits; the others are left out of what follows.
        problems: Those whose prompt fits.
        prompts: Their prompts as the student sees them, as token ids.
        rollouts: The completions, `module.samples` of each problem.
        completions: Their text.
        verdicts: Their grades.
        broke: Whether sampling met logits that are not finite; then no rollout has a token.
    """

    fits: list[bool]
    problems: list[Problem]
    prompts: list[list[int]]
    rollouts: Rollouts
    completions: list[str]
    verdicts: list[Verdict]
    broke: bool


def attempt(module: SelfDistillation, batch: list[Problem]) -> Attempts:
    """Sample and grade, timed as "rollout" and "verify"."""
    prompts = [module.prompts.student(p, module.tokenizer) for p in batch]
    fits = [len(ids) <= min(module.prompts.max_prompt_tokens, module.train_room) for ids in prompts]
    if skipped := [p.id for p, fit in zip(batch, fits) if not fit]:
        log.warning("prompts longer than model.prompts.max_prompt_tokens or the context, skipped: %s", skipped)
    problems, prompts = list(compress(batch, fits)), list(compress(prompts, fits))
    broke = False
    with module.clock.timed("rollout"):
        try:
            rollouts = module.rollout(problems, prompts)
        except FloatingPointError as error:  # the step will be skipped: nothing is scored
            log.warning("%s; problems: %s", error, [p.id for p in problems])
            rollouts, broke = Rollouts.nothing(len(problems) * module.samples, module.device), True
    with module.clock.timed("verify"):
        completions = module.decode(rollouts)
        verdicts = module.grade(completions, problems, module.samples)
    return Attempts(fits, problems, prompts, rollouts, completions, verdicts, broke)


def rollout(module: SelfDistillation, problems: list[Problem], prompts: list[list[int]]) -> Rollouts:
    """References, or the student's completions, seeded by run, step, problem, sample, and how often it was drawn.

    Raises:
        FloatingPointError: If sampling meets logits that are not finite.
    """
    keys: list[tuple[int | str, ...]] = [(module.global_step, p.id) for p in problems]
    generators = row_generators(module.seed, "rollout", keys, module.samples, module.window.drawn)
    if not problems:
        return Rollouts.nothing(0, module.device)
    if module.completions != "student":
        solutions = [module.prompts.solution(p, module.tokenizer) for p in problems]
        limit = module.sampling.max_new_tokens
        return references(solutions, module.samples, module.end_id, limit, module.device)
    return module.generate(prompts, module.samples, module.sampling, generators)
