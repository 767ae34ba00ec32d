r"""A final answer taken apart: numbers, values, names, units, words, and lists of them; knows no reference.

`read` takes bounded time, raises nothing, asks no worker, and evaluates no string as code. What it does not understand
stays a text. docs/answers.md says which readings were chosen, and why.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from lit_atex import closed_form, exact, units
from lit_atex.answer_text import compact, is_words, signs
from lit_atex.leaves import Leaf, is_about, number, rounds_to, value_of, valued

MAX_READ = 800  # of an answer that is taken apart
_DEPTH = 4  # of lists in lists


class Group(NamedTuple):
    """Several answers.

    Attributes:
        kind: "list" (bare), "set", "union", "matrix", "row", or the brackets of a sequence: "()", "[)", ...; "<>" is
            an open interval that cannot be a pair, as `2 < x < 3`.
        items: What it consists of.
    """

    kind: str
    items: tuple[Answer, ...]


Answer = Leaf | Group

PRODUCT = re.compile(r"[A-Za-z](?: [A-Za-z])+")  # m g
_PERCENT = re.compile(r" ?(?:\\?%| per ?cent)$")
_MONEY = re.compile(r"([+-]?) ?([$€£¥₹]) ?(?=[+-]?[0-9.])")
_SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "dozen": 12}
_UNIT_START = re.compile(r"(?<![\\A-Za-z°])[A-Za-z°$€£¥₹¢]")
_NAME = re.compile(
    r"(?!-)(?:[A-Za-z]\([^()]*\)|[A-Za-z]|_\{\w{1,4}\}|_\w|_\{?\\(?:min|max)\}?|\^\{-1\}|\\(?:"
    + "|".join(name[1:] for name in sorted(closed_form.GREEK) if name != r"\pi")
    + r"|angle|triangle|overline|vec|frac|sin|cos|tan|cot|sec|csc|det|gcd|min|max|Pr)(?![A-Za-z])"
    r"|\|[A-Z]{2}\||[{}(),'+ -])+(?<![+-])"
)
_ASKED = re.compile(  # what a problem asks for that has a value of its own; nothing that holds for several, as |x| = 7
    r"\[[A-Z]{3,}\]|\| ?[A-Z](?: ?\\(?:cap|cup|setminus) ?[A-Z])* ?\|"
    r"|\\l(floor|ceil)(?:(?!\\r(?:floor|ceil))[^=])*\\r\1"
    r"|(?:[A-Za-z]|[0-9^{}]+) ?(?:\\bmod|mod) ?[0-9]+|(?:\\Pr|\\?gcd|\\?lcm) ?\([^()]*\)"
    r"|(?:[EP]|\\mathbb ?\{?[EP]\}?) ?(?:\([^()]*\)|\[[^][]*\])"
    r"|\\[dt]?binom ?(?:[0-9]|\{[0-9]+\}) ?(?:[0-9]|\{[0-9]+\})|\\log ?_ ?(?:[0-9]|\{[0-9]+\}) ?\(?[0-9]+\)?"
)
_DERIVATIVE = re.compile(  # no quotient of products
    r"\\frac\{(d|\\partial ?)[A-Za-z]?\}\{\1[A-Za-z]\}|(d|\\partial ?)[A-Za-z]/\2[A-Za-z]"
)
_PROBABILITY = re.compile(r"(?:\\Pr|(?<![A-Za-z])P|\\mathbb ?\{?P\}?) ?\([^()]*\)")  # of a relation, and none itself
_RELATION = re.compile(r"[<>]|\\(?:[lgn]e|approx|equiv|cong|sim)(?![A-Za-z])")
_ABOUT = re.compile(r" ?\\approx(?![A-Za-z]) ?")
_NEARLY = re.compile(r"^(?:\\approx(?![A-Za-z])|(?:approximately|roughly|about)(?= [0-9.$\\-])) *", re.IGNORECASE)
_IN = re.compile(r"\\in(?![A-Za-z])")
_ORDER = re.compile(r" ?(<|>|\\le(?![A-Za-z])|\\ge(?![A-Za-z])) ?")
_BUILDER = re.compile(
    r"\\\{ ?[A-Za-z](?: ?\\in ?(?:\\R|\\mathbb ?\{?R\}?))? ?(?::|\||\\mid|\\vert)(?![A-Za-z])(.*)\\\}"
)
_MATRIX = re.compile(r"\\begin ?\{([pb]?matrix|array)\}(?:\{[lcr| ]*\})?(.*)\\end ?\{\1\}")
_SYSTEM = re.compile(r"\\begin ?\{(cases|aligned|gathered)\}(.*)\\end ?\{\1\}")
_ALIGNED = re.compile(r"& ?= ?&?|= ?&")
_SELECTION = re.compile(r"\w(?:(?: ?[,;](?: and)? ?| and )\w)+")  # `A, C and D`
_SEPARATOR = re.compile(r"[,;]|(?<![A-Za-z\\])(?:or|and)(?![A-Za-z])")


def read(text: str, depth: int = 0) -> Answer:
    """Take a text apart that `clean` and `unwrap` have been over."""
    text = text.strip()
    if found := number(compact(text)):
        return found
    if is_words(text) and not (len(text) < 40 and _SELECTION.fullmatch(text)):
        return _leaf(text)
    if len(text) > MAX_READ or depth > _DEPTH:
        return Leaf(compact(text))
    return _about(text, depth + 1) or _group(text, depth + 1) or _leaf(text)


def _about(text: str, depth: int) -> Answer | None:
    r"""The value of `A = 25\pi \approx 78.54`; a text if it does not round so, None if that is not known here."""
    exactly, *about = _ABOUT.split(text)
    if not exactly or not about or len(_split(text)) > 1:
        return None
    answer, numbers = read(exactly, depth), [_leaf(one) for one in about]
    if isinstance(answer, Leaf) and answer.value is not None and not exact.has_letters(answer.value):
        if all(is_about(answer, number) for number in numbers):
            last = numbers[-1]
            told = last.percent == answer.percent and not last.text.endswith("0")  # 1.50 may be 1.5, and not 1.499
            told = told and rounds_to(answer.value, last, places=1, digits=3)
            return answer._replace(rounded=last.value if told else None)
    elif (_name(exactly) and len(about) == 1) or all(is_about(numbers[0], number) for number in numbers):
        return None  # x \approx 3, \ln 2 \approx 0.693
    return Leaf(compact(text), words=True)


def _group(text: str, depth: int) -> Answer | None:
    if text in (r"\emptyset", r"\{\}", r"\{ \}"):
        return Group("set", ())
    matrix = _MATRIX.fullmatch(text)
    if matrix and r"\begin" not in matrix[2]:
        rows = [row.split("&") for row in matrix[2].split(r"\\") if row.strip()]
        return Group("matrix", tuple(Group("row", _read_all(row, depth)) for row in rows))
    system = _SYSTEM.fullmatch(text)
    if system and r"\begin" not in system[2]:
        lines = [_ALIGNED.sub("=", line).strip(" ,") for line in system[2].split(r"\\") if line.strip()]
        told = bool(lines) and all("=" in line and "&" not in line for line in lines)  # of pieces, & parts the cases
        return _group(", ".join(lines), depth) if told else None
    if builder := _BUILDER.fullmatch(text):
        found = _group(builder[1].strip(), depth)
        return found if isinstance(found, Group) and found.kind in ("union", "<>", "()", "[]", "(]", "[)") else None
    if 0 < _closing(text) == len(text):
        in_set = text[0] in "{\\"  # many forget the backslash before the braces of a set
        parts = _split(text[2:-2] if text[0] == "\\" else text[1:-1], words=in_set)
        if all(parts) and len(parts) > (0 if text[0] == "\\" else 1):
            if in_set:
                return Group("set", _read_all(signs(parts), depth))
            if len(signs([text])) == 1:  # (1, \pm 2) are two pairs
                return Group(text[0] + text[-1], _read_all(parts, depth))
    if r"\cup" in text:
        parts = [part.strip() for part in text.split(r"\cup")]
        if all(part and _closing(part) == len(part) for part in parts):
            return Group("union", _read_all(parts, depth))
    parts = _split(text)
    if len(parts) > 1 and all(parts):
        if not any(_ORDER.search(part) for part in parts):
            return Group("list", _read_all(signs(parts), depth))
        ranges = [_range(part) for part in parts] if "," not in text and " and " not in text else []
        return Group("union", tuple(filter(None, ranges))) if ranges and all(ranges) else None
    if _ORDER.search(_PROBABILITY.sub("P", text)):
        return _range(text)
    if len(both := signs([text])) > 1:
        return Group("list", _read_all(both, depth))
    named = _named(text)
    if not named:
        return None
    answer = read(named[1], depth)
    if isinstance(answer, Leaf):
        return answer._replace(name=named[0])
    if _IN.search(text) and answer.kind == "()" and len(answer.items) == 2:
        return answer._replace(kind="<>")
    names = named[0][1:-1].split(",") if named[0].startswith("(") else []  # (x,y) = (1,2) tells x and y
    if len(names) != len(answer.items):
        return answer
    items = (item._replace(name=n) if isinstance(item, Leaf) else item for n, item in zip(names, answer.items))
    return answer._replace(items=tuple(items))


def _range(text: str) -> Group | None:
    r"""The interval of `x < 3`, `3 > x`, `1 \le x < 2`; the variable's name is dropped."""
    sides, signs = _ORDER.split(compact(text))[::2], _ORDER.split(compact(text))[1::2]
    values = [value_of(side) for side in sides]
    variable = [value is not None and exact.has_letters(value) for value in values]
    names = [side for side, varies in zip(sides, variable) if varies]
    if None in values or not 2 <= len(sides) <= 3 or len(names) != 1:
        return None
    if len(names[0]) > 1 and names[0] not in closed_form.GREEK:
        return None  # 2x < 4
    if signs[0] in (">", r"\ge"):
        sides, signs = sides[::-1], [{">": "<", r"\ge": r"\le"}.get(sign, "") for sign in reversed(signs)]
        variable.reverse()
    if not set(signs) <= {"<", r"\le"} or (len(sides) == 3 and not variable[1]):
        return None
    low, high = (Leaf(f"{sign}\\infty", value_of(f"{sign}\\infty")) for sign in "-+")
    opening, closing = "()"
    if not variable[0]:
        low, opening = valued(sides[0]), "(" if signs[0] == "<" else "["
    if not variable[-1]:
        high, closing = valued(sides[-1]), ")" if signs[-1] == "<" else "]"
    kind = opening + closing
    return Group("<>" if kind == "()" else kind, (low, high))


