"""Splits a reference solution into steps and shows the part of it that a ratio asks for.

Works on text alone: it knows no tokenizer and no template. Every border is a character offset into the solution, a step
is the text between two borders, and the steps joined are the solution to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_LINE_END = re.compile(r"[ \t\r]*\n\s*")
_SENTENCE_END = re.compile(r"[.!?][)\"'”’\]]*[ \t]+(?=[\"'“‘(\[]?[A-Z\d\\$])")
_INLINE_NUMBERED = re.compile(r"[ \t](?=(?:Step\s+\d+\s*[:.)]|\(\d+\)|\d+[.)])\s+[A-Z\\$])")
_NOT_AN_END = re.compile(r"(?:^|[\s(])(?:\d{1,3}|[A-Z]|Step \d+|e\.g|i\.e|cf|vs|Eq|Fig|Mr|Mrs|Ms|Dr|St|No)\.[ \t]+$")
_BOX = re.compile(r"\\f?boxed\s*(?=\{)")
_MATH = re.compile(r"\$\$.+?\$\$|\$[^$\n]+?\$|\\\[.+?\\\]|\\\(.+?\\\)|\\begin\{(\w+\*?)\}.+?\\end\{\1\}", re.DOTALL)
_NUMBER = re.compile(r"[-+]?\d+(?:[.,:/]\d+)*(?:[eE][-+]?\d+)?%?")


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Spans of `\boxed{...}` with balanced braces; an unclosed box reaches to the end of the text."""
    spans = []
    for match in _BOX.finditer(text):
        depth, at = 0, match.end()
        while at < len(text):
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        spans.append((match.start(), at))
    return spans


def keep_whole(text: str, borders: Iterable[int], math: bool) -> list[int]:
    r"""Drop the borders that would split what must stay whole.

    Args:
        text: The solution.
        borders: Ascending offsets into it.
        math: Whether formulas stay whole too; `\boxed{...}` and numbers always do.

    Returns:
        Ascending offsets, `len(text)` last (if the text is not empty).
    """
    spans = _boxes(text) + [m.span() for m in _NUMBER.finditer(text)]
    if math:
        spans += [m.span() for m in _MATH.finditer(text)]
    inside = bytearray(len(text) + 1)
    for start, end in spans:
        inside[start + 1 : end] = b"\1" * (end - start - 1)
    kept = [b for b in dict.fromkeys(borders) if 0 < b < len(text) and not inside[b]]
    return [*kept, len(text)] if text else []


def step_borders(solution: str) -> list[int]:
    r"""Where the steps of a solution end.

    A step is a line, a sentence or a numbered item. Formulas, `\boxed{...}` and numbers are never split, nor is a list
    mark ("2. ") or an abbreviation cut from what follows it. White space belongs to the step before it.

    Args:
        solution: Reference solution; may be of any form.

    Returns:
        Ascending offsets, the last one `len(solution)`; empty for a solution of white space only.
    """
    ends = {m.end() for m in _LINE_END.finditer(solution)} | {m.end() for m in _INLINE_NUMBERED.finditer(solution)}
    ends |= {
        m.end()
        for m in _SENTENCE_END.finditer(solution)
        if not _NOT_AN_END.search(solution[max(0, m.end() - 16) : m.end()])
    }
    borders, start = [], 0
    for border in keep_whole(solution, sorted(ends), math=True):
        if solution[start:border].strip():
            borders.append(border)
            start = border
    if borders:
        borders[-1] = len(solution)
    return borders


def split_steps(solution: str) -> list[str]:
    """The steps of a solution, as text; joined they are the solution."""
    borders = step_borders(solution)
    return [solution[a:b] for a, b in zip([0, *borders], borders)]


def reveal(solution: str, ratio: float, borders: list[int] | None = None, hide_answer: bool = False) -> str:
    """The prefix of a solution that a reveal ratio shows.

    Monotone: the hint at a lower ratio is a prefix of the hint at a higher one. 0 shows nothing, 1 shows all there is.

    Args:
        solution: Reference solution.
        ratio: Exposure in [0, 1]; the nearest whole number of pieces is shown, halves go up.
        borders: Where pieces end (see `keep_whole`); the solution's steps if None.
        hide_answer: Never show the last piece that `step_borders` finds, which holds the answer.

    Returns:
        The hint, without white space at its end.

    Raises:
        ValueError: If the ratio is outside [0, 1] or not a number.
    """
    if not 0.0 <= ratio <= 1.0:
        raise ValueError(f"exposure must lie in [0, 1], got {ratio}; look at what sets `exposure.strategy`.")
    steps = step_borders(solution)
    borders = steps if borders is None else borders
    if hide_answer:
        end = steps[-2] if len(steps) > 1 else 0
        borders = [b for b in borders if b <= end]
    shown = int(ratio * len(borders) + 0.5)
    return solution[: borders[shown - 1]].rstrip() if shown else ""
