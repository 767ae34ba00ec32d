"""Discounted learning progress: against the brute-force sum; each decision credited once, in order, none lost."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_atex.bandit import Bandit
from lit_atex.exposure import TrainingState
from lit_atex.reward import Decision, LearningProgress

READING = st.none() | st.floats(-10, 10)
READINGS = st.lists(READING, min_size=1, max_size=12)
HORIZON = st.integers(1, 5)
DISCOUNT = st.floats(0, 1)


def decision(k: int) -> Decision:
    return Decision(k, 5 * k, 0.1 * (k % 10), {"state": [float(k)], "action": 0.5})


def brute_force(progress: list[float], k: int, horizon: int, discount: float) -> float:
    """R_k as method.md writes it: the sum over j = 1..J of discount^(j-1) (P_(k+j) - P_(k+j-1))."""
    return sum(discount ** (j - 1) * (progress[k + j] - progress[k + j - 1]) for j in range(1, horizon + 1))


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=15), HORIZON, DISCOUNT)
def test_the_reward_is_the_sum_by_the_book(progress: list[float], horizon: int, discount: float) -> None:
    queue = LearningProgress(horizon, discount)
    credited = []
    for k, p in enumerate(progress):
        for done, reward in queue.read(p):
            assert k == done.number + horizon  # known as window k + J opens, neither sooner nor later
            credited.append(done.number)
            assert reward == pytest.approx(brute_force(progress, done.number, horizon, discount), abs=1e-9)
        queue.wait(decision(k), p)
    assert credited == list(range(max(len(progress) - horizon, 0)))


def test_by_hand() -> None:
    queue = LearningProgress(horizon=2, discount=0.5)
    assert queue.read(1.0) == []
    queue.wait(decision(0), 1.0)
    assert queue.read(3.0) == []
    queue.wait(decision(1), 3.0)
    assert queue.so_far(4.0) == [(decision(0), 2.0 + 0.5 * 1.0), (decision(1), 1.0)]
    assert queue.read(2.0) == [(decision(0), 2.0 + 0.5 * -1.0)]
    assert queue.so_far(2.0) == [(decision(1), -1.0)]  # asked twice, nothing is used up
    assert queue.so_far(2.0) == [(decision(1), -1.0)]


def test_a_discount_of_0_sees_one_window_and_of_1_the_whole_difference() -> None:
    readings = [0.1, 0.4, 0.2, 0.9]
    assert LearningProgress(3, 0.0).reward(readings) == pytest.approx(0.3)
    assert LearningProgress(3, 1.0).reward(readings) == pytest.approx(0.8)


def test_unknown_readings_make_up_no_progress() -> None:
    reward = LearningProgress(3, 0.5).reward
    assert reward([None, 1.0, 2.0, 4.0]) == 0.5 * 1 + 0.25 * 2
    assert reward([1.0, None, 2.0, 4.0]) == 0 + 0.5 * 1 + 0.25 * 2
    assert reward([1.0, 2.0, None, None]) == 1.0
    assert reward([None, None, 1.0, None]) is None
    assert reward([None, None, None, None]) is None


@given(READINGS, READINGS, HORIZON, DISCOUNT)
def test_every_decision_comes_out_once_in_order_also_over_a_resume(
    before: list[float | None], after: list[float | None], horizon: int, discount: float
) -> None:
    queue = LearningProgress(horizon, discount)
    straight = LearningProgress(horizon, discount)
    out: list = []
    expected: list = []
    for k, p in enumerate([*before, *after]):
        if k == len(before):
            saved = json.loads(json.dumps(queue.state_dict()))  # plain data
            queue = LearningProgress(horizon, discount)
            queue.load_state_dict(saved)
        out += queue.read(p)
        expected += straight.read(p)
        queue.wait(decision(k), p)
        straight.wait(decision(k), p)
    out += queue.so_far(0.0)
    expected += straight.so_far(0.0)
    assert out == expected
    assert [d.number for d, _ in out] == list(range(len(before) + len(after)))
    assert [d for d, _ in out] == [decision(k) for k in range(len(out))]


@given(st.lists(st.sampled_from(["read", "wait", "so_far", "save"]), max_size=60), HORIZON)
def test_any_sequence_of_calls_leaves_the_queue_consistent(calls: list[str], horizon: int) -> None:
    queue = LearningProgress(horizon, 0.9)
    made, out, ages = 0, [], {}
    for i, call in enumerate(calls):
        if call == "read":
            ages = {k: age + 1 for k, age in ages.items()}
            done = [d.number for d, _ in queue.read(float(i))]
            assert done == [k for k, age in ages.items() if age == horizon]
            ages = {k: age for k, age in ages.items() if age < horizon}
            out += done
        elif call == "wait":
            queue.wait(decision(made), float(i))
            ages[made] = 0
            made += 1
        elif call == "so_far":
            assert [d.number for d, _ in queue.so_far(1.0)] == list(ages)
        else:
            state = queue.state_dict()
            queue = LearningProgress(horizon, 0.9)
            queue.load_state_dict(state)
    assert out == sorted(set(out))
    assert sorted([*out, *ages]) == list(range(made))


@pytest.mark.parametrize("last", [None, math.nan, math.inf, -math.inf])
def test_a_last_reading_that_is_no_number_takes_nothing_away(last: float | None) -> None:
    strategy = Bandit(horizon=3, discount=0.9)
    for k, progress in enumerate((0.1, 0.3, 0.5)):
        strategy.begin_window(TrainingState(k, 10, 0, ["a"], ["1"], None), progress)
    assert [credit.reward for credit in strategy.finish(last)] == [pytest.approx(0.38), pytest.approx(0.2), None]


@pytest.mark.parametrize(
    ("horizon", "discount", "key"), [(0, 0.9, "horizon"), (1, 1.1, "discount"), (1, -0.1, "discount")]
)
def test_mistakes_name_their_key(horizon: int, discount: float, key: str) -> None:
    with pytest.raises(ValueError, match=rf"exposure\.strategy\.init_args\.{key}"):
        LearningProgress(horizon, discount)
