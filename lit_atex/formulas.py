r"""What may be handed to math-verify, and what it does not see in it; knows no verdict and no worker."""

from __future__ import annotations

import re

from lit_atex.answer_text import MARKS
from lit_atex.answers import MAX_READ

_LETTER = re.compile(r"(?<![0-9])[A-Za-z]")
_SYMBOL = re.compile(r"\\[A-Za-z]+|[A-Za-z]")
_MARKS = re.compile(  # primes, transposes, inverse functions
    r"'|\\prime|\^\{?(?:T|\\top)(?![A-Za-z])|(?<![A-Za-z\\])[fgh] ?\^ ?\{-1\} ?\("
)
_DOTS = re.compile(r"\\dots")
_TURN, _DEGREES = re.compile(r"(?:sin|cos|tan|cot|sec|csc)(?![a-z])"), re.compile(r"(\d+(?:\.\d+)?) ?°")
_COMMANDS = re.compile(r"\\(?:begin|end) ?\{\w+\}|\\[A-Za-z]+")
_KNOWN = (  # commands that a parser may know
    "[A-Z]?[a-z]{2,3}|[A-Za-z]?[a-z]*(?:eta|alpha|amma|elta|psilon|igma|mega|ambda|appa|heta)|frac|sqrt|a?r?c?sinh?|a?r?c?cosh?"
    "|a?r?c?tanh?|infty|binom|times|cdots?|l?dots|pm|left|right|begin|end|text[a-z]*|math[a-z]+|operatorname|overline|bar"
    "|prod|limits|i?int|oint|lfloor|rfloor|lceil|rceil|langle|rangle|lvert|rvert|mid|vert|approx|equiv|quad|emptyset|setminus"
    "|notin|subset[a-z]*|land|lor|neg|circ|angle|triangle|parallel|perp|vec|hat|prime|partial|nabla|underline|to|rightarrow"
)
_NO_MATHEMATICS = re.compile(
    r"[?@#\"`;~]|[A-Za-z]\.[A-Za-z]|^[^0-9A-Za-z]*$|^ *[*/^_=,)\]}&!%]|[-+*/^_=,(\[{<>&\\] *$"
    r"|[-+*/^_=,(<>] *[*/^_=,)<>!]|\{ *\}"
    r"|\\(?!(?:" + _KNOWN + r")(?![A-Za-z]))[A-Za-z]"
)
_BRACKET = re.compile(r"\\[{}]|[()\[\]{}]")
_DEPTH = 20  # of brackets in what is passed on
# x2 may be 2x or x^2; math-verify drops the base of 12_5, reads 1 2 as 3 (but \log_2 8 rightly) and 3!! as (3!)!, and
# tells "and" from "or" no more than its commas
AMBIGUOUS = re.compile(
    r"(?<![\\A-Za-z_])[A-Za-z][0-9]|[0-9]_|(?<![_0-9.])[0-9]+(?:\.[0-9]+)? [0-9]|\band\b.*\bor\b|\bor\b.*\band\b|! ?!"
)
_PROSE = re.compile(r"(?!sqrt|sinh|cosh|tanh|arc)[A-Za-z]{4}")


def is_mathematics(text: str) -> bool:
    """Whether it may be worth a parser's time: no sentence, brackets that match, something beside operators."""
    text = text.translate(MARKS)
    if (
        len(text) > MAX_READ
        or not text.isascii()
        or _NO_MATHEMATICS.search(text)
        or _PROSE.search(_COMMANDS.sub(" ", text))
    ):
        return False
    depth = 0
    for bracket in _BRACKET.findall(text):
        depth += 1 if bracket[-1] in "([{" else -1
        if not 0 <= depth <= _DEPTH:
            return False
    return depth == 0


def are_written_apart(reference: str, answer: str) -> bool:
    """Whether formulas differ in what the parser does not see: case, primes, dots, vectors, degrees in a function."""
    one, other = (_COMMANDS.sub(" ", text.translate(MARKS)) for text in (reference, answer))
    letters, others = (sorted(_LETTER.findall(text)) for text in (one, other))
    if letters != others and sorted("".join(letters).casefold()) == sorted("".join(others).casefold()):
        return not (_PROSE.search(one) or _PROSE.search(other))
    marks, dots = ([len(mark.findall(text)) for text in (reference, answer)] for mark in (_MARKS, _DOTS))
    if dots[0] != dots[1] or (marks[0] != marks[1] and ("=" in reference) == ("=" in answer)):  # a name may be left out
        return True
    if any(r"\vec" in text and r"\times" in text for text in (reference, answer)):
        return True  # no product of numbers
    turned = [bool(_TURN.search(text)) for text in (reference, answer)]
    return all(turned) and ("°" in reference) != ("°" in answer)


def of_one_case(texts: list[str]) -> list[str]:
    """The texts with other letters for capitals whose small letters are there too: the parser would take N for n."""
    used = {symbol for text in texts for symbol in _SYMBOL.findall(text)}
    spare = (letter for letter in "qvwzukpstrhmabcxy" if not used & {letter, letter.upper()})
    other = dict(zip(sorted(symbol for symbol in used if symbol.isupper() and symbol.lower() in used), spare))
    return [_SYMBOL.sub(lambda symbol: other.get(symbol[0], symbol[0]), text) for text in texts]


def in_radians(text: str) -> str:
    """Degrees behind a number as a part of a turn, if there is a function that takes angles."""
    return _DEGREES.sub(r"(\1\\pi/180)", text) if _TURN.search(text) else text
