r"""The final answer out of a text, and whether it is equivalent to the reference's; knows no problem, prompt or model.

Ordinary answers (numbers, words, identical strings) are decided here, exactly. The rest goes to math-verify in another
process, because sympy can neither be trusted to end (`9^{9^{9^9}}`) nor be interrupted from a thread: at the limit that
process is killed. Nothing here evaluates a string as code.

What counts as equal: LaTeX layout, thousands separators, currency signs, degrees and leading zeros do not matter; 50 %
is 50 and also 0.5; a decimal of at least six places may be rounded (0.333333 is 1/3, 0.33 is not); units are dropped,
as math-verify drops them; words compare without case, in order; unordered lists of numbers (`1,2`, `2,1`) are sets.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, Literal, NamedTuple, get_args

from lit_atex.types import Verdict
from lit_atex.verify_worker import Worker

Form = Literal["boxed", "hashes", "answer_is"]

_MAX_DIGITS = 400  # characters of a number that is compared here; keeps integers small

_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_HASHES = re.compile(r"(?<!#)####(?!#)")
_ANSWER_IS = re.compile(r"\banswer(?:\*\*)?\s{0,4}(?:is\b|:)\s{0,4}:?(?:\*\*)?\s{0,4}", re.IGNORECASE)
_SENTENCE_END = re.compile(r"\.(?:\s|$)")
_INLINE_MATH = re.compile(r"\$+([^$]+)\$|\\\((.+?)\\\)")

_SYMBOLS = str.maketrans(
    {"−": "-", "–": "-", "\u00a0": " ", "\u202f": " ", "π": r"\pi ", "∞": r"\infty ", "×": r"\times ", "·": r"\cdot "}
    | {"≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "²": "^2", "³": "^3", "°": ""}
)
# (?<!\\) keeps the row separator of a matrix, `\\`, together with what follows it.
_CLEANING = [
    (re.compile(r"(?<=[0-9])(?:\{,\}|,\\!|\\!,|\\[,!])(?=[0-9]{3}(?![0-9]))"), ""),  # thousands, as LaTeX sets them
    (re.compile(r"(?<!\\)\\(?:(?:left|right)\.?|[bB]igg?[lrm]?|displaystyle)(?![A-Za-z])"), ""),
    (re.compile(r"(?<!\\)\\!|(?<!\\)\\[()\[\]]|\\?\$"), ""),
    (re.compile(r"(?<!\\)\\[,;: ]|\\q?quad(?![A-Za-z])|~"), " "),
    (re.compile(r"√ ?\(?([A-Za-z0-9]+)\)?"), r"\\sqrt{\1}"),
    (re.compile(r"\\[dtc]frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\frac ?([0-9]) ?([0-9])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\^ ?(?:\{ ?)?\\circ(?: ?\})?"), ""),
]
_THOUSANDS = re.compile(r"[+-]?[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:rm|bf|it|sf)|mbox|operatorname) ?\{([^{}]*)\}")
_PERCENT = re.compile(r" ?\\?%$")
_LOOSE_SPACE = re.compile(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.+-])")  # the others keep apart: `1 2`, `1 -2`, `\pi r`
_NUMBER = re.compile(
    r"([+-]?)(?:"
    r"(?:([0-9]+) ?)?\\frac\{(-?[0-9]+)\}\{([0-9]+)\}"
    r"|(?:([0-9]+) )?([0-9]+)/([0-9]+)"
    r"|([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:(?:[eE]|(?:\\times|\\cdot|\*) ?10\^)\{?([+-]?[0-9]{1,2})\}?)?)"
)


class Verifier:
    r"""Judges completions against reference answers; owns at most one worker process, started when first needed.

    May be shared between threads, pickled and copied (a copy starts its own worker), and used after a fork. POSIX only.

    Args:
        forms: Where a final answer may stand, tried in this order: "boxed" (`\boxed{…}`, `\fbox{…}`), "hashes"
            (`#### …`), "answer_is" ("the answer is …", "Answer: …"). Inside the first form that is found the last
            occurrence counts.
        timeout: Wall-clock seconds for one answer, > 0. An ordinary comparison in the worker takes 0.01 to 0.5 s.
        max_chars: Only this many characters at the end of a text are looked at, >= 1.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        forms: Sequence[Form] = ("boxed", "hashes", "answer_is"),
        timeout: float = 2.0,
        max_chars: int = 20_000,
    ) -> None:
        if not forms or not set(forms) <= set(get_args(Form)):
            raise ValueError(f"forms must name at least one of {', '.join(get_args(Form))}; got {forms!r}")
        if not timeout > 0:
            raise ValueError(f"timeout must be more than 0 seconds, got {timeout}")
        if max_chars < 1:
            raise ValueError(f"max_chars must be at least 1, got {max_chars}")
        self.forms, self.timeout, self.max_chars = tuple(forms), timeout, max_chars
        self._worker = Worker(timeout)

    def extract(self, text: str) -> str | None:
        """The final answer as it stands in the text, stripped; None if no form is found.

        A form whose last occurrence is empty or never closed (a completion cut at the limit) is not found.
        """
        text = _string(text)[-self.max_chars :]
        for form in self.forms:
            answer = _FORMS[form](text)
            if answer and answer.strip():
                return answer.strip()
        return None

    def verify(self, texts: list[str], answers: list[str]) -> list[Verdict]:
        """Judge each text against the reference answer at the same place; nothing that a text contains raises.

        Args:
            texts: Completions. What is not a string is read as `str` shows it.
            answers: Final answers of the references, plain or LaTeX, with or without a box.

        Returns:
            One verdict per text. UNPARSED: no final answer, or one that is neither number, word nor mathematics.
            TIMEOUT: the limit was reached, or the worker died (out of memory, stack overflow); it is restarted.

        Raises:
            ValueError: If the lists differ in length.
        """
        if len(texts) != len(answers):
            raise ValueError(
                f"verify needs one reference answer per text, got {len(texts)} texts, {len(answers)} answers"
            )
        known: dict[tuple[str, str], Verdict] = {}  # the samples of a problem often agree
        verdicts = []
        for text, reference in zip(texts, answers, strict=True):
            found = self.extract(text)
            if found is None:
                verdicts.append(Verdict.UNPARSED)
                continue
            pair = (_string(reference), found)
            if pair not in known:
                known[pair] = self._judge(*pair)
            verdicts.append(known[pair])
        return verdicts

    def close(self) -> None:
        """Kill the worker if there is one. The verifier stays usable; also happens at exit and on deletion."""
        self._worker.close()

    def _judge(self, reference: str, answer: str) -> Verdict:
        reference = _boxed(reference) or reference
        verdict = _decide(reference, answer)
        if verdict is None:
            reply = self._worker.compare(_clean(reference), _clean(answer))
            verdict = Verdict.TIMEOUT if reply is None else Verdict(reply)
        return verdict

    def __reduce__(self) -> tuple[Any, ...]:
        return Verifier, (self.forms, self.timeout, self.max_chars)


