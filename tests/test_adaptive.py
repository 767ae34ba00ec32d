"""Rules that follow what was measured: the map from competence, held in a window; the control of the mismatch."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_atex.adaptive import CompetenceBased, MismatchTarget
from lit_atex.competence import Competence
from lit_atex.exposure import Exposure, TrainingState
from lit_atex.types import StepFeedback, Verdict

ANY = st.floats()  # infinities and nan too
UNIT = st.floats(0, 1)
NAMES = "abcdef"
LEVELS = {name: str(i % 2) for i, name in enumerate(NAMES)}


def state(names: str = "abc", competence: Competence | None = None, step: int = 0) -> TrainingState:
    return TrainingState(step, 100, 0, list(names), [LEVELS.get(n, "0") for n in names], competence)


def feedback(
    names: str = "", right: str = "", mismatch: float = 0.0, shown: list[float] | None = None, samples: int = 4
) -> StepFeedback:
    """Problems by their letters; those in `right` were solved each time, the others never."""
    verdicts = [Verdict.CORRECT if n in right else Verdict.WRONG for n in names for _ in range(samples)]
    levels = [LEVELS.get(n, "0") for n in names]
    shown = shown or [0.5] * len(names)
    return StepFeedback(0, list(names), levels, shown, verdicts, 0.0, mismatch, 0.0, 0.0, 1.0, 0.0, 10)


# CompetenceBased


def known(value: float) -> Competence:
    """A competence whose mean over all is as close to the value as whole counts come."""
    competence = Competence(1.0)
    for i in range(100):
        competence.update(feedback("a", "a" if i < round(100 * value) else "", samples=100))
    return competence


def mapped(rule: CompetenceBased, competence: Competence, names: str = "abc") -> list[float]:
    rule.begin_window(state(names, competence), None)
    return rule.ratios(state(names, competence))


def test_the_map_by_hand() -> None:
    never, half, always = known(0.0), known(0.5), known(1.0)
    assert mapped(CompetenceBased(), half) == pytest.approx([0.5] * 3)
    assert mapped(CompetenceBased(shape=2.0), half) == pytest.approx([0.25] * 3)
    assert mapped(CompetenceBased(shape=0.5), half) == pytest.approx([math.sqrt(0.5)] * 3)
    assert mapped(CompetenceBased(floor=0.2, ceiling=0.6), half) == pytest.approx([0.4] * 3)
    assert mapped(CompetenceBased(floor=0.2, ceiling=0.6), never) == pytest.approx([0.6] * 3, abs=1e-3)
    assert mapped(CompetenceBased(floor=0.2, ceiling=0.6), always) == pytest.approx([0.2] * 3, abs=1e-3)
    assert mapped(CompetenceBased(shape=3.0), Competence()) == [0.125] * 3  # before any feedback: at 1/2


@settings(deadline=None, max_examples=50)
@given(st.floats(0.2, 5), UNIT, UNIT)
def test_the_map_falls_from_the_ceiling_to_the_floor_without_a_jump(shape: float, one: float, two: float) -> None:
    floor, ceiling = sorted((one, two))
    rule = CompetenceBased(floor=floor, ceiling=ceiling, shape=shape)

    class Known(Competence):
        def mean(self, level=None, problem=None):
            return self.value

    competence, values = Known(), []
    for i in range(1001):
        competence.value = i / 1000
        values.append(mapped(rule, competence, "a")[0])
    assert values[0] == pytest.approx(ceiling)
    assert values[-1] == pytest.approx(floor)
    assert all(after <= before + 1e-12 for before, after in pairwise(values))
    steepest = max(0.001**shape, 1 - 0.999**shape)  # at one of the ends
    assert all(before - after <= (ceiling - floor) * steepest + 1e-9 for before, after in pairwise(values))


def test_a_solved_problem_is_shown_less_than_a_failed_one() -> None:
    competence = Competence()
    for _ in range(3):
        competence.update(feedback("ac", "a"))  # both of level 0
    solved, failed, new = mapped(CompetenceBased("problem"), competence, "ace")
    assert solved < new < failed
    assert new == pytest.approx(1 - competence.mean(level="0"))  # its level's prior
    assert len(set(mapped(CompetenceBased("all"), competence, "ace"))) == 1


def test_levels_tell_new_problems_apart() -> None:
    competence = Competence()
    competence.update(feedback("ab", "a"))
    easy, hard = mapped(CompetenceBased("problem"), competence, "cd")
    assert easy == pytest.approx(1 / 6)
    assert hard == pytest.approx(5 / 6)


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.tuples(st.text(NAMES, max_size=4), st.text(NAMES, max_size=4), ANY, st.booleans()), max_size=8),
    st.sampled_from(["all", "problem"]),
    UNIT,
    UNIT,
    st.floats(1e-3, 1e3),
    st.integers(1, 3),
)
def test_competence_based_exposure_keeps_to_its_bounds(
    history: list, per: str, one: float, two: float, shape: float, most: int
) -> None:
    floor, ceiling = sorted((one, two))
    rule, competence = CompetenceBased(per, floor, ceiling, shape), Competence(max_problems=most)
    rule.begin_window(state("", competence), None)
    for names, right, mismatch, opens in history:
        if opens:
            rule.begin_window(state(names, competence), None)
        ratios = rule.ratios(state(names, competence))
        assert len(ratios) == len(names)
        assert all(floor <= r <= ceiling for r in ratios)
        told = feedback(names, right, mismatch, ratios)
        competence.update(told)
        rule.update(told)


def test_without_an_estimate_it_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="add a CompetenceEstimator"):
        CompetenceBased().ratios(state("a", None))


# MismatchTarget


def step(rule: MismatchTarget, mismatch: Callable[[float], float], steps: int = 1) -> float:
    """A window; returns its exposure."""
    rule.begin_window(state(), None)
    (ratio,) = set(rule.ratios(state()))
    for _ in range(steps):
        rule.update(feedback(mismatch=mismatch(ratio)))
    return ratio


@pytest.mark.parametrize("slope", [0.16, 0.43])  # mismatch at full exposure: what the embedded reasoner begins with
@pytest.mark.parametrize("target", [0.05, 0.1, 0.14])
@pytest.mark.parametrize("start", [0.0, 0.5, 1.0])
def test_it_holds_the_target_wherever_that_can_be_reached(slope: float, target: float, start: float) -> None:
    """A plant whose slope decays as the student learns: exposure must rise to hold the mismatch, up to its limit."""
    rule, held, saturated = MismatchTarget(target, start=start), 0, 0
    for now in range(400):
        current = slope * math.exp(-now / 200)
        ratio = step(rule, lambda r, c=current: c * r)
        if now < 60:  # it may start far away
            continue
        if current > 1.1 * target:
            assert current * ratio == pytest.approx(target, rel=0.1)
            held += 1
        elif current < 0.9 * target:
            assert ratio > 0.99
            saturated += 1
    assert held or saturated


def test_it_moves_by_the_formula() -> None:
    rule = MismatchTarget(0.2, gain=0.3, start=0.5)
    assert step(rule, lambda r: 0.1, steps=2) == 0.5
    assert step(rule, lambda r: 0.3) == pytest.approx(0.5 + 0.3 * 0.5)
    assert rule.scalars()["mismatch_error"] == pytest.approx(-0.5)
    rule.update(feedback(mismatch=0.7))  # the window's second step: its mean is 0.5
    assert step(rule, lambda r: 0.2) == pytest.approx(0.65 - 0.3 * 1.5)
    assert step(rule, lambda r: 0.2) == pytest.approx(0.2)


@pytest.mark.parametrize(("wrong", "back", "bound"), [(0.0, 0.15, 0.9), (5.0, 0.05, 0.1)])
def test_a_bound_is_left_at_once(wrong: float, back: float, bound: float) -> None:
    """Integrators that wind up stay at the bound for as long as they were driven into it."""
    rule = MismatchTarget(0.1, gain=0.2, start=0.5, floor=0.1, ceiling=0.9)
    for _ in range(100):
        ratio = step(rule, lambda r: wrong)
    assert ratio == bound
    step(rule, lambda r: back)
    assert step(rule, lambda r: back) == pytest.approx(bound + 0.2 * (0.1 - back) / 0.1)


def test_a_window_without_feedback_leaves_it() -> None:
    rule = MismatchTarget(start=0.3)
    for _ in range(3):
        assert step(rule, lambda r: 0.0, steps=0) == 0.3
    assert "mismatch_error" not in rule.scalars()


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_left_out_and_counted(broken: float) -> None:
    rule, clean = MismatchTarget(), MismatchTarget()
    for value in (0.02, broken, 0.08, broken):
        rule.update(feedback(mismatch=value))
    for value in (0.02, 0.08):
        clean.update(feedback(mismatch=value))
    assert step(rule, lambda r: broken) == step(clean, lambda r: broken)
    assert rule.scalars()["mismatch_ignored"] == 3.0
    assert step(rule, lambda r: 0.0) == step(clean, lambda r: 0.0)  # nothing was heard of that window


@settings(deadline=None)
@given(
    st.lists(st.tuples(ANY, st.booleans()), max_size=20),
    st.floats(1e-300, 1e300),
    st.floats(1e-300, 1e300),
    st.lists(UNIT, min_size=3, max_size=3),
)
def test_mismatch_control_keeps_to_its_bounds(history: list, target: float, gain: float, bounds: list) -> None:
    floor, start, ceiling = sorted(bounds)
    rule = MismatchTarget(target, gain, start, floor, ceiling)
    for mismatch, opens in history:
        if opens:
            rule.begin_window(state(), None)
        ratios = rule.ratios(state())
        assert len(ratios) == 3
        assert all(floor <= r <= ceiling for r in ratios)
        rule.update(feedback(mismatch=mismatch))


# Both


@pytest.mark.parametrize(
    "make", [CompetenceBased, lambda: CompetenceBased("problem"), lambda: MismatchTarget(gain=0.1)]
)
@pytest.mark.parametrize("cut", [0, 1, 2, 3, 7])
def test_cut_anywhere_it_goes_on_as_undisturbed(make: Callable[[], Exposure], cut: int) -> None:
    steps = [
        ("ab", "a", 0.02),
        ("bc", "c", 0.3),
        ("cd", "", 0.0),
        ("ab", "ab", 0.08),
        ("ca", "a", 0.1),
        ("ef", "f", 0.04),
    ]

    def run(rule: Exposure, competence: Competence, first: int, last: int) -> list[list[float]]:
        shown = []
        for now in range(first, last):
            names, right, mismatch = steps[now % len(steps)]
            if now % 3 == 0:
                rule.begin_window(state(names, competence), None)
            shown.append(rule.ratios(state(names, competence)))
            told = feedback(names, right, mismatch, shown[-1])
            competence.update(told)
            rule.update(told)
        return shown

    straight = run(make(), Competence(), 0, 12)
    assert len({tuple(ratios) for ratios in straight}) > 2
    rule, competence = make(), Competence()
    before = run(rule, competence, 0, cut)
    saved = json.loads(json.dumps(rule.state_dict()))
    kept = copy.deepcopy(saved)
    resumed = make()
    resumed.load_state_dict(saved)
    assert before + run(resumed, competence, cut, 12) == straight
    assert saved == kept


@pytest.mark.parametrize("rule", [CompetenceBased, MismatchTarget])
@pytest.mark.parametrize("name", ["floor", "ceiling"])
@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_a_bound_out_of_range_names_its_key(rule: Callable, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"exposure\.strategy\.init_args\.{name} must lie in \[0, 1\], got {value}"):
        rule(**{name: value})


def test_other_mistakes_name_their_key() -> None:
    for rule in (CompetenceBased, MismatchTarget):
        with pytest.raises(ValueError, match=r"floor \(0\.6\) must not be above ceiling \(0\.5\)"):
            rule(floor=0.6, ceiling=0.5)
    with pytest.raises(ValueError, match=r"init_args\.start must lie in \[0\.2, 1\.0\], got 0\.1"):
        MismatchTarget(start=0.1, floor=0.2)
    for value in (0.0, -1.0, math.inf, math.nan):
        for make in (
            lambda x: CompetenceBased(shape=x),
            lambda x: MismatchTarget(target=x),
            lambda x: MismatchTarget(gain=x),
        ):
            with pytest.raises(ValueError, match="must be positive and finite"):
                make(value)
