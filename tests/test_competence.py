"""Competence: decayed counts against a sum over the whole history; what makes room is kept by its level; intervals."""

from __future__ import annotations

import copy
import json
import pickle
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict
from time import perf_counter

import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_atex.competence import MAX_LEVELS, OTHERS, Competence, Tally
from lit_atex.types import StepFeedback, Verdict

RIGHT, WRONG, UNPARSED, TIMEOUT = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT
LEVELS = ["", "1", "2", "Level 5"]
NAMES = {f"p{i}": LEVELS[i % 4] for i in range(12)}
"""Twelve problems and their levels."""

PROBLEM = st.sampled_from(sorted(NAMES))
STEP = st.integers(1, 3).flatmap(
    lambda samples: st.lists(
        st.tuples(PROBLEM, st.lists(st.sampled_from(list(Verdict)), min_size=samples, max_size=samples)), max_size=4
    )
)
HISTORY = st.lists(STEP, max_size=8)
DECAY = st.floats(0.05, 1)


def feedback(problems: list[tuple[str, list[Verdict]]], step: int = 0, levels: dict[str, str] = NAMES) -> StepFeedback:
    """One step: a problem and the verdicts of its rollouts, per problem."""
    verdicts = [v for _, vs in problems for v in vs]
    ids = [name for name, _ in problems]
    labels = [levels[name] for name in ids]
    return StepFeedback(step, ids, labels, [1.0] * len(ids), verdicts, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 10)


def told(history: list, *args, **options) -> Competence:
    competence = Competence(*args, **options)
    for step, problems in enumerate(history):
        competence.update(feedback(problems, step))
    return competence


def seen(competence: Competence) -> list[str]:
    return [name for _, name in competence.problems()]


# Levels and all


def by_the_book(history: list, decay: float, level: str | None) -> float:
    """Beta(1, 1) prior, each verdict weighted by decay ** (steps since)."""
    successes = failures = 0.0
    for age, problems in enumerate(reversed(history)):
        for name, verdicts in problems:
            if level in (None, NAMES[name]):
                successes += decay**age * verdicts.count(RIGHT)
                failures += decay**age * (len(verdicts) - verdicts.count(RIGHT))
    return (1 + successes) / (2 + successes + failures)


@settings(deadline=None, max_examples=50)
@given(HISTORY, DECAY)
def test_counts_are_those_of_the_whole_history(history: list, decay: float) -> None:
    competence = told(history, decay)
    levels = {NAMES[name] for problems in history for name, _ in problems}
    assert set(competence.levels()) == levels
    assert len(competence.levels()) == len(levels)
    for level in [None, *levels, "never seen"]:
        assert competence.mean(level=level) == pytest.approx(by_the_book(history, decay, level))
        assert 0 < competence.mean(level=level) < 1


def test_by_hand() -> None:
    competence = Competence(0.5)
    assert competence.mean() == 0.5
    assert competence.levels() == []
    competence.update(feedback([("p1", [RIGHT, RIGHT]), ("p2", [WRONG, RIGHT])]))
    assert competence.mean() == (3 + 1) / (4 + 2)
    assert competence.mean(level="1") == 3 / 4
    assert competence.mean(level="2") == 2 / 4
    competence.update(feedback([("p1", [WRONG])]))
    assert competence.mean() == (1.5 + 1) / (3 + 2)
    assert competence.mean(level="2") == (0.5 + 1) / (1 + 2)
    competence.update(feedback([]))  # a step without problems forgets too
    assert competence.mean() == (0.75 + 1) / (1.5 + 2)


@pytest.mark.parametrize("verdict", [WRONG, UNPARSED, TIMEOUT])
def test_only_correct_is_success(verdict: Verdict) -> None:
    assert told([[("p1", [verdict])]]).mean() == pytest.approx(1 / 3)


def test_unparsed_and_timed_out_are_counted_apart_from_wrong() -> None:
    competence = Competence(0.5)
    assert set(competence.shares().values()) == {0.0}
    competence.update(feedback([("p1", [UNPARSED, UNPARSED]), ("p2", [WRONG, RIGHT])]))
    assert competence.shares() == {RIGHT: 0.25, WRONG: 0.25, UNPARSED: 0.5, TIMEOUT: 0.0}
    competence.update(feedback([("p1", [TIMEOUT, RIGHT])]))
    # The level: two unparsed of which half is left, one timed out, one correct.
    assert competence.shares("1") == pytest.approx({RIGHT: 1 / 3, WRONG: 0.0, UNPARSED: 1 / 3, TIMEOUT: 1 / 3})
    assert competence.shares("2")[UNPARSED] == 0.0
    assert competence.shares("2")[WRONG] == 0.5


