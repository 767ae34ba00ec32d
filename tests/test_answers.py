"""What counts as an equal answer: the table of pairs, spellings made by construction, and majority votes."""

import cmath
import csv
import math
import random
import re
import sys
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import isqrt
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_atex import exact
from lit_atex.closed_form import parse
from lit_atex.equivalence import decide
from lit_atex.types import Verdict
from lit_atex.verify import Verifier, canonical

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

# The kinds that the issue names, and what else is likely to be met.
KINDS = {
    *("integer", "decimal", "percent", "currency", "thousands", "fraction", "mixed", "root", "power", "pi", "interval"),
    *("set", "tuple", "matrix", "equation", "unit", "choice", "text", "complex", "function", "box", "code"),
}


def rows() -> list[dict[str, str]]:
    with open(ROOT / "tests" / "answers.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    verifier = Verifier(timeout=30.0)  # these tests ask what is equal; a busy machine must not decide
    yield verifier
    verifier.close()


def test_the_table_has_right_and_wrong_pairs_of_every_kind_with_their_reasons() -> None:
    verdicts = Counter((row["kind"], row["verdict"]) for row in rows())
    assert len({(row["prediction"], row["reference"]) for row in rows()}) == len(rows()) >= 500
    assert {kind for kind, _ in verdicts} == KINDS
    assert all(len(row["reason"]) > 3 for row in rows())
    assert {row["by"] for row in rows()} == {"here", "worker"}  # others would be tested by nobody: a comma wants quotes
    for kind in KINDS:
        assert verdicts[kind, "correct"]
        assert verdicts[kind, "wrong"] + verdicts[kind, "unparsed"] >= 2


@pytest.mark.parametrize("row", [row for row in rows() if row["by"] == "here"], ids=lambda row: row["reason"])
def test_decided_without_the_worker(row: dict[str, str]) -> None:
    verifier = Verifier(timeout=1e-9)  # every question to the worker would time out
    assert verifier.verify([rf"so \boxed{{{row['prediction']}}}"], [row["reference"]]) == [Verdict(row["verdict"])]
    assert verifier._worker._process is None


@pytest.mark.parametrize("row", [row for row in rows() if row["by"] == "worker"], ids=lambda row: row["reason"])
def test_decided_by_the_worker(verifier: Verifier, row: dict[str, str]) -> None:
    assert decide(row["reference"], row["prediction"]) is None
    assert verifier.verify([rf"so \boxed{{{row['prediction']}}}"], [row["reference"]]) == [Verdict(row["verdict"])]


def test_most_answers_need_no_worker() -> None:
    assert sum(row["by"] == "here" for row in rows()) > 0.9 * len(rows())


@pytest.mark.slow
def test_the_document_lists_every_disagreement_with_math_verify() -> None:
    from verify import against_math_verify, as_table  # benchmarks/verify.py

    _, applied, disagreements = against_math_verify()
    document = (ROOT / "docs" / "answers.md").read_text(encoding="utf-8")
    judged = document.partition("Judged one by one")[2]
    listed = [line for line in judged.splitlines() if re.match(r"\| \w+ \| `", line)]
    assert [line.rsplit("|", 2)[0] + "|" for line in listed] == as_table(disagreements)
    assert all(line.rsplit("|", 2)[1].strip().startswith(("ours: ", "choice: ")) for line in listed)
    assert f"{applied - len(disagreements)} of {applied}" in document


# Spellings of one value, and a neighbour of it. Everything here is right, or wrong, by construction.


def _written(rng: random.Random, value: Fraction) -> str:
    sign, above, below = ("-" if value < 0 else ""), abs(value.numerator), value.denominator
    k = rng.randint(2, 9)
    forms = [
        f"{sign}{above}/{below}",
        rf"{sign}\frac{{{above}}}{{{below}}}",
        rf"\dfrac{{{sign}{above * k}}}{{{below * k}}}",
    ]
    if below == 1:
        forms = [f"{sign}{above}", f"{sign}{above:,}", f"{sign}{above:03d}", f"{sign}{above}.0"]
    elif above > below:
        forms += [f"{sign}{above // below} {above % below}/{below}"]
        forms += [rf"{sign}{above // below}\frac{{{above % below}}}{{{below}}}"]
    if set(exact._factors(below)) <= {(2, n) for n in range(20)} | {(5, n) for n in range(20)}:
        forms += [str(float(value))]
    return rng.choice(forms)


def _surd(rng: random.Random, value: Fraction, under: int) -> str:
    """A rational multiple of a root."""
    k = rng.randint(2, 5)
    above, below = value.numerator, value.denominator
    plain = rf"\frac{{{above}\sqrt{{{under}}}}}{{{below}}}"
    return rng.choice(
        [plain, rf"\frac{{{above}}}{{{below * k}}}\sqrt{{{under * k * k}}}", f"{above}sqrt({under})/{below}"]
    )


def constructed(count: int, seed: int) -> Iterator[tuple[str, str, bool]]:
    """Answers, references, and whether they are equal; of the ordinary kinds, about half of them right."""
    rng = random.Random(seed)
    for number in range(count):
        right = rng.random() < 0.5
        a, b = (Fraction(rng.randint(-200, 2000), rng.choice([1, 1, 1, 2, 3, 4, 5, 7, 8, 12, 20])) for _ in "ab")
        shift = 0 if right else rng.choice([1, -1, Fraction(1, 2), 10])
        b = a + 10 + abs(b)  # so that [a, b) is not empty
        w = [_written(rng, value) for value in (a, a + shift, b, b)]
        under = rng.choice([2, 3, 5, 6, 7, 10, 11])
        answer, reference = [
            (rng.choice([w[1], f"${w[1]}$"]), w[0]),
            (f"x = {w[1]}", w[0]),
            (rf"{w[1]}\text{{ cm}}", f"{w[0]} cm"),
            (f"({w[1]}, {w[2]})", f"({w[0]},{w[3]})"),
            (rf"\{{{w[2]}, {w[1]}\}}".replace(".0", ""), rf"\{{{w[0]}; {w[3]}\}}"),
            (f"[{w[1]}, {w[2]})", f"[{w[0]}, {w[3]})"),
            (_surd(rng, a + shift, under), _surd(rng, a, under)),
            (rf"{a.numerator + int(shift != 0)}\pi/{a.denominator}", rf"\frac{{{a.numerator}}}{{{a.denominator}}} \pi"),
        ][number % 8]
        if "," in w[1] + w[2] + w[3] + w[0] and number % 8 in (3, 4, 5):
            answer, reference, right = "7", "007", True  # thousands inside a list are read as a list
        yield answer, reference, right


def test_spellings_by_construction_are_decided_rightly_without_the_worker() -> None:
    wrong = []
    for answer, reference, right in constructed(4000, 0):
        verdict = decide(reference, answer)
        if verdict is not (Verdict.CORRECT if right else Verdict.WRONG):
            wrong.append((answer, reference, right, verdict))
    assert not wrong


def test_canonical_is_one_spelling_where_the_verdict_is_correct() -> None:
    votes = 0
    for answer, reference, right in constructed(2000, 1):
        assert (canonical(answer) == canonical(reference)) is right
        votes += right
    assert votes > 800


@pytest.mark.parametrize(
    ("spellings", "vote"),
    [
        (["0.5", r"\frac{1}{2}", "1/2", ".50", r"\dfrac{2}{4}", "50/100", "½", "x = 0.5"], "1/2"),
        (["007", "7", "7.0", "7.", "+7", "$7$", r"\text{7}", "7 cm", "7%", r"\$7"], "7"),
        (["(1, 2)", "(1,2)", r"\left(1, 2\right)", "(1.0,2)"], "(1,2)"),
        (["2, 1", "1,2", r"\{1, 2\}", r"\{2,1\}", "1 and 2"], "{1,2}"),
        ([r"2\sqrt{3}", r"\sqrt{12}", "√12", r"\frac{6}{\sqrt{3}}"], "2*3^(1/2)"),
        (["(x+1)^2", "x^2+2x+1", "1+2x+x²"], "x^(2)+2*x+1"),
        (["(B)", "B", "b.", r"\textbf{(B) }12"], "b"),
        (["Monday", r"\text{monday}", "MONDAY."], "monday"),
        ([r"(-\infty, 3]", r"x \le 3", "3 >= x"], r"(-\infty,3]"),
        ([r"\emptyset", r"\{\}"], "{}"),
        (["", " ", "$$", r"\quad"], ""),
    ],
)
def test_votes(spellings: list[str], vote: str) -> None:
    assert {canonical(spelling) for spelling in spellings} == {vote}


@pytest.mark.parametrize(
    ("a", "b"),
    [
        *[("3x+2y-7=0", "5x-y+1=0"), ("x^2+y^2=25", "x^2-y^2=25"), (r"7\pmod{12}", r"-7\pmod{12}"), ("(1,2)", "(2,1)")],
        *[("(1,2)", "[1,2]"), ("0.5%", "0.5"), ("x", "X"), ("1,2", "(1,2)"), ("2x", "x^2"), ("5", "-5")],
    ],
)
def test_votes_that_are_kept_apart(a: str, b: str) -> None:
    assert canonical(a) != canonical(b)


def test_names_are_no_equations() -> None:
    for named in ("x-intercept = 5", "f(x+1) = 5", "x = 5", "AB = 5"):
        assert canonical(named) == "5"


@pytest.mark.slow
@given(st.text(max_size=60))
@example("\ud800")
@example("9^{9^{9^9}}")
@example("{" * 10_000)
@example("x" * 1_000_000)
@settings(max_examples=300, deadline=None)
def test_votes_are_pure_and_never_raise(text: str) -> None:
    assert isinstance(canonical(text), str)
    assert canonical(text) == canonical(text)


@given(st.integers(0, 10**4), st.integers(1, 60), st.integers(1, 60))
@settings(max_examples=200, deadline=None)
def test_exact_arithmetic_of_roots(n: int, a: int, b: int) -> None:
    value = parse(rf"\sqrt{{{n}}}")
    assert exact.multiply(value, value) == exact.constant(n)
    assert exact.has_letters(value) is False
    approximation = exact.approximate(value)
    assert approximation is not None
    assert isqrt(n) <= approximation < isqrt(n) + 1
    assert parse(rf"\frac{{{a}}}{{\sqrt{{{b}}}}}") == parse(rf"\frac{{{a}\sqrt{{{b}}}}}{{{b}}}")
    if n:
        assert exact.divide(exact.multiply(value, exact.constant(a)), value) == exact.constant(a)


def test_roots_of_one_are_those_of_floats() -> None:
    for twelfths in range(-25, 26):
        value = parse(rf"e^{{{twelfths}\pi i/12}}")
        total = sum(
            complex(factor) * math.prod((1j if symbol == "i" else int(symbol)) ** float(up) for symbol, up in monomial)
            for monomial, factor in value.items()
        )
        assert cmath.isclose(total, cmath.exp(1j * math.pi * twelfths / 12), abs_tol=1e-12)


@pytest.mark.parametrize(
    "text", ["9^{9^{9^9}}", "1/0", "0^0", "1/2x", "sin x", "f(x)", "(" * 31 + "1" + ")" * 31, "x!", "1 2"]
)
def test_what_is_left_undecided(text: str) -> None:
    with pytest.raises(exact.Undecided):
        parse(text)


@pytest.mark.parametrize(
    "bomb", ["(1+x)^{31}+" * 36 + "1", "2^{999}" * 50, r"\sqrt{" * 60, "(" * 390, "1/" * 199 + "3"]
)
def test_values_stay_small(bomb: str) -> None:
    try:
        value = parse(bomb[:400])
    except exact.Undecided:
        return
    assert len(value) <= exact.MAX_TERMS
    assert all(abs(factor.numerator).bit_length() <= exact.MAX_BITS for factor in value.values())


@pytest.mark.parametrize(
    ("reference", "answer", "verdict"),
    [
        ("3", "1 2", Verdict.WRONG),  # math-verify adds them
        ("7", r"3\;4", Verdict.WRONG),
        ("(3, 4)", "(1 2, 4)", Verdict.WRONG),
        ("3.5", "1.5 2", Verdict.WRONG),
        ("3", r"\log_2 8", Verdict.CORRECT),
        ("3/2", "1 1/2", Verdict.CORRECT),
    ],
)
def test_numbers_side_by_side_are_no_sum(verifier: Verifier, reference: str, answer: str, verdict: Verdict) -> None:
    assert verifier.verify([rf"\boxed{{{answer}}}"], [reference]) == [verdict]


def test_a_list_beyond_what_is_read_is_no_set() -> None:
    long = ",".join(["5"] * 401)
    assert [decide("5", long), decide(long, "5"), decide(long, long)] == [
        Verdict.UNPARSED,
        Verdict.WRONG,
        Verdict.CORRECT,
    ]


def test_a_constant_beyond_any_number_is_no_error(verifier: Verifier) -> None:
    """A tower of powers of pi that decimals cannot hold; an overflow was reported as a mistake of ours."""
    for tower in (r"((\pi^{999})^{999})^{999}", r"((e^{-999})^{999})^{999}"):
        assert verifier.verify([rf"\boxed{{{tower}}}"], ["3.141593"]) == [Verdict.WRONG]
