"""Hints: the steps are the solution, nothing is split that must stay whole, more exposure never shows less."""

from __future__ import annotations

import re
import time
from itertools import combinations

import pytest
from fakes import SIX, byte_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st

from lit_atex.prompts import PromptStyle
from lit_atex.reveal import KINDS, borrow, joined, material, other, scattered
from lit_atex.steps import answer_begins, keep_whole, split_steps, step_borders
from lit_atex.types import Problem
from lit_atex.verify import Verifier


def reveal(solution, ratio, borders=None, hide_answer=False, kind="prefix") -> str:
    return joined(KINDS[kind](material(solution, borders, hide_answer), ratio))


# Text made of what solutions are made of, put together by chance: most of it is broken, as strangers' solutions are.
PIECES = [
    *["\\boxed{", "\\fbox{", "{", "}", "\\{", "\\}", "$", "$$", "\\[", "\\]", "\\(", "\\)", "\\\\", "\\$", "\\"],
    *["\\begin{align}", "\\end{align}", "\n", "\n\n", " ", "\t", ". ", "! ", "? ", ".", ",", ": ", "; ", '." '],
    *["Then ", "so", "Dr", "e.g", "A", "Step 3", "1", "23", "3.14", "1,000", "-5e3", "1/2", "10:30", "1) ", "(2) "],
    *["é", "数", "🙂", "\u2028", "\x00", "#### 5", "%", "+", "-"],
]
SOLUTIONS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=80))
RATIOS = st.floats(0, 1)
BYTES = byte_tokenizer()


def token_borders(solution: str) -> list[int]:
    """Borders at every byte's character, as a tokenizer of bytes has them: the finest cut there is."""
    return PromptStyle(unit="token")._borders(solution, BYTES)


def matching_brace(text: str, opening: int) -> int:
    """Offset after the brace that closes the one at `opening`; the text's length if none does. Recursive, by letter."""
    at = opening + 1
    while at < len(text):
        if text[at] == "\\":
            at += 2
        elif text[at] == "{":
            at = matching_brace(text, at)
        elif text[at] == "}":
            return at + 1
        else:
            at += 1
    return len(text)


def box_interiors(text: str) -> set[int]:
    """Offsets strictly inside a box, found letter by letter."""
    inside: set[int] = set()
    at = 0
    while at < len(text):
        mark = next((m for m in ("\\boxed{", "\\fbox{") if text.startswith(m, at)), None)
        if mark:
            inside |= set(range(at + 1, matching_brace(text, at + len(mark) - 1)))
        at += 2 if text[at] == "\\" else 1
    return inside


# Steps