def test_without_forgetting_it_tends_to_the_rate() -> None:
    history = [[("p1", [RIGHT if step % 4 else WRONG])] for step in range(500)]
    assert told(history, 1.0).mean() == pytest.approx(0.75, abs=0.002)


# Problems


@settings(deadline=None, max_examples=50)
@given(HISTORY, DECAY, DECAY, st.floats(0.1, 9))
def test_a_problem_is_a_posterior_whose_prior_is_its_level(
    history: list, decay: float, visits: float, weight: float
) -> None:
    """Each verdict weighs visit_decay ** (visits since), whatever else was trained in between."""
    competence = told(history, decay, visits, weight)
    everything = [visit for problems in history for visit in problems]
    for problem, level in NAMES.items():
        prior = by_the_book(history, decay, level)
        successes = failures = 0.0
        for age, verdicts in enumerate(reversed([verdicts for name, verdicts in everything if name == problem])):
            successes += visits**age * verdicts.count(RIGHT)
            failures += visits**age * (len(verdicts) - verdicts.count(RIGHT))
        expected = (weight * prior + successes) / (weight + successes + failures)
        assert competence.mean(level=level, problem=problem) == pytest.approx(expected)
        low, high = competence.interval(level=level, problem=problem)
        assert 0 <= low < high <= 1


def test_a_new_problem_starts_from_its_levels_mean() -> None:
    competence = told([[("p1", [RIGHT] * 3), ("p2", [WRONG] * 3)]])
    assert competence.mean(level="1", problem="new") == pytest.approx(competence.mean(level="1")) == 4 / 5
    assert competence.mean(level="2", problem="new") == pytest.approx(competence.mean(level="2")) == 1 / 5
    assert competence.mean(level="unheard of", problem="new") == 0.5
    assert competence.mean(level="1", problem="new") < competence.mean(level="1", problem="p1")
    # Two rollouts of prior and three of its own.
    assert competence.mean(level="1", problem="p1") == pytest.approx((2 * 0.8 + 3) / 5)


# Bounded memory


@settings(deadline=None, max_examples=50)
@given(HISTORY, DECAY, DECAY, st.integers(1, 6))
def test_what_makes_room_is_kept_by_its_level(history: list, decay: float, visits: float, most: int) -> None:
    """Kept and settled together are what was counted: folding moves counts, it neither adds nor loses any."""
    competence = told(history, decay, visits, max_problems=most)
    kept: dict[str, list[float]] = {}  # the book: an insertion-ordered list, searched through
    settled: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, verdicts in (visit for problems in history for visit in problems):
        old = kept.pop(name, [0.0, 0.0])
        correct = verdicts.count(RIGHT)
        kept[name] = [visits * old[0] + correct, visits * old[1] + len(verdicts) - correct]
        if len(kept) > most:
            oldest = next(iter(kept))
            settled[NAMES[oldest]] = [a + b for a, b in zip(settled[NAMES[oldest]], kept.pop(oldest))]
    assert seen(competence) == list(kept)
    for level in set(NAMES.values()):
        assert competence.tally(level).settled == pytest.approx(settled[level])
        successes, failures = settled[level]
        prior = (successes + 1) / (successes + failures + 2)
        # The prior of a level weighs two rollouts, however many have settled.
        a, b = told(history, decay).posterior(level=level)  # the same, with nothing settled: Beta(1, 1)
        assert competence.posterior(level=level) == pytest.approx((a - 1 + 2 * prior, b - 1 + 2 * (1 - prior)))


@settings(deadline=None, max_examples=50)
@given(HISTORY, st.integers(1, 6))
def test_the_counts_of_a_level_are_conserved(history: list, most: int) -> None:
    """Without forgetting, kept and settled are all the rollouts that there were, however little is kept."""
    competence = told(history, 1.0, 1.0, 1.0, most)
    for level in set(NAMES.values()):
        a, b = competence.posterior(level=level)
        counts = list(competence.tally(level).settled)
        for its_level, name in competence.problems():
            if its_level == level:
                own = competence.posterior(level=level, problem=name)
                counts[0] += own[0] - a / (a + b)
                counts[1] += own[1] - b / (a + b)
        verdicts = [v for problems in history for name, vs in problems if NAMES[name] == level for v in vs]
        assert counts == pytest.approx([verdicts.count(RIGHT), len(verdicts) - verdicts.count(RIGHT)], abs=1e-9)
        assert competence.tally(level).rollouts == len(verdicts)
    assert competence.tally().rollouts == sum(len(vs) for problems in history for _, vs in problems)
    assert competence.means() == [
        competence.mean(level=level, problem=problem) for level, problem in competence.problems()
    ]


