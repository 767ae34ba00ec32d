import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_atex.stats import (
    FEW,
    FEW_SEEN,
    beta_interval,
    bootstrap_interval,
    bootstrap_intervals,
    fixed_problems_interval,
    paired_interval,
    share_interval,
    without_spread,
)


@pytest.mark.parametrize("level", [0.8, 0.95])
@pytest.mark.parametrize("skewed", [False, True])
def test_bootstrap_agrees_with_scipy(level: float, skewed: bool) -> None:
    rng = np.random.default_rng(1)
    scores = rng.binomial(12, rng.beta(0.2, 1.8, size=30) if skewed else rng.random(30)) / 12
    low, high = bootstrap_interval(scores, level=level, resamples=20_000)
    theirs = scipy.stats.bootstrap(
        (scores,), np.mean, confidence_level=level, n_resamples=20_000, method="BCa", rng=2
    ).confidence_interval
    assert low == pytest.approx(theirs.low, abs=0.006)
    assert high == pytest.approx(theirs.high, abs=0.006)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    hits = 0
    for trial in range(300):
        low, high = bootstrap_interval(rng.beta(2, 2, size=40), resamples=400, seed=trial)
        hits += low <= 0.5 <= high
    assert 0.90 <= hits / 300 <= 0.98


@pytest.mark.parametrize(("problems", "least", "most"), [(5, 0.8, 0.92), (FEW, 0.9, 0.98)])
def test_few_problems_are_where_intervals_are_too_narrow(problems: int, least: float, most: float) -> None:
    rng = np.random.default_rng(5)
    hits = 0
    for trial in range(400):
        scores = rng.binomial(8, rng.random(problems)) / 8
        low, high = bootstrap_interval(scores, resamples=600, seed=trial, shares=True)
        hits += low <= 0.5 <= high
    assert least < hits / 400 < most


def coverage(a: float, b: float, trials: int, resamples: int = 600, problems: int = 30) -> tuple[float, float, float]:
    """Of rates that are Beta(a, b): how often too few problems are ever solved, or ever not; coverage there, and else.

    results/evaluation.md has it of 2,000 trials and resamples.
    """
    rng, hits = np.random.default_rng(7), {True: [], False: []}
    for trial in range(trials):
        correct = rng.binomial(16, rng.beta(a, b, problems))
        low, high = bootstrap_interval(correct / 16, resamples=resamples, seed=trial, shares=True)
        seen = min((correct > 0).sum(), (correct < 16).sum())
        hits[0 < seen < FEW_SEEN].append(low <= a / (a + b) <= high)
    few, others = (float(np.mean(of)) if of else math.nan for of in (hits[True], hits[False]))
    return len(hits[True]) / trials, few, others


@pytest.mark.parametrize(("a", "b"), [(0.1, 2.0), (2.0, 0.1)])
def test_few_problems_ever_solved_are_where_intervals_are_too_narrow(a: float, b: float) -> None:
    often, few, others = coverage(a, b, 400)
    assert 0.1 < often < 0.3
    assert few < 0.85
    assert 0.88 < others < 0.97


def test_bca_covers_where_percentiles_do_not() -> None:
    """One problem in 33 is solved, as on a hard benchmark."""
    rng = np.random.default_rng(8)
    hits = plain = 0
    for trial in range(300):
        scores = (rng.random(30) < 0.03).astype(float)
        low, high = bootstrap_interval(scores, resamples=600, seed=trial, shares=True)
        hits += low <= 0.03 <= high
        means = scores[rng.integers(30, size=(600, 30))].mean(1)
        low, high = np.quantile(means, [0.025, 0.975])
        plain += low <= 0.03 <= high
    assert plain / 300 < 0.7
    assert hits / 300 > 0.9


def test_columns_share_their_draws_and_equal_each_by_itself() -> None:
    table = np.random.default_rng(9).random((40, 3))
    alone = [bootstrap_interval(column) for column in table.T]
    np.testing.assert_allclose(bootstrap_intervals(table), alone, rtol=1e-12)
    assert np.isnan(bootstrap_intervals(np.zeros((0, 2)))).all()


@pytest.mark.parametrize("count", [1, 10, 30])
def test_nothing_solved_and_everything_solved_are_bounded_as_by_clopper_and_pearson(count: int) -> None:
    for ones in (0, count):
        exact = scipy.stats.binomtest(ones, count).proportion_ci(method="exact")
        scores = [1.0 if ones else 0.0] * count
        assert bootstrap_interval(scores, shares=True) == pytest.approx((exact.low, exact.high), abs=1e-12)
        fixed = scipy.stats.binomtest(ones * 4, count * 4).proportion_ci(method="exact")
        found = fixed_problems_interval([4 * bool(ones)] * count, [4] * count)
        assert found == pytest.approx((fixed.low, fixed.high), abs=1e-12)


