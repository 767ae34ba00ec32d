"""Differences of two runs: p-values and power against other formulas and by simulation; the command and its files."""

import dataclasses
import json
import math
import re
from itertools import product

import numpy as np
import pytest
import scipy.stats

from lit_atex.cli import main
from lit_atex.compare import changed
from lit_atex.difference import Difference, differences_of, paired
from lit_atex.metrics import pass_at_k
from lit_atex.noise import count_variances, difference_interval, paired_variances, sample_variances, vote_variances
from lit_atex.outcomes import Outcomes
from lit_atex.paired import detectable, enough, fewest, holm, problems_needed, sign_flip_p
from lit_atex.spread import t_p
from lit_atex.stats import bootstrap_interval

# P-values


@pytest.mark.parametrize("seed", range(5))
def test_few_problems_are_enumerated(seed):
    gaps = np.random.default_rng(seed).integers(-4, 6, 8) / 4
    signs = [np.mean(np.array(s) * gaps) for s in product((-1, 1), repeat=8)]
    expected = np.mean(np.abs(signs) >= abs(gaps.mean()) - 1e-12)
    assert sign_flip_p(gaps) == pytest.approx(expected)


def test_many_problems_agree_with_scipy():
    gaps = np.random.default_rng(1).normal(0.1, 0.4, 60)
    theirs = scipy.stats.permutation_test(
        (gaps,), np.mean, permutation_type="samples", n_resamples=20_000, rng=np.random.default_rng(2)
    ).pvalue
    assert sign_flip_p(gaps) == pytest.approx(theirs, abs=0.01)
    assert sign_flip_p(gaps) == sign_flip_p(gaps)


def test_p_values_at_their_ends():
    assert sign_flip_p([]) == sign_flip_p([0.0, 0.0]) == sign_flip_p([0.5]) == 1.0
    assert sign_flip_p([0.25] * 5 + [0.0] * 9) == 2 / 2**5  # those that do not differ say nothing
    assert 0 < sign_flip_p([1.0] * 100) < 1e-4  # never 0


def test_a_true_null_is_rejected_as_often_as_it_should_be():
    rng, trials = np.random.default_rng(3), 400
    hits = sum(sign_flip_p(rng.binomial(4, 0.5, 12) - rng.binomial(4, 0.5, 12)) < 0.05 for _ in range(trials))
    assert hits / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []


# Power


def test_power_by_hand():
    gaps = [0.2, -0.1, 0.3, 0.0, 0.2, -0.1, 0.3, 0.0, 0.1, 0.1, 0.2, -0.2, 0.4]
    assert detectable(gaps) == pytest.approx((1.959964 + 0.841621) * np.std(gaps, ddof=1) / 3)
    assert problems_needed(gaps, detectable(gaps)) in (13, 14)  # as many as there are; rounding may ask for one more
    assert problems_needed(gaps, detectable(gaps) / 2) in (40, 41)
    assert math.isnan(detectable([0.1] * 13))
    assert problems_needed([0.1] * 13, 0.1) is None
    assert problems_needed(gaps, 0.0) is None
    gaps = [0.1, 0.2, -0.3] * 2  # their mean is 0, but not in binary
    assert np.mean(gaps) != 0
    assert problems_needed(gaps, float(np.mean(gaps))) is None


@pytest.mark.parametrize("level", [0.05, 0.01, 1 / 16])
def test_problems_too_few_for_any_p_value_of_the_level_have_no_power(level):
    few = next(m for m in range(1, 20) if sign_flip_p([1.0] * m) <= level)
    assert fewest(level) == few
    gaps = np.linspace(0.9, 1.0, enough(level))
    assert problems_needed(gaps[: few - 1], 1.0, level=level) is None
    assert problems_needed(gaps[:few], 1.0, level=level) == enough(level) >= few
    assert math.isnan(detectable(gaps[1:], level=level))
    assert detectable(gaps, level=level) < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "skew"), [(12, 0.0), (12, 0.2), (12, -0.2), (60, 0.0)])