def test_a_level_that_is_no_longer_seen_returns_to_what_has_settled() -> None:
    competence = Competence(0.5, max_problems=1)
    for _ in range(30):
        competence.update(feedback([("p1", [RIGHT] * 4), ("p5", [RIGHT] * 4)]))
    for _ in range(60):
        competence.update(feedback([("p2", [WRONG])]))
    assert competence.mean(level="1") == pytest.approx(241 / 242)
    assert competence.mean(level="1", problem="new") == pytest.approx(241 / 242)


def test_the_least_recently_seen_makes_room_and_comes_back_as_new() -> None:
    competence = Competence(max_problems=2)
    for name in ("p1", "p5", "p1", "p9"):  # all of level 1
        competence.update(feedback([(name, [WRONG])]))
    assert seen(competence) == ["p1", "p9"]
    assert competence.tally("1").settled == [0.0, 1.0]
    assert competence.tally("1").problems == 3
    assert competence.mean(level="1", problem="p5") == pytest.approx(competence.mean(level="1"))
    competence.update(feedback([("p5", [RIGHT])]))
    assert seen(competence) == ["p9", "p5"]
    assert competence.tally("1").problems == competence.tally().problems == 4


def test_a_problem_that_changes_its_level_leaves_its_counts_behind() -> None:
    competence = told([[("p1", [RIGHT, RIGHT])]])
    competence.update(feedback([("p1", [WRONG, WRONG])], levels={"p1": "9"}))
    assert list(competence.problems()) == [("9", "p1")]
    assert competence.tally("1").settled == [2.0, 0.0]


def test_a_label_for_each_problem_does_not_grow_without_bound() -> None:
    labels = {f"q{i}": f"of its own {i}" for i in range(MAX_LEVELS + 50)}
    competence = Competence()
    for start in range(0, len(labels), 10):
        names = list(labels)[start : start + 10]
        competence.update(feedback([(name, [RIGHT]) for name in names], start, labels))
    assert len(competence.levels()) == MAX_LEVELS + 1
    assert competence.tally(OTHERS).problems == 50
    assert competence.mean(level="one never seen") == competence.mean(level=OTHERS) > 0.5
    assert competence.tally("of its own 3").rollouts == 1
    assert competence.tally().problems == len(labels)
    back = Competence()
    back.load_state_dict(json.loads(json.dumps(competence.state_dict())))
    assert back.mean(level="one never seen") == competence.mean(level=OTHERS)


def test_memory_and_time_of_a_stream_without_an_end() -> None:
    competence = Competence(max_problems=1000)
    levels: dict[str, str] = defaultdict(lambda: "8")

    def go(first: int) -> float:
        began = perf_counter()
        for i in range(first, first + 3200, 32):
            competence.update(feedback([(f"stream-{i + j}", [RIGHT]) for j in range(32)], levels=levels))
        return perf_counter() - began

    go(0)
    size = len(json.dumps(competence.state_dict()))
    early = min(go(3200), go(6400))
    late = min(go(9600), go(12800), go(16000))
    assert len(seen(competence)) == 1000
    assert len(json.dumps(competence.state_dict())) < 1.2 * size
    assert late < 3 * early
    assert competence.tally("8").problems == 19200
    assert sum(competence.tally("8").settled) == 18200


# Intervals


@settings(deadline=None, max_examples=50)
@given(HISTORY, st.floats(0.5, 0.99))
def test_intervals_are_those_of_the_posterior(history: list, share: float) -> None:
    competence = told(history)
    for level, problem in [(None, None), ("1", None), ("1", "p1"), ("1", "new")]:
        expected = scipy.stats.beta.interval(share, *competence.posterior(level=level, problem=problem))
        assert competence.interval(level=level, problem=problem, share=share) == pytest.approx(expected, abs=1e-8)


def test_an_interval_narrows_with_what_is_known() -> None:
    few, many = (told([[("p1", [RIGHT, WRONG] * n)]]) for n in (2, 200))
    widths = [high - low for low, high in (few.interval(), many.interval(), few.interval(level="2"))]
    assert widths[1] < 0.1 < widths[0] < widths[2] == pytest.approx(0.95)


# State


