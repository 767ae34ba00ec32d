"""The Beta policy as a strategy: its state, its samples, its queue, its bounds; learners are tested on their own."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_atex.beta_policy import STATISTICS, BetaPolicy
from lit_atex.competence import Competence
from lit_atex.exposure import Credit, TrainingState
from lit_atex.learners import Learner, Matured, Window
from lit_atex.types import StepFeedback, Verdict, seeded


class Still(Learner):
    """Learns nothing, and keeps what it was given."""

    def __init__(self) -> None:
        super().__init__(lr=0.1)
        self.matured: list[Matured] = []
        self.states: list[list[float]] = []
        self.ended: list[Window | None] = []

    def move(self, matured: list[Matured], ended: Window | None, state: list[float]) -> dict[str, float]:
        self.matured += matured
        self.ended.append(ended)
        self.states.append(state)
        return {"baseline": 0.25}


def state(step: int = 0, max_steps: int = 100, competence: Competence | None = None) -> TrainingState:
    return TrainingState(step, max_steps, 0, ["a", "b"], ["1", "1"], competence)


def feedback(step: int = 0, value: float = 1.0, **changes: float) -> StepFeedback:
    means = {"loss": value, "mismatch": 2 * value, "student_entropy": 3 * value, "teacher_entropy": 4 * value}
    lengths = {"mean_length": 5 * value, "share_cut": 6 * value, "max_new_tokens": 10}
    return StepFeedback(step, ["a", "b"], ["1", "1"], [0.5, 0.5], [Verdict.CORRECT] * 2, **means | lengths | changes)


def test_the_state_is_what_it_says() -> None:
    learner, competence = Still(), Competence()
    policy = BetaPolicy(learner, low=0.2, high=0.6)
    policy.begin_window(state(0, 101, competence), 0.1)
    first = dict(zip(STATISTICS, learner.states[0]))
    unknown = dict.fromkeys(STATISTICS, math.nan)
    assert first == pytest.approx(unknown | {"time": 0.0, "progress": 0.1}, nan_ok=True)
    chosen = policy.ratios(state())[0]
    for step, value in enumerate([1.0, 3.0]):
        policy.update(feedback(step, value))
        competence.update(feedback(step))
    policy.begin_window(state(50, 101, competence), 0.35)
    expected = {"time": 0.5, "competence": competence.mean(), "loss": 2, "mismatch": 4, "student_entropy": 6}
    expected |= {"teacher_entropy": 8, "length": 1.0, "share_cut": 12, "last_exposure": chosen}
    expected |= {"progress": 0.35, "last_increment": 0.25}
    assert dict(zip(STATISTICS, learner.states[1])) == pytest.approx(expected)
    policy.begin_window(state(60, 0), None)  # a window whose steps were all skipped, no length known, no progress
    third = dict(zip(STATISTICS, learner.states[2]))
    assert [third[name] for name in ("time", "competence", "loss", "progress", "last_increment")] == pytest.approx(
        [math.nan, math.nan, math.nan, 0.35, math.nan], nan_ok=True
    )
    policy.begin_window(state(70, 0), 0.5)  # what the window before brought is not known either
    assert math.isnan(dict(zip(STATISTICS, learner.states[3]))["last_increment"])
    policy.update(feedback(70, 1.0))
    policy.update(feedback(71, 3.0, loss=math.inf))  # left out
    policy.begin_window(state(80, 0), 0.6)
    fifth = dict(zip(STATISTICS, learner.states[4]))
    assert [fifth["loss"], fifth["mismatch"], fifth["last_increment"]] == pytest.approx([1.0, 2.0, 0.1])


@pytest.mark.parametrize(("names", "values"), [(["progress", "time"], [0.1, 0.25]), ([], [0.0])])
def test_it_sees_the_statistics_that_it_is_given(names: list[str], values: list[float]) -> None:
    learner = Still()
    policy = BetaPolicy(learner, horizon=1, statistics=names)
    policy.begin_window(state(25, 101), 0.1)
    policy.update(feedback(25))
    policy.begin_window(state(50, 101), 0.3)
    assert learner.states[0] == pytest.approx(values)
    assert learner.matured[0].state == pytest.approx(values)
    other = BetaPolicy(Still(), horizon=1, statistics=names)
    other.load_state_dict(policy.state_dict())
    assert other.state_dict()["queue"] == policy.state_dict()["queue"]


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_one_sample_a_window_from_the_density_that_is_logged(margin: float) -> None:
    policy = BetaPolicy(Still(), low=0.1, high=0.9, mean=0.7, concentration=6, margin=margin, seed=3)
    alpha = 6 * (0.7 + margin) / (1 + 2 * margin)
    beta = scipy.stats.beta(alpha, 6 - alpha)
    ends = margin / (1 + 2 * margin), (1 + margin) / (1 + 2 * margin)  # what lies beyond is cut
    inside = beta.expect(lambda x: (1 + 2 * margin) * x - margin, lb=ends[0], ub=ends[1])
    ratios, samples = [], []
    for k in range(400):
        policy.begin_window(state(5 * k), None)
        assert policy.ratios(state(5 * k + 3)) == policy.ratios(state(5 * k)) == [policy.ratios(state())[0]] * 2
        ratios.append(policy.ratios(state())[0])
        scalars = policy.scalars()
        assert (scalars["alpha"], scalars["beta"]) == pytest.approx((alpha, 6 - alpha))
        assert scalars["mean"] == pytest.approx(0.1 + 0.8 * (inside + beta.sf(ends[1])), abs=2e-4)
        samples.append(seeded(3, "exposure", k).beta(scalars["alpha"], scalars["beta"]))
        assert policy.finish(None)[-1].details["action"] == samples[-1]
        assert scalars["density"] == pytest.approx(beta.pdf(samples[-1]), rel=1e-6)
        assert scalars["baseline"] == 0.25
        wanted = min(max((1 + 2 * margin) * samples[-1] - margin, 0), 1)
        assert ratios[-1] == pytest.approx(0.1 + 0.8 * wanted)
    assert scipy.stats.kstest(samples, beta.cdf).pvalue > 0.01
    assert (ratios.count(0.9) > 20) == (margin > 0)  # it can be held at an end


def test_matured_decisions_reach_the_learner_with_the_state_that_they_were_taken_in() -> None:
    learner = Still()
    policy = BetaPolicy(learner, horizon=2, discount=0.5)
    progress = [0.0, 1.0, 3.0, 4.0, 4.0]
    credits: list[Credit] = []
    ratios = []
    competence = Competence()
    competence.update(feedback())
    for k, p in enumerate(progress):
        credits += policy.begin_window(state(5 * k, competence=competence), p)
        ratios.append(policy.ratios(state())[0])
        policy.update(feedback(k, k + 1.0))
    rewards = [1 + 0.5 * 2, 2 + 0.5 * 1, 1 + 0.0]
    assert [m.reward for m in learner.matured] == rewards
    np.testing.assert_array_equal([m.state for m in learner.matured], learner.states[:3])
    shown = policy.policy.exposure(np.array([m.action for m in learner.matured]))
    assert shown.tolist() == pytest.approx(ratios[:3])
    assert [(c.decision, c.step, c.reward, c.complete) for c in credits] == [
        (k, 5 * k, r, True) for k, r in enumerate(rewards)
    ]
    assert learner.ended[0] is None  # every window, as soon as it has ended
    np.testing.assert_array_equal([w.state for w in learner.ended[1:]], learner.states[:4])
    assert [w.gain for w in learner.ended[1:]] == [1.0, 2.0, 1.0, 0.0]
    assert policy.policy.exposure(np.array([w.action for w in learner.ended[1:]])).tolist() == pytest.approx(ratios[:4])
    assert credits[1].details["state"] == dict(zip(STATISTICS, learner.states[1]))
    assert policy.scalars()["reward"] == 1.0
    before = policy.state_dict()
    last = policy.finish(5.0)
    assert [(c.decision, c.reward, c.complete) for c in last] == [(3, 0.0 + 0.5 * 1.0, False), (4, 1.0, False)]
    assert str(policy.state_dict()) == str(before)
    assert len(learner.matured) == 3  # nothing is learned from a horizon that was not seen


def test_what_was_not_measured_is_not_known() -> None:
    learner = Still()
    policy = BetaPolicy(learner, horizon=1)
    policy.begin_window(state(0, competence=Competence()), None)  # a prior is no measurement
    assert [name for name, value in zip(STATISTICS, learner.states[0]) if math.isfinite(value)] == ["time"]
    json.loads(json.dumps(policy.finish(None)[0].details, allow_nan=False))  # as decisions.jsonl has it
    for k in range(1, 6):
        policy.update(feedback(k, 0.3 + 0.01 * k))
        policy.begin_window(state(k), 0.5 + 0.1 * k)
    assert not any(math.isfinite(x) for x in learner.states[0][1:])
    assert learner.states[-1][STATISTICS.index("last_increment")] == pytest.approx(0.1)
    # A statistic that varies little around a value far from 0 is seen to vary, at the fifth window as at the first.
    z = policy.policy.standardise(learner.states)[:, STATISTICS.index("length")]
    assert z[0] == 0.0
    assert z[1:].max() - z[1:].min() > 2


@pytest.mark.parametrize("horizon", [1, 3])
def test_the_reward_model_moves_the_first_decision_after_four_windows(horizon: int) -> None:
    """Two students: one progresses where much is shown, the other where little is. Until then both see the same."""
    chosen = []
    for sign in (1, -1):
        policy = BetaPolicy(horizon=horizon, statistics=[], seed=0)
        progress, ratios = 0.5, []
        for step in range(12):
            policy.begin_window(state(step), progress)
            ratios.append(policy.ratios(state(step))[0])
            policy.update(feedback(step))
            progress += 0.1 * sign * (ratios[-1] - 0.5)
        chosen.append(ratios)
    assert next(i for i, (a, b) in enumerate(zip(*chosen), 1) if a != b) == 5


def test_unknown_progress_is_never_a_reward() -> None:
    learner = Still()
    policy = BetaPolicy(learner, horizon=1)
    credits = []
    for k, p in enumerate([None, None, math.nan, math.inf, 1.0, 2.0]):
        credits += policy.begin_window(state(k), p)
    assert [c.reward for c in credits] == [None, None, None, None, 1.0]
    assert [m.reward for m in learner.matured] == [1.0]
    assert [math.isnan(w.gain) for w in learner.ended[1:]] == [True, True, True, True, False]
    assert "reward" in policy.scalars()
    assert policy.scalars()["progress"] == 2.0


ANY = st.floats(allow_nan=True, allow_infinity=True)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from(["window", "step", "finish", "resume"]), ANY, ANY), max_size=25),
    st.floats(0, 0.5),
    st.floats(0.51, 1),
    st.integers(1, 4),
)
def test_any_sequence_of_hooks_keeps_bounds_and_queue(
    calls: list[tuple[str, float, float]], low: float, high: float, horizon: int
) -> None:
    def make() -> BetaPolicy:
        return BetaPolicy(low=low, high=high, horizon=horizon)

    policy, credited, windows = make(), [], 0
    for i, (call, x, y) in enumerate(calls):
        if call == "window":
            credited += [c.decision for c in policy.begin_window(state(i), x)]
            windows += 1
        elif call == "step":
            policy.update(feedback(i, x, mean_length=y, student_entropy=y))
        elif call == "finish":
            pending = [c.decision for c in policy.finish(x)]
            assert [*credited, *pending] == list(range(windows))
        else:
            saved = policy.state_dict()
            policy = make()
            policy.load_state_dict(saved)
        assert all(low <= r <= high for r in policy.ratios(state(i)))
        a, b = policy.scalars().get("alpha", 1.0), policy.scalars().get("beta", 1.0)
        assert 1 <= a < math.inf
        assert 1 <= b < math.inf
    assert credited == list(range(max(windows - horizon, 0)))


@pytest.mark.parametrize("cut", [1, 4, 11])
def test_a_resumed_policy_goes_on_bit_for_bit(cut: int) -> None:
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(20, 3))

    def windows(policy: BetaPolicy, part: slice) -> list:
        seen = []
        for k in range(20)[part]:
            policy.begin_window(state(2 * k), float(draws[k, 0]))
            seen.append((policy.ratios(state())[0], policy.scalars()))
            policy.update(feedback(2 * k, float(draws[k, 1])))
            policy.update(feedback(2 * k + 1, float(draws[k, 2])))
        return seen

    straight = windows(BetaPolicy(seed=5), slice(None))
    first = BetaPolicy(seed=5)
    windows(first, slice(cut))
    first.update(feedback(99, 0.3))  # in the midst of a window
    file = io.BytesIO()
    torch.save(first.state_dict(), file)
    file.seek(0)
    second = BetaPolicy(seed=5)
    second.load_state_dict(torch.load(file, weights_only=True))
    second.update(feedback(100, 0.4))
    first.update(feedback(100, 0.4))
    assert windows(first, slice(cut, None)) == windows(second, slice(cut, None))

    plain = BetaPolicy(seed=5)
    begun = windows(plain, slice(cut))
    third = BetaPolicy(seed=5)
    third.load_state_dict(plain.state_dict())
    assert begun + windows(third, slice(cut, None)) == straight


def test_the_start_depends_on_nothing_but_its_settings() -> None:
    policies = [BetaPolicy(mean=0.3, concentration=8, margin=0.25, seed=s) for s in (0, 1)]
    for policy in policies:
        policy.begin_window(state(), 0.1)
        assert policy.scalars()["alpha"] == pytest.approx(8 * (0.3 + 0.25) / 1.5)
        assert policy.scalars()["beta"] == pytest.approx(8 * (0.7 + 0.25) / 1.5)
    assert policies[0].ratios(state()) != policies[1].ratios(state())


@pytest.mark.parametrize(
    ("words", "key"),
    [
        ({"low": 0.5, "high": 0.5}, "low"),
        ({"high": 1.2}, "high"),
        ({"mean": 1.0}, "mean"),
        ({"mean": 0.9, "concentration": 9.0}, "concentration"),
        ({"mean": 0.9, "concentration": 3.5, "margin": 0.3}, "concentration"),
        ({"margin": -0.1}, "margin"),
        ({"margin": math.nan}, "margin"),
        ({"concentration": math.inf}, "concentration"),
        ({"hidden": 0}, "hidden"),
        ({"horizon": 0}, "horizon"),
        ({"discount": -0.1}, "discount"),
        ({"statistics": ["lossy"]}, "statistics: lossy"),
        ({"statistics": ["time", "time"]}, "statistics: time"),
    ],
)
def test_mistakes_name_their_key(words: dict, key: str) -> None:
    with pytest.raises(ValueError, match=rf"exposure\.strategy\.init_args.*{key}"):
        BetaPolicy(**words)
