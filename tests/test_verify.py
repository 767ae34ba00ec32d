import copy
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lit_atex.formulas import are_written_apart
from lit_atex.types import Verdict
from lit_atex.verify import Verifier, canonical

C, W, U, T = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    verifier = Verifier(timeout=20.0)  # these tests ask what is equal; a busy machine must not decide
    yield verifier
    verifier.close()


@pytest.fixture
def no_worker() -> Iterator[Verifier]:
    """A verifier whose every question to math-verify times out, so that what it decides it decides in-process."""
    verifier = Verifier(timeout=1e-9)
    yield verifier
    verifier.close()


IN_PROCESS = [
    ("42", "42", C, "identical"),
    ("42", "43", W, "different integers"),
    ("42.", "42", C, "trailing period"),
    ("073", "73", C, "AIME's leading zeros"),
    ("000", "0", C, "AIME's zero"),
    ("73", "073", C, "leading zeros in the reference"),
    ("+5", "5", C, "plus sign"),
    ("−5", "-5", C, "unicode minus"),
    ("- 5", "-5", C, "space after the sign"),
    ("5", "-5", W, "sign"),
    ("5.0", "5", C, "decimal zero"),
    (".5", "0.5", C, "bare decimal point"),
    ("0.50", "1/2", C, "decimal and fraction"),
    (r"\frac{1}{2}", "0.5", C, "LaTeX fraction"),
    (r"\dfrac{3}{6}", r"\frac12", C, "display fraction, unreduced, short form"),
    (r"-\frac{1}{2}", r"\frac{-1}{2}", C, "sign inside"),
    (r"1\frac{1}{2}", "1.5", C, "mixed number"),
    ("1 1/2", "3/2", C, "mixed number in prose"),
    ("1/3", "0.333333", C, "rounded at six places"),
    ("1/3", "0.333334", W, "badly rounded at six places"),
    ("1/3", "0.33", W, "rounded too early"),
    ("0.0000001", "0.0000002", W, "six places are no absolute tolerance"),
    ("1,234", "1234", C, "thousands separator"),
    ("1{,}234{,}567", "1,234,567", C, "LaTeX thousands separators"),
    (r"1\,000", "1000", C, "thin space"),
    (r"12,\!345", "12345", C, "negative space"),
    ("1,234", "1.234", W, "thousands are not decimals"),
    (r"\$1,000.50", "1000.5", C, "currency"),
    ("$17$", "17", C, "dollars around mathematics"),
    (r"\(17\)", "17", C, "parenthesis delimiters"),
    ("€5", "5", C, "euro"),
    (r"50\%", "50", C, "percent"),
    ("50%", "0.5", C, "percent as a share"),
    ("0.5", r"50\%", C, "share as percent"),
    ("50", "0.5", W, "no percent sign, no scaling"),
    (r"50\%", r"0.5\%", W, "two percents"),
    (r"90^\circ", "90", C, "degrees"),
    ("90°", r"90^{\circ}", C, "degrees"),
    ("3e2", "300", C, "scientific"),
    (r"3 \times 10^{8}", "300000000", C, "scientific in LaTeX"),
    (r"3 \times 10^{-2}", "0.03", C, "negative exponent"),
    ("1e99", "1e98", W, "large and bounded"),
    (r"\text{Monday}", "monday", C, "word without case"),
    ("Monday", "Tuesday", W, "another word"),
    ("listen", "silent", W, "no product of letters"),
    ("B", r"\textbf{(B)}", C, "choice"),
    ("(c)", "C", C, "choice without case"),
    ("A", "B", W, "another choice"),
    ("**yes**", "Yes", C, "markdown"),
    ("apple, banana", "apple,banana", C, "list of words"),
    ("banana, apple", "apple, banana", W, "order of words"),
    ("hello  world", "hello world", C, "spaces"),
    ("helloworld", "hello world", W, "one word, two words"),
    (r"\left( 1, 2 \right)", "(1,2)", C, "layout"),
    (r"x^{2}+1", "x^{2} + 1.", C, "spaces and period"),
    (r"\boxed{7}", r"\boxed{7}", C, "box in a box, box in the reference"),
    (r"\quad", "5", U, "nothing but layout"),
    ("5", "", W, "no reference"),
    (r"2\sqrt{3}", r"\sqrt{12}", C, "roots"),
    (r"-\sqrt{3}", r"\sqrt{3}", W, "sign of a root"),
    ("√12", r"2\sqrt{3}", C, "unicode root"),
    (r"\frac{\sqrt2}{2}", r"\frac{1}{\sqrt{2}}", C, "rationalised"),
    ("1.414214", r"\sqrt{2}", C, "six places of a root"),
    ("1.41", r"\sqrt{2}", W, "two places of a root"),
    (r"\{1, 2\}", r"\{2, 1\}", C, "sets have no order"),
    ("2, 1", "1, 2", C, "lists as sets"),
    ("1, 2, 3", "1, 2", W, "more than asked"),
    ("1,2,3,4", "3", W, "covering all bets"),
    ("5 or 6", "5", W, "covering bets in words"),
    ("(2,1)", "(1,2)", W, "pairs have an order"),
    ("[3,2,1]", "[1,2,3]", W, "sequences have an order"),
    ("[1,2)", "[1,2]", W, "open and closed"),
    (r"(-\infty, 3]", r"x \le 3", C, "interval and relation"),
    ("x < 3", r"(-\infty, 3]", W, "strict relation"),
    (r"(-∞,1)∪(2,∞)", r"(-\infty,1)\cup(2,\infty)", C, "unicode union"),
    ("(x+1)^2", "x^2+2x+1", C, "expanded"),
    ("(x+1)^2", "x^2+x+1", W, "wrongly expanded"),
    ("x = 5", "5", C, "assignment"),
    ("x = 6", "5", W, "wrong assignment"),
    (r"x = 5 \text{ or } x = -5", r"\pm 5", C, "two roots"),
    ("5 cm", "5", C, "unit dropped"),
    (r"5\text{ apples}", "5", C, "unit in text"),
    (r"6\text{ apples}", "5", W, "unit and wrong number"),
    ("π/4", r"\frac{\pi}{4}", C, "unicode pi"),
    ("2^{10}", "1024", C, "power"),
    (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}", C, "vector"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}", W, "another vector"),
    ("2+3i", "3i+2", C, "complex"),
    ("12_5", "7", W, "number with a base"),
    ("I think it may be 5!?", "5", U, "no number is fished out of prose"),
    ("5?", "5", U, "not mathematics"),
    ("5?", "6?", U, "not mathematics, whatever the reference is"),
]