@settings(deadline=None, max_examples=50)
@given(HISTORY, HISTORY, DECAY, st.integers(1, 6))
def test_a_resumed_estimator_goes_on_as_the_undisturbed_one(before: list, after: list, decay: float, most: int) -> None:
    undisturbed = told(before, decay, 0.5, max_problems=most)
    saved = undisturbed.state_dict()
    kept = copy.deepcopy(saved)
    resumed = Competence(decay, 0.5, max_problems=most)
    resumed.load_state_dict(json.loads(json.dumps(saved)))  # also through a format without tuples
    for problems in after:
        undisturbed.update(feedback(problems))
        resumed.update(feedback(problems))
    assert resumed.state_dict() == undisturbed.state_dict()
    assert seen(resumed) == seen(undisturbed)  # the order too: who makes room next
    assert saved == kept  # what was saved does not change under the checkpoint's hands


def test_a_smaller_memory_settles_what_is_too_much() -> None:
    big = told([[("p1", [RIGHT]), ("p5", [WRONG]), ("p9", [WRONG])]])
    small = Competence(max_problems=1)
    small.load_state_dict(big.state_dict())
    assert seen(small) == ["p9"]
    assert small.tally("1").settled == [1.0, 1.0]


# The user's mistakes


@pytest.mark.parametrize("name", ["decay", "visit_decay"])
@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, float("nan")])
def test_a_decay_out_of_range_names_its_key(name: str, decay: float) -> None:
    with pytest.raises(ValueError, match=rf"competence\.{name} must lie in \(0, 1\]"):
        Competence(**{name: decay})
    assert Competence(**{name: 1.0})


@pytest.mark.parametrize("weight", [0.0, -1.0, float("inf"), float("nan")])
def test_a_prior_without_weight_is_refused(weight: float) -> None:
    with pytest.raises(ValueError, match=r"competence\.prior_weight must be positive"):
        Competence(prior_weight=weight)


def test_no_memory_is_refused() -> None:
    with pytest.raises(ValueError, match=r"competence\.max_problems must be at least 1, got 0"):
        Competence(max_problems=0)


def test_a_frozen_one_stays_and_is_the_same_until_then():
    competence = Competence()
    competence.update(feedback([("p1", [Verdict.CORRECT]), ("p2", [Verdict.WRONG])]))
    frozen, before = competence.frozen(), competence.state_dict()
    assert frozen.state_dict() == before
    before = copy.deepcopy(before)
    competence.update(feedback([("p1", [Verdict.WRONG])]))
    assert frozen.state_dict() == before != competence.state_dict()


@pytest.mark.slow
@given(HISTORY, HISTORY, st.integers(1, 5))
def test_a_frozen_one_is_a_copy_whatever_is_counted_then(before: list, after: list, most: int) -> None:
    competence = told(before, max_problems=most)
    frozen, held = competence.frozen(), competence.frozen()
    copied = Competence(max_problems=most)
    copied.load_state_dict(copy.deepcopy(competence.state_dict()))
    del held  # one that nobody reads any more
    for step in after:
        competence.update(feedback(step))
    assert frozen.state_dict() == copied.state_dict()
    ids = [problem for _, problem in copied.problems()]
    assert [problem for _, problem in frozen.problems()] == sorted(ids)  # an order that does not move either
    assert frozen.means() == [copied.means()[ids.index(problem)] for problem in sorted(ids)]
    for problem in NAMES:
        assert frozen.mean(problem=problem) == copied.mean(problem=problem)
        assert frozen.interval(problem=problem) == copied.interval(problem=problem)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_a_copy_counts_and_holds_still_as_what_it_is_of(copied: Callable) -> None:
    competence = told([[("p1", [RIGHT]), ("p2", [WRONG])]])
    both = competence, competence.frozen()
    other, frozen = copied(both)
    before = copy.deepcopy(frozen.state_dict())
    assert before == both[1].state_dict()
    for one in (competence, other):
        one.update(feedback([("p1", [WRONG]), ("p3", [RIGHT])]))
    assert other.state_dict() == competence.state_dict()
    assert frozen.state_dict() == both[1].state_dict() == before
    assert copied(other).state_dict() == other.state_dict()


def test_a_view_of_many_problems_costs_what_has_changed() -> None:
    competence = Competence()
    competence.load_state_dict(
        Competence().state_dict()
        | {"levels": {"1": asdict(Tally())}}
        | {"problems": {f"p{i}": ("1", 1.0, 0.0) for i in range(99_000)}}
    )
    frozen = competence.frozen()
    competence.update(feedback([("p5", [WRONG]), ("new", [RIGHT])], levels=defaultdict(lambda: "1")))
    assert frozen._problems._was == {"p5": ("1", 1.0, 0.0), "new": None}
    assert frozen.mean(problem="p5") > competence.mean(problem="p5")
