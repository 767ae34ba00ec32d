"""Progress by importance sampling: its expectation, float64 forward passes, and what it refuses."""

import itertools
import math
from dataclasses import replace

import pytest
from test_measures import PROBE, ready, scores, shake

from lit_atex.module import SelfDistillation
from lit_atex.prompts import TeacherPrompt
from lit_atex.reweighted import MOST, Drawn, ReweightedAccuracy, gained
from lit_atex.types import Rollouts, Verdict, row_generators
from lit_atex.window import Seen


def test_its_expectation_is_the_gain_in_accuracy():
    """Over all batches of three that a student of four answers can draw, each as often as it is drawn."""
    before, after, correct = [0.4, 0.3, 0.2, 0.1], [0.5, 0.1, 0.35, 0.05], [True, False, True, False]
    answers = [Drawn([1], [i], correct[i], math.log(before[i])) for i in range(4)]
    expected = 0.0
    for drawn in itertools.product(range(4), repeat=3):
        share = math.prod(before[i] for i in drawn)
        expected += share * gained([answers[i] for i in drawn], [math.log(after[i]) for i in drawn])
    assert expected == pytest.approx(0.85 - 0.6, abs=1e-12)


def test_no_rollout_counts_for_more_than_the_limit():
    batch = [Drawn([1], [1], True, -50.0), Drawn([1], [2], False, -1.0)]
    assert gained(batch, [-1.0, -1.0]) == pytest.approx(0.5 * MOST - 0.5)
    assert gained(batch, [-800.0, -1.0]) == pytest.approx(-0.5)
    assert math.isnan(gained(batch[:1], [-1.0]))
    assert math.isnan(gained(batch, [math.nan, -1.0]))


def drawn(module: SelfDistillation, step: int) -> list[Drawn]:
    """Put a batch of the module's rollouts into `seen`; every other one is taken for correct."""
    prompts = [module.prompts.student(p, module.tokenizer) for p in PROBE]
    generators = row_generators(0, "rollout", [(step, p.id) for p in PROBE], module.samples)
    rollouts: Rollouts = module.generate(prompts, module.samples, module.sampling, generators)
    verdicts = [Verdict.CORRECT, Verdict.WRONG] * (len(rollouts.ids) // 2)
    nothing = [TeacherPrompt([1], "", False)] * len(PROBE)
    module.seen = Seen(PROBE, prompts, nothing, [0.0] * len(PROBE), rollouts, [], verdicts, rollouts.lengths)
    rows = zip([p for p in prompts for _ in range(module.samples)], rollouts.lists(), verdicts)
    return [Drawn(prompt, ids, verdict is Verdict.CORRECT) for prompt, ids, verdict in rows]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("samples", [1, 2])
def test_it_follows_the_batches_by_the_students_own_likelihoods(tmp_path, temperature, samples):
    module, measure = ready(tmp_path, samples=samples), ReweightedAccuracy()
    module.sampling = replace(module.sampling, temperature=temperature)
    assert measure.read(module, []) is None
    level, last = 0.5, list[Drawn]()
    for step in range(3):
        now = drawn(module, step)
        measure.see(module)
        resumed = ReweightedAccuracy()
        resumed.load_state_dict(measure.state_dict())
        level += gained(last, [likelihood(module, row, temperature) for row in last]) if last else 0.0
        assert measure.read(module, []) == pytest.approx(level, abs=1e-4)
        assert resumed.read(module, []) == measure.state_dict()["level"]
        last = [row._replace(score=likelihood(module, row, temperature)) for row in now]
        shake(module, 0.003)
    assert level != 0.5


def likelihood(module: SelfDistillation, row: Drawn, temperature: float) -> float:
    """Of all its tokens, in float64."""
    logs = scores(module.student, row.prompt, row.ids) / temperature
    return sum(float(at.log_softmax(-1)[token]) for at, token in zip(logs, row.ids))


@pytest.mark.parametrize("greedy", [True, False])
def test_what_is_not_drawn_is_refused(tmp_path, greedy):
    module = ready(tmp_path)
    if greedy:
        module.sampling = replace(module.sampling, temperature=0.0)
    else:
        module.completions = "reference"
    with pytest.raises(ValueError, match=r"ReweightedAccuracy weighs rollouts .* set model\.completions to student"):
        ReweightedAccuracy().read(module, [])


def test_an_unknown_gain_is_not_known_and_the_next_one_goes_on_from_there(tmp_path):
    module, measure = ready(tmp_path), ReweightedAccuracy()
    drawn(module, 0)
    measure.see(module)
    assert measure.read(module, []) == 0.5
    state = measure.state_dict()
    state["scored"][0][3] = math.nan
    measure.load_state_dict(state)
    assert measure.read(module, []) is None
    assert measure.read(module, []) == pytest.approx(0.5)  # the weights have not moved
