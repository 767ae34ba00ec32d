import math
from itertools import combinations
from pathlib import Path

import pytest
import scipy.stats
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics import MetricCollection

from lit_atex.metric_shells import AverageAtK, DistinctAnswers, GPassAtK, MajorityAtK, MeanOverProblems, PassAtK
from lit_atex.metrics import average_at_k, g_pass_at_k, mean_g_pass_at_k, pass_at_k
from lit_atex.votes import distinct_answers, majority_at_k

counts = st.integers(1, 40).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


def tensor(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64)


@pytest.mark.parametrize("n", range(1, 8))
def test_pass_at_k_is_the_share_of_subsets_that_hold_a_correct_sample(n: int) -> None:
    for c in range(n + 1):
        outcomes = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            subsets = list(combinations(outcomes, k))
            share = sum(map(any, subsets)) / len(subsets)
            assert pass_at_k(tensor(c), tensor(n), k).item() == pytest.approx(share, abs=1e-15)


def test_pass_at_k_does_not_depend_on_which_samples_came_first() -> None:
    # "any of the first k" would say 1 for the first order and 0 for the second
    orders = [[True, False, False, False], [False, False, False, True]]
    got = [pass_at_k(tensor(sum(order)), tensor(4), 2).item() for order in orders]
    assert got == [0.5, 0.5]


@given(counts)
@settings(deadline=None)
def test_laws_of_pass_at_k(cn: tuple[int, int]) -> None:
    c, n = map(tensor, cn)
    curve = torch.cat([pass_at_k(c, n, k) for k in range(1, cn[1] + 1)])
    assert curve.dtype == torch.float64
    assert ((curve >= 0) & (curve <= 1)).all()
    assert (curve.diff() >= -1e-12).all()
    torch.testing.assert_close(curve[:1], average_at_k(c, n))
    assert curve[-1].item() == (1.0 if cn[0] else 0.0)


@given(st.integers(1, 2000), st.data())
@settings(max_examples=50, deadline=None)
def test_pass_at_k_is_stable_for_many_samples(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)  # Python's integers do not round; their ratio does once
    assert pass_at_k(tensor(c), tensor(n), k).item() == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_pass_at_k_refuses_k_and_names_it_and_n(k: int) -> None:
    with pytest.raises(ValueError, match=rf"k={k} .*n=3"):
        pass_at_k(tensor(1, 1), tensor(8, 3), k)