def canonical(answer: str) -> str:
    """One spelling for equal answers, for majority votes: numbers as reduced fractions, words in lower case.

    Decides less than `Verifier` (`2+x` and `x+2` stay apart), costs no process, never raises. Drops percent signs.
    """
    text, _ = _normalise(_string(answer))
    number = _number(text)
    return str(number.value) if number else text.casefold() if _is_words(text) else text


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception:  # sympy's printers raise anything; what cannot be written is no answer
        return ""


def _last(form: re.Pattern[str], text: str) -> int | None:
    end = None
    for match in form.finditer(text):
        end = match.end()
    return end


def _boxed(text: str) -> str | None:
    start = end = _last(_BOX, text)
    if start is None or end is None:
        return None
    depth = 1
    while depth and end < len(text):
        if text[end] == "\\":
            end += 1  # an escaped brace belongs to the answer
        else:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
        end += 1
    return None if depth else text[start : end - 1]


def _after_hashes(text: str) -> str | None:
    start = _last(_HASHES, text)
    return None if start is None else text[start:].partition("\n")[0]


def _after_answer_is(text: str) -> str | None:
    start = _last(_ANSWER_IS, text)
    if start is None:
        return None
    line = text[start:].partition("\n")[0]
    math = _INLINE_MATH.match(line)
    return (math[1] or math[2]) if math else _SENTENCE_END.split(line)[0].removesuffix("**")