def test_a_true_difference_of_the_detectable_size_is_found_in_eight_of_ten(problems, skew):
    """Measured with the test that the comparison uses, on runs of 8 samples a problem."""
    rng, trials = np.random.default_rng(4), 200

    def gaps(shift):
        rates = rng.beta(2, 2, problems) * 0.4 + 0.2
        moved = rates + shift + skew * (rng.exponential(size=problems) - 1)
        return (rng.binomial(8, moved.clip(0, 1)) - rng.binomial(8, rates)) / 8

    size = 0.2
    for _ in range(5):  # the size at which the runs that differ by it show it
        size = np.mean([detectable(gaps(size)) for _ in range(200)])
    found = sum(sign_flip_p(gaps(size), draws=500) < 0.05 for _ in range(trials))
    assert 0.73 <= found / trials <= 0.9


# Rows


def row(id_, answers, reference="1"):
    verdicts = ["unparsed" if a is None else "correct" if a == reference else "wrong" for a in answers]
    return {"id": id_, "question": f"question {id_}", "answer": reference, "answers": answers, "verdicts": verdicts}


FIRST = [row("a", ["1", "2", "2", "2"]), row("b", ["1", "1", "3", None]), row("c", ["1"] * 4)]
FIRST += [row("d", ["1", "1", "2", "2"])]
SECOND = [row("a", ["1", "1", "1", "2"]), row("b", ["3", "3", "1", None]), row("c", ["1"] * 4)]
SECOND += [row("d", ["1", "2", "2", "2"])]
PAIRS = list(zip(FIRST, SECOND))


def test_differences_by_hand():
    average, best, vote = differences_of("set", PAIRS)
    gaps = np.array([2, -1, 0, -1]) / 4
    assert (average.metric, average.problems) == ("avg@4", 4)
    assert (average.first, average.second) == (pytest.approx(9 / 16), pytest.approx(9 / 16))
    assert average.difference == pytest.approx(0.0)
    assert average.interval == pytest.approx(bootstrap_interval(gaps))
    moved = [[0, 1, 1, 0], [-1, -1, 1, 0], [0] * 4, [0, -1, 0, 0]]
    reach = 1.959964 * math.sqrt(sample_variances(moved).sum()) / 4
    assert average.fixed == pytest.approx((-reach, reach))
    assert average.p == sign_flip_p(gaps)
    assert best.metric == "pass@4"
    assert best.difference == 0.0
    assert best.interval == pytest.approx((0.05 ** (1 / 4) - 1, 1 - 0.05 ** (1 / 4)))  # no problem of four differs
    assert vote.metric == "maj@4"
    assert vote.difference == pytest.approx((1 - 1 + 0 - 0.5) / 4)


def test_runs_of_different_length_are_compared_at_the_shorter():
    import torch

    short = [row(r["id"], r["answers"][:2]) for r in SECOND]
    average, best, _ = differences_of("set", list(zip(FIRST, short)))
    assert best.metric == "pass@2"
    expected = pass_at_k(torch.tensor([1, 2, 4, 2]), torch.full((4,), 4), 2).mean().item()
    assert best.first == pytest.approx(expected)
    assert average.metric == "avg@4/2"
    assert average.first == pytest.approx(9 / 16)
    correct = [[[a == "1" for a in r["answers"]] for r in side] for side in (FIRST, short)]
    reach = 1.959964 * math.sqrt(sum(sample_variances(side).sum() for side in correct)) / 4
    assert average.fixed == pytest.approx((average.difference - reach, average.difference + reach))