@given(SOLUTIONS)
@example(" \n ")
@example("")
def test_steps_joined_are_the_solution_and_none_is_white_space(solution: str) -> None:
    steps = split_steps(solution)
    assert "".join(steps) == (solution if solution.strip() else "")
    assert all(step.strip() for step in steps)
    assert step_borders(solution) == sorted(set(step_borders(solution)))


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("Add two.\nThe sum is 5.\n#### 5", ["Add two.\n", "The sum is 5.\n", "#### 5"]),
        ("One line\r\nand two\r\n", ["One line\r\n", "and two\r\n"]),
        ("Add them.  Then stop! Why? \"So it is.\" 'Yes.' (Never.) $x$ is 1.", 7),
        ("Four times six is 24. So it is \\boxed{24}.", ["Four times six is 24. ", "So it is \\boxed{24}."]),
        ("It is 7. It is 12! It is 5%. It is 1/2. It is 3.14. End", 6),
        ("lower case follows. so no border", 1),
        ("1. Divide 9 by 2. 2. This is $4.5$. 3. Stop", ["1. Divide 9 by 2. ", "2. This is $4.5$. ", "3. Stop"]),
        ("1. Divide.\n2. Add.\n  10. Stop.", ["1. Divide.\n", "2. Add.\n  ", "10. Stop."]),
        ("Do this: 1. Divide. 2. Add.", ["Do this: 1. Divide. ", "2. Add."]),
        ("1) divide; 2) add; 3) stop", ["1) divide; ", "2) add; ", "3) stop"]),
        ("(1) Divide. (2) Add.", ["(1) Divide. ", "(2) Add."]),
        ("**1. Divide** it.\n**2. Add** it.", ["**1. Divide** it.\n", "**2. Add** it."]),
        ("Start Step 1: add Step 2: divide", ["Start ", "Step 1: add ", "Step 2: divide"]),
        ("Step 3. Add. Step 4. Stop.", ["Step 3. Add. ", "Step 4. Stop."]),
        ("By equation (2) $x = 3$ and by (3) Euler wins.", 1),
        ("Use a prime, e.g. Seven, i.e. $7$, cf. Euler, see Fig. 3, Eq. (2), No. 5 or Dr. Who.", 1),
        ("By Thm. 2, Prop. 3, Lem. 4, Sec. 5, Ch. 6, Ex. 7, Prob. 8, p. 9, approx. 10, resp. $x$, etc. Add.", 1),
        (r"Let $a=1.$ Then $b=2.$ So \(c=3.\) Hence $a+b+c=\boxed{6}.$", 4),
        ("By J. S. Bach. He wrote it.", ["By J. S. Bach. ", "He wrote it."]),
        ("In the casino. Then he left.", ["In the casino. ", "Then he left."]),  # "no." is not "No."
        (f"Ask Dr.{' ' * 30}Who.", 1),
        (f"In the VeNo.{' ' * 13}Then.", 2),  # a window on the text must not turn a word's end into an abbreviation
        ("\n\nFirst.\n\n\nSecond.\n\n", ["\n\nFirst.\n\n\n", "Second.\n\n"]),
    ],
)
def test_what_a_step_is(solution: str, steps: int | list[str]) -> None:
    found = split_steps(solution)
    assert found == steps if isinstance(steps, list) else len(found) == steps, found


@pytest.mark.parametrize(
    "whole",
    [
        "$a. B$",
        "$$a. B$$",
        "$$\na. B\n\nC. D\n$$",
        "\\[\na. B\n\\]",
        "\\(a. B\\)",
        "$\\text{cost \\$5. B}$",
        "\\begin{align}\na &= b. \\\\\nC &= d\n\\end{align}",
        "\\begin{align*}\na\nb\n\\end{align*}",
        "```python\na. B\nC\n```",
        "[asy]\na. B\nC\n[/asy]",
        "\\boxed{a. B\nC}",
        "\\boxed{\\frac{1}{2}. {{B. C}. D}\n\\text{E. F}}",
        "\\boxed{\\left\\{ 1. A\n2 \\right.}",
        "\\fbox{a. B}",
        "\\boxed {a. B}",
    ],
)
def test_formulas_and_boxes_are_not_split(whole: str) -> None:
    assert split_steps(f"We have {whole} here. Then {whole}. So be it.") == [
        f"We have {whole} here. ",
        f"Then {whole}. ",
        "So be it.",
    ]


@pytest.mark.parametrize(
    ("solution", "steps"),
    [
        ("Say \\boxed{1. Then it\nnever. Ends", 1),  # unclosed: to the end
        ("Say \\boxed{\\boxed{1. A} B. C", 1),
        ("Say \\[ x. Then. Stop", 3),  # an unclosed formula is text
        ("Say \\begin{a} x. Then. Stop \\end{b}", 3),
        ("Say $ x. Then\nit $ stops. There", 4),  # one dollar does not reach over lines
        ("It costs $5. She pays $6. Then she goes.", 3),  # money
        ("It costs \\$5. Then $x. Y$ is it. Stop", ["It costs \\$5. ", "Then $x. Y$ is it. ", "Stop"]),
        ("A break \\\\[2pt] here. Then \\] there. Stop", 3),  # not the opening of a formula
        ("$$ x. A $y. B$ there. Stop", ["$$ x. ", "A $y. B$ there. ", "Stop"]),
        ("$$$$ x. A $$$ y. B", 3),
    ],
)
def test_broken_mark_up(solution: str, steps: int | list[str]) -> None:
    found = split_steps(solution)
    assert found == steps if isinstance(steps, list) else len(found) == steps, found


@given(SOLUTIONS)
@example("\\boxed{a. B} Then. \\boxed{\\{. C}")
@example("\\boxed{ {. A}. B")
def test_no_border_is_inside_a_box(solution: str) -> None:
    inside = box_interiors(solution)
    assert not inside & set(step_borders(solution))
    assert not inside & set(token_borders(solution))


