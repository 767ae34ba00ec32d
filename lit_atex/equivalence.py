"""Whether two final answers are equal, as far as that takes no algebra system; knows no completions and no worker.

What counts as equal is a choice in many places; docs/answers.md lists the choices with their reasons.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from string import ascii_letters

from lit_atex import exact
from lit_atex.answer_text import MAX_CHARS, clean, compact, label, unwrap
from lit_atex.answers import PRODUCT, Answer, Group, equation, read
from lit_atex.formulas import AMBIGUOUS, is_mathematics
from lit_atex.leaves import Leaf, rounds_to, value_of
from lit_atex.types import Verdict
from lit_atex.units import CURRENCIES

_ROUNDED = 6, 4  # places, and digits that count, from which on a decimal may stand for what it is rounded from
_EXPRESSION = re.compile(r"[+^-]|^[0-9]")  # of a name that is more than a name
_EQUATED = re.compile(r"[+^]|(?<![A-Za-z]{2})-(?![A-Za-z]{2})|^[0-9]|[a-z]\*[a-z]")  # but not x-intercept, AB
_DERIVED = re.compile(r"(d|\\partial)[A-Za-z]?\1[A-Za-z]")
_IN_BRACKETS = re.compile(r"\([^()]*\)")
_LETTERS, _VOWEL = re.compile(r"[A-Za-z]+"), re.compile(r"[aeiouyAEIOUY]")
_LETTERS_AS_UNIT = re.compile(r"[A-Za-z]{1,2}(?:\^-?[1-9])?(?: [A-Za-z]{1,2}(?:\^-?[1-9])?)*")
_LETTERS_ALONE = re.compile(r"[A-Za-z]{1,2}(?: [A-Za-z]{1,2})*")
_CHOICES = frozenset("abcdefghijABCDEFGHIJ")
_DATED = re.compile("[0-9][/-]")
_MATCHED = 32  # items of a list that are compared each with each
_BETWEEN, _TITLED = re.compile("[,;]| (?:and|or) "), re.compile(r"[A-Z][a-z]{1,3}\. ?[A-Z][a-z]+")  # Dr. Smith


def decide(reference: str, answer: str) -> Verdict | None:
    """The verdict if it takes no algebra system, else None."""
    reference, answer = unwrap(clean(reference)), unwrap(clean(answer))
    if not answer:
        return Verdict.UNPARSED
    if not reference:
        return Verdict.WRONG
    if compact(reference) == compact(answer):
        return Verdict.CORRECT
    same = _labelled(reference, answer)
    if same is None:
        same = equal(read(reference), read(answer))
    if same is not None:
        return Verdict.CORRECT if same else Verdict.WRONG
    if not is_mathematics(answer):
        return Verdict.UNPARSED  # no number is fished out of a sentence
    return None if is_mathematics(reference) and not AMBIGUOUS.search(f"{reference} | {answer}") else Verdict.WRONG


def is_answer(text: str) -> bool:
    """Whether it can be graded otherwise than by equal text: numbers, formulas, a choice, a name of a word or two."""
    text = unwrap(clean(text))
    return bool(label(text)[0]) or (bool(text) and _is_told(read(text)))


def _is_told(answer: Answer) -> bool:
    if isinstance(answer, Group):
        return all(map(_is_told, answer.items))
    names = [part.split() for part in _BETWEEN.split(answer.text)]
    named = all(len(name) <= 2 or all(map(str.istitle, name)) for name in names) if answer.words else False
    return answer.value is not None or named or is_mathematics(answer.text) or bool(_TITLED.fullmatch(answer.text))


def canonical(answer: str) -> str:
    """One spelling for equal answers, for majority votes: `1/2` for `0.5`, `7` for `007`, `{1,2}` for `2, 1`.

    Decides less than `Verifier` (it knows no trigonometry and no rounding), costs no process, never raises, takes
    bounded time. Names, units and percent signs are dropped: the answers to one problem rarely differ in them alone.
    An expression that is equated (`x + y = 5`) is no name, and kept.
    What is not understood comes back without its layout.
    """
    if not isinstance(answer, str):
        try:
            answer = str(answer)
        except Exception:  # what cannot be written is no answer
            return ""
    text = unwrap(clean(answer))
    if not text:
        raw = " ".join(answer[: 10 * MAX_CHARS].split())
        return "" if len(raw) <= MAX_CHARS and raw.isascii() and raw.isprintable() else raw  # layout alone is nothing
    letter, _ = label(text)
    return letter.lower() or _show(read(text))


def equal(a: Answer, b: Answer) -> bool | None:
    """Whether two answers are equal; None if that is not decided here."""
    if isinstance(a, Leaf):
        return _equal_leaves(a, b) if isinstance(b, Leaf) else _equal_one(a, b)
    return _equal_one(b, a) if isinstance(b, Leaf) else _equal_groups(a, b)


def _labelled(reference: str, answer: str) -> bool | None:
    """Choices by their letters, or by what stands behind them; None if neither has a letter."""
    (expected, text), (given, given_text) = label(reference), label(answer)
    if not expected and not given:
        return None
    if expected and given:
        agree = not text or not given_text or equal(read(text), read(given_text))
        return expected == given and agree is not False
    letter, behind, other = (given, given_text, reference) if given else (expected, text, answer)
    if len(other) == 1 and other in _CHOICES:
        return other.upper() == letter
    return (equal(read(behind), read(other)) or False) if behind else False


def _equal_one(leaf: Leaf, group: Group) -> bool | None:
    if leaf.value is None and not leaf.words:
        return False if len(equation(leaf.text)) > 1 else None  # x < 3 may be an interval
    if leaf.words and leaf.text.isupper() and len(group.items) > 1 and group.kind in ("list", "set"):
        letters = [item.text for item in group.items if isinstance(item, Leaf) and item.text in _CHOICES]
        return list(leaf.text) == letters  # ABD for A, B, D
    return equal(group.items[0], leaf) if group.kind in ("set", "list") and len(group.items) == 1 else False


def _equal_leaves(a: Leaf, b: Leaf) -> bool | None:
    if _same_equation(a, b):
        return True
    if _in_other_units(a, b):
        return False
    if _is_equated(a.name) and not b.name:
        return False  # the reference's circle, x^2 + y^2 = 25, is not 25; an answer's m + n = 25 is
    if a.words and (b.words or _DATED.search(a.text)):  # the reference's 10-20 is a range; an answer's may be a sum
        choice = a.text in _CHOICES or (_is_prose(a.text) and _is_prose(b.text))  # x is not X, nor rR rr
        if " and " in a.text + b.text:  # in which no order counts
            one, other = (sorted(re.split("[,;]| and ", leaf.text.casefold())) for leaf in (a, b))
            return one == other
        if PRODUCT.fullmatch(a.text) or PRODUCT.fullmatch(b.text):
            return a.value is not None and a.value == b.value
        return a.text == b.text or (choice and a.text.casefold() == b.text.casefold())
    if a.name and b.name and a.name != b.name:
        if _DERIVED.fullmatch(a.name) and _DERIVED.fullmatch(b.name):
            return False  # dx/dy is not dy/dx
        plain = not any(_EXPRESSION.search(leaf.name) for leaf in (a, b))
        return False if plain and _is_constant(a) and _is_constant(b) else None  # y = x + 1 and x = y - 1
    if (len(equation(a.text)) > 1) != (len(equation(b.text)) > 1):
        return False  # 2x = 10 is neither 10 nor 5
    if a.value is not None and b.value is not None:
        return _equal_values(a, b, _value(a.value, a.unit, b.value), _value(b.value, b.unit, a.value))
    if a.text == b.text and a.percent == b.percent:
        return True
    if a.words or b.words:
        return False
    return None


def _in_other_units(a: Leaf, b: Leaf) -> bool:
    """Whether both have a unit, and not the same; that of money may lack what it is paid for: $5 for $5 per hour."""
    if not (a.unit or a.percent) or not (b.unit or b.percent):
        return False
    one, other = (_LETTERS_ALONE.fullmatch(leaf.unit) and sorted(leaf.unit.replace(" ", "")) for leaf in (a, b))
    if one and one == other:
        return a.percent != b.percent  # 2 m g and 2mg
    fewer, more = sorted((a.unit.split(), b.unit.split()), key=len)
    lacks = len(fewer) == 1 and fewer[0] in CURRENCIES and fewer[0] in more
    return a.percent != b.percent or (fewer != more and not lacks)


def _value(value: exact.Value, unit: str, other: exact.Value) -> exact.Value:
    """Value times unit, if that may be letters and the other value has some, as `1/2 mg` against `mg/2`."""
    may_be = exact.has_letters(other) and _LETTERS_AS_UNIT.fullmatch(unit)
    letters = value_of(unit.replace(" ", "*")) if may_be else None
    return value if letters is None else exact.multiply(value, letters)


def _same_equation(a: Leaf, b: Leaf) -> bool:
    """Whether two equations in several letters are multiples of one another: y = 2x + 1 and 2y - 2 = 4x."""
    one, other = _zero(a), _zero(b)
    return one.keys() == other.keys() and len({factor / other[monomial] for monomial, factor in one.items()}) == 1


def _zero(leaf: Leaf) -> exact.Value:
    """Left side less right side of an equation in several letters; nothing of anything else."""
    sides = [leaf.name, leaf.text] if leaf.name else equation(leaf.text)
    left, right = [value_of(compact(side)) for side in sides] if len(sides) == 2 else (None, None)
    zero = exact.add(left, right, -1) if left is not None and right is not None else {}
    return zero if len(exact.letters(zero)) > 1 else {}


def _is_equated(name: str) -> bool:
    """Whether it is an expression in several letters rather than a name of what was asked."""
    return bool(_EQUATED.search(_IN_BRACKETS.sub("", name)))


def _is_prose(text: str) -> bool:
    """Whether it is words as they are written: of four letters, or fewer with a vowel, in one case or a capital."""
    found = _LETTERS.findall(text)
    return bool(found) and all(
        len(w) > 3 or (_VOWEL.search(w) and w in (w.lower(), w.upper(), w.capitalize())) for w in found
    )


def _is_constant(leaf: Leaf) -> bool:
    return leaf.value is not None and not exact.has_letters(leaf.value)


def _equal_values(a: Leaf, b: Leaf, value: exact.Value, other: exact.Value) -> bool:
    if a.percent == b.percent:
        told = value in (other, b.rounded) or other == a.rounded
        return told or rounds_to(value, b, *_ROUNDED) or rounds_to(other, a, *_ROUNDED)
    percent, number = (exact.rational(v) for v in ((value, other) if a.percent else (other, value)))
    if percent is None or number is None:
        return value == other
    # 50 and 0.5 are both 50 %, but 0.5 is not 0.5 %: a bare number below one is read as the share itself
    return number == percent / 100 or (number == percent and abs(number) >= 1)


def _equal_groups(a: Group, b: Group) -> bool | None:
    kinds = {a.kind, b.kind}
    if kinds <= {"list", "set"}:
        items, others = (_distinct(g.items) if kinds == {"set"} else g.items for g in (a, b))
        letters = ({name.partition("_")[0] for name in _names(of)} for of in (items, others))  # x_1, x_2: roots
        fewer, more = sorted(map(len, letters))
        return _in_order(items, others) if fewer == 0 and more > 1 else _in_any_order(items, others)
    if "union" in kinds:
        sets_of_numbers = kinds <= {"union", "set", "<>", "()", "[]", "(]", "[)"}  # else written: ask the worker
        return (kinds == {"union"} and _in_any_order(a.items, b.items)) or (None if sets_of_numbers else False)
    for one, other in ((a, b), (b, a)):
        if one.kind in ("list", "set") and len(one.items) == 1:
            return equal(one.items[0], other)
    if "set" in kinds or (kinds & {"matrix", "row"} and len(kinds) > 1):
        return False
    if len(a.items) == 2 and len(kinds) > 1 and kinds not in ({"list", "()"}, {"<>", "()"}):
        return False  # the brackets of an interval have a meaning, those of a longer sequence have none
    if "<>" in kinds and (_names(a.items) or _names(b.items)):
        return False  # 2 < x < 3 is not (x, y) = (2, 3)
    if any(g.kind == "list" and len(_names(g.items)) == 1 for g in (a, b)):
        return False  # x=2, x=3 is no pair
    if any(_are_other_letters(item, other) for item, other in zip(a.items, b.items)):
        return False  # (A, B) is not (a, b)
    return _in_order(a.items, b.items)


def _are_other_letters(a: Answer, b: Answer) -> bool:
    """Whether one is a letter, and the other another one, if only in its case."""
    return isinstance(a, Leaf) and isinstance(b, Leaf) and len(a.text) == 1 and a.words and b.words and a.text != b.text


def _names(items: Sequence[Answer]) -> set[str]:
    return {item.name for item in items if isinstance(item, Leaf) and item.name}


def _by_name(items: Sequence[Answer]) -> Sequence[Answer]:
    """Named coordinates in their usual order, `y = 5, x = 3` as (3, 5); anything else as it stands."""
    names = [item.name for item in items if isinstance(item, Leaf)]
    told = len(names) == len(items) == len(set(names)) and all(len(name) == 1 for name in names)
    usual = told and (set(names) <= set("xyz") or "".join(sorted(names)) in ascii_letters)
    return [item for _, item in sorted(zip(names, items), key=lambda pair: pair[0])] if usual else items


def _distinct(items: Sequence[Answer]) -> list[Answer]:
    return list({_show(item): item for item in items}.values())


def _in_order(items: Sequence[Answer], others: Sequence[Answer]) -> bool | None:
    if len(items) != len(others):
        return False
    verdicts = [equal(item, other) for item, other in zip(_by_name(items), _by_name(others))]
    return False if False in verdicts else None if None in verdicts else True


def _in_any_order(items: Sequence[Answer], others: Sequence[Answer]) -> bool | None:
    if len(items) != len(others):
        return False
    if len(items) > _MATCHED:
        return _in_order(sorted(items, key=_show), sorted(others, key=_show)) or None
    left, decided = list(others), True
    for item in items:
        verdicts = [equal(item, other) for other in left]
        if True in verdicts:
            del left[verdicts.index(True)]
        elif None in verdicts:
            decided = False
        else:
            return False
    return True if decided else None


def _show(answer: Answer) -> str:
    if isinstance(answer, Leaf):
        if answer.words:
            return answer.text if len(answer.text) == 1 and answer.text not in _CHOICES else answer.text.casefold()
        if answer.value is None:
            return answer.text
        if _is_equated(answer.name):  # an equation: x + y = 0 is not x - y = 0
            return f"{answer.name}={exact.show(answer.value)}"
        number = exact.rational(answer.value)
        if answer.percent and number is not None and abs(number) < 1:
            return str(number / 100)
        return exact.show(answer.value)
    shown = [_show(item) for item in _by_name(answer.items)]
    if answer.kind in ("set", "list"):
        shown = sorted(set(shown) if answer.kind == "set" else shown)
        return shown[0] if len(shown) == 1 else "{" + ",".join(shown) + "}"
    if answer.kind == "union":
        return "U".join(sorted(shown))
    brackets = answer.kind if len(answer.kind) == 2 and answer.kind != "<>" and len(shown) == 2 else "()"
    return brackets[0] + ",".join(shown) + brackets[1]
