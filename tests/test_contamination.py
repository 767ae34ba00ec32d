"""Overlap of held-out with training problems: 13 words in a row, templates left out, an error above a limit."""

import json
from collections import Counter
from itertools import repeat
from types import SimpleNamespace

import pytest
from test_outcomes import ROOT

from lit_atex.cli import main
from lit_atex.contamination import ContaminationCheck, Overlap, words
from lit_atex.sources import JsonLines
from lit_atex.types import BadRow, Problem

LONG = "A train leaves the station at noon with 40 people and at each of its 7 stops a third of them step down"


def problem(id_, question, solution="So it is 4.\n#### 4"):
    return Problem(id_, question, solution, "4", "s", "")


def shares(test, train, **settings):
    overlap = Overlap({"test.a": test}, **settings)
    for one in train:
        overlap.add(one)
    return overlap.report()["test.a"]


def test_words_lose_case_and_punctuation():
    assert words("What's $3.5\\times 2$, Tom?") == ["what", "s", "3", "5", "times", "2", "tom"]


def test_languages_without_spaces_are_compared_sign_by_sign():
    question = "小明有五个苹果，他又买了三个苹果，请问他现在一共有多少个苹果？"
    opening = "在平面直角坐标系中，已知抛物线的顶点"  # as many problems begin: 17 signs say no more than 8 words
    assert shares([problem("t", opening + question)], [problem("x", opening + "不在别处")])["contaminated"] == 0
    train = [problem("x", f"题目{question}")]
    found = shares([problem("t", question)], train)
    assert (found["long_enough"], found["contaminated"]) == (1, 1)
    assert words("他有3个mm, ひと") == ["他", "有", "3", "个", "mm", "ひ", "と"]


def brute(test, train, n, common):
    """Every window of every question against every window of every text."""
    windows = lambda text: {tuple(words(text)[i : i + n]) for i in range(len(words(text)) - n + 1)}  # noqa: E731
    texts = [windows(f"{p.question}\n{p.solution}") for p in train]
    often = {w for w, number in Counter(w for t in texts for w in t).items() if number > common}
    return [p.id for p in test if any((windows(p.question) & t) - often for t in texts)]


@pytest.mark.slow
def test_against_all_pairs_of_windows():
    from lit_atex.sources import ReasoningGym

    pytest.importorskip("reasoning_gym")
    test = list(ReasoningGym("gsm_symbolic", 20, 3_000_000))
    train = list(ReasoningGym("gsm_symbolic", 60, 0))
    for n, common in ((13, 1), (8, 10)):
        expected = brute(test, train, n, common)
        assert expected
        assert shares(test, train, n=n, common=common)["contaminated"] == len(expected)


def test_a_question_in_a_solution_or_changed_at_its_ends_is_found():
    test = [problem("t", LONG), problem("short", "What is 2+2?"), problem("free", LONG.replace(" ", " very "))]
    changed = f"Once more: {LONG.upper()}!! How many are left?"
    for train in ([problem("x", changed)], [problem("x", "Q", f"We know that {LONG}, so it is 4.\n#### 4")]):
        found = shares(test, train)
        assert (found["problems"], found["long_enough"], found["contaminated"]) == (3, 2, 1)
        assert found["share"] == pytest.approx(1 / 3)
        assert found["examples"][0]["id"] == "t"
        assert found["examples"][0]["in_training"] == "x"
        assert len(found["examples"][0]["words"].split()) == 13
    assert shares(test, [problem("x", " ".join(LONG.split()[:12]))])["contaminated"] == 0  # 12 words are not 13


def test_numbers_alone_are_no_text():
    sums, products = ("+".join("31415926535897"), "*".join("31415926535897"))
    assert shares([problem("t", sums)], [problem("x", products)])["long_enough"] == 0
    assert shares([problem("t", f"{sums} is what?")], [problem("x", f"{products} is what?")])["contaminated"] == 1


def test_what_stands_everywhere_is_a_template():
    train = [problem(f"{i}", f"{LONG} and {i} are left") for i in range(11)]
    assert shares([problem("t", LONG)], train[:10])["contaminated"] == 1
    assert shares([problem("t", LONG)], train)["contaminated"] == 0


def test_a_held_out_question_is_not_trained_on_and_does_not_count():
    """Of which set it is, is told, also of a short one."""
    sets = {"test.a": [problem("t", LONG), problem("short", "1+1?")], "test.b": [problem("o", f"Or {LONG}")]}
    overlap = Overlap(sets)
    for question in (f"  {LONG.upper()} ", LONG, "1+1?"):
        overlap.add(problem("x", question))
    assert (overlap.read, overlap.left_out) == (0, 3)
    found = overlap.report()
    assert [(one["contaminated"], one["left_out"]) for one in found.values()] == [(0, 2), (0, 0)]


def test_the_index_does_not_grow_with_the_training_problems():
    overlap = Overlap({"test.a": [problem("t", LONG)]})
    for i in range(500):
        overlap.add(problem(f"{i}", f"{LONG} {i}", "word " * 50 + f"\n#### {i}"))
    assert len(overlap._where) == len(words(LONG)) - 12
    assert sum(map(len, overlap._seen.values())) <= len(overlap._where) * 11