def test_the_oracle_of_boxes_sees_boxes() -> None:
    assert box_interiors("a\\boxed{{1}}b") == set(range(2, 12))
    assert box_interiors("\\boxed{1") == set(range(1, 8))
    assert box_interiors("\\\\boxed{1}") == set()  # a line break, then a word


@pytest.mark.parametrize(
    "number",
    [
        "3.14",
        "1,000",
        "1,234,567.89",
        "1/2",
        "10:30",
        "-5e3",
        "+7",
        "−4",
        "2.5E-10",
        ".5",
        "50%",
        "1{,}000",
        "1,\\!000",
    ],
)
def test_no_border_is_inside_a_number(number: str) -> None:
    solution = f"so x = {number} is it"
    start = solution.index(number)
    borders = token_borders(solution)
    assert not set(borders) & set(range(start + 1, start + len(number)))
    assert {start, start + len(number)} <= set(borders)  # yet next to it there are borders
    assert split_steps(solution) == [solution]


@given(st.lists(st.from_regex(r"-?\d{1,6}([.,]\d{1,3}){0,2}", fullmatch=True), min_size=1, max_size=8))
def test_every_hint_of_numbers_ends_with_a_whole_number(numbers: list[str]) -> None:
    solution = " ".join(numbers)
    borders = token_borders(solution)
    for i in range(len(borders) + 1):
        hint = reveal(solution, i / len(borders), borders)
        assert hint == " ".join(numbers[: len(hint.split())])


def test_keep_whole_sorts_and_drops_what_is_not_a_border() -> None:
    assert keep_whole("abcd", [3, 0, 1, 1, 9, -2], math=False) == [1, 3, 4]
    assert keep_whole("a $b$", [3, 4], math=False) == [3, 4, 5]
    assert keep_whole("a $b$", [3, 4], math=True) == [5]
    assert keep_whole("", [0], math=True) == []


# Ratios


@given(SOLUTIONS, RATIOS, RATIOS, st.booleans(), st.booleans())
def test_more_exposure_never_shows_less(solution: str, one: float, two: float, token: bool, hide: bool) -> None:
    borders = token_borders(solution) if token else None
    low, high = (reveal(solution, r, borders, hide) for r in sorted((one, two)))
    assert high.startswith(low)
    assert solution.startswith(high)
    assert high == high.rstrip()


@given(SOLUTIONS, st.booleans())
def test_the_ends_show_nothing_and_everything(solution: str, token: bool) -> None:
    borders = token_borders(solution) if token else None
    assert reveal(solution, 0.0, borders) == ""
    assert reveal(solution, 1.0, borders) == solution.rstrip()


def test_every_number_of_steps_is_reached_and_halves_go_up() -> None:
    solution = "A.\nB.\nC.\nD."
    assert [reveal(solution, i / 4) for i in range(5)] == ["", "A.", "A.\nB.", "A.\nB.\nC.", solution]
    assert [reveal(solution, r) for r in (0.124, 0.125, 0.374, 0.375)] == ["", "A.", "A.", "A.\nB."]


@given(st.lists(st.from_regex(r"[A-Za-z ]{1,12}", fullmatch=True).filter(str.strip), min_size=1, max_size=6), RATIOS)
def test_a_hidden_answer_is_never_shown(lines: list[str], ratio: float) -> None:
    body = "\n".join(lines)
    for answer in ("#### 7", "So it is \\boxed{7}.", "Seven it is."):
        solution = f"{body}\n{answer}"
        for borders in (None, token_borders(solution)):
            shown = reveal(solution, ratio, borders, hide_answer=True)
            assert body.startswith(shown)
    assert reveal(f"{body}\n#### 7", 1.0, hide_answer=True) == body.rstrip()  # and all the rest can be


@given(SOLUTIONS, RATIOS, st.booleans())
def test_a_hidden_answer_stays_hidden_in_any_text(solution: str, ratio: float, token: bool) -> None:
    shown = reveal(solution, ratio, token_borders(solution) if token else None, hide_answer=True)
    steps = split_steps(solution)
    assert len(shown) <= len("".join(steps[:-1]))
    boxes = box_interiors(solution)
    assert not boxes or len(shown) < min(boxes)


