import math
from itertools import combinations
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_atex.metrics import AverageAtK, PassAtK, average_at_k, pass_at_k

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


@pytest.mark.parametrize("metric", [AverageAtK(8), PassAtK(8), PassAtK(3)])
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


def synced_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = []
    for shares in SHARES:
        for metric in (AverageAtK(4), PassAtK(2)):
            metric.to("cpu")  # as Lightning does; torchmetrics forgets a chosen dtype here
            for one in tensor(*shares[rank]):
                metric.update(one[None], tensor(4))
            results += [metric.compute(), metric.per_problem()]
            metric.update(tensor(4), tensor(4))  # a sync must not disturb what comes after
            results.append(metric.per_problem())
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_equal_one(tmp_path: Path) -> None:
    mp.spawn(synced_rank, args=(str(tmp_path),), nprocs=2)
    for rank in range(2):
        results = iter(torch.load(tmp_path / f"{rank}.pt"))
        for first, second in SHARES:
            both = tensor(*first, *second)
            fours = torch.full_like(both, 4)
            for values in (average_at_k(both, fours), pass_at_k(both, fours, 2)):
                torch.testing.assert_close(next(results), values.mean(), equal_nan=True)
                assert torch.equal(next(results), values)
                split, one = len(first), torch.ones(1, dtype=torch.float64)
                assert torch.equal(next(results), torch.cat([values[:split], one, values[split:], one]))
