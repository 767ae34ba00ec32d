"""Metrics of the user's own: what they may be, their numbers against NumPy, and their way through a run."""

import json
import sys

import numpy as np
import pytest

from lit_atex.api import load
from lit_atex.compare import compare
from lit_atex.difference import differences_of
from lit_atex.evaluation import Evaluation, Result, metric_names
from lit_atex.own import OwnMetrics
from lit_atex.stats import bootstrap_interval, fixed_problems_interval, paired_interval
from lit_atex.text_tables import results_table
from lit_atex.types import Problem

PROBLEM = Problem(id="p", source="s", level="1", question="1+1", solution="1+1=2", answer="2")
CODE = """
import math
import torch

def equations(completion, problem): return completion.count("=")
def mentions(completion, problem): return problem.answer in completion
def tensor(completion, problem): return torch.tensor(len(completion))
def text(completion, problem): return completion
def endless(completion, problem): return math.inf
def two(completion, problem): return torch.zeros(2)
def huge(completion, problem): return 10**400
def fails(completion, problem): return 1 / completion.count("=")
NUMBER = 3
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    (tmp_path / "my_metrics.py").write_text(CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_metrics", raising=False)


def own(**given):
    return OwnMetrics(given, metric_names(4))


def test_what_a_function_says_of_each_completion():
    found = own(equations="my_metrics.equations", mentions="my_metrics.mentions", size="my_metrics.tensor")
    values = found.of(PROBLEM, ["1+1=2", "", "3=1+2=3"])
    assert values == {"equations": [1.0, 0.0, 2.0], "mentions": [True, False, True], "size": [5.0, 0.0, 7.0]}
    assert all(isinstance(v, bool) for v in values["mentions"])
    assert OwnMetrics({"length-of": lambda text, problem: len(text)}, ()).of(PROBLEM, ["ab"]) == {"length-of": [2.0]}
    assert OwnMetrics(None, ()).of(PROBLEM, ["ab"]) == {}


@pytest.mark.parametrize(
    ("name", "path", "told"),
    [
        ("length", "my_metrics.equations", "'length' is a metric already"),
        ("pass@2", "my_metrics.equations", "is a metric already"),
        ("mean_length", "my_metrics.equations", "is a metric already"),
        ("a/b", "my_metrics.equations", "is no name of letters"),
        ("mine", "my_metrics.nothing", "could not be imported"),
        ("mine", "nowhere.equations", "could not be imported"),
        ("mine", "my_metrics.NUMBER", "is not the dotted path of a function"),
        ("mine", "equations", "is not the dotted path of a function"),
    ],
)
def test_what_is_no_metric(name, path, told):
    with pytest.raises(ValueError, match=rf"^model\.eval_metrics\.{name}: .*{told}"):
        own(**{name: path})


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("text", "'abc' is no finite number"),
        ("endless", "inf is no finite"),
        ("fails", "ZeroDivisionError"),
        ("two", "RuntimeError"),
        ("huge", "OverflowError"),
    ],
)
def test_a_function_that_fails_is_named_with_problem_and_completion(path, told):
    head = rf"model\.eval_metrics\.mine \(my_metrics\.{path}\), problem p: "
    with pytest.raises(ValueError, match=head + f".*{told}.*abc"):
        own(mine=f"my_metrics.{path}").of(PROBLEM, ["abc"])


def rows(seed):
    rng = np.random.default_rng(seed)
    count, share = rng.poisson(3.0, size=(12, 4)).astype(float), rng.random((12, 4)) < 0.6
    fixed = {"verdicts": ["correct"] * 4, "answers": ["1"] * 4, "lengths": [3] * 4, "ended": [True] * 4}
    about = {"question": "q", "answer": "1"}
    return [
        {"id": f"p{i:02}", **about, **fixed, "own": {"count": count[i].tolist(), "share": share[i].tolist()}}
        for i in range(12)
    ]


def test_means_and_intervals_are_those_of_numpy():
    evaluation = Evaluation()
    evaluation.begin(["set"], 4, ["count", "share"])
    evaluation.add(0, rows(0)[:5])
    evaluation.add(0, rows(0)[5:])
    evaluation.close()
    (result,) = evaluation.results
    assert result.own == ["count", "share"]
    count, share = (np.array([row["own"][name] for row in rows(0)], dtype=float) for name in result.own)
    found = result.metrics["count"]
    assert found.value == pytest.approx(count.mean())
    assert found.over == bootstrap_interval(count.mean(1))
    reach = 1.959964 * np.sqrt((count.var(1, ddof=1) / 4).sum()) / 12
    assert found.fixed == pytest.approx((count.mean() - reach, count.mean() + reach), abs=1e-6)
    assert result.metrics["share"].value == pytest.approx(share.mean())
    assert result.metrics["share"].fixed == fixed_problems_interval(share.sum(1).astype(int), np.full(12, 4))
    assert result.scalars()["count"] == found.value
    assert Result.from_json(json.loads(json.dumps(result.to_json()))).metrics["share"] == result.metrics["share"]
    assert "count" in results_table("title", [result])


def test_no_name_takes_the_place_of_ours():
    """What a row has for itself: as names of metrics they are the user's, and change nothing."""
    names = ("correct", "answers", "id", "own", "samples")
    given = [row | {"own": {name: [-3.0, -1.0, 0.0, 2.0] for name in names}} for row in rows(0)]
    given[0]["verdicts"] = ["correct", "wrong", "wrong", "wrong"]
    results = []
    for own in ([], names):
        evaluation = Evaluation()
        evaluation.begin(["set"], 4, own)
        evaluation.add(0, given)
        evaluation.close()
        results.append(evaluation.results[0])
    plain, mine = results
    assert repr({name: mine.metrics[name] for name in plain.metrics}) == repr(plain.metrics)  # nan is not nan
    assert mine.per_problem == plain.per_problem
    for name in names:
        low, high = mine.metrics[name].fixed
        assert low < mine.metrics[name].value == -0.5 < high  # below 0 too


