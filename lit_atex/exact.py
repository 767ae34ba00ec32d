r"""Exact arithmetic on the values that answers have, in bounded time; knows no notation and no sympy.

A value is a sum of monomials with rational coefficients, over roots of primes (2^{1/2}, 3^{2/3}), pi, e, i and letters.
Roots of primes are linearly independent over the rationals (Besicovitch 1940) and letters are independent of them, so
two values are equal if and only if their sums are. What cannot be written so, or not small, is `Undecided`.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from fractions import Fraction

Monomial = tuple[tuple[str, Fraction], ...]  # sorted (symbol, exponent); primes are written "2", "3", ...
Value = dict[Monomial, Fraction]

MAX_TERMS = 32
MAX_BITS = 2048  # of a coefficient's numerator or denominator

_TRIAL = 1000  # radicands are factored by dividing up to here
_ONE: Monomial = ()
_I: Monomial = (("i", Fraction(1)),)
_TURN: Monomial = (("\\pi", Fraction(1)), ("i", Fraction(1)))
_CONSTANTS = {  # to 62 digits
    "\\pi": Decimal("3.14159265358979323846264338327950288419716939937510582097494459"),
    "e": Decimal("2.71828182845904523536028747135266249775724709369995957496696763"),
}


class Undecided(Exception):
    """Not a closed form that is understood here; says nothing about equality."""


def show(value: Value) -> str:
    """One spelling for each value; reads like `2*3^(1/2)+1`."""

    def term(monomial: Monomial, factor: Fraction) -> str:
        symbols = "*".join(s if e == 1 else f"{s}^({e})" for s, e in monomial)
        if not symbols:
            return str(factor)
        return symbols if factor == 1 else f"-{symbols}" if factor == -1 else f"{factor}*{symbols}"

    return "+".join(term(*t) for t in sorted(value.items(), reverse=True)).replace("+-", "-") or "0"


def constant(factor: Fraction | int) -> Value:
    """A rational number as a value."""
    return {_ONE: Fraction(factor)} if factor else {}


def rational(value: Value) -> Fraction | None:
    """The rational number that a value is, None if it is not one."""
    if not value:
        return Fraction(0)
    return value.get(_ONE) if len(value) == 1 else None


def letters(value: Value) -> frozenset[str]:
    """What a value has besides constants."""
    return frozenset(s for m in value for s, _ in m if not (s.isdigit() or s == "i" or s in _CONSTANTS))


def has_letters(value: Value) -> bool:
    """Whether a value is no constant."""
    return bool(letters(value))


def approximate(value: Value) -> Fraction | None:
    """A real constant to about 50 digits; None for what is not real, not constant, or beyond 10^30."""
    total = Decimal(0)
    with localcontext(prec=60) as context:
        context.clear_traps()  # what is too large is no number, and no error
        for monomial, factor in value.items():
            term = Decimal(factor.numerator) / Decimal(factor.denominator)
            for symbol, exponent in monomial:
                if not (symbol.isdigit() or symbol in _CONSTANTS):
                    return None
                base = _CONSTANTS.get(symbol) or Decimal(symbol)
                term *= base ** (Decimal(exponent.numerator) / Decimal(exponent.denominator))
            total += term
    return Fraction(total) if total.is_finite() and abs(total) < Decimal(10) ** 30 else None


def add(a: Value, b: Value, sign: int = 1) -> Value:
    """The sum, or the difference with `sign` -1."""
    total = dict(a)
    for monomial, factor in b.items():
        factor = -factor if sign < 0 else factor
        total[monomial] = total[monomial] + factor if monomial in total else factor
    return _bounded(total)


def multiply(a: Value, b: Value) -> Value:
    """The product, with every root reduced."""
    if len(a) * len(b) > 400:
        raise Undecided
    if len(a) == len(b) == 1 and (_ONE in a or _ONE in b):  # the usual case: one factor is a number
        ((left, p),), ((right, q),) = a.items(), b.items()
        return _bounded({left or right: p * q})
    total: Value = {}
    for left, p in a.items():
        for right, q in b.items():
            monomial, factor = _reduced([*left, *right], p * q)
            total[monomial] = total[monomial] + factor if monomial in total else factor
    return _bounded(total)


def divide(a: Value, b: Value) -> Value:
    """The quotient; a denominator of several terms must become one term when its square roots are conjugated away."""
    for _ in range(4):
        if len(b) <= 1:
            break
        root = next((s for m in b for s, e in m if s == "i" or (s.isdigit() and e == Fraction(1, 2))), None)
        if root is None:
            raise Undecided
        conjugate = {m: -f if root in dict(m) else f for m, f in b.items()}
        a, b = multiply(a, conjugate), multiply(b, conjugate)
    if len(b) != 1:
        raise Undecided  # also division by zero
    ((monomial, factor),) = b.items()
    return multiply(a, dict([_reduced([(s, -e) for s, e in monomial], 1 / factor)]))


def power(base: Value, exponent: Value) -> Value:
    """A whole power of anything small, or a root of a rational number."""
    up = rational(exponent)
    if up is None and base == {(("e", Fraction(1)),): Fraction(1)} and set(exponent) == {_TURN}:
        return _on_circle(exponent[_TURN])
    if up is None or abs(up) > 999 or up.denominator > 12:
        raise Undecided
    if up.denominator == 1:
        if up <= 0 and not base:
            raise Undecided
        result, square, times = constant(1), base, abs(int(up))
        while times:  # `multiply` gives up as soon as either grows
            result = multiply(result, square) if times % 2 else result
            times //= 2
            square = multiply(square, square) if times else square
        return result if up >= 0 else divide(constant(1), result)
    under = rational(base)
    if under is None or (under < 0 and up.denominator != 2) or (not under and up < 0):
        raise Undecided  # (-8)^{1/3} is -2 to some and complex to others
    return _root(under, up)


def _on_circle(turn: Fraction) -> Value:
    r"""Euler's formula: `e^{i\pi turn}` for multiples of a twelfth, in roots."""
    if (12 * turn).denominator != 1 or abs(turn) > 999:
        raise Undecided
    half, times = Fraction(1, 2), int(12 * turn) % 24
    third: Value = {_ONE: half, (("3", half), *_I): half}
    quarter: Value = {(("2", half),): half, (("2", half), *_I): half}
    return multiply(power(third, constant(times % 6)), power(quarter, constant(-times % 8)))  # 1/12 is 1/3 - 1/4


