"""Progress by importance sampling: its expectation, float64 forward passes, and what it refuses."""

import copy
import itertools
import math
from dataclasses import replace

import pytest
import torch
from fakes import SIX
from hypothesis import given, settings
from hypothesis import strategies as st
from test_measures import PROBE, feedback, ready, scores, shake
from test_module import distillation, problems_of, saved_model, trainer
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lit_atex.attempts import Attempts
from lit_atex.beta_policy import BetaPolicy
from lit_atex.callbacks import ExposureControl
from lit_atex.exposure import Fixed
from lit_atex.module import SelfDistillation
from lit_atex.reweighted import MOST, ReweightedAccuracy, gained
from lit_atex.rollout import TransformersEngine
from lit_atex.sampling import Sampling, log_probs
from lit_atex.types import Problem, Verdict
from lit_atex.verify import Verifier


def test_its_expectation_is_the_gain_in_accuracy():
    """Over all batches of three that a student of four answers can draw, each as often as it is drawn."""
    before, now, correct = [0.4, 0.3, 0.2, 0.1], [0.3, 0.2, 0.4, 0.1], [True, False, True, False]
    expected = 0.0
    for drawn in itertools.product(range(4), repeat=3):
        rows = [(correct[i], math.log(now[i]), math.log(before[i])) for i in drawn]
        expected += math.prod(now[i] for i in drawn) * gained(rows)
    assert expected == pytest.approx(0.7 - 0.6, abs=1e-12)


def test_no_rollout_counts_for_more_than_the_limit():
    assert gained([(True, -50.0, -1.0), (False, -1.0, -1.0)]) == pytest.approx(0.5 - 0.5 * MOST)
    assert gained([(True, -1.0, -800.0), (False, -1.0, -1.0)]) == pytest.approx(0.5)
    assert math.isnan(gained([(True, -1.0, -1.0)]))
    assert math.isnan(gained([(True, math.nan, -1.0), (False, -1.0, -1.0)]))


class Lengths(Verifier):
    """Takes completions of an even number of characters for correct."""

    def verify(self, texts: list[str], answers: list[str]) -> list[Verdict]:
        return [Verdict.WRONG if len(text) % 2 else Verdict.CORRECT for text in texts]


def likelihood(student: torch.nn.Module, temperature: float, prompt: list[int], ids: list[int]) -> float:
    """Of all its tokens, in float64."""
    logs = scores(student, prompt, ids) / temperature
    return sum(float(at.log_softmax(-1)[token]) for at, token in zip(logs, ids))


def graded(folder, **options) -> SelfDistillation:
    module = ready(folder, **options)
    module.verifier = Lengths()
    return module


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("samples", [1, 2])
def test_it_follows_the_student_by_its_own_likelihoods(tmp_path, temperature, samples):
    module, measure = graded(tmp_path, samples=samples), ReweightedAccuracy()
    module.sampling = replace(module.sampling, temperature=temperature)
    level, then = 0.0, module.student
    for step in range(4):
        resumed = ReweightedAccuracy()
        resumed.load_state_dict(copy.deepcopy(measure.state_dict()))
        measure.window_opens(module, PROBE)
        resumed.window_opens(module, PROBE)
        attempts: Attempts = module.attempt(PROBE)  # the same ones, for the step
        correct = [v is Verdict.CORRECT for v in attempts.verdicts]
        assert 0 < sum(correct) < len(correct)
        if step == 0:
            level = sum(correct) / len(correct)
        else:
            prompts = [p for p in attempts.prompts for _ in range(samples)]
            rows = list(zip(prompts, attempts.rollouts.lists()))
            now, before = ([likelihood(x, temperature, *row) for row in rows] for x in (module.student, then))
            level += gained(list(zip(correct, now, before)))
        assert measure.read(module, []) == resumed.read(module, []) == pytest.approx(level, abs=1e-4)
        module._ahead, then = None, copy.deepcopy(module.student)
        module.window.clear()
        shake(module, 0.003)
        module.seed += 1  # other rollouts
    assert abs(level - 0.5) > 0.01


def test_parts_and_filters_are_those_of_the_rollouts(tmp_path):
    """Filters at which every token is kept, and parts of one rollout, change nothing; filters that bite, much."""
    levels = []
    for part_tokens, filters in (
        (10_000, {}),
        (1, {}),
        (10_000, {"top_k": 259, "min_p": 1e-30}),
        (10_000, {"top_k": 5}),
    ):
        module, measure = graded(tmp_path / str(len(levels)), samples=2, part_tokens=part_tokens), ReweightedAccuracy()
        module.sampling = replace(module.sampling, **filters)
        for _ in range(2):
            module._ahead = None
            measure.window_opens(module, PROBE)
            level = measure.read(module, [])
            shake(module, 0.003)
        levels.append(level)
    assert levels[1] == pytest.approx(levels[0], abs=1e-5)
    assert levels[2] == pytest.approx(levels[0], abs=1e-5)
    assert abs(levels[3] - levels[0]) > 1e-3