def test_noise_of_pass_and_majority_is_that_of_both_runs():
    n = [4, 4]
    given = [[r["answers"] for r in side] for side in (FIRST, SECOND)]
    right = [[[a == "1" for a in row] for row in side] for side in given]
    average, passed, votes = paired_variances(given, right, n)
    assert average == pytest.approx(sample_variances(np.array(right[1], float) - np.array(right[0], float)))
    alone = [count_variances(lambda c: (c > 0).astype(float), np.sum(side, 1), 4) for side in right]  # pass@4 of 4
    assert passed == pytest.approx(alone[0] + alone[1])
    assert votes == pytest.approx(vote_variances(given[0], right[0]) + vote_variances(given[1], right[1]))
    found = {d.metric: d for d in differences_of("set", PAIRS)}
    for metric, variances in (("pass@4", passed), ("maj@4", votes)):
        low, high = found[metric].fixed
        assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(variances.sum()) / 4)
        assert (high + low) / 2 == pytest.approx(found[metric].difference)


@pytest.mark.slow
def test_fixed_intervals_of_differences_cover_the_truth():
    """Two runs of 30 problems of 8 samples, drawn independently: avg@8 and pass@8."""
    rng = np.random.default_rng(6)
    rates = [rng.beta(1, 2, 30), rng.beta(1, 1, 30)]
    truth = {"avg@8": np.mean(rates[1] - rates[0]), "pass@8": np.mean((1 - rates[0]) ** 8 - (1 - rates[1]) ** 8)}
    hits, trials = dict.fromkeys(truth, 0), 100
    for _ in range(trials):
        sides = [
            [row(f"{i}", ["1" if x else "2" for x in rng.random(8) < p]) for i, p in enumerate(ps)] for ps in rates
        ]
        for one in differences_of("set", list(zip(*sides))):
            if one.metric in truth:
                hits[one.metric] += one.fixed[0] <= truth[one.metric] <= one.fixed[1]
    assert min(hits.values()) / trials >= 0.9


def test_a_difference_without_noise_is_no_certainty():
    exact = 1 - 0.05 ** (1 / 12)
    assert difference_interval([0.0] * 3, [0.0] * 3, 12) == pytest.approx((-exact, exact))
    assert difference_interval([0.5] * 3, [0.0] * 3, 12) == pytest.approx((0.5 - 1.5 * exact, 0.5 + 0.5 * exact))
    assert all(map(math.isnan, difference_interval([0.0, 1.0], [0.0, 0.0], 8)))
    assert all(map(math.isnan, difference_interval([0.0, 1.0], [0.1, math.nan], 8)))
    assert difference_interval([0.9], [0.01], 1) == pytest.approx((0.9 - 0.1959964, 1.0))


def test_changed_problems_carry_both_answers():
    won, *lost = changed(PAIRS)
    assert (won["id"], won["change"], won["by"]) == ("a", "won", 1.0)
    assert (won["first_answer"], won["second_answer"]) == ("2 (3/4)", "1 (3/4)")
    assert (won["first_correct"], won["second_correct"], won["reference"]) == ("1/4", "3/4", "1")
    assert [c["id"] for c in lost] == ["d", "b"]
    assert lost[0]["first_answer"] == "1 or 2 (2/4)"
    assert changed([(row("x", [None, None]), row("x", ["2", "2"]))]) == []


# The command


PROTOCOL = {"model.eval_samples": 4, "weights": 1, "model.student.name": "x", "data.test.s": "4 problems"}


def evaluation(run, rows, **changes):
    files = Outcomes(run / "outcomes", "test")
    files.begin(PROTOCOL | changes)
    files.append("s", rows)
    return str(run)


@pytest.fixture
def runs(tmp_path):
    return evaluation(tmp_path / "first", FIRST), evaluation(tmp_path / "second", SECOND, weights=2)


def refused(*words):
    with pytest.raises(SystemExit) as end:
        main(["compare", *words])
    return end.value.code