def test_a_hidden_answer_is_hidden_from_its_box_on() -> None:
    solution = "Add two.\nSo it is \\boxed{7}.\nI hope that this is correct."
    assert reveal(solution, 1.0, hide_answer=True) == "Add two."


def test_a_solution_of_one_step_shows_nothing_when_the_answer_is_hidden() -> None:
    for solution in ("#### 7", "  \\boxed{7}. Done", "\\boxed{7", "a", ""):
        assert reveal(solution, 1.0, hide_answer=True) == ""
        assert reveal(solution, 1.0, token_borders(solution), hide_answer=True) == ""


@pytest.mark.parametrize("ratio", [-0.01, 1.0001, float("nan"), float("inf"), -float("inf")])
def test_a_ratio_out_of_range_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got .*exposure\.strategy"):
        reveal("A.\nB.", ratio)


def test_six_problems() -> None:
    assert [len(split_steps(p.solution)) for p in SIX] == [3, 2, 3, 2, 3, 2]
    for problem in SIX:
        assert problem.answer not in re.split(r"[^\d.-]+", reveal(problem.solution, 0.1))


# Kinds

OF_ONE = sorted(set(KINDS) - {"other"})
WORDS = st.lists(st.from_regex(r"[A-Za-z]{1,9}", fullmatch=True), min_size=1, max_size=9, unique=True)
WORKED = "Take 12 apples.\nEat -3 of them.\nThat is 12-3 = 9.\nHalve: 9/2 is 4.5.\n#### 4.5"


def count(ratio: float, pieces: int) -> int:
    """The nearest whole number, halves up, by trying all."""
    return max(range(pieces + 1), key=lambda k: (-abs(k - ratio * pieces), k))


def to_show(solution: str, hide: bool) -> list[str]:
    """The steps that may be shown: all, or those that end before the last step and before the answer is told."""
    steps = split_steps(solution)
    if not hide:
        return steps
    end = answer_begins(solution, step_borders(solution))
    assert end <= len("".join(steps[:-1]))
    assert end < min(box_interiors(solution), default=len(solution) + 1)
    return [step for i, step in enumerate(steps) if len("".join(steps[: i + 1])) <= end]


TOLD = ["#### 42", "The answer is 42.", "**Answer: 42**", "So \\boxed{42}.", "Thus \\\\boxed{42} it is."]
LINES = st.lists(st.sampled_from(["We add 40 and 2.", "Is it so?", "This is what was wanted.", "Take 7."]), max_size=3)


@given(LINES, st.sampled_from(TOLD), LINES, RATIOS)
def test_what_the_verifier_reads_is_hidden(before: list[str], told: str, after: list[str], ratio: float) -> None:
    solution = "\n".join([*before, told, *after])
    verifier = Verifier()
    assert verifier.extract(solution) == "42"
    assert reveal(solution, ratio, hide_answer=True) in ["\n".join(before[:n]) for n in range(len(before) + 1)]
    assert verifier.extract(reveal(solution, 1.0, kind="answer_only")) == "42"


@pytest.mark.parametrize(
    "told",
    [
        "The answer is 6.\nCheck: 2 + 4.\nSo the answer is 6.",
        "So the answer is 6 cm.\nLet me verify.\nThus \\boxed{6}.",
        "**Answer: 6**\n\nCheck. So \\boxed{6}",
        "The answer is 6.\n#### 6",
        "It is $\\boxed6$.\nDone.",
    ],
)
def test_an_answer_that_is_told_twice_is_hidden_from_the_first_time_on(told: str) -> None:
    solution = f"The answer is not plain.\n{told}"
    assert reveal(solution, 1.0, hide_answer=True) == "The answer is not plain."


@pytest.mark.parametrize(
    "solution",
    [
        "#### Solution\nFirst, 2+2=4.\nThen 4+1=5.\nThe answer is 5.",
        "Answer: Let x be the number.\nThen x+1=5.\nSo x=4.",
        "The answer is what we look for.\nIt is found.\nThe answer is 5.",
    ],
)
def test_headings_and_beginnings_of_sentences_tell_no_answer(solution: str) -> None:
    steps = split_steps(solution)
    assert reveal(solution, 1.0, hide_answer=True) == "".join(steps[:-1]).rstrip()
    assert reveal(solution, 1.0, kind="answer_only") == steps[-1]