_FORMS = {"boxed": _boxed, "hashes": _after_hashes, "answer_is": _after_answer_is}


def _clean(text: str) -> str:
    """Drop what LaTeX and prose add without meaning; what is left is still LaTeX."""
    text = " ".join(text.translate(_SYMBOLS).split())
    for pattern, replacement in _CLEANING:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split()).strip('`" ').rstrip(" .,;\\").lstrip("€£¥₹ ").rstrip("€£¥₹ ")
    text = text.strip("*") if text.startswith("**") else text
    thousands = _THOUSANDS.match(text)
    return thousands[0].replace(",", "") + text[thousands.end() :] if thousands else text


def _normalise(text: str) -> tuple[str, bool]:
    """The spelling that strings are compared in, and whether a percent sign was dropped from it."""
    text = _clean(text)
    for _ in range(2):  # \textbf{\text{A}}
        text = _TEXT.sub(r"\1", text)
    text = _LOOSE_SPACE.sub("", " ".join(text.split()))
    bare = _PERCENT.sub("", text)
    letter = re.fullmatch(r"\(([A-Za-z])\)", bare)
    return (letter[1] if letter else bare), bare != text


class _Number(NamedTuple):
    value: Fraction
    places: int  # decimal places that it is written with; 0 for integers and fractions


def _number(text: str) -> _Number | None:
    match = _NUMBER.fullmatch(text) if len(text) <= _MAX_DIGITS else None
    if not match:
        return None
    sign, whole, top, bottom, whole2, top2, bottom2, decimal, exponent = match.groups()
    if decimal:
        power = int(exponent or 0)
        value = Fraction(decimal + "0" if decimal.endswith(".") else decimal) * Fraction(10) ** power
        places = max(0, len(decimal.partition(".")[2]) - power)
    else:
        whole, top, bottom = (whole, top, bottom) if top else (whole2, top2, bottom2)
        if int(bottom) == 0 or (whole and top.startswith("-")):
            return None
        value, places = int(whole or 0) + Fraction(int(top), int(bottom)), 0
    return _Number(-value if sign == "-" else value, places)


def _equal(a: _Number, b: _Number) -> bool:
    if a.value == b.value:
        return True
    return any(x.places >= 6 and round(y.value, x.places) == x.value for x, y in ((a, b), (b, a)))


def _is_words(text: str) -> bool:
    return any(map(str.isalpha, text)) and all(c.isalpha() or c in " ,;" for c in text)


def _decide(reference: str, answer: str) -> Verdict | None:
    """The verdict if it takes no algebra, else None."""
    (expected, expected_percent), (given, given_percent) = _normalise(reference), _normalise(answer)
    if not given:
        return Verdict.UNPARSED
    if not expected:
        return Verdict.WRONG
    same = expected == given
    if not same and _is_words(expected) and _is_words(given):
        same = expected.casefold() == given.casefold()
    elif not same:
        a, b = _number(expected), _number(given)
        if a is None or b is None:
            return None
        same = _equal(a, b)
        if expected_percent != given_percent:
            same |= a.value / (100 if expected_percent else 1) == b.value / (100 if given_percent else 1)
    return Verdict.CORRECT if same else Verdict.WRONG
