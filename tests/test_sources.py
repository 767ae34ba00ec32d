"""Sources: rows to problems, broken rows by reason, streams that start over, and data sets read from local copies."""

from __future__ import annotations

import gzip
import json
import lzma
import pickle
import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from torch.utils.data import DataLoader, IterableDataset

from lit_atex.equivalence import decide
from lit_atex.rows import Columns, to_problem
from lit_atex.sources import ChainSum, Embedded, Hub, JsonLines, Parquet, ReasoningGym, Source
from lit_atex.stream import named
from lit_atex.types import BadRow, Problem, Verdict

# The columns of the public sets, one or two rows each, as our configs read them.
MATH = [
    {
        "problem": "What is $1/2+1/3$?",
        "solution": r"Since $\frac12+\frac13=\frac56$, it is $\boxed{\frac{5}{6}}$.",
        "answer": r"\frac{5}{6}",
        "subject": "Prealgebra",
        "level": 2,
        "unique_id": "test/prealgebra/1.json",
    },
    {"problem": "1+1?", "solution": r"\boxed{2}", "answer": "2", "subject": "x", "level": 1, "unique_id": "b"},
]
GSM8K = [{"question": "Half of 48, plus 48?", "answer": "48/2 = <<48/2=24>>24\n24+48 = 72\n#### 72"}]
AIME25 = [{"problem": "Find x.", "answer": "70", "id": "0"}, {"problem": "Find y.", "answer": "588", "id": "1"}]
HMMT = [{"problem_idx": 1, "problem": "Compute.", "answer": r"\frac{9\sqrt{23}}{23}", "problem_type": ["Geometry"]}]


def write_lines(path: Path, rows: list[object]) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def write_parquet(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# Rows


def test_answer_is_taken_from_the_solution_or_from_its_own_column():
    plain = Columns()
    assert to_problem(MATH[0], plain, "math", 0) == Problem(
        "math-0", MATH[0]["problem"], MATH[0]["solution"], r"\frac{5}{6}", "math", ""
    )
    named = Columns(answer="answer", id="unique_id", level="level")
    assert to_problem(MATH[0], named, "math", 0)[3:] == (r"\frac{5}{6}", "math", "2")
    assert to_problem(MATH[0], named, "math", 0).id == "test/prealgebra/1.json"
    assert to_problem(GSM8K[0], Columns("question", "answer"), "gsm8k", 3).answer == "72"
    assert to_problem(GSM8K[0], Columns("question", "answer", "answer"), "gsm8k", 3).answer == "72"
    matrix = {"problem": "q", "solution": "s", "answer": "1 &\n2"}
    assert to_problem(matrix, Columns(answer="answer"), "x", 0).answer == "1 &\n2"  # lines alone are no solution
    assert to_problem({"problem": "q", "solution": "So the answer is 5."}, plain, "x", 0).answer == "5"
    missing = {"problem": "q", "solution": "So the answer is 5.", "answer": float("nan")}
    assert to_problem(missing, Columns(answer="answer"), "x", 0).reason == "no answer"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"problem": "q"}, "missing column"),
        ({"solution": "#### 1"}, "missing column"),
        ({}, "missing column"),
        ({"problem": ["q"], "solution": "#### 1"}, "not text"),
        ({"problem": 7, "solution": "#### 1"}, "not text"),
        ({"problem": "q", "solution": {"text": "#### 1"}}, "not text"),
        ({"problem": "q", "solution": True}, "not text"),
        ({"problem": "", "solution": "#### 1"}, "empty question"),
        ({"problem": " \n\t\u00a0", "solution": "#### 1"}, "empty question"),
        ({"problem": None, "solution": "#### 1"}, "empty question"),
        ({"problem": "q", "solution": "  "}, "empty solution"),
        ({"problem": "q", "solution": None}, "empty solution"),
        ({"problem": "q", "solution": "no answer in here"}, "no answer"),
        ({"problem": "q", "solution": r"\boxed{ }"}, "no answer"),
        ({"problem": "q" * 101, "solution": "#### 1"}, "too long"),
    ],
)
def test_each_way_to_be_broken_has_its_reason(row, reason):
    bad = to_problem(row, Columns(), "mine", 17, max_chars=100)
    assert isinstance(bad, BadRow)
    assert bad.reason == reason
    assert bad.detail.startswith("mine row 17: ")
    assert ("(columns." in bad.detail) == (reason == "missing column")
    assert len(bad.detail) < 400


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        *[(70, "70"), (0, "0"), (2.5, "2.5"), (" 3 ", "3"), (None, "no answer"), ("", "no answer"), (2.0, "2.0")],
        *[(0.1 + 0.2, "0.3"), (2 / 3, "0.666666666666667"), (2.0**52 + 1, "4503599627370497.0")],
        *[(missing, "no answer") for missing in ("nan", "None", "N/A", "null", " - ")],
    ],
)
def test_numbers_are_answers(answer, expected):
    columns = Columns(solution=None, answer="answer")
    problem = to_problem({"problem": "q", "answer": answer}, columns, "x", 0, answer_only=True)
    assert (problem.reason if isinstance(problem, BadRow) else problem.answer) == expected
    if isinstance(problem, Problem):
        assert problem.solution == f"#### {expected}"