def test_sentences_without_spaces_are_steps() -> None:
    assert split_steps("先加二。得到“五。”\n所以呢？答案是5。") == ["先加二。", "得到“五。”\n", "所以呢？", "答案是5。"]


@pytest.mark.parametrize(
    ("kind", "hints"),
    [
        ("prefix", {0.2: "Take 12 apples.", 0.4: "Take 12 apples.\nEat -3 of them."}),
        ("suffix", {0.2: "#### 4.5", 0.4: "Halve: 9/2 is 4.5.\n#### 4.5"}),
        (
            "scattered",
            {
                0.2: "[...]\nThat is 12-3 = 9.",
                0.4: "[...]\nEat -3 of them.\nThat is 12-3 = 9.",
                0.6: "Take 12 apples.\nEat -3 of them.\nThat is 12-3 = 9.",
                0.8: "Take 12 apples.\nEat -3 of them.\nThat is 12-3 = 9.\n[...]\n#### 4.5",
            },
        ),
        (
            "masked",
            {
                0.09: "",
                0.1: "Take 12 apples.\nEat [...] of them.\nThat is [...]-[...] = [...].\n"
                "Halve: [...] is [...].\n#### [...]",
                0.8: "Take 12 apples.\nEat -3 of them.\nThat is 12-3 = 9.\nHalve: 9/2 is 4.5.\n#### [...]",
            },
        ),
        ("answer_only", {0.49: "", 0.5: "#### 4.5", 1.0: "#### 4.5"}),
        ("none", {0.5: "", 1.0: ""}),
    ],
)
def test_kinds_by_hand(kind: str, hints: dict[float, str]) -> None:
    assert {ratio: reveal(WORKED, ratio, kind=kind) for ratio in hints} == hints


@pytest.mark.parametrize("kind", OF_ONE)
@given(SOLUTIONS, st.booleans())
def test_every_kind_shows_nothing_at_0_and_all_that_it_has_at_1(kind: str, solution: str, hide: bool) -> None:
    steps = to_show(solution, hide)
    assert reveal(solution, 0.0, None, hide, kind) == ""
    assert reveal(solution, 0.49 / max(len(steps), 1), None, hide, kind) == ""  # nearest to no piece
    everything = "".join(steps).rstrip()
    if kind == "answer_only":
        everything = "" if hide else joined([material(solution).answer])
    assert reveal(solution, 1.0, None, hide, kind) == ("" if kind == "none" else everything)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "other"])
@given(SOLUTIONS, RATIOS)
def test_no_kind_shows_a_hidden_answer(kind: str, solution: str, ratio: float) -> None:
    end = len("".join(to_show(solution, hide=True)))
    kept = material(solution, hide_answer=True)
    changed = solution[:end] + "".join("z" if c.isalnum() else c for c in solution[end:])
    if material(changed, hide_answer=True).pieces == kept.pieces:  # what is hidden has no influence
        assert reveal(changed, ratio, None, True, kind) == reveal(solution, ratio, None, True, kind)
    assert "".join(kept.pieces) == solution[:end]
    assert kept.answer == ""


@given(SOLUTIONS, RATIOS, RATIOS, st.booleans(), st.booleans())
def test_a_suffix_grows_at_its_start(solution: str, one: float, two: float, token: bool, hide: bool) -> None:
    borders = token_borders(solution) if token else None
    low, high = (reveal(solution, r, borders, hide, "suffix") for r in sorted((one, two)))
    assert high.endswith(low)
    if not token:
        steps = to_show(solution, hide)
        shown = count(max(one, two), len(steps))
        assert high == "".join(steps[len(steps) - shown :]).rstrip()


def with_gaps(steps: list[str], shown: set[int], mark: str = "[...]") -> str:
    """Each run of steps that are not shown, as one mark and the white space after it; nothing after the last shown."""
    text, hidden = "", ""
    for i in range(max(shown, default=-1) + 1):
        if i in shown:
            text += (mark + re.search(r"\s*\Z", hidden)[0] if hidden else "") + steps[i]
            hidden = ""
        else:
            hidden += steps[i]
    return text.rstrip()