@pytest.mark.parametrize(("solved", "told"), [(0, 0), (4, 1), (5, 0), (12, 0)])
def test_few_problems_ever_solved_in_either_run_are_warned_of_once(tmp_path, capsys, solved, told):
    sides = [[row(f"{i}", ["1" if i < n else "2"] * 2) for i in range(12)] for n in (solved // 2, solved)]
    main(["compare", *(evaluation(tmp_path / f"{i}", rows) for i, rows in enumerate(sides))])
    assert capsys.readouterr().out.count("fewer than 5 problems were ever solved, or ever not: intervals") == told


def test_the_command_leaves_a_table_words_and_the_changed_problems(runs, tmp_path, capsys):
    main(["compare", *runs])
    out = capsys.readouterr().out
    folder = tmp_path / "second" / "comparison-first"
    text = (folder / "comparison.md").read_text(encoding="utf-8")
    assert out.startswith(text.partition("## Problems")[0])
    assert re.search(r"\| s \| avg@4 \| 4 \| 0\.562 \| 0\.562 \| \+0\.000 \| \[-0\.\d+, \+0\.\d+\] \|", text)
    assert "fewer than 6 problems show no difference, however large" in text
    assert "cannot be told from none" in text
    assert "1 won, 2 lost" in text
    assert "| s | a | won | 1 | 2 (3/4) | 1 (3/4) | 1/4 | 3/4 |" in text
    lines = (folder / "changed.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["a", "d", "b"]
    data = json.loads((folder / "comparison.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no NaN
    assert [d["metric"] for d in data["differences"]] == ["avg@4", "pass@4", "maj@4"]
    assert data["protocols_differ"] == []
    assert data["differences"][0]["p_holm"] == data["differences"][0]["p"]  # one set, one test
    assert data["differences"][1]["fixed"][0] < 0 < data["differences"][1]["fixed"][1]
    assert "pass@n and maj@n add the noise of both runs" in text


def test_two_of_one_name_are_compared_side_by_side(runs, tmp_path):
    other = evaluation(tmp_path / "elsewhere" / "first", FIRST, weights=3)
    for first in (runs[0], other, runs[0], other):
        main(["compare", first, runs[1]])
    assert {p.name for p in (tmp_path / "second").glob("comparison-*")} == {
        "comparison-first",
        "comparison-elsewhere-first",
    }


def test_other_protocols_are_refused_and_named_unless_told_to_go_on(runs, tmp_path, capsys):
    other = evaluation(tmp_path / "other", SECOND, **{"model.eval_sampling.temperature": 0.5, "weights": 3})
    message = refused(runs[0], other)
    assert "model.eval_sampling.temperature: None and 0.5" in message
    assert "weights" not in message  # that is what is compared
    assert "--force" in message
    assert refused(runs[0], other, "--force", "false") == message
    for forced in (["--force", "true"], ["--force"]):
        main(["compare", runs[0], other, *forced, "--out", str(tmp_path / "out")])
        assert "**The protocols differ" in capsys.readouterr().out
    assert "**The protocols differ" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")


def test_one_that_was_stopped_is_refused_unless_told_to_go_on(runs, tmp_path, capsys):
    stopped = evaluation(tmp_path / "stopped", SECOND[:2], weights=2)
    assert "s: 4 and 2 problems, 2 in common" in refused(runs[0], stopped)
    main(["compare", runs[0], stopped, "--force", "--out", str(tmp_path / "out")])
    assert "4 and 2 problems" in capsys.readouterr().out


def test_problems_that_share_an_id_alone_are_not_paired():
    same, other = row("a", ["1"] * 4), row("a", ["1"] * 4) | {"question": "another"}
    assert len(paired([same], [same])) == 1
    assert paired([same], [other]) == []


def test_what_cannot_be_compared(runs, tmp_path, capsys):
    missing = tmp_path / "nosuch"
    told = refused(runs[0], str(missing))
    assert "both need an evaluation by itself" in told
    assert f"{runs[0]} has test, {missing} is no folder" in told
    apart = evaluation(tmp_path / "apart", [row("z", ["1"] * 4)])
    assert "no problem in common" in refused(runs[0], apart)
    assert "are one run" in refused(runs[0], f"{runs[1]}/../first")
    with pytest.raises(SystemExit, match="2"):
        main(["compare", "--force", *runs])
    assert f"--force: true or false, not {runs[0]!r}: by itself it goes last" in capsys.readouterr().err


def test_a_difference_that_is_there_is_called_one():
    better = [
        (row(f"{i}", ["2"] * 3 + ["1"]), row(f"{i}", ["1"] * (3 + i % 2) + ["2"] * (1 - i % 2))) for i in range(30)
    ]
    words = differences_of("set", better)[0].words()
    found = differences_of("set", better)[0]
    assert f"these 30 problems show a true difference of {found.detectable:.3f} in about 8 of 10 repetitions" in words
    assert "is more than chance (p < 0.0001)" in words


def test_what_problems_would_show_is_said_from_twelve_on():
    pairs = [(row(f"{i}", ["1"] + ["2"] * 3), row(f"{i}", ["1"] * (i % 4) + ["2"] * (4 - i % 4))) for i in range(12)]
    words = [differences_of("set", pairs[:n])[0].words() for n in (11, 12)]
    assert ["these" in told and "in about 8 of 10" in told for told in words] == [False, True]
    assert "fewer than 12 problems are too few to say how large a true difference they show. The difference" in words[0]
    assert all("problems of this kind would show it" in told for told in words)


@pytest.mark.parametrize(
    ("change", "end"),
    [
        ({"p_holm": 0.12}, "[+0.010, +0.300], leaves out 0, but is not corrected for the number of sets; go by p."),
        ({"p": 0.12}, "[+0.010, +0.300], leaves out 0, but is only approximate; go by p."),
        ({"p": 0.12, "interval": (-0.1, 0.3)}, "the truth may lie in [-0.100, +0.300]."),
    ],
)
def test_words_do_not_contradict_the_interval(change, end):
    one = Difference("s", "avg@4", 30, 30, 0.2, 0.35, 0.15, (0.01, 0.3), (0.0, 0.0), 0.03, math.nan, 0.2, None)
    words = dataclasses.replace(one, **change).words()
    assert "cannot be told from none (p = 0.12" in words
    assert words.endswith(end)


def test_runs_that_do_not_differ_are_said_not_to():
    same = differences_of("set", [(r, r) for r in FIRST * 3])[0]
    assert "no difference: none of these 12 problems was solved more often in either run" in same.words()
    assert f"[{same.interval[0]:+.3f}, {same.interval[1]:+.3f}]" in same.words()
    assert same.interval[0] < 0 < same.interval[1]
    alike = differences_of("set", [(row("a", ["2"]), row("a", ["1"]))] * 12)[0].words()
    assert "so nothing says what could be seen" in alike
    # 7/12 - 4/12 and 3/12 - 0 differ in binary
    answers = [(7, 4), (3, 0)]
    pairs = [tuple(row("a", ["1"] * m + ["2"] * (12 - m)) for m in reversed(counts)) for counts in answers]
    assert "so nothing says what could be seen" in differences_of("set", pairs * 6)[0].words()


def test_what_is_not_known_has_no_p_value():
    assert math.isnan(sign_flip_p([math.nan, 0.1, 0.2]))
    assert math.isnan(t_p([math.nan, 0.1, 0.2]))
    assert all(map(math.isnan, difference_interval([], [], 1)))
    assert all(map(math.isnan, difference_interval([2.0, 2.0], [0.0, 0.0], None)))
    assert difference_interval([2.0, 3.0], [0.01, 0.03], None) == pytest.approx((2.5 - 0.1959964, 2.5 + 0.1959964))


def test_a_difference_without_spread_keeps_its_verdict():
    rows = [[row(f"p{i:02}", answers) for i in range(30)] for answers in (["2", "2"], ["1", "1"])]
    average = differences_of("set", paired(*rows))[0]
    assert average.difference == 1.0
    assert "+1.000 (p < 0.0001)" in average.words()