IN_WORKER = [
    ("3!", "6", C, "factorial"),
    (r"\binom{5}{2}", "10", C, "binomial"),
    ("1/0", "5", W, "no number"),
]


@pytest.mark.parametrize(("answer", "reference", "expected", "why"), IN_PROCESS)
def test_decided_in_process(no_worker: Verifier, answer: str, reference: str, expected: Verdict, why: str) -> None:
    assert no_worker.verify([rf"so \boxed{{{answer}}}"], [reference]) == [expected], why
    assert no_worker._worker._process is None, "the worker was asked"


@pytest.mark.parametrize(("answer", "reference", "expected", "why"), IN_WORKER)
def test_decided_by_math_verify(verifier: Verifier, answer: str, reference: str, expected: Verdict, why: str) -> None:
    assert verifier.verify([rf"so \boxed{{{answer}}}"], [reference]) == [expected], why


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed {\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\fbox{3}", "3"),
        (r"\boxed{\boxed{4}}", "4"),
        (r"\boxed{\left\{ 1, 2 \right.}", r"\left\{ 1, 2 \right."),
        (r"\boxed{\{1,2\}} rest }", r"\{1,2\}"),
        (r"\boxed{5} and then \boxed{6", None),
        (r"\boxed{5 and then \boxed{6}", "6"),
        (r"\boxed{x = \boxed{4}}", "x = 4"),
        (r"\boxed{\boxed{3}, \fbox{5}}", "3, 5"),
        (r"\boxed{\boxed{3}, \boxed{5", None),
        (r"\boxed{\frac{\boxed{1}}{\sqrt{\{2\}}}}", r"\frac{1}{\sqrt{\{2\}}}"),
        (r"\\boxed{6}", "6"),
        (r"{ } } \boxed{7} { {", "7"),
        (r"\boxed{6" + "\n#### 7", "7"),
        (r"\boxed{}", None),
        (r"\boxed{ }", None),
        ("#### 8", "8"),
        ("#### 1\ntext\n####  1,234 \nmore", "1,234"),
        ("a #### 1 #### 2", "2"),
        ("##### heading", None),
        ("#### Step 1: 2+3=5\n\nThe answer is 5.", "5"),
        ("#### Conclusion\nThe final answer is 5", "5"),
        ("#### Plan\nThe answer is near.\n#### 7", "7"),
        ("#### Yes\nThis answer is supported by step 2.", "Yes"),
        ("#### B\n\nSo my answer is B because it is right.", "B"),
        ("The answer is 5.\n#### Verification\nIt works.", "5"),
        ("The answer is a day.\n#### Monday", "Monday"),
        ("The answer is 9.", "9"),
        ("The answer is therefore $7$.", "7"),
        ("The answer is, as before, 7. The correct option is (B).", "(B)"),
        ("The correct choice is $B$, not (A). The incorrect option is (C).", "$B$, not (A)"),
        ("The answer is 9. No, the answer is: 10. I hope it is correct.", "10"),
        ("The final answer is $\\frac{1}{2}$ because of it", r"\frac{1}{2}"),
        (r"The answer is \(5\) by symmetry", "5"),
        ("The answer is 15 dollars, because 3*5 = 15.", "15 dollars"),
        ("The answer is B since the others are too small.", "B"),
        ("The answer is $5$ cm, which is odd.", "$5$ cm"),
        ("The answer is $5$, $6$ or $8$.", "$5$, $6$ or $8$"),
        (r"The answer is \(5\) or maybe \(6\). Yes.", r"\(5\) or maybe \(6\)"),
        ("The answer is $5$ more than $10$.", "$5$ more than $10$"),
        ("The answer is $5$ cm. So", "$5$ cm"),
        (r"The answer is $\$5$, as $2 + 3 = 5$.", r"\$5"),
        ("The answer is **$5.$** Then we check.", "5."),
        ("The answer is\n\\[\n42\n\\]\nor so", "42"),
        ("The answer is:\n$$\n42\n$$\n", "42"),
        ("The answer is\n\\[5\\]\nor\n\\[6\\]", r"\[5\] or \[6\]"),
        ("Answer: \\begin{align*}\nx &= 2+3 \\\\\n &= 5\n\\end{align*}", "x = 2+3  = 5"),
        (r"<think>maybe \boxed{3}</think>The answer is 5.", "5"),
        (r"\boxed{3}<|end_of_thought|>\boxed{4}", "4"),
        ("<think>\\boxed{3}</think>\n", "3"),
        (r"so \boxed 5.", "5"),
        (r"so $\boxed{4}$, no, $\boxed12$", "12"),
        (r"\boxed B", "B"),
        (r"\framebox{5}", "5"),
        ("**Answer:** 3.5.", "3.5"),
        ("Answer: **(D)** 4", "(D) 4"),
        ("The answer is **D**: 4", "D: 4"),
        ("The answer is **$5$** cm.", "$5$ cm"),
        ("**Answer:** 2**10", "2**10"),
        ("The answer is **5** and **6**.", "5 and **6**"),
        ("ANSWER: **11**\n", "11"),
        ("Answer:\n12\nbye", "12"),
        ("the answer is in \\boxed{13}", "13"),
        ("we found 14", None),
        ("", None),
        ("\\boxed{", None),
        ("\\boxed{\\", None),
    ],
)
def test_extract(text: str, expected: str | None) -> None:
    assert Verifier().extract(text) == expected