def root(under: Value, degree: Value) -> Value:
    r"""`\sqrt[degree]{under}`; odd roots of negative numbers are real."""
    order, radicand = rational(degree), rational(under)
    if order is None or radicand is None or order.denominator != 1 or not 2 <= order <= 12:
        raise Undecided
    if radicand < 0 and order % 2:
        return multiply(constant(-1), _root(-radicand, 1 / order))
    return power(under, constant(1 / order))


def modulus(value: Value) -> Value:
    """The absolute value of a constant whose square is rational."""
    conjugate = {monomial: -factor if ("i", Fraction(1)) in monomial else factor for monomial, factor in value.items()}
    square = rational(multiply(value, conjugate))
    if square is None or has_letters(value):
        raise Undecided
    return power(constant(square), constant(Fraction(1, 2)))


def _bounded(value: Value) -> Value:
    value = {m: f for m, f in value.items() if f}
    if len(value) > MAX_TERMS:
        raise Undecided
    if any(max(f.numerator.bit_length(), f.denominator.bit_length()) > MAX_BITS for f in value.values()):
        raise Undecided
    return value


def _reduced(symbols: list[tuple[str, Fraction]], factor: Fraction) -> tuple[Monomial, Fraction]:
    """One monomial: exponents of primes in (0, 1), i at most once; what is rational goes into the factor."""
    exponents: dict[str, Fraction] = {}
    for symbol, exponent in symbols:
        exponents[symbol] = exponents[symbol] + exponent if symbol in exponents else exponent
    for symbol in list(exponents):
        if symbol == "i":
            turns = int(exponents[symbol]) % 4
            factor, exponents[symbol] = (-factor if turns >= 2 else factor), Fraction(turns % 2)
        elif symbol.isdigit():
            whole = math.floor(exponents[symbol])
            if whole:
                factor, exponents[symbol] = factor * Fraction(int(symbol)) ** whole, exponents[symbol] - whole
    return tuple(sorted((s, e) for s, e in exponents.items() if e)), factor


def _root(under: Fraction, up: Fraction) -> Value:
    if not under:
        return {}
    symbols = [("i", Fraction(up.numerator))] if under < 0 else []
    for number, sign in ((abs(under.numerator), 1), (under.denominator, -1)):
        symbols += [(str(prime), sign * up * times) for prime, times in _factors(number)]
    if any(abs(e) > 999 for _, e in symbols):
        raise Undecided
    return _bounded(dict([_reduced(symbols, Fraction(1))]))


def _factors(number: int) -> list[tuple[int, int]]:
    found, prime = [], 2
    while prime <= _TRIAL and prime * prime <= number:
        times = 0
        while number % prime == 0:
            number, times = number // prime, times + 1
        if times:
            found.append((prime, times))
        prime += 1 if prime == 2 else 2
    if number > 1:
        square = math.isqrt(number)
        prime, times = (square, 2) if square * square == number else (number, 1)
        if prime > _TRIAL**2:
            raise Undecided  # may be composite
        found.append((prime, times))
    return found
