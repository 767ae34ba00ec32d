"""Results of a set: against brute force over all subsets, streamed, through JSON; from two ranks in `test_ranks`."""

import json
import math
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from matplotlib.backends.backend_agg import FigureCanvasAgg
from test_votes import vote

from lit_atex.evaluation import Evaluation, Result, shown_ks
from lit_atex.plots import pass_at_k_figure
from lit_atex.stats import bootstrap_interval, fixed_problems_interval, paired_interval
from lit_atex.text_tables import before_after_table, evaluation_text, interval_text, results_table
from lit_atex.types import Verdict


def row(id_: str, verdicts: list[Verdict], lengths: list[int], ended: list[bool], answers: str) -> dict:
    """The answers are one letter a sample; a dot is one that was not found."""
    found = [None if a == "." else a for a in answers]
    return {
        **{
            "id": id_,
            "question": "",
            "answer": "",
            "verdicts": [v.value for v in verdicts],
            "lengths": lengths,
            "ended": ended,
        },
        "answers": found,
    }


C, W, U, T = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT
ROWS = [
    row("q", [C, W, U, W, C], [3, 4, 9, 4, 5], [True, True, False, True, True], "ab.ba"),
    row("p", [C, C, C, C, C], [1, 1, 1, 1, 1], [True] * 5, "aaaaa"),
    row("s", [W, T, W, W, U], [9, 9, 9, 9, 2], [False, False, False, False, True], "bcdb."),
    row("r", [W, W, C, W, W], [2, 2, 2, 2, 2], [True] * 5, "bcabb"),
]


def test_results_against_brute_force():
    evaluation = Evaluation()
    evaluation.begin(["first", "none", "second"], 5)
    evaluation.add(0, ROWS[:2])
    evaluation.add(2, ROWS[:1])
    evaluation.add(0, [])
    evaluation.add(0, ROWS[2:])
    evaluation.close()
    result, nothing, second = evaluation.results
    correct = {r["id"]: [v == "correct" for v in r["verdicts"]] for r in ROWS}
    answers = {r["id"]: r["answers"] for r in ROWS}
    assert (result.name, result.problems, result.samples) == ("first", 4, 5)

    expected: dict[str, dict[str, float]] = {"avg@5": {i: sum(c) / 5 for i, c in correct.items()}}
    for k in range(1, 6):
        hits = {i: [sum(s) for s in combinations(c, k)] for i, c in correct.items()}
        expected[f"pass@{k}"] = {i: sum(h > 0 for h in hs) / len(hs) for i, hs in hits.items()}
        if k in (1, 2, 4, 5):
            votes = {i: [vote(list(s), {"a": 1.0, "b": 0.0, "c": 0.0, "d": 0.0}) for s in combinations(a, k)]
                     for i, a in answers.items()}  # fmt: skip
            # the correct samples of "q" and "p" and "r" are those that say "a"
            expected[f"maj@{k}"] = {i: sum(v) / len(v) for i, v in votes.items()}
        if k in (2, 4, 5):
            for tau in (0.5, 0.75, 1.0):
                least = math.ceil(tau * k)
                expected[f"g-pass@{k}_{tau}"] = {i: sum(h >= least for h in hs) / len(hs) for i, hs in hits.items()}
            above = range(math.ceil(k / 2) + 1, k + 1)
            expected[f"mg-pass@{k}"] = {
                i: 2 / k * sum(sum(h >= j for h in hs) / len(hs) for j in above) for i, hs in hits.items()
            }
    expected["distinct"] = {"p": 1, "q": 2, "r": 3, "s": 3}
    expected["length"] = {r["id"]: sum(r["lengths"]) / 5 for r in ROWS}
    expected["cut"] = {r["id"]: r["ended"].count(False) / 5 for r in ROWS}
    for verdict in ("wrong", "unparsed", "timeout"):
        expected[verdict] = {r["id"]: r["verdicts"].count(verdict) / 5 for r in ROWS}

    assert result.metrics.keys() == expected.keys()
    for name, by_id in expected.items():
        values = [by_id[i] for i in "pqrs"]  # sorted, on any number of ranks
        assert result.metrics[name].value == pytest.approx(sum(values) / 4), name
        shares = name not in ("length", "distinct")
        assert result.metrics[name].over == pytest.approx(bootstrap_interval(values, shares=shares)), name
        low, high = result.metrics[name].fixed
        assert low < high, name
        assert low - 1e-12 <= result.metrics[name].value <= high + 1e-12, name
    assert result.average.fixed == pytest.approx(fixed_problems_interval([5, 2, 1, 0], [5] * 4))
    assert list(result.per_problem.items()) == [("p", 1.0), ("q", 0.4), ("r", 0.2), ("s", 0.0)]
    assert second.average.value == pytest.approx(0.4)
    assert second.problems == 1
    assert nothing.problems == 0
    assert math.isnan(nothing.average.value)
    shown = ["avg@5", "pass@1", "pass@2", "pass@4", "pass@5", "maj@5", "mg-pass@5", "distinct", "unparsed", "timeout"]
    scalars = {name: result.metrics[name].value for name in [*shown, "cut"]}
    assert result.scalars() == scalars | {"mean_length": result.metrics["length"].value}