def test_bootstrap_is_a_function_of_its_seed() -> None:
    scores = np.random.default_rng(0).random(7)
    assert bootstrap_interval(scores, seed=5) == bootstrap_interval(scores, seed=5)
    assert bootstrap_interval(scores, seed=5) != bootstrap_interval(scores, seed=6)


def test_bootstrap_bounds_its_memory_by_chunks() -> None:
    scores = np.random.default_rng(0).random(3000)  # 333 rows a chunk: seven chunks, the last one smaller
    low, high = bootstrap_interval(scores, resamples=2000)
    error = scores.std() / math.sqrt(3000)
    assert low == pytest.approx(scores.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(scores.mean() + 1.96 * error, abs=0.2 * error)


def test_bootstrap_without_spread_or_without_problems() -> None:
    # equal numbers, which no bound keeps from differing in what was not seen; the fourth are equal but for rounding
    for scores in ([], [0.5, math.nan], [25.8], [0.1 + 0.2, 0.3, 0.3], [25.8] * 100, [0.0] * 5):
        assert all(map(math.isnan, bootstrap_interval(scores))), scores
    assert bootstrap_interval([0.3], shares=True) == pytest.approx((0.3 - 0.3 * 0.95, 0.3 + 0.7 * 0.95))


def test_bootstrap_of_paired_differences_is_narrower_than_of_either_run() -> None:
    rng = np.random.default_rng(4)
    first = rng.random(50)
    second = first + rng.normal(0.05, 0.02, size=50)
    low, high = bootstrap_interval(second - first)
    assert 0 < low < 0.05 < high
    assert high - low < 0.2 * np.diff(bootstrap_interval(first))[0]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"level": 1.0}, "level"),
        ({"level": 0.0}, "level"),
        ({"resamples": 0}, "resamples"),
        ({"per_problem": 1.0}, "axis"),
    ],
)
def test_bootstrap_refuses(change: dict, word: str) -> None:
    with pytest.raises(ValueError, match=word):
        bootstrap_interval(**{"per_problem": [0.0, 1.0], **change})


def test_fixed_problems_by_hand() -> None:
    # shares 1/2 and 3/4; variance (1/4 / 3 + 3/16 / 3) / 4: as many draws as have it, with 5/8 of them hits
    draws = 0.625 * 0.375 / ((0.25 / 3 + 0.1875 / 3) / 4)
    hits = 0.625 * draws
    low = scipy.stats.beta.ppf(0.025, hits, draws - hits + 1)
    high = scipy.stats.beta.ppf(0.975, hits + 1, draws - hits)
    assert fixed_problems_interval([2, 3], [4, 4]) == pytest.approx((low, high), abs=1e-8)


def test_fixed_problems_of_one_problem_are_clopper_and_pearson_of_a_draw_less() -> None:
    """c of n: the unbiased variance is that of n - 1 draws."""
    low, high = fixed_problems_interval([3], [10])
    expected = scipy.stats.beta.ppf(0.025, 2.7, 7.3), scipy.stats.beta.ppf(0.975, 3.7, 6.3)
    assert (low, high) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("expected_hits", [1, 3, 5, 15])
def test_fixed_problems_cover_rare_successes(expected_hits: int) -> None:
    """The normal approximation covers in 84 % where three are expected among 360."""
    rng, rate = np.random.default_rng(expected_hits), expected_hits / 360
    found = [fixed_problems_interval(rng.binomial(12, rate, 30), [12] * 30) for _ in range(500)]
    assert np.mean([low <= rate <= high for low, high in found]) >= 0.94


@pytest.mark.parametrize("differing", [0.5, 2, 4])
def test_fixed_problems_cover_where_nearly_all_are_always_or_never_solved(differing: float) -> None:
    rng, rates = np.random.default_rng(5), np.where(np.arange(30) % 2, differing / 360, 1 - differing / 360)
    found = [fixed_problems_interval(rng.binomial(12, rates), [12] * 30) for _ in range(500)]
    assert np.mean([low <= rates.mean() <= high for low, high in found]) >= 0.94