@given(SOLUTIONS.filter(lambda s: len(split_steps(s)) <= 9), RATIOS, RATIOS, st.booleans())
def test_scattered_steps_are_never_taken_back(solution: str, one: float, two: float, hide: bool) -> None:
    steps = to_show(solution, hide)
    candidates = []  # every set of steps of the right size that looks like the hint
    for ratio in sorted((one, two)):
        hint = reveal(solution, ratio, None, hide, "scattered")
        sets = map(set, combinations(range(len(steps)), count(ratio, len(steps))))
        candidates.append([shown for shown in sets if with_gaps(steps, shown) == hint])
    assert any(low <= high for low in candidates[0] for high in candidates[1])


@given(WORDS)
def test_scattered_lines_stay_lines_in_their_order(lines: list[str]) -> None:
    before: set[str] = set()
    for shown in range(len(lines) + 1):
        words = reveal("\n".join(lines), shown / len(lines), kind="scattered").split("\n")
        now = [w for w in words if w and w != "[...]"]
        assert now == [line for line in lines if line in now]
        assert len(now) == shown
        assert before <= set(now)
        assert "[...]\n[...]" not in "\n".join(words)
        before = set(now)


def test_scattered_steps_appear_in_an_order_of_the_text_alone() -> None:
    text = "\n".join("abcdefgh")
    alone = [reveal(text, i / 8, kind="scattered") for i in range(9)]
    assert alone == [reveal(text, i / 8, kind="scattered") for i in range(9)]
    assert alone[3] == "a\nb\n[...]\nf"  # on any machine, in any process
    assert reveal("\n".join("hgfedcba"), 3 / 8, kind="scattered") == "[...]\ng\n[...]\nb\na"
    firsts = {reveal(f"a\nb\nc\n{i}", 0.25, kind="scattered") for i in range(40)}
    assert {"a", "[...]\nb", "[...]\nc"} < firsts  # no step is favoured


def test_an_empty_mark_leaves_an_empty_line() -> None:
    of = material("\n".join("hgfedcba"), mark="")
    assert joined(scattered(of, 3 / 8)) == "\ng\n\nb\na"


@given(SOLUTIONS.filter(lambda s: "§" not in s), RATIOS, st.booleans())
def test_masked_steps_are_whole_but_for_their_numbers(solution: str, ratio: float, hide: bool) -> None:
    steps = to_show(solution, hide)
    shown = count(ratio, len(steps))
    parts = KINDS["masked"](material(solution, hide_answer=hide, mark="§"), ratio)
    assert parts[:shown] == steps[:shown]
    assert len(parts) == (len(steps) if shown else 0)
    for step, part in zip(steps[shown:], parts[shown:]):
        assert not re.search(r"\d", part)
        numbers = [r"[-+−]?(?:\d|[.,:/{}\\!eE%+-])*\d(?:\\?%)?"] * part.count("§")
        kept = [re.escape(text) for text in part.split("§")]
        assert re.fullmatch("".join(a + b for a, b in zip(kept, [*numbers, ""])), step)
        assert bool(numbers) == bool(re.search(r"\d", step))


