"""The bandit as a strategy: grid, beliefs, forgetting, delayed rewards, resume."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lit_atex.bandit import Bandit
from lit_atex.exposure import TrainingState

STATE = TrainingState(0, 100, 0, ["a", "b"], ["", ""])


def test_the_grid_includes_both_ends_exactly() -> None:
    assert Bandit(arms=4, low=0.1, high=0.7).grid == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert Bandit(arms=7, low=0.1, high=0.7).grid[-1] == 0.7


def test_beliefs_are_the_formula() -> None:
    bandit = Bandit(arms=2, decay=0.5)
    bandit.earned = [(0, 1.0), (1, 3.0), (0, 2.0)]
    weights = np.array([0.25, 0.5, 1.0])
    m = (weights @ [1, 3, 2]) / weights.sum()
    s = math.sqrt(weights @ (np.array([1, 3, 2]) - m) ** 2 / weights.sum())
    mean, spread = bandit.believe()
    assert mean.tolist() == pytest.approx([(0.25 * (1 - m) + (2 - m)) / s / 2.25, 0.5 * (3 - m) / s / 1.5])
    assert spread.tolist() == pytest.approx([2.25**-0.5, 1.5**-0.5])


def test_it_settles_on_the_best_arm_and_follows_when_it_moves() -> None:
    bandit, progress, chosen = Bandit(decay=0.9, horizon=1, seed=1), 0.0, []
    for k in range(400):
        bandit.begin_window(STATE, progress)
        u = bandit.ratios(STATE)[0]
        chosen.append(u)
        progress += -((u - (0.2 if k < 200 else 0.8)) ** 2)
    assert np.mean(chosen[150:200]) == pytest.approx(0.2, abs=0.15)
    assert np.mean(chosen[350:]) == pytest.approx(0.8, abs=0.15)


READING = st.none() | st.floats(allow_nan=True, allow_infinity=True)


@given(st.lists(READING, max_size=12), st.integers(1, 3))
def test_each_decision_is_credited_once_whatever_is_read(readings: list[float | None], horizon: int) -> None:
    bandit, credited = Bandit(horizon=horizon), []
    for reading in readings:
        credited += [c.decision for c in bandit.begin_window(STATE, reading)]
        assert 0 <= bandit.ratios(STATE)[0] <= 1
    credited += [c.decision for c in bandit.finish(0.0)]
    assert credited == list(range(len(readings)))
    assert all(math.isfinite(r) for _, r in bandit.earned)


def test_resumed_is_undisturbed() -> None:
    def play(bandit: Bandit, progress: list[float]) -> list[float]:
        return [bandit.begin_window(STATE, p) is not None and bandit.ratios(STATE)[0] for p in progress]

    progress = np.random.default_rng(0).standard_normal(20).tolist()
    whole, half, resumed = Bandit(), Bandit(), Bandit()
    expected = play(whole, progress)
    play(half, progress[:9])
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert play(resumed, progress[9:]) == expected[9:]
    assert resumed.scalars() == whole.scalars()


@pytest.mark.parametrize(("name", "value"), [("arms", 1), ("low", 1.0), ("high", 1.1), ("decay", 0.0), ("horizon", 0)])
def test_bad_numbers_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"exposure\.strategy\.init_args.*{name}"):
        Bandit(**{name: value})


@pytest.mark.parametrize("reward", [0.1, -0.7, 1 / 3, 1e9])
def test_equal_rewards_prefer_no_arm(reward):
    bandit = Bandit(arms=3)
    bandit.earned = [(i % 3, reward) for i in range(20)]
    assert bandit.believe()[0].tolist() == [0.0, 0.0, 0.0]