def test_forms_are_tried_in_the_order_given() -> None:
    text = "\\boxed{1}\n#### 2\nThe answer is 3"
    assert [Verifier(forms=f).extract(text) for f in (["boxed", "hashes"], ["hashes", "boxed"], ["answer_is"])] == [
        "1",
        "2",
        "3",
    ]


@pytest.mark.parametrize(
    ("text", "last", "first", "agreed"),
    [
        (r"\boxed{1}, no, \boxed{2}", "2", "1", None),
        (r"\boxed{0.5}, that is \boxed{\frac{1}{2}}", r"\frac{1}{2}", "0.5", r"\frac{1}{2}"),
        (r"\boxed{007}", "007", "007", "007"),
        (r"\boxed{5} and \boxed{6", None, "5", None),
        ("#### 1\n#### 2", "2", "1", None),
        ("The answer is 3. No: the answer is 4.", "4", "3", None),
        ("\\boxed{1} \\boxed{2}\n#### 5", "2", "1", None),
        ("nothing", None, None, None),
    ],
)
def test_which_occurrence_counts(text: str, last: str | None, first: str | None, agreed: str | None) -> None:
    assert Verifier().occurrence == "last"
    for occurrence, expected in (("last", last), ("first", first), ("agreed", agreed)):
        verifier = Verifier(occurrence=occurrence)  # type: ignore[arg-type]
        assert verifier.extract(text) == expected
        assert pickle.loads(pickle.dumps(verifier)).occurrence == occurrence