@given(SOLUTIONS.filter(lambda s: "[" not in s), RATIOS, RATIOS)
def test_fewer_numbers_are_masked_at_a_higher_ratio(solution: str, one: float, two: float) -> None:
    low, high = (reveal(solution, r, kind="masked") for r in sorted((one, two)))
    assert not low or low.count("[...]") >= high.count("[...]")


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("9-3=6", "_-_=_"),
        ("9 - 3 = +6", "_ - _ = _"),
        ("x = -3", "x = _"),
        ("(2)-3, $x$ and x-1", "(_)-_, $x$ and x-_"),
        ("1,000 or 1{,}000 or 3.14 or .5 or 1/2 or 10:30 or 2.5E-10", "_ or _ or _ or _ or _ or _ or _"),
        ("50% or 50\\% is \\frac{1}{2}", "_ or _ is \\frac{_}{_}"),
        ("\\boxed{24}.", "\\boxed{_}."),
        ("x² is ½, or ①", "x_ is _, or _"),
        ("No number", "No number"),
    ],
)
def test_what_is_masked(text: str, masked: str) -> None:
    of = material(f"Plain 1.\n{text}", mark="_")
    assert joined(KINDS["masked"](of, 0.5)) == f"Plain 1.\n{masked}"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("Add two.\nThe sum is 5.\n#### 5", "#### 5"),
        ("Four times six is 24. So it is \\boxed{24}.", "So it is \\boxed{24}."),
        ("Add.\nSo it is \\boxed{7}.\nI hope that this is correct.", "So it is \\boxed{7}."),
        ("First \\boxed{1}.\nThen \\boxed{2}.\nDone.", "Then \\boxed{2}."),
        ("#### 7", "#### 7"),
        (" \n", ""),
    ],
)
def test_the_answer_alone(solution: str, answer: str) -> None:
    assert reveal(solution, 0.5, kind="answer_only") == answer
    assert reveal(solution, 0.4999, kind="answer_only") == ""
    assert reveal(solution, 1.0, None, hide_answer=True, kind="answer_only") == ""


@given(SOLUTIONS)
def test_the_answer_alone_is_a_step_of_what_can_be_hidden(solution: str) -> None:
    answer = material(solution).answer
    assert answer in ["", *split_steps(solution)]
    assert answer in solution[len("".join(to_show(solution, hide=True))) :]


@pytest.mark.parametrize("kind", ["suffix", "scattered"])
@given(st.lists(st.from_regex(r"-?\d{1,6}([.,]\d{1,3}){0,2}", fullmatch=True), min_size=1, max_size=8), RATIOS)
def test_no_kind_splits_a_number_between_tokens(kind: str, numbers: list[str], ratio: float) -> None:
    solution = " ".join(numbers)
    shown = reveal(solution, ratio, token_borders(solution), kind=kind)
    assert set(shown.replace("[...]", " ").split()) <= set(numbers)


@pytest.mark.parametrize("kind", ["suffix", "scattered"])
@given(RATIOS)
def test_no_kind_splits_a_box_between_tokens(kind: str, ratio: float) -> None:
    solution = "so \\boxed{\\frac{1}{2}} is it"
    shown = reveal(solution, ratio, token_borders(solution), kind=kind)
    assert "\\boxed{\\frac{1}{2}}" in shown or not set("\\{}12") & set(shown)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ratio", [-0.01, 1.0001, float("nan")])
def test_every_kind_refuses_a_ratio_out_of_range(kind: str, ratio: float) -> None:
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\], got .*exposure\.strategy"):
        reveal("A.\nB.", ratio, kind=kind)


# Another problem's solution. Few ids, questions and lines, so that problems of a batch often coincide.

BATCHES = st.lists(
    st.builds(
        Problem,
        st.sampled_from("abcde"),
        st.sampled_from(["p?", "q?", "q? ", "r?", "s?"]),
        st.lists(st.sampled_from(["A", "Bb", "Ccc is 1. So", "\\boxed{1}"]), min_size=1, max_size=5).map("\n".join),
        st.just("1"),
    ),
    min_size=1,
    max_size=6,
)


def lent(problems: list[Problem], hide: bool):
    return borrow(problems, [material(p.solution, hide_answer=hide) for p in problems])


@given(BATCHES, RATIOS, RATIOS, st.booleans())
def test_another_problem_never_is_the_same(problems: list[Problem], one: float, two: float, hide: bool) -> None:
    for own, of in zip(problems, lent(problems, hide)):
        strangers = [
            p
            for p in problems
            if p.id != own.id and p.question.strip() != own.question.strip() and own.solution not in p.solution
        ]
        pieces = [to_show(p.solution, hide) for p in strangers]
        assert of.other in [[], *pieces]
        assert bool(of.other) == any(pieces)
        length = len("".join(to_show(own.solution, hide)))
        longest = max((len("".join(p)) for p in pieces), default=0)
        assert len("".join(of.other)) >= min(length, longest)
        low, high = (joined(other(of, r)) for r in sorted((one, two)))
        assert high.startswith(low)
        assert own.solution not in high
        assert other(of, 0.0) == []