def test_a_float_is_the_fraction_that_it_was_rounded_from():
    problem = to_problem({"problem": "q", "answer": 2 / 3}, Columns(solution=None, answer="answer"), "x", 0, True)
    assert decide(problem.answer, "2/3") is Verdict.CORRECT


@pytest.mark.parametrize(
    ("solution", "expected"),
    [
        *[("The answer is as follows: 12", "12"), ("The answer is 5. So the answer is obvious.", "5")],
        *[("The answer is Dr. Smith. He", "Dr. Smith"), ("The answer is New York City.", "New York City")],
        *[("The answer is No. So", "No"), ("#### 5 apples", "5 apples"), (r"\boxed{in the table below}", None)],
        *[("The answer is in the table below.", "'in the table below' was read")],
        *[("The answer is approx. 3.5 cm.", "'approx. 3.5 cm' was read"), ("The answer is e.g. 5. So", "'e.g. 5' was")],
        *[
            ("#### Proof of lemma", "no final answer"),
            ("The answer is $5 and she has $6 left.", "she has $6 left' was"),
        ],
    ],
)
def test_a_reference_that_cannot_be_graded_is_no_answer(solution, expected):
    problem = to_problem({"problem": "q", "solution": solution}, Columns(), "x", 0)
    if isinstance(problem, BadRow):
        assert problem.reason == "no answer"
        assert expected in problem.detail
    else:
        assert problem.answer == (expected or "in the table below")  # what is boxed is meant to be the answer


@pytest.mark.parametrize("answer", [True, ["70"], 10**5000], ids=["bool", "list", "huge"])
def test_what_is_no_answer(answer):
    columns = Columns(solution=None, answer="answer")
    assert to_problem({"problem": "q", "answer": answer}, columns, "x", 0, answer_only=True).reason == "not text"


def test_answer_only_hides_the_solution():
    row = {"problem": "q", "solution": "2*3=6\n#### 6"}
    assert to_problem(row, Columns(), "x", 0, answer_only=True)[2:4] == ("#### 6", "6")


def test_nul_and_lone_surrogates_do_no_harm():
    problem = to_problem({"problem": "a\ud800b\x00", "solution": "\udfff #### 1"}, Columns(), "x", 0)
    assert problem.question == "a\ufffdb\x00"
    "".join(problem).encode()
    bad = to_problem({"problem": "\ud800", "solution": "\ud800"}, Columns(), "x", 0)
    assert bad.reason == "no answer"
    bad.detail.encode()


CHARACTERS = st.sampled_from("a1 \n#\\{}\x00\ud800\U0001f600")
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(CHARACTERS, max_size=9) | st.just([1])


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from(["problem", "solution", "answer"]), VALUES))
def test_any_row_becomes_a_problem_or_a_bad_row(row):
    result = to_problem(row, Columns(answer="answer"), "x", 0)
    if isinstance(result, Problem):
        assert result.question.strip()
        assert result.solution.strip()
        assert result.answer.strip()
        "".join(result).encode()
    else:
        assert isinstance(result, BadRow)


# JSON lines