def test_a_mistake_in_deciding_is_reported_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def mistaken(reference: str, answer: str) -> None:
        raise IndexError("a mistake of ours")

    monkeypatch.setattr("lit_atex.verify.decide", mistaken)
    verifier = Verifier(timeout=20.0)
    with pytest.warns(RuntimeWarning, match="a mistake of ours"):
        assert verifier.verify([boxed("7")], ["7"]) == [C]
    verifier.close()


def test_only_the_end_of_a_text_is_looked_at() -> None:
    text = r"\boxed{1}" + " " * 100
    assert Verifier(max_chars=109).extract(text) == "1"
    assert Verifier(max_chars=108).extract(text) is None


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"forms": ["box"]}, "forms"),
        ({"forms": []}, "forms"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": float("inf")}, "timeout"),
        ({"max_chars": 0}, "max_chars"),
        ({"occurrence": "middle"}, "occurrence"),
    ],
)
def test_refuses(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.verifier\.init_args\.{word} "):
        Verifier(**change)


def test_lists_of_different_length_are_never_cropped() -> None:
    with pytest.raises(ValueError, match="2 texts, 1 answers"):
        Verifier().verify(["a", "b"], ["c"])


def boxed(answer: str) -> str:
    return rf"\boxed{{{answer}}}"


# What an adversary, or a language model at temperature 2, may write. The verdict is CORRECT for none of them.
HOSTILE = {
    "tower": boxed("9^{9^{9^9}}"),
    "tower without braces": boxed("9^9^9^9"),
    "factorial": boxed("(10^{10})!"),
    "factorials": boxed("9!!!!!!!!!"),
    "sum": boxed(r"\sum_{n=1}^{10^{12}} n^n"),
    "digits": boxed("9" * 15_000),
    "exponent": boxed("1e999999999"),
    "fraction": boxed("1/" + "0" * 399),
    "commas": boxed("1" + ",000" * 4000),
    "unclosed": r"\boxed{\frac{1}{",
    "unclosed inside": boxed(r"\frac{1}{2"),
    "backslash": boxed("5\\"),
    "NUL": boxed("5\x006"),
    "bidi": boxed("\u202e5\u202c6"),
    "zero width": boxed("5\u200b6"),
    "lone surrogate": boxed("\ud800"),
    "lone surrogate in mathematics": boxed("\\frac{x}{\udfff}"),
    "code": boxed("__import__('os').system('touch owned')"),
    "code as text": boxed(r"\text{__import__('os').system('touch owned')}"),
    "lambda": boxed("(lambda: exit(1))()"),
    "spaces": boxed("5" + " " * 15_000 + "6"),
    "dollars": boxed("$" * 15_000),
    "boxes": "\\boxed{" * 3000 + "}" * 2000,
    "answers": "answer is " * 2000,
    "hashes": "####!" * 4000 + " answer: 5",
    "megabyte": "x" * 1_000_000,
    "megabyte of answer": boxed("x+" * 500_000),
}


@pytest.mark.slow
def test_hostile_answers_take_bounded_time_and_cost_nothing_else() -> None:
    verifier = Verifier(timeout=1.0)
    begin = time.monotonic()
    verdicts = dict(zip(HOSTILE, verifier.verify(list(HOSTILE.values()), ["3"] * len(HOSTILE)), strict=True))
    seconds = time.monotonic() - begin
    assert C not in verdicts.values()
    assert verdicts["tower"] is verdicts["factorial"] is T
    assert verdicts["megabyte"] is verdicts["unclosed"] is U
    assert not os.path.exists("owned")
    # Each at most its limit and a restart of the worker (1 to 2 s, more on a busy machine).
    assert seconds < len(HOSTILE) * (verifier.timeout + 10)
    verifier = Verifier(timeout=1.0)
    batch = verifier.verify([HOSTILE["tower"], boxed("7"), "none"], ["3", "7", "7"])
    assert batch == [T, C, U]
    verifier.timeout = verifier._worker.timeout = 20.0
    assert verifier.verify([boxed(r"\binom{5}{2}"), boxed(r"\binom{6}{2}")], ["10"] * 2) == [C, W]
    verifier.close()


@pytest.mark.slow
def test_nested_braces_beyond_any_stack() -> None:
    verifier = Verifier(timeout=1.0, max_chars=1_000_000)
    nested = {depth: boxed("{" * depth + "5" + "}" * depth) for depth in (1_000, 100_000)}
    hostile = [*nested.values(), boxed("(" * 1_000 + "5" + ")" * 1_000), boxed("\\frac{" * 1_000 + "}" * 1_000)]
    assert C not in verifier.verify(hostile, [r"\sqrt{2}"] * 4)
    assert Verifier().verify([nested[100_000]], ["5"]) == [U]  # the box opens before the end that is looked at
    verifier.close()


@pytest.mark.slow
def test_the_reference_may_be_hostile_too(verifier: Verifier) -> None:
    impatient = Verifier(timeout=1.0)
    assert impatient.verify([boxed(r"\sqrt{2}")], ["9^{9^{9^9}}"]) == [T]
    impatient.close()
    assert verifier.verify([boxed("x")] * 2, ["\ud800\x00", "{" * 100]) == [W, W]


def test_no_strings_at_all() -> None:
    class Odd:
        def __str__(self) -> str:
            raise RuntimeError

    things = [None, 3, b"\\boxed{3}", ["\\boxed{3}"], Odd(), 10**5000]
    assert Verifier().verify(things, ["3"] * 6) == [U, U, C, C, U, U]  # type: ignore[arg-type]
    assert Verifier().verify([boxed("3")] * 3, [None, Odd(), 10**5000]) == [W, W, W]  # type: ignore[list-item]
    assert Verifier().verify([boxed("3")], [3]) == [C]  # type: ignore[list-item]
    assert [isinstance(canonical(thing), str) for thing in things] == [True] * 6  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced() -> None:
    verifier = Verifier(timeout=20.0)
    question = ([boxed(r"\binom{5}{2}")], ["10"])
    assert verifier.verify(*question) == [C]
    process = verifier._worker._process
    assert process is not None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert verifier.verify(*question) == [C]  # it died idle: no answer is to blame
    process = verifier._worker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    threading.Timer(0.3, process.kill).start()
    assert verifier.verify(*question) == [T]  # it died at work
    assert verifier.verify(*question) == [C]
    verifier.close()
    assert process.returncode is not None
    assert verifier.verify(*question) == [C]  # usable after close
    verifier.close()
    verifier.close()


def test_memory_is_bounded() -> None:
    verifier = Verifier(timeout=20.0)
    assert verifier.verify([boxed(r"\binom{5}{2}")], ["11"]) == [W]
    process = verifier._worker._process
    assert process is not None
    with open(f"/proc/{process.pid}/limits") as limits:
        soft = {line[:26].strip(): line[26:47].strip() for line in limits}
    assert soft["Max address space"] == str(2 * 1024**3)
    verifier.close()


@pytest.mark.slow
def test_a_busy_machine_does_not_decide_a_verdict() -> None:
    """The limit is of the worker's processor time: one that waits for the processor has time left when it gets it."""
    verifier = Verifier(timeout=1.0)
    question = ([boxed(r"\binom{5}{2}")], ["10"])
    assert verifier.verify(*question) == [C]
    process = verifier._worker._process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    threading.Timer(2.5, process.send_signal, [signal.SIGCONT]).start()
    assert verifier.verify(*question) == [C]
    assert verifier._worker._process is process
    verifier.close()


@pytest.mark.slow
def test_a_worker_whose_parent_dies_within_a_comparison_ends() -> None:
    code = r"""
import os, threading
from lit_atex.verify import Verifier
v = Verifier(timeout=1.0)
assert v.verify([r"\boxed{\binom{5}{2}}"], ["10"]) == ["correct"]
print(v._worker._process.pid, flush=True)
threading.Timer(0.3, os._exit, [0]).start()
v.verify([r"\boxed{9^{9^{9^9}}}"], ["3"])
"""
    has_ended(int(run(code).stdout))


def test_threads_share_a_worker_and_get_their_own_replies(verifier: Verifier) -> None:
    # a grader that relies on alarm signals times out falsely, or raises, in a thread
    results: dict[int, list[Verdict]] = {}

    def ask(n: int) -> None:
        results[n] = verifier.verify([boxed(rf"\binom{{{n}}}{{1}}")] * 2, [f"{n}", f"{n + 1}"])

    threads = [threading.Thread(target=ask, args=(n,)) for n in (2, 3, 5, 7)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {n: [C, W] for n in (2, 3, 5, 7)}


def test_copies_start_their_own_worker(verifier: Verifier) -> None:
    for twin in (pickle.loads(pickle.dumps(verifier)), copy.deepcopy(verifier)):
        assert (twin.forms, twin.timeout, twin.max_chars) == (verifier.forms, verifier.timeout, verifier.max_chars)
        assert twin._worker is not verifier._worker


class Own(Verifier):
    def __init__(self, least: float) -> None:
        super().__init__(timeout=3.0)
        self.least = least


def test_a_copy_of_a_subclass_is_one() -> None:
    for twin in (pickle.loads(pickle.dumps(Own(0.5))), copy.deepcopy(Own(0.5))):
        assert (type(twin), twin.least, twin.timeout) == (Own, 0.5, 3.0)


def has_ended(pid: int) -> None:
    """Wait ten seconds for a process to end that is nobody's child here."""
    for _ in range(200):
        try:
            if not Path(f"/proc/{pid}/cmdline").read_bytes():
                return  # a zombie, where nobody reaps
        except OSError:
            return
        time.sleep(0.05)
    pytest.fail("the worker outlived its parent")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error::ResourceWarning", "-c", code], capture_output=True, text=True, timeout=300
    )


@pytest.mark.slow
def test_importing_does_not_import_sympy() -> None:
    done = run("import sys, lit_atex.verify; print([m for m in ('sympy', 'math_verify') if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.slow
def test_forgotten_verifiers_leave_quietly_and_take_their_worker_along() -> None:
    ask = r"assert v.verify([r'\boxed{\binom{5}{2}}'], ['10']) == ['correct']; "
    start = "import os, gc; from lit_atex.verify import Verifier; v = Verifier(timeout=20); "
    show = "print(v._worker._process.pid, flush=True); "
    for leave in ("", "del v; gc.collect()", "os._exit(0)", "os.kill(os.getpid(), 9)"):
        done = run(start + ask + show + leave)
        assert done.stderr == ""
        has_ended(int(done.stdout))


@pytest.mark.slow
def test_a_fork_starts_its_own_worker() -> None:
    code = r"""
import os
from lit_atex.verify import Verifier
v = Verifier(timeout=20)
ask = lambda: v.verify([r"\boxed{\binom{5}{2}}", r"\boxed{\binom{6}{2}}"], ["10"] * 2) == ["correct", "wrong"]
assert ask()
child = os.fork()
if child == 0:
    assert ask()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert ask()
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_fork_within_a_comparison_starts_its_own_worker() -> None:
    """The lock is copied as another thread holds it, who is not there to release it."""
    code = r"""
import os, signal, threading, time
from lit_atex.verify import Verifier
v = Verifier(timeout=3)
ask = lambda: v.verify([r"\boxed{\binom{5}{2}}"], ["10"]) == ["correct"]
assert ask()
other = threading.Thread(target=v.verify, args=([r"\boxed{9^{9^{9^9}}}"], ["3"]))
other.start()
while not v._worker._lock.locked():
    time.sleep(0.01)
child = os.fork()
if child == 0:
    signal.alarm(30)
    os._exit(not ask())
assert os.waitpid(child, 0)[1] == 0
other.join()
assert ask()
"""
    done = run(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("same", "spelling"),
    [
        (["0.5", "1/2", r"\frac{1}{2}", "$.50$", r"\dfrac{2}{4}"], "1/2"),
        (["073", "73.0", r"\text{73}", "73%"], "73"),
        (["1,000", "1e3", r"1{,}000"], "1000"),
        (["(A)", "a", r"\textbf{A}"], "a"),
        ([r"\left(1, 2\right)", "(1,2)."], "(1,2)"),
        (["", " ", "$$"], ""),
    ],
)
def test_canonical_is_one_spelling(same: list[str], spelling: str) -> None:
    # a majority vote over raw strings splits the votes of equal answers
    assert {canonical(answer) for answer in same} == {spelling}


PIECES = re.findall(
    r"\S+", r"\boxed{ \frac{ \left\{ \sqrt \text{ \pm \ { } ( ] ^ ! $ , . / % #### answer: 1 23 x √ ½ ٣"
)
pieces = st.sampled_from([*PIECES, "answer is ", " ", "\n", "\0", "\u202e", "\ud83d"])
junk = st.one_of(st.text(), st.lists(pieces, max_size=20).map("".join))


@given(text=junk, reference=junk)
@example(text=boxed("٣"), reference="3")
@settings(max_examples=200, deadline=None)
def test_never_raises(verifier: Verifier, text: str, reference: str) -> None:
    for pair in ((text, reference), (boxed(text), reference)):
        verdicts = verifier.verify([pair[0]], [pair[1]])
        assert len(verdicts) == 1
        assert isinstance(verdicts[0], Verdict)


@given(st.fractions(max_denominator=10**6), st.fractions(max_denominator=10**6))
@settings(max_examples=100, deadline=None)
def test_fractions_are_exact(a: object, b: object) -> None:
    verifier = Verifier()
    assert verifier.verify([boxed(str(a))] * 2, [str(a), str(b)]) == [C, C if a == b else W]
    assert canonical(str(a)) == str(a)


@pytest.mark.parametrize(
    ("reference", "answer", "apart"),
    [
        (r"y=\sin 30°", r"y=\sin 30", True),  # also behind a name
        (r"y=\sin 30°", r"y=\cos 60°", False),
        ("f'(x)=2x", "2x", False),  # a name may be left out
        ("f(x)=x^2", "f'(x)=x^2", True),
        (r"n\log n", r"n\log N", True),
        (r"x\log y", r"y\log x", False),  # other letters, not other cases: the worker's to tell
    ],
)
def test_what_the_parser_does_not_see(reference: str, answer: str, apart: bool) -> None:
    assert are_written_apart(reference, answer) is apart
    assert are_written_apart(answer, reference) is apart
