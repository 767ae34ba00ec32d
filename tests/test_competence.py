"""Competence: decayed counts against a sum over the whole history; what is saved is what is restored."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_atex.competence import Competence
from lit_atex.types import StepFeedback, Verdict

VERDICTS = st.sampled_from(list(Verdict))
STEP = st.integers(1, 3).flatmap(
    lambda samples: st.lists(
        st.tuples(st.sampled_from(["", "1", "2", "Level 5"]), st.lists(VERDICTS, min_size=samples, max_size=samples)),
        max_size=4,
    )
)
HISTORY = st.lists(STEP, max_size=8)


def feedback(problems: list[tuple[str, list[Verdict]]], step: int = 0) -> StepFeedback:
    """One step: a level and the verdicts of its rollouts, per problem."""
    verdicts = [v for _, vs in problems for v in vs]
    levels = [level for level, _ in problems]
    ids = [f"p{i}" for i in range(len(problems))]
    return StepFeedback(step, ids, levels, [1.0] * len(ids), verdicts, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 10)


def by_the_book(history: list, decay: float, level: str | None) -> float:
    """Beta(1, 1) prior, each verdict weighted by decay ** (steps since)."""
    successes = failures = 0.0
    for age, problems in enumerate(reversed(history)):
        for its_level, verdicts in problems:
            if level in (None, its_level):
                successes += decay**age * verdicts.count(Verdict.CORRECT)
                failures += decay**age * (len(verdicts) - verdicts.count(Verdict.CORRECT))
    return (1 + successes) / (2 + successes + failures)


@given(HISTORY, st.floats(0.05, 1))
def test_counts_are_those_of_the_whole_history(history: list, decay: float) -> None:
    competence = Competence(decay)
    for step, problems in enumerate(history):
        competence.update(feedback(problems, step))
    seen = {level for problems in history for level, _ in problems}
    assert set(competence.levels()) == seen
    assert len(competence.levels()) == len(seen)
    for level in [None, *seen, "never seen"]:
        assert competence.mean(level) == pytest.approx(by_the_book(history, decay, level))
        assert 0 < competence.mean(level) < 1


def test_by_hand() -> None:
    competence = Competence(0.5)
    assert competence.mean() == 0.5
    assert competence.levels() == []
    right, wrong = Verdict.CORRECT, Verdict.WRONG
    competence.update(feedback([("1", [right, right]), ("2", [wrong, right])]))
    assert competence.mean() == (3 + 1) / (4 + 2)
    assert competence.mean("1") == 3 / 4
    assert competence.mean("2") == 2 / 4
    competence.update(feedback([("1", [wrong])]))
    assert competence.mean() == (1.5 + 1) / (3 + 2)
    assert competence.mean("2") == (0.5 + 1) / (1 + 2)
    competence.update(feedback([]))  # a step without problems forgets too
    assert competence.mean() == (0.75 + 1) / (1.5 + 2)


@pytest.mark.parametrize("verdict", [Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT])
def test_only_correct_is_success(verdict: Verdict) -> None:
    competence = Competence()
    competence.update(feedback([("1", [verdict])]))
    assert competence.mean() == pytest.approx(1 / 3)


def test_without_forgetting_it_tends_to_the_rate() -> None:
    competence = Competence(decay=1.0)
    for step in range(500):
        competence.update(feedback([("1", [Verdict.CORRECT if step % 4 else Verdict.WRONG])], step))
    assert competence.mean() == pytest.approx(0.75, abs=0.002)


@given(HISTORY, HISTORY, st.floats(0.05, 1))
def test_a_resumed_estimator_goes_on_as_the_undisturbed_one(before: list, after: list, decay: float) -> None:
    undisturbed = Competence(decay)
    for problems in before:
        undisturbed.update(feedback(problems))
    saved = undisturbed.state_dict()
    kept = copy.deepcopy(saved)
    resumed = Competence(decay)
    resumed.load_state_dict(json.loads(json.dumps(saved)))  # also through a format without tuples
    for problems in after:
        undisturbed.update(feedback(problems))
        resumed.update(feedback(problems))
    assert resumed.state_dict() == undisturbed.state_dict()
    assert saved == kept  # what was saved does not change under the checkpoint's hands


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.01, float("nan")])
def test_a_decay_out_of_range_names_its_key(decay: float) -> None:
    with pytest.raises(ValueError, match=r"competence\.decay must lie in \(0, 1\]"):
        Competence(decay)
    assert Competence(1.0).decay == 1.0