def test_a_difference_of_numbers_has_no_bounds():
    longer = [row | {"own": {"count": [x + 5 for x in row["own"]["count"]]}} for row in rows(0)]
    same = {d.metric: d for d in differences_of("set", list(zip(rows(0), longer)))}["count"]
    assert same.difference == 5.0
    assert all(np.isnan(end) for end in (*same.interval, *same.fixed))
    later = [*longer[:-1], {key: value for key, value in longer[-1].items() if key != "own"}]
    assert [d.metric for d in differences_of("set", list(zip(rows(0), later)))] == ["avg@4", "pass@4", "maj@4"]


def test_differences_are_paired():
    both = list(zip(rows(0), rows(1)))
    found = {d.metric: d for d in differences_of("set", both)}
    assert list(found) == ["avg@4", "pass@4", "maj@4", "count", "share"]
    gaps = np.array([np.subtract(b["own"]["count"], a["own"]["count"], dtype=float) for a, b in both])
    assert found["count"].difference == pytest.approx(gaps.mean())
    assert found["count"].interval == pytest.approx(paired_interval(gaps.mean(1)))
    reach = 1.959964 * np.sqrt((gaps.var(1, ddof=1) / 4).sum()) / 12
    assert found["count"].fixed == pytest.approx((gaps.mean() - reach, gaps.mean() + reach), abs=1e-6)
    without = [(a, {k: v for k, v in b.items() if k != "own"}) for a, b in both]
    assert [d.metric for d in differences_of("set", without)] == ["avg@4", "pass@4", "maj@4"]


@pytest.mark.slow
def test_through_a_run_an_evaluation_and_a_comparison(tmp_path, capsys):
    metrics = {"model.eval_metrics": {"equations": "my_metrics.equations", "mentions": "my_metrics.mentions"}}
    best = {"checkpoint.monitor": "validation/level-4/mentions", "trainer.max_steps": 2}
    run = load("base", "tiny", metrics, best, run=str(tmp_path / "run"))
    run.train()
    assert run.trainer.callback_metrics["validation/level-4/equations"] == 4.0  # a line for each of four operations
    (after,) = json.loads((tmp_path / "run/results.json").read_text())["step-2"]
    told = capsys.readouterr().out
    assert "own metrics" in told
    assert "mentions" in told
    assert after["metrics"]["mentions"]["value"] >= after["average"]  # who is right has said it
    from lit_atex.commands import main

    words = ["evaluate", str(tmp_path / "run"), "--samples", "2", "--limit", "4", "--run"]
    for name in ("a", "b"):
        main([*words, str(tmp_path / name)])
    compare(str(tmp_path / "a"), str(tmp_path / "b"))
    found = json.loads((tmp_path / "b/comparison-a/comparison.json").read_text())["differences"]
    assert {d["metric"]: d["difference"] for d in found}["equations"] == 0.0
    first = json.loads((tmp_path / "a/outcomes/test.level-4.jsonl").read_text().splitlines()[0])
    assert first["own"]["equations"] == [text.count("=") for text in first["completions"]]
    with pytest.raises(SystemExit, match=r"model\.eval_metrics\.equations: .* and 'my_metrics\.mentions'"):
        main([*words, str(tmp_path / "a"), "--resume", "--model.eval_metrics.equations", "my_metrics.mentions"])
