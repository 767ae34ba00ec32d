r"""One value as it is written: numbers, closed forms, ratios, dates; knows no names, no units and no lists."""

from __future__ import annotations

import re
from fractions import Fraction
from math import gcd
from typing import NamedTuple

from lit_atex import closed_form, exact
from lit_atex.answer_text import compact

_NUMBER = re.compile(
    r"([+-]?)(?:"
    r"(?:([0-9]+) ?)?\\frac\{(-?[0-9]+)\}\{(-?[0-9]+)\}"
    r"|(?:([0-9]+) )?([0-9]+)/(-?[0-9]+)"
    r"|([0-9]*)\.([0-9]*)\\(?:overline|bar|dot)\{([0-9]+)\}"
    r"|([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:(?:[eE]|(?:\\times|\\cdot|\*) ?10\^)\{?([+-]?[0-9]{1,2})\}?)?)"
)
_INFINITY = re.compile(r"[+-]?\\infty")
_DATE = re.compile(r"[0-9]{1,20}(?: ?-[0-9]{1,20})+|[0-9]{1,20}/[0-9]{1,20}/[0-9]{1,20}")
_RATIO = re.compile(r"[0-9]{1,20}(?::[0-9]{1,20}){1,9}")
_TIME = re.compile(r"[0-9]{1,2}(?::[0-9]{2}){1,2}")


class Leaf(NamedTuple):
    r"""One value, or a text.

    Attributes:
        text: Without name, unit and layout.
        value: None for what is no closed form.
        places: Decimal places that a number is written with; 0 for integers and fractions.
        percent: Whether it had a percent sign, which neither `text` nor `value` has.
        unit: One of `units.key`.
        name: The x of `x = 5`.
        words: Whether it is compared as text alone: letters and spaces, a date, a range of integers, a ratio, a time.
        rounded: The 78.54 of `25\pi \approx 78.54`, if three digits of it count.
    """

    text: str
    value: exact.Value | None = None
    places: int = 0
    percent: bool = False
    unit: str = ""
    name: str = ""
    words: bool = False
    rounded: exact.Value | None = None


def valued(text: str) -> Leaf:
    """What stands for one value, without name and unit."""
    text = compact(text)
    return number(text) or _unsummed(text) or Leaf(text, value_of(text))


def _unsummed(text: str) -> Leaf | None:
    """What may have the signs of arithmetic and be none: a date, a range, a score; a ratio, in its lowest terms."""
    if _DATE.fullmatch(text):
        return Leaf(text.replace(" ", ""), value_of(text), words=True)
    if not _RATIO.fullmatch(text):
        return None
    parts = [int(part) for part in text.split(":")]
    value = exact.constant(Fraction(*parts)) if len(parts) == 2 and parts[1] else None
    least = gcd(*parts) or 1
    return Leaf(text if _TIME.fullmatch(text) else ":".join(str(part // least) for part in parts), value, words=True)


def value_of(text: str) -> exact.Value | None:
    """The exact value of a closed form, or of infinity; None for anything else."""
    if _INFINITY.fullmatch(text):
        return {((r"\infty", Fraction(1)),): Fraction(-1 if text[0] == "-" else 1)}
    try:
        return closed_form.parse(text)
    except exact.Undecided:
        return None


def rounds_to(value: exact.Value, decimal: Leaf, places: int = 1, digits: int = 1) -> bool:
    """Whether a value is what a decimal of so many places and digits that count, at least, was rounded from."""
    written = exact.rational(decimal.value) if decimal.value is not None and decimal.places >= places else None
    if not written or abs(written) < Fraction(10) ** (digits - 1 - decimal.places):  # 0 is rounded from nothing
        return False
    exactly = exact.rational(value) if exact.rational(value) is not None else exact.approximate(value)
    return exactly is not None and abs(exactly - written) * 2 * Fraction(10) ** decimal.places <= 1  # a half either way


def is_about(leaf: Leaf, number: Leaf) -> bool:
    """Whether a number is a constant rounded: to its last place, or its last digit that is not 0; 1/3 may be 33 %."""
    written = exact.rational(number.value) if number.value is not None else None
    if leaf.value is None or written is None or leaf.percent > number.percent:
        return False
    zeros = len(str(written)) - len(str(written).rstrip("0")) if written.denominator == 1 else 0
    places = number.places or -zeros
    if leaf.percent < number.percent:
        written, places = written / 100, places + 2
    return rounds_to(leaf.value, Leaf(number.text, exact.constant(written), places), places)


def number(text: str) -> Leaf | None:
    """A decimal, fraction or mixed number, with the places it is written with; None for anything else."""
    match = _NUMBER.fullmatch(text) if len(text) <= closed_form.MAX_CHARS else None
    if not match:
        return None
    sign, whole, top, bottom, whole2, top2, bottom2, before, still, again, decimal, exponent = match.groups()
    places = 0
    if decimal:
        up = int(exponent or 0)
        before, _, still = decimal.partition(".")
        places = max(0, len(still) - up)
        value = (
            Fraction(int(before + still))
            if up == len(still)
            else int(before + still) * Fraction(10) ** (up - len(still))
        )
    elif again:  # 0.1\overline{6} is 16/90 - 1/90
        above = int(f"{before}{still}{again}") - int(f"0{before}{still}")
        value = Fraction(above, 10 ** len(still + again) - 10 ** len(still))
    else:
        whole, top, bottom = (whole, top, bottom) if top else (whole2, top2, bottom2)
        if int(bottom) == 0 or (whole and (top.startswith("-") or bottom.startswith("-"))):
            return None
        value = int(whole or 0) + Fraction(int(top), int(bottom))
    return Leaf(text, exact.constant(-value if sign == "-" else value), places)
