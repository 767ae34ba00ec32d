"""Splits a reference solution into steps, and finds the answer among them.

Works on text alone: it knows no ratio, no tokenizer and no template. Every border is a character offset into the
solution, a step is the text between two borders, and the steps joined are the solution to the letter.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from lit_atex.answer_text import ABBREVIATIONS, BARE_BOX, BOX, after_answer_is, after_hashes
from lit_atex.equivalence import canonical

_LINE_END = re.compile(r"\n\s*")
_SENTENCE_END = re.compile(
    r"(?:[.!?]|\.(?:\$\$?|\\\)))[)\"'”’\]]*[ \t]+(?=[\"'“‘(\[]?[A-Z\d\\$])|[。！？][”’」』）]*\s*"
)
_INLINE_ITEM = re.compile(r"[ \t](?=Step\s+\d+\s*:)|;[ \t]+(?=\(?\d{1,3}[.)]\s)")
_LIST_MARK = r"(?:^|\n|[.!?:;][)\"'”’\]]*[ \t])[ \t*#>-]*\(?\d{1,3}"  # "2", but not the 24 of "it is 24. So"
_ABBREVIATION = rf"(?:^|[\s(])(?:[A-Z]|Step \d+|No|pp?|etc|{ABBREVIATIONS})"
_NOT_AN_END = re.compile(rf"(?:{_LIST_MARK}|{_ABBREVIATION})\.\Z")
_BRACES = re.compile(rf"({BOX})|\\.|[{{}}]", re.DOTALL)
_OPENING = re.compile(r"\\(?:begin\{(\w+\*?)\}|.)|\$\$?|```|\[asy\]", re.DOTALL)
_CLOSED_BY = {"$$": "$$", r"\[": r"\]", r"\(": r"\)", "```": "```", "[asy]": "[/asy]"}
_CLOSING = re.compile(r"\$\$|```|\[/asy\]|\\[\])]|\\end\{\w+\*?\}")
_DOLLARS = re.compile(r"\$(?:[^$\n\\]++|\\.)++\$(?!\d)")  # "$5 and $6" is money
_DIGITS = r"(?:\d+|\.\d+)(?:(?:[.,:/]|\{,\}|,?\\[,!])\d+)*(?:[eE][-+]?\d+)?(?:\\?%)?"
_NUMBER = re.compile(rf"[-+−]?{_DIGITS}")
_TELLS = re.compile(r"[0-9\\=]|^\S+(?: \S+)?$")  # an answer; not the beginning of a sentence
_SIGNS = "\u00b2\u00b3\u00b9\u00bc-\u00be\u2070-\u2079\u2080-\u2089\u2150-\u218b\u2460-\u249b"  # ² ½ ⁴ ₀ ⅓ ①
# of "9-3" the 9 and the 3, of "= -3" the -3
_VALUE = re.compile(rf"(?:(?<![\w)\]}}%])[-+−])?(?:{_DIGITS}|[{_SIGNS}])")


# Solutions come from strangers: the two scans below read the text once, whatever is left open in it.


def _boxes(text: str) -> list[tuple[int, int]]:
    r"""Spans of the outermost `\boxed{...}` and `\fbox{...}`; an unclosed box reaches to the end of the text."""
    spans, start, depth = [], -1, 0
    for match in _BRACES.finditer(text):
        opens_box, mark = match[1], match[0]
        if start < 0:
            start, depth = (match.start(), 1) if opens_box else (-1, 0)
            continue
        depth += 1 if opens_box or mark == "{" else -1 if mark == "}" else 0
        if depth == 0:
            spans.append((start, match.end()))
            start = -1
    return spans if start < 0 else [*spans, (start, len(text))]


def _formulas(text: str) -> list[tuple[int, int]]:
    r"""Spans of `$...$` on one line, `$$...$$`, `\[...\]`, `\(...\)`, environments, code and drawings, if closed."""
    last = {match[0]: match.start() for match in _CLOSING.finditer(text)}
    spans, at = [], 0
    while match := _OPENING.search(text, at):
        start, at = match.span()
        closing = f"\\end{{{match[1]}}}" if match[1] else _CLOSED_BY.get(match[0], "")
        end = 0
        if match[0] == "$":
            end = closed.end() if (closed := _DOLLARS.match(text, start)) else 0
        elif closing and last.get(closing, -1) >= at:
            end = text.index(closing, at) + len(closing)
        if end:
            spans.append((start, end))
            at = end
    return spans


def keep_whole(text: str, borders: Iterable[int], math: bool) -> list[int]:
    r"""Drop the borders that would split what must stay whole.

    Args:
        text: The solution.
        borders: Offsets into it.
        math: Whether formulas stay whole too; `\boxed{...}` and numbers always do.

    Returns:
        Ascending offsets, `len(text)` last (if the text is not empty).
    """
    spans = _boxes(text) + [m.span() for m in _NUMBER.finditer(text)]
    if math:
        spans += _formulas(text)
    inside = bytearray(len(text) + 1)
    for start, end in spans:
        inside[start + 1 : end] = b"\1" * (end - start - 1)
    kept = [b for b in sorted(set(borders)) if 0 < b < len(text) and not inside[b]]
    return [*kept, len(text)] if text else []


def step_borders(solution: str) -> list[int]:
    r"""Where the steps of a solution end.

    A step is a line, a sentence or a numbered item. Formulas, code, `\boxed{...}` and numbers are never split, nor is a
    list mark ("2. ") or an abbreviation cut from what follows it. White space belongs to the step before it.

    Args:
        solution: Reference solution; may be of any form.

    Returns:
        Ascending offsets, the last one `len(solution)`; empty for a solution of white space only.
    """
    ends = [m.end() for pattern in (_LINE_END, _INLINE_ITEM) for m in pattern.finditer(solution)]
    ends += [
        m.end()
        for m in _SENTENCE_END.finditer(solution)
        if not _NOT_AN_END.search(solution, max(0, m.start() - 16), m.start() + 1)
    ]
    borders, start = [], 0
    for border in keep_whole(solution, ends, math=True):
        if solution[start:border].strip():
            borders.append(border)
            start = border
    if borders:
        borders[-1] = len(solution)
    return borders


def split_steps(solution: str, borders: list[int] | None = None) -> list[str]:
    """The steps of a solution, or its pieces between other borders, as text; joined they are the solution."""
    borders = step_borders(solution) if borders is None else borders
    return [solution[a:b] for a, b in zip([0, *borders], borders)]


def _answers(solution: str) -> list[int]:
    """Where the answer is told: the boxes, and each `####` and "the answer is" that says what the last box does.

    Without a box the last `####` says what the answer is; without one, the last "the answer is".
    """
    boxes = [(start, solution[start:end].partition("{")[2].removesuffix("}")) for start, end in _boxes(solution)]
    boxes = boxes or [(bare.start(), bare[1]) for bare in BARE_BOX.finditer(solution)]
    others = [list(after_hashes(solution)), list(after_answer_is(solution))]
    answer = canonical(next((told[-1][1] for told in (boxes, *others) if told), ""))
    told = [
        start
        for form in others
        for start, said in form
        if _TELLS.search(said.strip(" .*$")) and canonical(said) == answer
    ]
    return [start for start, _ in boxes] + told


def answer_begins(solution: str, steps: list[int]) -> int:
    r"""Where the text ends that does not give the answer away.

    Args:
        solution: Reference solution.
        steps: Its `step_borders`.

    Returns:
        The offset of its last step, or of the step that tells the answer first (`\boxed{...}`, `#### ...`, "the answer
        is ...") if that comes earlier.
    """
    told = min(_answers(solution), default=len(solution))
    return max((b for b in steps[:-1] if b <= told), default=0)


def answer_step(solution: str, steps: list[int]) -> str:
    r"""The step that tells the answer last: with a `\boxed{...}`, `#### ...`, "the answer is ..."; else the last step.

    Args:
        solution: Reference solution.
        steps: Its `step_borders`.
    """
    told = max(_answers(solution), default=len(solution))
    start = max((b for b in steps[:-1] if b <= told), default=0)
    return solution[start : next((b for b in steps if b > start), start)]


def mask_numbers(text: str, mark: str) -> str:
    """The text with `mark` for each number, its sign included; an operator between two numbers stays."""
    return _VALUE.sub(lambda _: mark, text)
