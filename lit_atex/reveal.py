"""What a hint shows of a reference solution: one function for each kind of hint.

Works on text alone: it knows no tokenizer and no template. A kind takes what there is to show and a ratio, and gives
the hint in parts, so that a hint that is too long can lose some of them. For each kind:

- 0 shows nothing: no part;
- 1 shows all that the kind ever shows;
- a higher ratio never shows less; what that means is the law in the kind's docstring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from lit_atex.own import by_path
from lit_atex.steps import answer_begins, answer_step, mask_numbers, split_steps, step_borders
from lit_atex.types import Problem, seeded

MARK = "[...]"


class Material(NamedTuple):
    """What the hint of one problem is made of.

    Attributes:
        pieces: The pieces of the solution in order; without those of the answer if it is hidden.
        answer: The step with the answer; empty if it is hidden.
        other: The pieces of another problem's solution; empty if there is none, or the hint is of another kind
            than `other` and none of the user's. See `borrow`.
        mark: What stands where something is left out.
    """

    pieces: list[str]
    answer: str
    other: list[str]
    mark: str


def material(solution: str, borders: list[int] | None = None, hide_answer: bool = False, mark: str = MARK) -> Material:
    r"""What there is to show of a solution.

    Args:
        solution: Reference solution.
        borders: Where pieces end (see `steps.keep_whole`); the solution's steps if None.
        hide_answer: Leave out the solution's last step, and the step that first tells the answer and what follows.
        mark: What stands where something is left out.
    """
    steps = step_borders(solution)
    borders = steps if borders is None else borders
    if hide_answer:
        end = answer_begins(solution, steps)
        borders = [b for b in borders if b <= end]
    pieces = split_steps(solution, borders)
    return Material(pieces, "" if hide_answer else answer_step(solution, steps), [], mark)


def borrow(problems: Sequence[Problem], materials: Sequence[Material]) -> list[Material]:
    """Give each problem the pieces of another one of its batch: the next one that is long enough, else the longest.

    Another problem has another id and another question, and its solution does not contain this one's. A problem for
    which there is none, as in a batch of one, gets nothing.

    Args:
        problems: A batch.
        materials: The material of each.
    """
    lengths = [sum(map(len, m.pieces)) for m in materials]
    found = []
    for i, (problem, own) in enumerate(zip(problems, materials)):
        following = [*range(i + 1, len(problems)), *range(i)]
        others = [j for j in following if lengths[j] and _is_another(problem, problems[j])]
        chosen = max(others, key=lambda j: min(lengths[j], lengths[i]), default=None)
        found.append(own._replace(other=[] if chosen is None else materials[chosen].pieces))
    return found


def _is_another(problem: Problem, candidate: Problem) -> bool:
    return (
        candidate.id != problem.id
        and candidate.question.strip() != problem.question.strip()
        and problem.solution.strip() not in candidate.solution
    )


def _count(ratio: float, pieces: int) -> int:
    """The whole number of pieces nearest to `ratio` of them; halves go up."""
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"exposure must lie in [0, 1], got {ratio}; look at what sets `exposure.strategy`.")
    return int(ratio * pieces + 0.5)


# The kinds. Each takes the material and the exposure in [0, 1], and raises ValueError if that is out of range.


def prefix(of: Material, ratio: float) -> list[str]:
    """The first pieces.

    Law: the hint at a lower ratio is a prefix of the hint at a higher one.
    """
    return of.pieces[: _count(ratio, len(of.pieces))]


def suffix(of: Material, ratio: float) -> list[str]:
    """The last pieces, of those before the answer if that is hidden.

    Law: the hint at a lower ratio is a suffix of the hint at a higher one.
    """
    return of.pieces[len(of.pieces) - _count(ratio, len(of.pieces)) :]


def scattered(of: Material, ratio: float) -> list[str]:
    """Pieces here and there, in order; a mark stands for those left out before each of them.

    Pieces appear in an order drawn from their text alone, so a resumed run shows the same. As with a prefix, nothing
    says that the solution goes on after the last piece shown.

    Law: the pieces shown at a lower ratio are among those shown at a higher one.
    """
    order = seeded(0, "scattered", "".join(of.pieces)).permutation(len(of.pieces))
    parts, after = [], 0
    for i in sorted(order[: _count(ratio, len(of.pieces))].tolist()):
        gap = ""
        if i > after:
            hidden = of.pieces[i - 1]
            gap = of.mark + hidden[len(hidden.rstrip()) :]  # its white space stays: lines stay lines
        parts.append(gap + of.pieces[i])
        after = i + 1
    return parts


def masked(of: Material, ratio: float) -> list[str]:
    """The first pieces as they are, and the others with a mark for each number.

    A ratio that shows no whole piece shows nothing at all: numbers are masked only below a piece that is shown.

    Law: the pieces shown unmasked at a lower ratio are the first of those at a higher one; above them no digit is seen.
    """
    shown = _count(ratio, len(of.pieces))
    return of.pieces[:shown] + [mask_numbers(piece, of.mark) for piece in of.pieces[shown:] if shown]


def answer_only(of: Material, ratio: float) -> list[str]:
    """The step with the answer, from a ratio of 0.5 on: it is one piece. Nothing if the answer is hidden.

    Law: what is shown once stays shown.
    """
    return [of.answer] if of.answer and _count(ratio, 1) else []


def none(of: Material, ratio: float) -> list[str]:
    """Nothing: the control in which the teacher sees what the student sees.

    Law: empty.
    """
    return of.pieces[: _count(ratio, 0)]


def other(of: Material, ratio: float) -> list[str]:
    """The first pieces of another problem's solution: the control in which a hint is as long but of no use.

    As many as come nearest in characters to the prefix that the own solution would show; at least one if that shows
    any, and all of them if the other solution is shorter.

    Law: the hint at a lower ratio is a prefix of the hint at a higher one, and never the own solution's.
    """
    own = prefix(of, ratio)
    length = sum(map(len, own))
    ends = list(accumulate(map(len, of.other)))
    count = min(range(len(ends)), key=lambda i: abs(ends[i] - length), default=-1) + 1
    return of.other[:count] if own else []


Kind = Callable[[Material, float], list[str]]

KINDS: dict[str, Kind] = {kind.__name__: kind for kind in (prefix, suffix, scattered, masked, answer_only, none, other)}


def kind_of(name: str) -> Kind:
    """The kind of a name of KINDS, or a function of the user's by its dotted path.

    Raises:
        ValueError: If there is none.
    """
    if name in KINDS:
        return KINDS[name]
    found = by_path(name, "model.prompts.hint")
    if found is None:
        raise ValueError(
            f"model.prompts.hint: {name!r} is none of {', '.join(KINDS)}, nor the dotted path of a function of yours, "
            "which takes what these take (lit_atex/reveal.py)."
        )
    kind: Kind = found
    return kind


def joined(parts: list[str]) -> str:
    """A hint as text, without white space at its end."""
    return "".join(parts).rstrip()
