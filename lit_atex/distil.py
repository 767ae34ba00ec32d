"""The method's loss: student and teacher score the same completions, each from its own prompt, and are compared.

Done in parts, of whole problems where these fit, so that memory does not grow with the batch. It knows no exposure and
no optimizer, and leaves the means over tokens to its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_atex.checks import check_head
from lit_atex.divergence import Divergence, TokenDivergence
from lit_atex.fused import fused_divergence
from lit_atex.micro import split, sum_of_parts
from lit_atex.scoring import completion_hidden, head_of
from lit_atex.teacher import Teacher
from lit_atex.types import Rollouts


def distil(
    divergence: Divergence,
    student: Any,
    teacher: Teacher,
    prompts: Sequence[list[int]],
    teacher_prompts: Sequence[list[int]],
    rollouts: Rollouts,
    samples: int,
    chunk_tokens: int,
    part_tokens: int,
    weights: Float[Tensor, " rollouts"] | None = None,
    timed: Callable[[str], AbstractContextManager[None]] = lambda phase: nullcontext(),
) -> tuple[Float[Tensor, ""], TokenDivergence]:
    """Score the same completion ids from both prompts.

    Args:
        divergence: The loss per token.
        student: Gets the gradient.
        teacher: Gives the module to compare with.
        prompts: Student prompts, one per problem.
        teacher_prompts: Teacher prompts, one per problem.
        rollouts: The student's completions, `len(prompts) * samples` of them.
        samples: Rollouts per problem.
        chunk_tokens: Most completion tokens whose logits are alive at a time.
        part_tokens: Most tokens, padding included, that go through the student, or through the teacher, at a time; at
            least one rollout does. If there are several parts, each is differentiated as soon as it is scored.
        weights: Of each rollout's tokens in the sum; 1 if left out.
        timed: Called with "teacher" and "student" around their parts of the work.

    Returns:
        The weighted divergence summed over completion tokens, with gradient; and its values per token, unweighted.
    """
    if not int(rollouts.lengths.sum()):  # nothing was sampled: no loss, but the same graph on every rank
        head = head_of(student)
        nothing = head.weight.new_zeros(0, head.weight.shape[1])
        ids = rollouts.ids[rollouts.mask]
        loss, tokens = fused_divergence(divergence, nothing, head, nothing, head, ids, chunk_tokens)
        return loss + sum(0.0 * p.sum() for p in student.parameters() if p.requires_grad), tokens

    def score(rows: slice) -> tuple[Tensor, TokenDivergence]:
        part, hinted = rollouts.some(rows), theirs[rows]
        ids = part.ids[part.mask]
        with timed("teacher"), scorer_of(teacher, student) as scorer:
            # Hints are long, and nothing is kept of this pass: it is cut finer than the student's where it must be.
            widths = [(len(p), n) for p, n in zip(hinted, lengths[rows])]
            finer = split(widths, min(samples, len(hinted)), part_tokens)
            found = [completion_hidden(scorer, hinted[some], part.some(some)) for some in finer]
            teacher_hidden, teacher_head = torch.cat(found) if len(found) > 1 else found[0], head_of(scorer)
        with timed("student"):
            hidden = completion_hidden(student, mine[rows], part)
            sides = (hidden, head_of(student), teacher_hidden, teacher_head)
            return fused_divergence(divergence, *sides, ids, chunk_tokens, _of_tokens(weights, part, rows))

    mine, theirs = ([p for p in some for _ in range(samples)] for some in (prompts, teacher_prompts))
    lengths = rollouts.lengths.tolist()
    parts = split([(len(p), n) for p, n in zip(mine, lengths)], samples, part_tokens)
    loss, found = sum_of_parts([partial(score, part) for part in parts], list(student.parameters()))
    return loss, found[0] if len(found) == 1 else TokenDivergence(*(torch.cat(field) for field in zip(*found)))


_CHECKED: WeakSet[nn.Module] = WeakSet()
"""What teachers of the user's own score with, once its logits are known to be what `head_of` makes of its states."""


@contextmanager
def scorer_of(teacher: Teacher, student: Any) -> Iterator[nn.Module]:
    """The module that a teacher scores with; ours are the student's, one of the user's own is looked at.

    Raises:
        ValueError: If it is no module in evaluation mode, or one whose logits are not what lit_atex would make of them.
    """
    scorer, name = teacher.scorer(student), f"model.teacher: {type(teacher).__name__}.scorer"
    if not isinstance(scorer, AbstractContextManager):
        raise ValueError(f"{name} must be a context manager: decorate it with contextlib's @contextmanager.")
    with scorer as module:
        if not isinstance(module, nn.Module) or module.training:
            found = "one in training mode" if isinstance(module, nn.Module) else f"a {type(module).__name__}"
            raise ValueError(f"{name} must yield a module in evaluation mode (rollout.evaluating); it yields {found}.")
        if type(teacher).__module__ != Teacher.__module__ and module not in _CHECKED:
            try:
                check_head(module)
            except ValueError as error:
                raise ValueError(f"{name} yields a model that cannot be scored with: {error} Take another.") from error
            _CHECKED.add(module)
        yield module


def _of_tokens(weights: Tensor | None, part: Rollouts, rows: slice) -> Tensor | None:
    """Each rollout's weight, for each of its tokens."""
    return None if weights is None else weights[rows].to(part.lengths.device).repeat_interleave(part.lengths)