@pytest.mark.parametrize("wrong", [{"limit": 1.5}, {"scan": -1}, {"n": 0}, {"common": 0}])
def test_numbers_out_of_range_name_their_key(wrong):
    with pytest.raises(ValueError, match=rf"contamination\.{next(iter(wrong))}"):
        ContaminationCheck(**wrong)


# In a run


def lines(path, questions):
    rows = [{"problem": q, "solution": "1+1=2\n####2", "answer": "2"} for q in questions]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def command(tmp_path):
    """A fit whose training file holds one of the two problems of its test file; it stops before its first step."""
    train = lines(tmp_path / "train.jsonl", [f"{LONG} and off", *(f"{i}+{i}" for i in range(20))])
    test = lines(tmp_path / "test.jsonl", [LONG, "3+3*3"])
    sources = {"train": train, "test.mine": test}
    words = ["fit", *(w for name in ("base", "tiny") for w in ("--config", str(ROOT / f"configs/{name}.yaml")))]
    for key, path in sources.items():
        columns = '"columns": {"question": "problem", "solution": "solution", "answer": "answer"}'
        words += [f"--data.{key.split('.')[0]}"]
        one = f'{{"class_path": "lit_atex.sources.JsonLines", "init_args": {{"path": "{path}", {columns}}}}}'
        words += [f'{{"mine": {one}}}' if "." in key else one]
    return [*words, "--data.validation", "null", "--trainer.max_steps", "0", "--run", str(tmp_path / "run")]


def test_a_contaminated_run_is_refused_with_an_example(command, tmp_path):
    with pytest.raises(SystemExit) as end:
        main(command)
    for word in (
        "contamination.limit=0.05",
        "data.test.mine: 1 of 2 problems (50.0%)",
        "test-0",
        "train-0",
        "of its 7 stops",
    ):
        assert word in end.value.code
    report = json.loads((tmp_path / "run" / "contamination.json").read_text(encoding="utf-8"))
    assert report["sets"]["test.mine"]["contaminated"] == 1
    assert (report["training_problems"], report["there_may_be_more"]) == (21, False)


def test_within_the_limit_it_is_a_warning(command, tmp_path, caplog):
    main([*command, "--contamination.limit", "0.5", "--contamination.scan", "5"])
    assert "held-out problems overlap with data.train in 13 words in a row: data.test.mine: 1 of 2" in caplog.text
    report = json.loads((tmp_path / "run" / "contamination.json").read_text(encoding="utf-8"))
    assert (report["training_problems"], report["there_may_be_more"]) == (5, True)


def test_rows_that_are_broken_are_counted_too(command, tmp_path):
    """Else a source that brings nothing but broken rows would be read for ever."""

    class Broken(JsonLines):
        finite = False

        def __iter__(self):
            return repeat(BadRow("not JSON", "x"))

    train = Broken("x.jsonl")
    held_out = [Problem("a", LONG, "1", "1")]
    data = SimpleNamespace(train=train, validation_names=[], test_names=["a"], held_out=lambda key: held_out)
    data.max_bad_share = 1.0
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, default_root_dir=tmp_path / "new")
    ContaminationCheck(scan=50).setup(trainer, None, "fit")
    report = json.loads((tmp_path / "new" / "contamination.json").read_text(encoding="utf-8"))
    assert (report["training_problems"], report["there_may_be_more"]) == (0, True)


def test_the_embedded_domain_is_not_scanned(tmp_path):
    """Its questions are shorter than 13 words: the stream leaves them out as a whole, nothing is left to look for."""
    words = ["fit", *(w for name in ("base", "tiny") for w in ("--config", str(ROOT / f"configs/{name}.yaml")))]
    main([*words, "--trainer.max_steps", "0", "--trainer.num_sanity_val_steps", "0", "--run", str(tmp_path)])
    report = json.loads((tmp_path / "contamination.json").read_text(encoding="utf-8"))
    assert (report["training_problems"], report["there_may_be_more"]) == (0, True)
    assert {key: one["long_enough"] for key, one in report["sets"].items()} == {
        "validation.level-4": 0,
        "test.level-4": 0,
    }


def test_broken_rows_end_a_run_before_its_first_evaluation(tmp_path):
    """The scan reads the training rows beforehand; the stream would find it out after the step-0 evaluation."""
    path = tmp_path / "train.jsonl"
    rows = [{"problem": f"What is {i} + 1?", "solution": f"#### {i + 1}" if i % 2 else ""} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = [Problem("a", LONG, "1", "1")]
    data = SimpleNamespace(
        **{"train": JsonLines(str(path)), "validation_names": [], "test_names": ["a"], "max_bad_share": 0.1},
        held_out=lambda key: held_out,
    )
    trainer = SimpleNamespace(datamodule=data, is_global_zero=True, default_root_dir=tmp_path)
    with pytest.raises(ValueError, match=r"data\.train: 10 of 20 rows are broken"):
        ContaminationCheck().setup(trainer, None, "fit")