def test_differences_that_are_all_equal_are_not_certain() -> None:
    assert paired_interval([0.0] * 20) == without_spread(0.0, 20, least=-1.0)
    assert paired_interval([7 / 12 - 4 / 12, 3 / 12]) == without_spread(0.25, 2, least=-1.0)
    some = np.random.default_rng(0).uniform(-1, 1, 30).round(3)
    assert paired_interval(some, 0.8) == bootstrap_interval(some, 0.8)
    assert all(map(math.isnan, paired_interval([])))


def test_without_spread() -> None:
    exact = scipy.stats.binomtest(0, 20).proportion_ci(method="exact")
    assert without_spread(0.0, 20) == pytest.approx((exact.low, exact.high))
    other = 1 - 0.05 ** (1 / 20)  # so rare, something else is not seen in 20 trials in 5 % of cases
    assert without_spread(0.0, 20, least=-1.0) == pytest.approx((-other, other))
    assert without_spread(0.5, 20) == pytest.approx((0.5 - other / 2, 0.5 + other / 2))
    assert bootstrap_interval([0.5] * 20, shares=True) == pytest.approx(without_spread(0.5, 20))


def test_fixed_problems_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(6)
    rates = rng.beta(1, 1, size=30)
    samples = np.full(30, 12)
    hits = 0
    for _ in range(1000):
        low, high = fixed_problems_interval(rng.binomial(12, rates), samples)
        hits += low <= rates.mean() <= high
    assert 0.93 <= hits / 1000 <= 0.97


def test_thirty_problems_of_twelve_samples_give_the_widths_of_the_method() -> None:
    rng = np.random.default_rng(7)
    correct = rng.binomial(12, rng.beta(0.8, 0.8, size=30))
    fixed = np.diff(fixed_problems_interval(correct, np.full(30, 12)))[0] / 2
    over = np.diff(bootstrap_interval(correct / 12))[0] / 2
    assert 0.03 < fixed < 0.05
    assert 0.09 < over < 0.15


def test_fixed_problems_edges() -> None:
    assert all(map(math.isnan, fixed_problems_interval([], [])))
    assert all(map(math.isnan, fixed_problems_interval([1, 2], [1, 4])))
    reach = 1 - 0.05 ** (1 / 8)
    assert fixed_problems_interval([0, 4], [4, 4]) == pytest.approx((0.5 - reach, 0.5 + reach))
    low, high = fixed_problems_interval([1], [2])
    assert 0.0 < low < 0.03
    assert 0.97 < high < 1.0


@pytest.mark.parametrize(("correct", "samples"), [([3], [2]), ([-1], [2]), ([0], [0]), ([1, 1], [2]), ([[1]], [[2]])])
def test_fixed_problems_refuses(correct: list, samples: list) -> None:
    with pytest.raises(ValueError, match="samples"):
        fixed_problems_interval(correct, samples)
    with pytest.raises(ValueError, match="level"):
        fixed_problems_interval([1], [2], level=2.0)


@settings(deadline=None)
@given(st.floats(1e-3, 1e5), st.floats(1e-3, 1e5), st.floats(0.01, 0.999))
def test_beta_interval_agrees_with_scipy(a: float, b: float, level: float) -> None:
    spread = max(scipy.stats.beta.std(a, b), 1e-4)
    expected = scipy.stats.beta.interval(level, a, b)
    assert beta_interval(a, b, level) == pytest.approx(expected, rel=0, abs=1e-7 * spread)


def test_beta_interval_by_hand() -> None:
    assert beta_interval(1, 1) == pytest.approx((0.025, 0.975))
    assert beta_interval(1, 1, 0.5) == pytest.approx((0.25, 0.75))
    assert beta_interval(3, 1) == pytest.approx((0.025 ** (1 / 3), 0.975 ** (1 / 3)))  # its distribution is x ** 3
    low, high = beta_interval(1e8, 1e8)  # as good as normal
    assert (low, high) == pytest.approx((0.5 - 1.959964 / 2 / math.sqrt(2e8), 0.5 + 1.959964 / 2 / math.sqrt(2e8)))


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, -1), (math.nan, 1), (1, math.inf)])
def test_beta_interval_refuses(a: float, b: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        beta_interval(a, b)
    with pytest.raises(ValueError, match="level"):
        beta_interval(1, 1, 0.0)


def test_share_interval_of_very_many_draws_ends_soon() -> None:
    error = math.sqrt(1e-10)
    assert share_interval(0.5, 1e-10, 10**6) == pytest.approx((0.5 - 1.96 * error, 0.5 + 1.96 * error), abs=1e-8)