def test_a_reading_behind_a_step_is_not_known(tmp_path):
    module, measure = graded(tmp_path), ReweightedAccuracy()
    measure.window_opens(module, PROBE)
    assert measure.read(module, []) is not None
    measure.update(feedback([Verdict.CORRECT]))
    assert measure.read(module, []) is None


def test_other_problems_than_the_coming_batch_are_refused(tmp_path):
    module = graded(tmp_path)
    assert module.attempt(PROBE) is module.attempt(list(PROBE))
    with pytest.raises(ValueError, match="was given other problems before it"):
        module.attempt(PROBE[:1])


def test_the_student_is_as_before(tmp_path):
    module, measure = graded(tmp_path), ReweightedAccuracy()
    measure.window_opens(module, PROBE)
    shake(module)
    own = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in module.student.named_parameters()}
    module._ahead = None
    measure.window_opens(module, PROBE)
    for name, p in module.student.named_parameters():
        same, at, value = own[name]
        assert p is same
        assert p.data_ptr() == at
        torch.testing.assert_close(p.detach(), value, rtol=0, atol=0)


@pytest.mark.parametrize("greedy", [True, False])
def test_what_is_not_drawn_is_refused_before_training(tmp_path, greedy):
    module = distillation(saved_model(tmp_path))
    if greedy:
        module.sampling = replace(module.sampling, temperature=0.0)
    else:
        module.completions = "reference"
    control = ExposureControl(BetaPolicy(), progress=ReweightedAccuracy())
    with pytest.raises(ValueError, match=r"ReweightedAccuracy weighs rollouts .* set model\.completions to student"):
        control.on_fit_start(trainer(1), module)


class Breaks(TransformersEngine):
    def generate(self, *args):
        raise FloatingPointError("logits are not finite")


def test_a_gain_that_is_not_known_is_in_the_next_one(tmp_path, caplog):
    module, measure = graded(tmp_path), ReweightedAccuracy()
    measure.window_opens(module, PROBE)
    first = measure.read(module, [])
    kept = measure.state_dict()["before"]
    shake(module, 0.003)
    engine = module.engine
    for batch in (PROBE[:1], [Problem("long", "x" * 2000, "y", "1")] * 2, PROBE):  # one rollout, none, broken ones
        module._ahead, module.engine = None, Breaks() if batch is PROBE else engine
        measure.window_opens(module, batch)
        assert measure.read(module, []) is None
        assert measure.state_dict()["before"] == kept
    assert caplog.text.count("1 here; set data.batch_size or model.samples to 2 or more") == 1
    module.engine = engine
    module._ahead = None
    measure.window_opens(module, PROBE)
    assert measure.read(module, []) not in (None, first)


@pytest.mark.slow
def test_what_is_drawn_ahead_is_the_steps_and_counted_as_its_time(tmp_path):
    """The module samples once a step; the time of rollouts is theirs, not the probe's."""
    made = []

    class Counting(TransformersEngine):
        def generate(self, *args):
            made.append(len(args[1]))
            return super().generate(*args)

    class Asks(Fixed):
        needs_progress = True

    module = distillation(saved_model(tmp_path), engine=Counting())
    one = trainer(4, callbacks=[ExposureControl(Asks(0.5), 2, ReweightedAccuracy())])
    one.fit(module, problems_of(2, SIX))
    assert made == [2, 2, 2, 2]
    times = {name: one.logger.values(f"time/{name}") for name in ("rollout", "verify", "probe", "step")}
    assert all(len(x) == 4 for x in times.values())
    assert all(x > 0 for x in times["rollout"])
    assert all(rollout + probe < step for rollout, probe, step in zip(times["rollout"], times["probe"], times["step"]))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.5, 1.0, 1.7]),
    st.integers(0, 9),
    st.sampled_from([0.3, 0.8, 1.0]),
    st.sampled_from([0.0, 0.2]),
)
def test_likelihoods_are_those_of_what_is_drawn(seed, temperature, top_k, top_p, min_p):
    """Against transformers' own filters; an id that they leave out counts as if it were kept besides."""
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed)).double()
    filters = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    filters += [TopKLogitsWarper(top_k)] if top_k else []
    filters += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    filters += [MinPLogitsWarper(min_p)] if min_p else []
    kept = filters(None, logits.clone()) > -torch.inf
    for token in range(9):
        found = log_probs(logits, torch.full((4,), token), Sampling(temperature, top_p, top_k, min_p))
        for row in range(4):
            with_it = kept[row].clone()
            with_it[token] = True
            shares = (logits[row] / temperature)[with_it].softmax(0)
            assert float(found[row]) == pytest.approx(math.log(shares[int(with_it[:token].sum())]), abs=1e-4)