def _read_all(parts: list[str], depth: int) -> tuple[Answer, ...]:
    return tuple(read(part, depth) for part in parts)


def _closing(text: str) -> int:
    """Where the bracket that a text begins with is closed; 0 if it begins with none, or never closes."""
    depth, at = 0, 0
    while at < len(text):
        at += text[at] == "\\" and text[at + 1 : at + 2] in ("{", "}")
        depth += _BRACKETS.get(text[at], 0)
        at += 1
        if depth <= 0:
            return at if depth == 0 and text[0] in "([{\\" else 0
    return 0


_BRACKETS = {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}


def _split(text: str, words: bool = True) -> list[str]:
    """The parts between commas, semicolons, "or" and "and" that stand outside brackets; "words" are the latter two."""
    found = [separator for separator in _SEPARATOR.finditer(text) if words or separator[0] in ",;"]
    return _outside(text, {separator.start(): separator.end() for separator in found})


def _outside(text: str, ends: dict[int, int]) -> list[str]:
    """The parts between separators, given as start and end, that stand outside brackets."""
    if not ends:
        return [text.strip()]
    parts: list[str] = []
    start, depth = 0, 0
    for at, char in enumerate(text):
        depth += _BRACKETS.get(char, 0)
        if depth == 0 and at in ends:
            part = text[start:at].strip()
            if part or not char.isalpha() or not parts:  # "1, 2, and 3" has three parts
                parts.append(part)
            start = ends[at]
    return [*parts, text[start:].strip()]