def test_a_broken_line_is_counted_and_the_stream_goes_on(tmp_path):
    good = {"problem": "q", "solution": "#### 1"}
    lines = [good, '{"problem": "cut off', "", '["a list"]', "42", "[" * 100_000, good, '{"problem": "mixed", "n": []}']
    rows = list(JsonLines(str(write_lines(tmp_path / "mine.jsonl", lines))))
    assert [row.reason if isinstance(row, BadRow) else row.id for row in rows] == [
        "mine-0",
        *["not JSON"] * 4,
        "mine-6",
        "missing column",
    ]
    assert rows[1].detail.startswith("mine row 1: ")


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        *[(gzip.compress(b"{}", mtime=0), "compressed: unpack it"), ('{"a": 1}'.encode("utf-16"), "UTF-16")],
        *[(lzma.compress(b"{}"), "compressed"), (b"PAR1\x15\x04", "Parquet"), (b'{\n "data": [', "JSON over several")],
        *[(b'\n[{"problem": "q"}]', "one JSON list"), (b'"problem",solution\nq,#### 1', "a table such as CSV")],
    ],
)
def test_what_is_no_json_lines_is_named_with_the_mend(tmp_path, content, kind):
    (tmp_path / "mine").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^init_args.path: .* is {kind}"):
        list(JsonLines(str(tmp_path / "mine")))


def test_bytes_that_are_not_utf8_and_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.jsonl"
    good = json.dumps({"problem": "\u00e9", "solution": "#### 1"}, ensure_ascii=False)
    path.write_bytes(
        b"\xef\xbb\xbf" + good.encode() + b"\r\n\xff\xfe{}\n" + good.encode("latin-1") + b"\n" + good.encode()
    )
    rows = list(JsonLines(str(path)))
    assert [row.reason if isinstance(row, BadRow) else row.question for row in rows] == [
        "\u00e9",
        "not JSON",
        "not JSON",
        "\u00e9",
    ]


def test_a_line_is_read_only_when_it_is_asked_for(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", [{"problem": f"q{i}", "solution": "#### 1"} for i in range(50_000)])
    stream = iter(JsonLines(str(path)))
    next(stream)
    path.write_text("")  # what has not been read yet is gone: the whole file was not loaded
    assert len(list(stream)) < 5_000


@pytest.mark.parametrize(
    ("question", "answer", "told"),
    [("Which is even?", "B", 1), ("Which is even? (A) 1 (B) 2", "B", 0), ("Which is even?", "2", 0)],
)
def test_options_that_are_not_read_are_named_once(question, answer, told, caplog):
    row = {"problem": question, "answer": answer, "choices": ["1", "2"]}
    for number in range(3):
        to_problem(row, Columns(solution=None, answer="answer"), f"{question} {answer}", number, answer_only=True)
    assert [record.getMessage().split(": ")[1] for record in caplog.records] == [
        "answers are letters, and 'choices' is not read"
    ] * told


def test_null_on_the_command_line_is_no_column():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Source, "source")
    words = ["--source=JsonLines", "--source.init_args.path=x", "--source.init_args.columns.question=q"]
    read = parser.parse_args([*words, *(f"--source.init_args.columns.{role}=null" for role in ("id", "answer"))])
    assert parser.instantiate(read).source.columns == Columns("q", "solution", None, None)


@pytest.mark.parametrize("kind", [JsonLines, Parquet])
def test_a_path_that_does_not_exist(kind, tmp_path):
    source = kind(str(tmp_path / "nothing"))  # not an error before it is read
    with pytest.raises(ValueError, match=r"^init_args\.path: .*nothing"):
        next(iter(source))


def test_what_another_source_reads_is_said(tmp_path):
    path = write_lines(tmp_path / "mine.jsonl", MATH)
    datasets.Dataset.from_list(MATH).save_to_disk(str(tmp_path / "saved"))
    saved = r"'.*saved' was written by `save_to_disk`.*lit_atex\.sources\.Parquet with init_args\.path"
    for source, told in (
        (Hub(str(path)), r"^init_args\.dataset: '.*jsonl' is a file: take class_path lit_atex\.sources\.JsonLines"),
        (Hub(str(tmp_path / "saved")), f"^init_args.dataset: {saved}"),
        (Parquet(str(tmp_path / "saved")), f"^init_args.path: {saved}"),
        (JsonLines("openai/gsm8k"), r"there is no file.*of the Hub: class_path lit_atex\.sources\.Hub"),
        (Parquet("openai/gsm8k"), r"is no Parquet file.*of the Hub: class_path lit_atex\.sources\.Hub"),
    ):
        with pytest.raises(ValueError, match=told):
            next(iter(source))


