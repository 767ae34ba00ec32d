"""One row of a table as a `Problem`, or as a `BadRow` that says what is wrong with it.

It does not know where the row came from, nor how answers are compared.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import numpy as np

from lit_atex.answer_text import BOX
from lit_atex.equivalence import is_answer
from lit_atex.types import BadRow, Problem

if TYPE_CHECKING:
    from lit_atex.verify import Verifier

log = logging.getLogger("lit_atex")

_MISSING = frozenset(("", "nan", "none", "n/a", "null", "-"))  # what tables write for nothing
_OPTIONS = frozenset(("options", "choices"))
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Columns:
    r"""Which column of a table holds what.

    Args:
        question: Column of the question.
        solution: Column of the reference solution, or null if there is none (then `answer_only: true` is required).
        answer: Column of the final answer, text or number. Null: taken from the solution, where it is the last
            `\boxed{...}`, the line `#### ...` or "the answer is ...".
        id: Column of an id that is unique in the table; null: the row number.
        level: Column of a difficulty label, text or number; null: no label.
    """

    question: str = "problem"
    solution: str | None = "solution"
    answer: str | None = None
    id: str | None = None
    level: str | None = None

    def __post_init__(self) -> None:
        for role, column in asdict(self).items():
            if column == "None":  # what jsonargparse makes of a null on the command line
                object.__setattr__(self, role, None)


DEFAULT_COLUMNS = Columns()


@cache
def _verifier() -> Verifier:
    from lit_atex.verify import Verifier

    return Verifier()


def to_problem(
    row: Mapping[str, Any],
    columns: Columns,
    source: str,
    number: int,
    answer_only: bool = False,
    max_chars: int = 20_000,
) -> Problem | BadRow:
    """One row of a table as a problem, or what is wrong with it; text is stripped, and lone surrogates become U+FFFD.

    Args:
        row: Column name -> value.
        columns: Which column holds what.
        source: Name of the source.
        number: Row number, from 0: the id if there is no id column.
        answer_only: Make the solution the line `#### answer`, whatever the solution column holds.
        max_chars: Longest question and solution together, in characters.

    Returns:
        A problem, or a `BadRow` with one of the reasons "missing column", "not text", "empty question",
        "empty solution", "no answer", "too long".
    """
    where = f"{source} row {number}"
    texts = {}
    for role, column in asdict(columns).items():
        if column is not None and column not in row:
            return BadRow("missing column", f"{where}: no {column!r} (columns.{role}); it has {sorted(map(str, row))}")
        text = _text(row[column], numbers=role not in ("question", "solution")) if column is not None else ""
        if text is None:
            return BadRow("not text", f"{where}: {column!r} is a {type(_plain(row[column])).__name__}")
        texts[role] = text

    question, solution, answer = texts["question"], texts["solution"], texts["answer"]
    if not question:
        return BadRow("empty question", f"{where}: {columns.question!r} is empty")
    if not solution and (not answer_only or columns.answer is None):
        return BadRow("empty solution", f"{where}: {columns.solution!r} is empty")
    if len(question) + len(solution) > max_chars:
        return BadRow("too long", f"{where}: {len(question)} + {len(solution)} > {max_chars} characters")
    if columns.answer is not None and answer.lower() in _MISSING:
        return BadRow("no answer", f"{where}: no final answer; {columns.answer!r} is {answer!r}")
    told = solution if columns.answer is None else answer if "\n" in answer else ""  # GSM8K's `answer` has solutions
    if told:
        answer = _verifier().extract(told) or (answer if columns.answer else "")
        if answer and not re.search(BOX, told) and not is_answer(answer):  # what is boxed is meant to be the answer
            read = f"{answer[:80]!r} was read, which is no number, formula or name"
            return BadRow("no answer", f"{where}: no final answer; {read}")
    if not answer:
        return BadRow("no answer", f"{where}: no final answer; the solution ends in {solution[-80:]!r}")
    unread = _OPTIONS & row.keys() - set(asdict(columns).values())
    if unread and re.fullmatch(r"\(?[A-J]\)?", answer) and not re.search(r"\bB\b *[).:]", question):
        _left_unread(source, min(unread))
    solution = f"#### {answer}" if answer_only else solution
    return Problem(texts["id"] or f"{source}-{number}", question, solution, answer, source, texts["level"])


@cache  # once, not row by row
def _left_unread(source: str, column: str) -> None:
    log.warning("%s: answers are letters, and %r is not read: write the options into the question.", source, column)


def _plain(value: Any) -> Any:
    """A value of NumPy as one of Python."""
    return value.item() if isinstance(value, np.generic) else value


def _text(value: Any, numbers: bool) -> str | None:
    """What a cell says; None if that is no text, nor a number where one will do."""
    value = _plain(value)
    if value is None or (isinstance(value, float) and not isfinite(value)):  # nan is what tables have for nothing
        return ""
    if isinstance(value, float) and not value.is_integer():
        value = float(f"{value:.15g}")  # without the noise of its last bits: 0.3, not 0.30000000000000004
    # an integer of thousands of digits is no answer, and str() refuses it
    if not isinstance(value, str | int | float if numbers else str) or isinstance(value, bool) or _huge(value):
        return None
    return _LONE_SURROGATE.sub("\ufffd", str(value)).strip()


def checked(problem: Problem, where: str) -> Problem | BadRow:
    """A problem that somebody else made; what of it would stop a run later makes it a bad row, by `to_problem`'s words.

    Args:
        problem: The problem.
        where: Where it stands, for the message.
    """
    fields = problem._asdict()
    if wrong := [f"{name} is a {type(x).__name__}" for name, x in fields.items() if not isinstance(x, str)]:
        return BadRow("not text", f"{where}: {', '.join(wrong)}; each field of a Problem is a str")
    if empty := [name for name in ("id", "question", "solution", "answer") if not fields[name].strip()]:
        reason = "no answer" if empty == ["answer"] else f"empty {empty[0]}"
        return BadRow(reason, f"{where}: {problem.id!r} has no {' and no '.join(empty)}")
    return problem


def _huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > 4096
