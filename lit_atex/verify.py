r"""The final answer out of a text, and whether it is equivalent to the reference's; knows no problem, prompt or model.

Ordinary answers are decided in this process, exactly (`equivalence`). The rest goes to math-verify in another one,
because sympy can neither be trusted to end (`9^{9^{9^9}}`) nor be interrupted from a thread: at the limit that process
is killed. Nothing here evaluates a string as code. What counts as equal, and why, is in docs/answers.md.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

from lit_atex.answer_text import BARE_BOX, BOX, MARKS, after_answer_is, after_hashes, clean, unwrap
from lit_atex.equivalence import canonical, decide
from lit_atex.formulas import are_written_apart, in_radians, of_one_case
from lit_atex.types import Verdict
from lit_atex.verify_worker import Worker

__all__ = ["Form", "Occurrence", "Verifier", "canonical"]

Form = Literal["boxed", "hashes", "answer_is"]
Occurrence = Literal["last", "first", "agreed"]

_KEY = "model.verifier.init_args"
_DAY = 86_400  # seconds; the system's clocks take no infinity
_BOX = re.compile(r"\\(?:boxed|fbox|framebox)\s*\{")
_THOUGHT = re.compile(r"</think>|<\|end_of_thought\|>")
_BRACE = re.compile(rf"{BOX}|\\.|[{{}}]", re.DOTALL)


class Verifier:
    r"""Judges completions against reference answers; owns at most one worker process, started when first needed.

    May be shared between threads, pickled and copied (a copy starts its own worker), and used after a fork. POSIX only.
    A grader of your own is a subclass with a `verify` of its own; `extract` finds the answers that maj@k counts.

    Args:
        forms: Where a final answer may stand, tried in this order: "boxed" (`\boxed{…}`, `\fbox{…}`), "hashes"
            (`#### …`), "answer_is" ("the answer is …", "the correct option is …", "Answer: …"). The first form
            that is found counts.
        timeout: Seconds of processor time for one answer in the worker, in (0, 86400], and ten times as many by the
            clock. An ordinary comparison takes 0.01 to 0.5 s.
        max_chars: Only this many characters at the end of a text are looked at, >= 1.
        occurrence: Which one counts where that form occurs several times: the "last", the "first", or the last if all
            are "agreed" on one answer (`canonical`), else none. A box within a box is part of the outer one.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
        self,
        forms: Sequence[Form] = ("boxed", "hashes", "answer_is"),
        timeout: float = 2.0,
        max_chars: int = 20_000,
        occurrence: Occurrence = "last",
    ) -> None:
        if not forms or not set(forms) <= set(get_args(Form)):
            raise ValueError(f"{_KEY}.forms must name at least one of {', '.join(get_args(Form))}; got {forms!r}.")
        if not 0 < timeout <= _DAY:
            raise ValueError(f"{_KEY}.timeout must be more than 0 seconds and at most {_DAY}, a day; got {timeout}.")
        if max_chars < 1:
            raise ValueError(f"{_KEY}.max_chars must be at least 1, got {max_chars}.")
        if occurrence not in get_args(Occurrence):
            raise ValueError(f"{_KEY}.occurrence must be one of {', '.join(get_args(Occurrence))}; got {occurrence!r}.")
        self.forms, self.timeout, self.max_chars, self.occurrence = tuple(forms), timeout, max_chars, occurrence
        self._worker = Worker(timeout)

    def extract(self, text: str) -> str | None:
        """The final answer as it stands in the text, stripped; None if no form is found.

        A form whose occurrence is empty or never closed (a completion cut at the limit) is not found. Behind the end of
        a thought (`</think>`) only what follows counts, if anything does.
        """
        text = _string(text)[-self.max_chars :]
        text = _THOUGHT.split(text)[-1].strip() or text
        text = BARE_BOX.sub(r"\\boxed{\1}", text)
        for form in self.forms:
            answers = list(_FORMS[form](text))
            if not answers:
                continue
            answer = answers[0 if self.occurrence == "first" else -1]
            if self.occurrence == "agreed" and len({canonical(a) for a in answers}) > 1:
                return None
            if answer.strip():
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
        reference = _unboxed(reference)
        try:
            verdict = decide(reference, answer)
        except Exception as error:  # a mistake of ours must not end a training run: it is reported, the worker decides
            warnings.warn(f"{answer[:80]!r} against {reference[:80]!r}: {error!r}", RuntimeWarning, stacklevel=3)
            verdict = None
        if verdict is None:
            both = [unwrap(clean(text)) for text in (reference, answer)]
            if are_written_apart(*both):
                return Verdict.WRONG
            reply = self._worker.compare(*of_one_case([in_radians(text).translate(MARKS) for text in both]))
            verdict = Verdict.TIMEOUT if reply is None else Verdict(reply)
        return verdict


def _string(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return str(value)
    except Exception:  # sympy's printers raise anything; what cannot be written is no answer
        return ""


def _boxed(text: str) -> Iterator[str]:
    """What the outermost boxes contain, in order; "" for the last if it never closes."""
    open_: list[tuple[int, bool]] = []  # where the content of each open brace starts, and whether it is a box's
    boxes: list[tuple[int, int]] = []
    first = _BOX.search(text)
    for brace in _BRACE.finditer(text, first.start()) if first else ():
        if brace[0] == "}":
            start, is_box = open_.pop() if open_ else (0, False)
            if is_box:
                while boxes and boxes[-1][0] >= start:
                    boxes.pop()  # they are in this one
                boxes.append((start, brace.start()))
        elif brace[0].endswith("{") and brace[0] != r"\{":
            open_.append((brace.end(), len(brace[0]) > 1))
    for start, end in boxes:
        yield _unboxed(text[start:end])
    if any(is_box and (not boxes or start > boxes[-1][1]) for start, is_box in open_):
        yield ""


def _unboxed(text: str) -> str:
    r"""The text without the boxes in it: `x = \boxed{5}` is `x = 5`."""
    if not _BOX.search(text):
        return text
    open_: list[bool] = []
    drop: set[int] = set()
    for brace in _BRACE.finditer(text):
        if brace[0] == "}":
            if open_ and open_.pop():
                drop.add(brace.start())
        elif brace[0].endswith("{") and brace[0] != r"\{":
            open_.append(len(brace[0]) > 1)
            drop.update(range(brace.start(), brace.end()) if len(brace[0]) > 1 else ())
    return "".join(char for at, char in enumerate(text) if at not in drop)


_FORMS: dict[Form, Callable[[str], Iterator[str]]] = {
    "boxed": _boxed,
    "hashes": lambda text: (said for _, said in after_hashes(text)),
    "answer_is": lambda text: (said for _, said in after_answer_is(text)),
}