@pytest.mark.parametrize("columns", [Columns(solution=None, answer="answer"), Columns(solution=None)])
def test_no_solution_column_needs_answer_only(columns):
    with pytest.raises(ValueError, match=r"^data\.train\.init_args\.columns\.solution is null.*answer_only: true"):
        next(named(JsonLines("x.jsonl", columns), "data.train"))


# Through `datasets`


def test_parquet_file_and_folder(tmp_path):
    write_parquet(tmp_path / "b.parquet", MATH[1:])
    write_parquet(tmp_path / "a.parquet", MATH[:1])
    columns = Columns(answer="answer", id="unique_id", level="level")
    one = list(Parquet(str(tmp_path / "a.parquet"), columns))
    assert [(p.question, p.answer, p.level, p.source) for p in one] == [
        (MATH[0]["problem"], MATH[0]["answer"], "2", "a")
    ]
    assert [p.id for p in Parquet(str(tmp_path), columns)] == ["test/prealgebra/1.json", "b"]


def test_hub_reads_a_local_folder_with_the_columns_of_the_public_sets(tmp_path):
    write_parquet(tmp_path / "gsm8k" / "train-0.parquet", GSM8K)
    write_parquet(tmp_path / "gsm8k" / "test-0.parquet", GSM8K * 2)
    gsm8k = {
        split: list(Hub(f"{tmp_path}/gsm8k", split=split, columns=Columns("question", "answer")))
        for split in ("train", "test")
    }
    assert [len(rows) for rows in gsm8k.values()] == [1, 2]
    assert gsm8k["train"][0] == Problem("gsm8k-0", GSM8K[0]["question"], GSM8K[0]["answer"], "72", "gsm8k", "")

    (tmp_path / "aime25").mkdir()
    write_lines(tmp_path / "aime25" / "test.jsonl", AIME25)
    aime25 = Hub(
        f"{tmp_path}/aime25/", split="test", columns=Columns("problem", None, "answer", "id"), answer_only=True
    )
    assert [tuple(p)[:5] for p in aime25] == [
        ("0", "Find x.", "#### 70", "70", "aime25"),
        ("1", "Find y.", "#### 588", "588", "aime25"),
    ]
    write_parquet(tmp_path / "hmmt" / "train-0.parquet", HMMT)
    hmmt = Hub(f"{tmp_path}/hmmt", columns=Columns("problem", None, "answer", "problem_idx"), answer_only=True)
    assert [p.answer for p in hmmt] == [HMMT[0]["answer"]]
    assert next(iter(hmmt)).id == "1"


def test_a_data_set_that_cannot_be_read_says_which_and_what_to_do(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(RuntimeError, match=r"empty.*split='nope'(.|\n)*--local-dir"):
        next(iter(Hub(f"{tmp_path}/empty", split="nope")))
    (tmp_path / "bad.parquet").write_bytes(b"this is no parquet file")
    with pytest.raises(RuntimeError, match=r"bad\.parquet"):
        next(iter(Parquet(str(tmp_path / "bad.parquet"))))


class _Ids(IterableDataset):
    def __init__(self, source: Source) -> None:
        self.source = source

    def __iter__(self):
        return (problem.id for problem in self.source)


def test_every_loader_worker_reads_the_whole_data_set(tmp_path):
    """`datasets` would give each worker its share of the files; our ranks and workers count on all of them."""
    for i in range(2):
        write_parquet(
            tmp_path / f"{i}.parquet", [{"problem": "q", "solution": "#### 1", "id": f"{i}{j}"} for j in range(3)]
        )
    source = Hub(str(tmp_path), columns=Columns(id="id"))
    ids = list(DataLoader(_Ids(source), batch_size=None, num_workers=2))
    assert sorted(ids) == sorted(2 * [problem.id for problem in source])
    assert len(ids) == 12


# Generated


def test_embedded_is_endless_without_a_size_and_starts_over():
    source = Embedded(level=4)
    assert not source.finite
    first = list(islice(source, 5))
    assert list(islice(source, 5)) == first
    assert list(Embedded(level=4, size=5)) == first
    assert Embedded(level=4, size=5).finite
    assert first[0].level == "4"
    assert not {p.question for p in Embedded(level=8, size=50)} & {
        p.question for p in Embedded(level=8, size=50, split="test")
    }
    terse = list(Embedded(level=4, size=5, terseness=1.0))
    assert [p.question for p in terse] == [p.question for p in first]
    assert [p.answer for p in terse] == [p.answer for p in first]
    assert [p.solution for p in terse] != [p.solution for p in first]


def test_gsm_symbolic_has_worked_solutions():
    pytest.importorskip("reasoning_gym")
    source = ReasoningGym("gsm_symbolic", size=200, seed=3)
    problems = list(source)
    assert problems == list(source)
    assert len({p.id for p in problems}) == 200
    for problem in problems:
        assert isinstance(problem, Problem)
        end = re.search(r"#### (-?[\d.]+)$", problem.solution)
        assert float(end.group(1)) == float(problem.answer)  # reasoning-gym writes "16.0" for 16 at times
        assert problem.solution.count("\n") >= 1
        assert problem.level == "1"


def test_reasoning_gym_without_a_solution_is_refused_unless_answers_are_enough():
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=r"'chain_sum' has no solution.*answer_only: true"):
        next(iter(ReasoningGym("chain_sum", size=2)))
    source = ReasoningGym("chain_sum", size=2, answer_only=True, dataset_args={"min_terms": 2, "max_terms": 2})
    for problem in source:
        assert problem.solution == f"#### {problem.answer}"
        a, sign, b = re.search(r"(\d+) ([+-]) (\d+) =", problem.question).groups()
        assert int(problem.answer) == (int(a) + int(b) if sign == "+" else int(a) - int(b))


