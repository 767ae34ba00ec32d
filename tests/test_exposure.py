"""Exposure rules that do not learn: ends and direction of schedules, draws that seed, step and problem decide."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from lit_atex.exposure import Exposure, Fixed, Random, Scheduled, TrainingState

UNIT = st.floats(0, 1)
SHAPES = st.sampled_from(["linear", "cosine", "step"])


def state(step: int = 0, max_steps: int = 100, names: str = "abc") -> TrainingState:
    return TrainingState(step, max_steps, 0, list(names), ["1"] * len(names))


def curve(rule: Exposure, max_steps: int) -> list[float]:
    values = [rule.ratios(state(step, max_steps)) for step in range(max_steps)]
    assert all(len(set(v)) == 1 and len(v) == 3 for v in values)  # one value for all problems
    return [v[0] for v in values]


@given(st.integers(0, 10_000), st.integers(0, 10_000), UNIT, UNIT, SHAPES, st.integers(2, 9), st.booleans())
def test_every_ratio_is_in_the_unit_interval(
    step: int, max_steps: int, one: float, two: float, shape: str, stages: int, each: bool
) -> None:
    low, high = sorted((one, two))
    rules = [Fixed(one), Random(low, high, "problem" if each else "step", seed=step)]
    rules += [Scheduled(shape, one, two, stages)] if max_steps else []
    for rule in rules:
        ratios = rule.ratios(state(step, max_steps))
        assert len(ratios) == 3
        assert all(0 <= r <= 1 for r in ratios)
        assert all(low - 1e-12 <= r <= high + 1e-12 for r in ratios)


def test_fixed() -> None:
    assert Fixed().ratios(state()) == [1.0, 1.0, 1.0]
    assert Fixed(0.3).ratios(state(7, 0, "ab")) == [0.3, 0.3]
    assert Fixed(0.3).ratios(state(names="")) == []


# Schedules


@given(SHAPES, UNIT, UNIT, st.integers(2, 9), st.integers(2, 60))
def test_a_schedule_begins_at_its_start_and_ends_at_its_end_and_never_turns(
    shape: str, start: float, end: float, stages: int, max_steps: int
) -> None:
    values = curve(Scheduled(shape, start, end, stages), max_steps)
    assert values[0] == pytest.approx(start, abs=1e-12)
    assert values[-1] == pytest.approx(end, abs=1e-12)
    sign = 1 if end >= start else -1
    assert all(sign * (b - a) >= -1e-12 for a, b in pairwise(values))


def test_schedules_by_hand() -> None:
    assert curve(Scheduled("linear", 1.0, 0.0), 5) == pytest.approx([1, 0.75, 0.5, 0.25, 0])
    assert curve(Scheduled("linear", 0.2, 0.6), 3) == pytest.approx([0.2, 0.4, 0.6])
    quarter = (1 - math.sqrt(0.5)) / 2
    assert curve(Scheduled("cosine", 0.0, 1.0), 5) == pytest.approx([0, quarter, 0.5, 1 - quarter, 1])
    assert curve(Scheduled("step", 1.0, 0.0, stages=2), 4) == [1, 1, 0, 0]
    assert curve(Scheduled("step", 0.0, 0.9, stages=4), 8) == pytest.approx([0, 0, 0.3, 0.3, 0.6, 0.6, 0.9, 0.9])


@given(st.integers(2, 6), st.integers(2, 200))
def test_stages_are_equally_long_and_all_are_seen(stages: int, max_steps: int) -> None:
    values = curve(Scheduled("step", 1.0, 0.0, stages), max(max_steps, 2 * stages))
    _, counts = np.unique(values, return_counts=True)
    assert len(counts) == stages
    assert counts.max() - counts.min() <= 2


@pytest.mark.parametrize("shape", ["linear", "cosine", "step"])
def test_after_the_last_step_the_end_stays(shape: str) -> None:
    rule = Scheduled(shape, 1.0, 0.25)
    assert rule.ratios(state(10, 10)) == pytest.approx([0.25] * 3)
    assert rule.ratios(state(1_000, 10)) == pytest.approx([0.25] * 3)
    assert rule.ratios(state(0, 1)) == [1.0] * 3  # a run of one step has only a start


@pytest.mark.parametrize("max_steps", [0, -1])
def test_a_schedule_needs_the_length_of_the_run(max_steps: int) -> None:
    with pytest.raises(ValueError, match=r"set trainer\.max_steps"):
        Scheduled().ratios(state(3, max_steps))
    assert Random().ratios(state(3, max_steps))  # the others do not
    assert Fixed().ratios(state(3, max_steps))


# Random


def test_draws_depend_on_seed_and_step_alone() -> None:
    rule = Random(seed=3)
    first = rule.ratios(state(5))
    assert len(set(first)) == 1
    rule.ratios(state(6))
    rule.ratios(state(7, names="xyz"))
    assert rule.ratios(state(5, 0, "hgfe")) == [*first, first[0]]
    assert Random(seed=3).ratios(state(5)) == first
    assert len({Random(seed=s).ratios(state(t))[0] for s in range(5) for t in range(5)}) == 25


def test_a_share_of_the_draws_is_nothing_and_the_others_are_as_they_were() -> None:
    names = [str(i) for i in range(4_000)]
    plain, rule = Random(0.25, per="problem", seed=3), Random(0.25, per="problem", nothing=0.3, seed=3)
    drawn = list(zip(rule.ratios(state(5, names=names)), plain.ratios(state(5, names=names)), strict=True))
    assert {(u, v) for u, v in drawn if u != v} == {(0.0, v) for u, v in drawn if u == 0.0}
    assert sum(u == 0.0 for u, _ in drawn) / len(drawn) == pytest.approx(0.3, abs=0.03)  # 4 SE
    assert Random(0.25, nothing=1.0, seed=3).ratios(state(5)) == [0.0] * len(state(5).problem_ids)
    with pytest.raises(ValueError, match="nothing"):
        Random(nothing=1.5)


def test_draws_per_problem_do_not_depend_on_their_neighbours() -> None:
    rule = Random(per="problem", seed=1)
    together = dict(zip("abcdef", rule.ratios(state(4, names="abcdef"))))
    assert len(set(together.values())) == 6
    assert dict(zip("fedcba", rule.ratios(state(4, names="fedcba")))) == together
    parts = {**dict(zip("ab", rule.ratios(state(4, names="ab")))), "e": rule.ratios(state(4, names="e"))[0]}
    assert parts == {name: together[name] for name in "abe"}
    assert rule.ratios(state(5, names="a")) != rule.ratios(state(4, names="a"))


def test_random_draws_by_value() -> None:
    """The same on every platform and in every process: checkpoints of one machine resume on another."""
    assert Random(seed=0).ratios(state(0, names="a")) == pytest.approx([0.5301917639279886])
    assert Random(per="problem", seed=0).ratios(state(0, names="a")) == pytest.approx([0.0430090690051792])


@pytest.mark.parametrize("per", ["step", "problem"])
def test_draws_are_uniform_over_the_range(per: str) -> None:
    rule = Random(0.2, 0.7, per, seed=2)
    if per == "step":
        draws = [rule.ratios(state(step))[0] for step in range(2000)]
    else:
        names = [str(i) for i in range(500)]
        draws = [r for step in range(4) for r in rule.ratios(TrainingState(step, 0, 0, names, names))]
    assert min(draws) >= 0.2
    assert max(draws) <= 0.7
    assert scipy.stats.kstest(draws, scipy.stats.uniform(0.2, 0.5).cdf).pvalue > 0.01
    # Neighbouring steps and problems are not alike.
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / math.sqrt(2000)


def test_a_range_of_one_point() -> None:
    assert Random(0.4, 0.4).ratios(state()) == [0.4] * 3


# The user's mistakes


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda x: Fixed(x), "ratio"),
        (lambda x: Scheduled(start=x), "start"),
        (lambda x: Scheduled(end=x), "end"),
        (lambda x: Random(low=x), "low"),
        (lambda x: Random(high=x), "high"),
    ],
)
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan, math.inf])
def test_a_ratio_out_of_range_names_its_key(make: object, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"exposure\.strategy\.init_args\.{key} must lie in \[0, 1\], got {value}"):
        make(value)


def test_other_mistakes_name_their_key() -> None:
    with pytest.raises(ValueError, match=r"init_args\.stages must be at least 2, got 1"):
        Scheduled(stages=1)
    with pytest.raises(ValueError, match=r"init_args: low \(0\.6\) must not be above high \(0\.5\)"):
        Random(0.6, 0.5)


def test_rules_without_memory_have_nothing_to_save() -> None:
    for rule in (Fixed(), Scheduled(), Random()):
        assert rule.state_dict() == {}
        rule.load_state_dict({})