def _named(text: str) -> tuple[str, str] | None:
    r"""The name and the value of `x = 5`, `5 = x`, `m + n = 5`, `A = \pi r^2 = 25\pi`, `x \in [1, 2]`, `2 + 3 = 5`."""
    sides = equation(text)
    if len(sides) == 1 and _IN.search(text):
        sides = [side.strip() for side in _IN.split(text, 1)]
    if len(sides) == 1 or not all(sides) or _RELATION.search(_PROBABILITY.sub("P", text)):
        return None
    name = _name(sides[0])
    if not name and len(sides) == 2 and _name(sides[1]):
        sides.reverse()
        name = _name(sides[0])
    if name:
        told = [(exact.letters(leaf.value), leaf) for leaf in map(valued, sides[1:]) if leaf.value is not None]
        last = dict(told)  # A = \pi r^2 = 25\pi is no contradiction, x = 4 = 5 and y = 3x = 2x are
        return (name, sides[-1]) if all(_agree(leaf, last[letters]) for letters, leaf in told) else None
    values = [*(value_of(compact(side)) for side in sides[:-1]), _leaf(sides[-1]).value]  # 12 - 5 = 7 apples
    return ("", sides[-1]) if values[0] is not None and all(value == values[0] for value in values) else None


def _agree(a: Leaf, b: Leaf) -> bool:
    """Whether two constants are equal, or one a rounding of the other: x = 2/3 = 0.67."""
    one, other = a.value, b.value
    return one is not None and other is not None and (one == other or rounds_to(one, b) or rounds_to(other, a))