def test_one_sample_a_problem():
    """Nothing is known of the noise inside a problem, which is said by nan; no metric of two samples is there."""
    evaluation = Evaluation()
    evaluation.begin(["set"], 1)
    evaluation.add(0, [{**r, **{k: r[k][:1] for k in ("verdicts", "lengths", "ended", "answers")}} for r in ROWS])
    evaluation.close()
    result = evaluation.results[0]
    shares = {"wrong", "unparsed", "timeout", "cut"}
    assert result.metrics.keys() == {"avg@1", "pass@1", "maj@1", "distinct", "length"} | shares
    assert all(math.isnan(end) for e in result.metrics.values() for end in e.fixed)
    # that one sample has one answer says nothing of the numbers in other problems
    assert {name for name, e in result.metrics.items() for end in e.over if math.isnan(end)} == {"distinct"}


def test_all_solved_is_no_certainty():
    evaluation = Evaluation()
    evaluation.begin(["set"], 5)
    evaluation.add(0, [row(f"{i}", [C] * 5, [1] * 5, [True] * 5, "aaaaa") for i in range(30)])
    evaluation.close()
    average = evaluation.results[0].average
    assert average.value == 1.0
    assert average.over == pytest.approx((0.025 ** (1 / 30), 1.0))
    assert average.fixed == pytest.approx((0.025 ** (1 / 150), 1.0))


def evaluated(rows, n=5):
    evaluation = Evaluation()
    evaluation.begin(["set"], n)
    evaluation.add(0, rows)
    evaluation.close()
    return evaluation.results[0]


