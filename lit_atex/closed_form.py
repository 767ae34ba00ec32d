r"""Closed forms (`\frac{1}{2}`, `2\sqrt{3}+x^2`, `sqrt(2)/2`) read into exact values; knows no answers and no prose."""

from __future__ import annotations

import re
from fractions import Fraction

from lit_atex.exact import Undecided, Value, add, constant, divide, modulus, multiply, power, root

MAX_CHARS = 400
MAX_DEPTH = 30  # of brackets

_TOKEN = re.compile(
    r"[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+|\\[A-Za-z]+|sqrt(?![A-Za-z])|[A-Za-z](?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9]{1,8}\}))?|\S"
)
_COMMAND = re.compile(r"\\[A-Za-z]+|sqrt(?![A-Za-z])")
# Words, and functions of what follows them: read as products of letters they would equate what is different.
_NO_PRODUCT = re.compile(r"[A-Za-z]{4}|sin|cos|tan|sec|csc|cot|log|exp|ln|lg|lim|max|min|gcd|lcm|mod|det|[fgh](?=\()")
GREEK = frozenset(
    "\\" + name
    for name in (
        *("alpha", "beta", "gamma", "delta", "epsilon", "varepsilon", "zeta", "eta", "theta", "vartheta", "kappa"),
        *("lambda", "mu", "nu", "xi", "rho", "pi", "sigma", "tau", "phi", "varphi", "chi", "psi", "omega", "ell"),
        *("Gamma", "Delta", "Theta", "Lambda", "Sigma", "Phi", "Psi", "Omega"),
    )
)


def parse(text: str) -> Value:
    r"""The value of an expression in LaTeX or plain notation (`\frac{1}{2}`, `2\sqrt{3}+x^2`, `sqrt(2)/2`).

    Raises:
        Undecided: If the text is anything else, ambiguous (`1/2x`), or too large.
    """
    if len(text) > MAX_CHARS or _NO_PRODUCT.search(_COMMAND.sub(" ", text)):
        raise Undecided
    return _Parser(_TOKEN.findall(text)).whole()


class _Parser:
    """Recursive descent over a bounded number of tokens, to a bounded depth."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.at, self.depth = [*tokens, ""], 0, 0

    def whole(self) -> Value:
        value = self._sum()
        if self._peek():
            raise Undecided
        return value

    def _peek(self) -> str:
        return self.tokens[self.at]

    def _take(self, *allowed: str) -> bool:
        found = self._peek() in allowed
        self.at += found
        return found

    def _sum(self) -> Value:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Undecided
        total = add({}, self._product(), -1) if self._sign() < 0 else self._product()
        while self._peek() in ("+", "-"):
            sign = 1 if self._take("+") or not self._take("-") else -1
            total = add(total, self._product(), sign)
        self.depth -= 1
        return total

    def _sign(self) -> int:
        self._take("+")
        return -1 if self._take("-") else 1

    def _product(self) -> Value:
        product, divided = self._factor(), False
        while True:
            token, before = self._peek(), self.tokens[self.at - 1]
            if token == "*" or token in (r"\cdot", r"\times"):
                self.at += 1
                if self._peek() == "*":
                    raise Undecided
                product, divided = multiply(product, self._factor(signed=True)), False
            elif token in ("/", r"\div"):
                self.at += 1
                product, divided = divide(product, self._factor(signed=True)), True
            elif (
                token in ("(", "{", "sqrt") or token[:1].isalpha() or (token in GREEK or token in (r"\frac", r"\sqrt"))
            ):
                if divided or (token == r"\frac" and before[:1].isdigit()):
                    raise Undecided  # 1/2x; 3\frac{1}{2} is read as a mixed number, where it is one
                product = multiply(product, self._factor())
            else:
                return product

    def _factor(self, signed: bool = False) -> Value:
        sign = self._sign() if signed else 1
        base = self._atom()
        if self._take("^") or (self._peek() == self.tokens[min(self.at + 1, len(self.tokens) - 1)] == "*"):
            while self._take("*"):
                pass
            base = power(base, self._exponent())
            if self._peek() in ("^", "!"):
                raise Undecided
        return multiply(constant(sign), base) if sign < 0 else base

    def _exponent(self) -> Value:
        sign = self._sign()
        return multiply(constant(sign), self._atom())

    def _atom(self) -> Value:
        token = self._peek()
        self.at += 1
        if "0" <= token[:1] <= "9" or (token[:1] == "." and len(token) > 1):
            return constant(Fraction(token))
        if token in ("(", "{"):
            value = self._sum()
            if not self._take(")" if token == "(" else "}"):
                raise Undecided
            return value
        if token in ("|", r"\lvert"):
            value = modulus(self._sum())
            if not self._take("|" if token == "|" else r"\rvert"):
                raise Undecided
            return value
        if token == r"\frac":
            return divide(self._argument(), self._argument())
        if token == r"\sqrt":
            degree = constant(2)
            if self._take("["):
                degree = self._sum()
                if not self._take("]"):
                    raise Undecided
            return root(self._argument(), degree)
        if token == "sqrt" and self._peek() == "(":
            return root(self._atom(), constant(2))
        if token in GREEK or (token[:1].isascii() and token[:1].isalpha() and token != "sqrt"):
            return {((token.replace("{", "").replace("}", ""), Fraction(1)),): Fraction(1)}
        raise Undecided

    def _argument(self) -> Value:
        """What LaTeX takes as one argument: a group, or a single character."""
        token = self._peek()
        if token not in ("{", "(") and len(token) > 1 and token not in GREEK:
            raise Undecided
        return self._atom()