@pytest.mark.parametrize(("c", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_counts_out_of_range_are_refused(c: int, n: int) -> None:
    for call in (lambda: average_at_k(tensor(c), tensor(n)), lambda: pass_at_k(tensor(c), tensor(n), 1)):
        with pytest.raises(ValueError, match="correct <= samples"):
            call()


def test_functions_of_no_problems() -> None:
    assert average_at_k(tensor(), tensor()).shape == (0,)
    assert pass_at_k(tensor(), tensor(), 3).shape == (0,)


# G-Pass@k


@pytest.mark.parametrize("n", range(1, 8))
def test_g_pass_at_k_is_the_share_of_subsets_with_enough_correct_samples(n: int) -> None:
    for c in range(n + 1):
        outcomes = [True] * c + [False] * (n - c)
        for k in range(1, n + 1):
            hits = [sum(subset) for subset in combinations(outcomes, k)]
            shares = {}
            for least in range(1, k + 1):
                shares[least] = sum(h >= least for h in hits) / len(hits)
                assert g_pass_at_k(tensor(c), tensor(n), k, least / k).item() == pytest.approx(shares[least], abs=1e-12)
            if k > 1:
                mean = 2 / k * sum(shares[i] for i in range(math.ceil(k / 2) + 1, k + 1))
                assert mean_g_pass_at_k(tensor(c), tensor(n), k).item() == pytest.approx(mean, abs=1e-12)


@given(st.integers(1, 300), st.data())
@settings(max_examples=50, deadline=None)
def test_g_pass_at_k_is_scipys_hypergeometric_tail(n: int, data: st.DataObject) -> None:
    c, k = data.draw(st.integers(0, n)), data.draw(st.integers(1, n))
    tau = data.draw(st.floats(0.01, 1))
    least = math.ceil(tau * k - 1e-9)
    expected = scipy.stats.hypergeom.sf(least - 1, n, c, k)
    assert g_pass_at_k(tensor(c), tensor(n), k, tau).item() == pytest.approx(expected, abs=1e-9)


def test_g_pass_at_k_is_exactly_1_where_too_few_samples_are_wrong() -> None:
    """1 - 1e-16 for 1 gave an interval from 0 to 1, and once none at all."""
    for n in range(1, 17):
        wrong = torch.arange(n + 1)
        for k, least in ((j, i) for j in range(1, n + 1) for i in range(1, j + 1)):
            found = g_pass_at_k(n - wrong, torch.full_like(wrong, n), k, least / k)
            assert ((found == 1) == (wrong <= k - least)).all()


def test_g_pass_at_k_against_the_numbers_of_another_library() -> None:
    """The example in the metric card of huggingface/evaluate's `gpassk`: 8 of 16 predictions are correct."""
    published = {
        (4, 0.25): 0.9615384615384616,
        (4, 0.5): 0.7153846153846154,
        (4, 0.75): 0.2846153846153846,
        (4, 1.0): 0.038461538461538464,
        (8, 0.25): 0.9949494949494949,
        (8, 0.5): 0.6903651903651904,
        (8, 0.75): 0.06596736596736597,
        (8, 1.0): 7.77000777000777e-05,
    }
    for (k, tau), value in published.items():
        assert g_pass_at_k(tensor(8), tensor(16), k, tau).item() == pytest.approx(value, rel=1e-12)
    assert mean_g_pass_at_k(tensor(8), tensor(16), 4).item() == pytest.approx(0.16153846153846152, rel=1e-12)
    assert mean_g_pass_at_k(tensor(8), tensor(16), 8).item() == pytest.approx(0.09518259518259518, rel=1e-12)
    # pass@k is G-Pass@k at the smallest share
    assert pass_at_k(tensor(8), tensor(16), 4).item() == pytest.approx(published[4, 0.25], rel=1e-12)


@pytest.mark.slow
@given(counts)
@settings(deadline=None)
def test_laws_of_g_pass_at_k(cn: tuple[int, int]) -> None:
    c, n = map(tensor, cn)
    for k in {1, cn[1] // 2 or 1, cn[1]}:
        torch.testing.assert_close(g_pass_at_k(c, n, k, 1e-9), pass_at_k(c, n, k))
        curve = torch.cat([g_pass_at_k(c, n, k, i / k) for i in range(1, k + 1)])
        assert (curve.diff() <= 1e-12).all()
        assert ((curve >= 0) & (curve <= 1)).all()


def test_a_share_that_floating_point_puts_above_its_number() -> None:
    assert 0.7 * 10 > 7 - 1e-15
    assert 0.55 * 100 > 55  # so a plain ceiling would ask for 56
    torch.testing.assert_close(
        g_pass_at_k(tensor(60), tensor(110), 100, 0.55), g_pass_at_k(tensor(60), tensor(110), 100, 55 / 100 - 1e-4)
    )


@pytest.mark.parametrize("tau", [0.0, -0.5, 1.1])
def test_g_pass_at_k_refuses_a_share(tau: float) -> None:
    with pytest.raises(ValueError, match="tau"):
        g_pass_at_k(tensor(1), tensor(2), 1, tau)


def test_g_pass_at_k_refuses_k() -> None:
    with pytest.raises(ValueError, match=r"G-Pass@k .*k=4 .*n=3"):
        g_pass_at_k(tensor(1), tensor(3), 4, 0.5)
    with pytest.raises(ValueError, match="k >= 2"):
        mean_g_pass_at_k(tensor(1), tensor(3), 1)


# Shells


VOTES = [["a", "a", "b", None], ["b", "b", "a", "a"], [None] * 4, ["a", "b", "c", "d"], ["a"] * 4]
RIGHT = [[x == "a" for x in row] for row in VOTES]


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_shells_of_votes_stream(k: int) -> None:
    majority, distinct = MajorityAtK(k), DistinctAnswers()
    for part in (slice(0, 2), slice(2, 2), slice(2, 5)):
        majority.update(VOTES[part], RIGHT[part])
        distinct.update(VOTES[part])
    assert majority.per_problem().tolist() == majority_at_k(VOTES, RIGHT, k)
    assert majority.compute().item() == pytest.approx(sum(majority_at_k(VOTES, RIGHT, k)) / 5)
    assert distinct.per_problem().tolist() == distinct_answers(VOTES) == [2, 2, 0, 4, 1]


@pytest.mark.parametrize("metric", [AverageAtK(8), PassAtK(8), PassAtK(3), GPassAtK(4, 0.75), GPassAtK(8)])
def test_streaming_equals_all_at_once(metric: AverageAtK | PassAtK) -> None:
    correct, samples = torch.arange(9), torch.full((9,), 8)
    metric.update(correct, samples)
    once, values = metric.compute(), metric.per_problem()
    metric.reset()
    for chunk in (slice(0, 1), slice(1, 1), slice(1, 6), slice(6, 9)):
        metric.update(correct[chunk], samples[chunk])
    assert torch.equal(metric.compute(), once)
    assert torch.equal(metric.per_problem(), values)
    assert once.dtype == values.dtype == torch.float64
    assert once.ndim == 0
    assert values.shape == (9,)


def test_pass_at_k_metric_takes_problems_with_different_numbers_of_samples() -> None:
    metric = PassAtK(2)
    metric.update(tensor(1, 1), tensor(2, 4))
    assert metric.compute().item() == pytest.approx((1 + 0.5) / 2)


@pytest.mark.parametrize("metric", [AverageAtK(4), PassAtK(4)])
def test_nothing_gives_nan_without_a_warning(metric: AverageAtK | PassAtK) -> None:
    assert metric.compute().isnan()  # warnings are errors in this test run
    assert metric.per_problem().shape == (0,)
    metric.update(tensor(), tensor())
    assert metric.compute().isnan()


def test_metrics_refuse() -> None:
    with pytest.raises(ValueError, match=r"avg@4 .*\[3, 5\]"):
        AverageAtK(4).update(tensor(1, 1), tensor(3, 5))
    with pytest.raises(ValueError, match=r"k=4 .*n=3"):
        PassAtK(4).update(tensor(1), tensor(3))
    for kind in (AverageAtK, PassAtK):
        with pytest.raises(ValueError, match="k must"):
            kind(0)


SHARES = [[[1, 3, 4], [2]], [[0, 3], []], [[], [1, 3]], [[], []]]  # correct of 4: case, rank, problem


def shells() -> list[MeanOverProblems]:
    return [AverageAtK(4), PassAtK(2), GPassAtK(4, 0.5), GPassAtK(2), MajorityAtK(4), DistinctAnswers(),
            MeanOverProblems()]  # fmt: skip


def arguments(metric: MeanOverProblems, correct: int) -> tuple:
    """What a shell is told of a problem with so many of 4 samples correct; the others are all different."""
    answers = ["a" if i < correct else f"{i}" for i in range(4)]
    if isinstance(metric, MajorityAtK):
        return [answers], [[a == "a" for a in answers]]
    if isinstance(metric, DistinctAnswers):
        return ([answers],)
    return (tensor(correct), tensor(4)) if type(metric) is not MeanOverProblems else (tensor(correct).double(),)


def alone(metric: MeanOverProblems, correct: list[int]) -> Tensor:
    """The values of the pure functions, or, where there is none, by hand."""
    c, n = tensor(*correct), torch.full((len(correct),), 4)
    answers = [arguments(DistinctAnswers(), one)[0][0] for one in correct]
    values: dict[type, object] = {
        AverageAtK: lambda: average_at_k(c, n),
        PassAtK: lambda: pass_at_k(c, n, 2),
        GPassAtK: lambda: mean_g_pass_at_k(c, n, 2) if metric.tau is None else g_pass_at_k(c, n, 4, 0.5),
        MajorityAtK: lambda: torch.tensor(majority_at_k(answers, [[a == "a" for a in x] for x in answers], 4)).double(),
        DistinctAnswers: lambda: torch.tensor([min(5 - one, 4) for one in correct]).double(),
        MeanOverProblems: lambda: c.double(),
    }
    return values[type(metric)]()


def synced_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for shares in SHARES:
        for metric in shells():
            metric.to("cpu")  # as Lightning does; torchmetrics forgets a chosen dtype here
            for one in shares[rank]:
                metric.update(*arguments(metric, one))
            results += [metric.compute(), metric.per_problem()]
            metric.update(*arguments(metric, 4))  # a sync must not disturb what comes after
            results.append(metric.per_problem())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    mp.spawn(synced_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        results = iter(torch.load(tmp_path / f"{rank}.pt"))
        for first, second in SHARES:
            for metric in shells():
                values, one = alone(metric, first + second), alone(metric, [4])
                torch.testing.assert_close(next(results), values.mean(), equal_nan=True)
                torch.testing.assert_close(next(results), values, rtol=0, atol=0)
                split = len(first)
                torch.testing.assert_close(next(results), torch.cat([values[:split], one, values[split:], one]))


def test_two_whose_first_values_agree_stay_two_in_a_collection():
    both = MetricCollection({"pass@1": PassAtK(1), "pass@2": PassAtK(2)}, compute_groups=False)
    for correct in ([0, 4], [1, 2]):
        both.update(torch.tensor(correct), torch.tensor([4, 4]))
    assert {k: v.item() for k, v in both.compute().items()} == {"pass@1": 7 / 16, "pass@2": (0 + 1 + 1 / 2 + 5 / 6) / 4}