@given(BATCHES, RATIOS, st.booleans())
def test_another_solution_is_as_long_as_the_own_one_would_be(problems: list[Problem], ratio: float, hide: bool) -> None:
    for problem, of in zip(problems, lent(problems, hide)):
        steps = to_show(problem.solution, hide)
        own = "".join(steps[: count(ratio, len(steps))])
        hint = "".join(other(of, ratio))
        possible = ["".join(of.other[:i]) for i in range(1, len(of.other) + 1)] if own else []
        best = min((abs(len(p) - len(own)) for p in possible), default=None)
        assert hint in (possible or [""])
        assert best is None or abs(len(hint) - len(own)) == best


@pytest.mark.slow
@given(BATCHES, st.booleans())
def test_another_solution_is_lent_alike_each_time(problems: list[Problem], hide: bool) -> None:
    assert lent(problems, hide) == lent(problems, hide)


def test_another_solution_by_hand() -> None:
    problems = [*SIX[:2], SIX[0], SIX[0]._replace(id="a2"), SIX[0]._replace(id="a3", question="Two and three?")]
    hints = [joined(other(of, 1.0)) for of in lent(problems, hide=False)]
    b = "Four times six is 24."  # nearer to the length of a's solution than all of b's is
    assert hints == [b, SIX[0].solution, b, b, b]
    hints = [joined(other(of, 1.0)) for of in lent(problems[:2], hide=True)]
    assert hints == ["Four times six is 24.", "Add the two.\nThe sum is 5."]
    assert [of.other for of in lent(problems[:1], hide=False)] == [[]]


def test_the_next_solution_that_is_long_enough_is_lent_and_not_always_the_longest() -> None:
    lines = {"p": "A", "q": "B\nB", "r": "C\nC", "s": "D\nD\nD"}
    problems = [Problem(i, f"{i}?", text, "") for i, text in lines.items()]
    # For s none is long enough: the first of the longest.
    assert ["".join(of.other)[0] for of in lent(problems, hide=False)] == ["B", "C", "D", "B"]


# Hostile text

N = 40_000
HOSTILE = {
    "braces": "{" * 100_000,
    "boxes": "\\boxed{" * 100_000,
    "boxes in a box": "\\boxed{" * N + "}" * N,
    "boxes beside each other": "\\boxed{1. A} " * N,
    "box of braces": "\\boxed{" + "{" * 100_000,
    "box and spaces": "\\boxed" + " " * 1_000_000,
    "spaces": " " * 1_000_000,
    "spaces after a stop": "a." + " " * 1_000_000 + "b",
    "stops": ". " * N,
    "brackets after a stop": "." + ")" * 1_000_000,
    "lines": "a\n" * N,
    "empty lines": "\n \t\r" * N,
    "openings": "\\[ \\( " * N,
    "environments": "\\begin{a}" * N,
    "environments of many names": "".join(f"\\begin{{a{i}}}" for i in range(N)),
    "dollars": "$" * N,
    "lonely dollars": "$\n" * N,
    "money": "$5 " * N,
    "one formula": "$" + "a. B " * N + "$",
    "odd dollars": "$$$ " * N + "$",
    "backslashes": "\\" * 10 * N,
    "digits": "1" * 10 * N,
    "numbers": "1,1.1/" * N,
    "exponents": "1e" * N,
    "list marks": " 1. " * N,
    "semicolons": ";" + " " * 10 * N,
    "steps": " Step 1" * N,
    "step and digits": " Step " + "1" * 10 * N,
    "NUL": "\x00" * 10 * N,
    "prose": "We add 2. Then $x$ is 3.14, so e.g. Dr. Who wins.\n" * 20_000,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_bounded_time(name: str) -> None:
    text = HOSTILE[name]
    began = time.process_time()
    borders = step_borders(text)
    assert len(reveal(text, 0.5, hide_answer=True)) <= len(text)
    keep_whole(text, range(0, len(text), 5), math=False)
    of = borrow([Problem(i, i, text + i, "") for i in "ab"], [material(text)] * 2)[0]
    for kind in KINDS.values():
        assert len(joined(kind(of, 0.5))) <= 6 * len(text)
    assert time.process_time() - began < 8  # seconds; less than one here, minutes to hours if quadratic
    assert not text.strip() or borders[-1] == len(text)