def test_a_chain_sum_is_written_out_line_by_line():
    pytest.importorskip("reasoning_gym")
    problems = list(ChainSum(50, 3, terms=5, digits=3))
    for problem in problems:
        terms = re.findall(r"([+-] )?(\d{3})(?!\d)", problem.question)
        *lines, end = problem.solution.split("\n")
        total = int(terms[0][1])
        for line, (sign, number) in zip(lines, terms[1:], strict=True):
            after = total + int(number) if sign == "+ " else total - int(number)
            assert line == f"{total} {sign}{number} = {after}"
            total = after
        assert end == f"#### {total}" == f"#### {problem.answer}"
    assert len({p.question for p in problems}) == 50
    assert problems == list(ChainSum(50, 3, terms=5, digits=3))


@pytest.mark.parametrize(
    ("dataset", "size", "dataset_args"),
    [("no_such_set", 2, {}), ("chain_sum", 2, {"no_such": 1}), ("chain_sum", 0, {})],
)
def test_what_reasoning_gym_refuses(dataset, size, dataset_args):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=rf"reasoning-gym refuses dataset='{dataset}'"):
        list(ReasoningGym(dataset, size=size, answer_only=True, dataset_args=dataset_args))


# All


@pytest.mark.parametrize(
    "source",
    [
        Embedded(),
        ReasoningGym("gsm_symbolic", size=2),
        ChainSum(2),
        JsonLines("x.jsonl"),
        Parquet("x"),
        Hub("openai/gsm8k", columns=Columns("question", "answer")),
    ],
    ids=lambda source: type(source).__name__,
)
def test_sources_travel_to_workers_and_tell_their_settings(source):
    copy = pickle.loads(pickle.dumps(source))
    assert copy.settings() == source.settings()
    assert all(isinstance(value, str) for value in source.settings().values())
    assert source.settings()["class"] == type(source).__name__


def test_settings_tell_streams_apart_but_let_files_move():
    assert Embedded(seed=1).settings() != Embedded(seed=2).settings()
    assert Hub("a/x").settings() != Hub("b/x").settings()
    assert JsonLines("a/x.jsonl").settings() == JsonLines("b/x.jsonl").settings()
    assert JsonLines("a/x.jsonl").settings() != JsonLines("a/y.jsonl").settings()
    assert Hub("a/x", split="train").settings() != Hub("a/x", split="test").settings()


@pytest.mark.slow
def test_making_a_source_imports_nothing_heavy():
    code = "import sys; from lit_atex.sources import Hub, ReasoningGym; Hub('a/b'); ReasoningGym('gsm_symbolic', 2);"
    code += "assert not {'datasets', 'reasoning_gym', 'math_verify'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_numbers_of_numpy_are_numbers():
    """As a table of one's own has them; an infinite answer is none."""
    found = [
        to_problem({"problem": "q", "solution": r"s \boxed{3}", "a": value}, Columns(answer="a"), "src", 0)
        for value in (np.int64(5), np.float64(0.5), np.float64("inf"))
    ]
    assert [getattr(row, "answer", None) for row in found] == ["5", "0.5", None]