@pytest.mark.parametrize(("verdict", "answers"), [(C, "aaaaa"), (W, "bbbbb"), (U, ".....")])
def test_no_interval_has_no_width_where_no_noise_was_seen(verdict, answers):
    """Shares have the exact bound of as many trials as there are groups of k samples; the others are unknown."""
    result = evaluated([row(f"{i}", [verdict] * 5, [7] * 5, [True] * 5, answers) for i in range(6)])
    for name, one in result.metrics.items():
        if name in ("length", "distinct"):
            assert all(map(math.isnan, one.fixed)), name
            continue
        k = int(name.partition("@")[2].partition("_")[0] or 1) if not name.startswith("avg") else 1
        low, high = scipy.stats.binomtest(6 * (5 // k) * round(one.value), 6 * (5 // k)).proportion_ci(method="exact")
        if one.value in (0.0, 1.0):  # mG-Pass@k of an odd k is below 1
            assert one.fixed == pytest.approx((low, high), abs=1e-12), name
        assert one.fixed[1] - one.fixed[0] > 0.01, name
    assert Result.from_json(json.loads(json.dumps(result.to_json()))).to_json() == result.to_json()


def test_shares_that_differ_between_problems_alone_have_a_width():
    """Half of the problems always solved, half never: there may be noise that nobody saw."""
    verdicts, answers = ([C] * 4, [W] * 4), ("aaaa", "bbbb")
    result = evaluated([row(f"{i}", verdicts[i % 2], [7] * 4, [True] * 4, answers[i % 2]) for i in range(6)], 4)
    for name, trials in (("avg@4", 24), ("pass@1", 24), ("pass@4", 6), ("pass@2", 12), ("maj@2", 12), ("wrong", 24)):
        reach = 1 - 0.05 ** (1 / trials)
        assert result.metrics[name].fixed == pytest.approx((0.5 - reach, 0.5 + reach)), name
    assert result.metrics["cut"].fixed == pytest.approx((0.0, 1 - 0.025 ** (1 / 24)))


def test_results_are_json_also_where_a_number_is_unknown():
    result = evaluated([row("p", [C], [1], [True], "a")], 1)
    text = json.dumps(result.to_json(), allow_nan=False)
    assert json.loads(text)["metrics"]["avg@1"]["fixed"] == [None, None]
    again = Result.from_json(json.loads(text))
    assert all(math.isnan(end) for end in again.average.fixed)
    assert again.average.over == result.average.over


def test_another_number_of_samples_is_refused():
    evaluation = Evaluation()
    evaluation.begin(["set"], 4)
    with pytest.raises(ValueError, match="avg@4"):
        evaluation.add(0, ROWS[:1])


def test_results_survive_json():
    evaluation = Evaluation()
    evaluation.begin(["set"], 5)
    evaluation.add(0, ROWS)
    evaluation.close()
    given = evaluation.results[0]
    assert Result.from_json(json.loads(json.dumps(given.to_json()))) == given
    with pytest.raises(ValueError, match="'old' are of an earlier version"):
        Result.from_json({"name": "old", "average": 0.5})


def test_tables_show_stability_and_variety():
    result = evaluated(ROWS)
    text = results_table("test", [result])
    second = text[text.rindex("┏") :]
    lines = second.splitlines()
    assert max(map(len, lines)) <= 160
    cells = [cell.strip() for cell in lines[-3].strip("│").split("│")]
    names = ["g-pass@5_0.5", "g-pass@5_0.75", "g-pass@5_1.0", "mg-pass@5"]
    found = [result.metrics[name] for name in (*names, "distinct")]
    values = [*(f"{e.value:.3f}" for e in found[:-1]), f"{found[-1].value:.1f}"]
    assert cells == ["set", *(f"{value} {interval_text(e.over)}" for value, e in zip(values, found))]
    assert "G-Pass@5, 75%" in second
    one = [{**r, **{k: r[k][:1] for k in ("verdicts", "lengths", "ended", "answers")}} for r in ROWS]
    assert "G-Pass" not in results_table("test", [evaluated(one, 1)])


def test_every_average_has_its_intervals():
    """In the terminal and in the report; a number without one is not to be believed."""
    result = evaluated(ROWS)
    average, best = result.average, result.metrics["pass@5"]
    first = results_table("test", [result]).splitlines()[4]
    for interval in (average.over, average.fixed, best.over, result.metrics["maj@5"].over):
        assert interval_text(interval) in first
    head = evaluation_text("test", [result], {}, {}, "", None).split("\n\n")[1].splitlines()[2]
    assert f"| {average.value:.3f} | {interval_text(average.over)} | {interval_text(average.fixed)} |" in head
    assert "[" in interval_text(average.over)


def test_too_few_problems_for_an_interval_are_named():
    few, enough = (evaluated([ROWS[i % 4] | {"id": f"{i}"} for i in range(n)]) for n in (9, 10))
    note = "fewer than 10 problems: intervals over problems are too narrow for set"

    def texts(*results):
        return (
            results_table("test", [*results]),
            evaluation_text("test", [*results], {}, {}, "", None),
            before_after_table([*results], [*results]),
        )

    assert all(note in text.splitlines() for text in texts(few))
    assert not any("too narrow" in text for text in texts(enough))


def test_before_and_after_have_each_metric_with_its_paired_difference():
    before = evaluated(ROWS)
    after = evaluated([ROWS[0] | {"verdicts": [W.value] * 5}, *ROWS[1:]])
    text = before_after_table([before], [after])
    assert max(map(len, text.splitlines())) <= 80
    rows = {cells[1].strip(): [c.strip() for c in cells[2:]] for line in text.splitlines()
            if len(cells := line.strip("│").split("│")) == 6}  # fmt: skip
    assert list(rows) == [f"avg@{after.samples}", f"pass@{after.samples}", "length"]
    assert rows["length"][:2] == [f"{r.metrics['length'].value:.1f}" for r in (before, after)]
    solved = np.array([[share > 0 for share in r.per_problem.values()] for r in (before, after)], dtype=float)
    gaps = solved[1] - solved[0]
    assert gaps.any()
    shown = [f"{r.metrics[f'pass@{after.samples}'].value:.3f}" for r in (before, after)]
    assert rows[f"pass@{after.samples}"] == [*shown, f"{gaps.mean():+.3f}", interval_text(paired_interval(gaps))]


def test_the_ks_that_are_shown():
    assert [shown_ks(n) for n in (1, 4, 12)] == [[1], [1, 2, 4], [1, 2, 4, 8, 12]]


def test_an_evaluation_begins_anew_after_each_close():
    evaluation = Evaluation()
    evaluation.begin(["set"], 5)
    for rows in (ROWS[:1], ROWS[1:2]):
        evaluation.add(0, rows)
        evaluation.close()
        assert evaluation.results[0].problems == 1
    assert evaluation.results[0].average.value == 1.0


@pytest.mark.parametrize("n", [1, 5])
def test_both_intervals_of_the_curve_are_seen(n):
    """An area of no width is not, nor is one below another; the legend stays inside of one panel's figure."""
    rows = [{**r, **{k: r[k][:n] for k in ("verdicts", "lengths", "ended", "answers")}} for r in ROWS]
    result = evaluated(rows, n)
    figure = pass_at_k_figure([result])
    FigureCanvasAgg(figure).draw()
    axis = figure.axes[0]
    (over,) = axis.collections
    ends = over.get_paths()[0].vertices[:, 1]
    assert {*result.metrics["pass@1"].over} <= {*ends}
    assert over.get_linewidths()[0] > 0 or n > 1
    dashed = [list(line.get_ydata()) for line in axis.lines if line.get_linestyle() == "--"]
    fixed = [result.metrics[f"pass@{k}"].fixed for k in range(1, n + 1)]
    assert dashed == ([] if n == 1 else [list(of) for of in zip(*fixed)])
    legend = figure.legends[0].get_window_extent()
    assert 0 <= legend.x0 < legend.x1 <= figure.bbox.x1


@pytest.mark.parametrize(("solved", "told"), [(0, False), (4, True), (5, False), (7, False), (8, True), (12, False)])
def test_few_problems_ever_solved_or_ever_not_are_warned_of(solved, told):
    rows = [row(f"{i}", [C if i < solved else W] * 5, [1] * 5, [True] * 5, "ab"[i >= solved] * 5) for i in range(12)]
    result = evaluated(rows)
    texts = [results_table("", [result]), evaluation_text("test", [result], {}, {}, "", None)]
    for text in (*texts, before_after_table([result], [result])):
        assert ("fewer than 5 problems were ever solved, or ever not" in text) == told