def _name(side: str) -> str:
    """One spelling for what is equated: a name, or an expression in several letters (`a^2+b^2`); "" for `2x`, `x^2`."""
    text = compact(side)
    value = value_of(text)
    if _DERIVATIVE.fullmatch(text):
        return re.sub(r"\\frac|[{}/ ]", "", text)
    if value is None:
        named = _NAME.fullmatch(side) or _ASKED.fullmatch(side)
        return text if named and _closing(f"({side})") == len(side) + 2 else ""
    letters = exact.letters(value)
    shown = exact.show(value)
    return shown if len(letters) > 1 or (shown in letters and len(value) == 1) else ""


def equation(text: str) -> list[str]:
    """The sides of an equation; of anything else, the text alone."""
    return _outside(text, {at: at + 1 for at, char in enumerate(text) if char == "="})


def _leaf(text: str) -> Leaf:
    if is_words(text):
        whole = compact(text)
        return Leaf(whole, value_of(whole) if len(whole) <= 3 or PRODUCT.fullmatch(whole) else None, words=True)
    text = _NEARLY.sub("", text)
    bare = _PERCENT.sub("", text)
    if bare != text:
        return valued(bare)._replace(percent=True)
    money = _MONEY.match(text)
    if money:
        amount = _leaf(money[1] + text[money.end() :])
        return amount._replace(unit=" ".join(sorted({*amount.unit.split(), units.key(money[2]) or ""})).strip())
    for start in [found.start() for found in _UNIT_START.finditer(text)][-8:]:
        leaf = _with_unit(text[:start].rstrip(), text[start:], text[:start].endswith(" ")) if start else None
        if leaf:
            return leaf
    return valued(text)


def _with_unit(head: str, tail: str, spaced: bool) -> Leaf | None:
    """The leaf if the head is a constant, and the tail a scale ("million"), a unit, or both."""
    # in `2\pi h` the space only ends the command
    spaced = spaced and (not re.search(r"\\[A-Za-z]+$", head) or re.match("[A-Za-z]{4}", tail) is not None)
    if head.endswith("/") and re.match("[A-Za-z]{3}", tail):  # 7/hour, but 7/h and 7/width are formulas
        head, tail, spaced = head[:-1].rstrip(), f"per {tail}", False
    first, _, others = tail.partition(" ")
    scale = _SCALES.get(first.lower().removesuffix("s"))
    leaf = valued(head)
    value = leaf.value
    if (value is None or exact.has_letters(value)) if not leaf.words else scale:
        return None
    one = value is not None and not scale and 0 < (exact.rational(value) or 0) <= 1
    unit = units.key(tail, spaced, plural=not one) if not scale else units.key(others) if others else ""
    if unit is None:
        return None
    if scale and value is not None:
        leaf = leaf._replace(value=exact.multiply(value, exact.constant(scale)), places=0)
    return leaf._replace(unit=unit)
