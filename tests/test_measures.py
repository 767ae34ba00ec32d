"""Progress measures against plain float64 forward passes; the same numbers each time they are read."""

import copy
import math
from contextlib import nullcontext

import pytest
import torch
from fakes import SIX, ScriptedEngine, byte_tokenizer
from test_distil import Tempered
from test_module import LORA, Listed, distillation, problems_of, saved_model, trainer

from lit_atex.callbacks import ExposureControl
from lit_atex.exposure import Credit, Exposure, Fixed, TrainingState
from lit_atex.measures import ProbeAccuracy, ProbeMatch, ProbeNLL, ProgressMeasure, RolloutAccuracy
from lit_atex.module import SelfDistillation
from lit_atex.reweighted import ReweightedAccuracy
from lit_atex.rollout import TransformersEngine
from lit_atex.teacher import Live
from lit_atex.types import Problem, StepFeedback, Verdict

PROBE = [p._replace(id=f"probe {p.id}", question=f"Now: {p.question}") for p in SIX]


def ready(folder, lora=None, **options) -> SelfDistillation:
    options = {"engine": TransformersEngine(), "max_new_tokens": 40} | options
    name, tokenizer = saved_model(folder), byte_tokenizer()
    tokenizer.eos_token = "<|pad|>"  # the chat template ends an answer with <|im_end|>, id 0
    tokenizer.save_pretrained(name)
    module = distillation(name, lora, **options)
    module.configure_model()
    return module


def shake(module: SelfDistillation, by: float = 0.02) -> None:
    """Training, in short."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in module.student.parameters():
            if weight.requires_grad:
                weight.add_(by * torch.randn_like(weight))


def scores(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """Log-probabilities over the vocabulary at each place of the completion, in float64."""
    model = copy.deepcopy(model).double().eval()
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([prompt + completion])).logits[0]
    return logits[len(prompt) - 1 : -1].log_softmax(-1)


def feedback(verdicts: list[Verdict]) -> StepFeedback:
    names = [str(i) for i in range(len(verdicts))]
    return StepFeedback(0, names, names, [1.0] * len(names), verdicts, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 10)


def test_rollout_accuracy_is_that_since_the_last_reading(tmp_path):
    right, wrong, unparsed = Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED
    measure = RolloutAccuracy()
    module = distillation(saved_model(tmp_path))
    assert measure.read(module, []) is None
    measure.update(feedback([right, wrong]))
    measure.update(feedback([right, unparsed]))
    resumed = RolloutAccuracy()
    resumed.load_state_dict(measure.state_dict())
    for one in (measure, resumed):
        assert one.read(module, []) == 0.5
        one.update(feedback([right]))
        assert one.read(module, []) == 1.0
        assert one.read(module, []) is None


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_probe_nll_is_the_mean_log_likelihood_of_the_solutions(tmp_path, lora):
    module = ready(tmp_path, lora)
    shake(module)
    limit = module.eval_sampling.max_new_tokens
    found = []
    for problem in PROBE:
        completion = [*byte_tokenizer()(problem.solution)["input_ids"], 0][:limit]
        prompt = module.prompts.evaluation(problem, module.tokenizer)
        found += [float(row[i]) for row, i in zip(scores(module.student, prompt, completion), completion)]
    assert any(len(p.solution) + 1 > limit for p in PROBE)  # one is cut
    assert any(len(p.solution) + 1 < limit for p in PROBE)  # one is not, and ends
    measure = ProbeNLL()
    assert measure.read(module, PROBE) == pytest.approx(sum(found) / len(found), rel=1e-5)
    assert measure.read(module, PROBE) == measure.read(module, PROBE)
    assert module.student.training is False or all(p.grad is None for p in module.student.parameters())


def test_the_longest_prompt_that_fits_is_scored_and_no_longer_one(tmp_path):
    module = ready(tmp_path)
    empty = len(module.prompts.evaluation(PROBE[0]._replace(question=""), module.tokenizer))
    longest, longer = (PROBE[0]._replace(question="x" * (module.eval_room - empty + more)) for more in (0, 1))
    assert len(module.prompts.evaluation(longest, module.tokenizer)) == module.eval_room
    assert ProbeNLL().read(module, [longest]) is not None
    assert ProbeNLL().read(module, [longer]) is None


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_probe_match_is_minus_the_kl_to_the_teacher_at_full_exposure_on_fixed_rollouts(tmp_path, lora):
    module = ready(tmp_path, lora)
    start = copy.deepcopy(module.student).eval()
    measure = ProbeMatch()
    first = measure.read(module, PROBE)
    rollouts = copy.deepcopy(measure.state_dict()["ids"])
    shake(module)
    second = measure.read(module, PROBE)
    assert measure.state_dict()["ids"] == rollouts  # made once
    assert first != second
    resumed = ProbeMatch()
    resumed.load_state_dict(measure.state_dict())
    assert resumed.read(module, PROBE) == second
    for value, student in ((first, start), (second, module.student)):
        kls = []
        for problem in PROBE:
            ids = rollouts[f"{problem.source} {problem.id}"]
            prompt = module.prompts.student(problem, module.tokenizer)
            full = byte_tokenizer()(problem.solution)["input_ids"]
            hinted = module.prompts.teachers([problem], [1.0], module.tokenizer, module.train_room)[0].ids
            assert str(full)[1:-1] in str(hinted)  # all of it is shown
            log_p, log_q = scores(start, hinted, ids), scores(student, prompt, ids)
            kls += (log_p.exp() * (log_p - log_q)).sum(-1).tolist()
        assert value == pytest.approx(-sum(kls) / len(kls), rel=1e-4)


@pytest.mark.parametrize(
    ("written", "told"),
    [
        (lambda self, student: student, "must be a context manager"),
        (lambda self, student: nullcontext(student.train()), "must yield .* in training mode"),
        (lambda self, student: nullcontext(Tempered(student.config).eval()), "yields .* Tempered changes its logits"),
    ],
)
def test_probe_match_looks_at_a_teacher_of_the_users_as_training_does(tmp_path, written, told):
    module = ready(tmp_path, teacher=type("Mine", (Live,), {"scorer": written})())
    with pytest.raises(ValueError, match=rf"^model\.teacher: Mine\.scorer {told}"):
        ProbeMatch().read(module, PROBE)


def test_probe_accuracy_counts_and_draws_the_same_each_time(tmp_path):
    byte = byte_tokenizer()
    rows = [byte(f"\\boxed{{{answer}}}")["input_ids"] + [0] for answer in ("5", "24", "1")]
    module = ready(tmp_path, engine=ScriptedEngine(rows))
    answers = [p.answer for p in PROBE]
    expected = [["5", "24", "1"][i % 3] == answers[i // 2] for i in range(12)]
    assert ProbeAccuracy(samples=2).read(module, PROBE) == sum(expected) / 12
    assert sum(expected) > 0
    assert ProbeAccuracy().read(module, []) is None

    sampled = ready(tmp_path / "two")
    draws = [[row["completions"] for row in sampled.answer(PROBE, 2, purpose="probe")] for _ in range(2)]
    assert draws[0] == draws[1] != [row["completions"] for row in sampled.answer(PROBE, 2)]


def test_a_probe_of_no_fitting_problem_is_not_known(tmp_path):
    module = ready(tmp_path)
    long = [Problem("long", "x" * 600, "y", "1")]
    assert ProbeNLL().read(module, long) is None
    assert ProbeMatch().read(module, long) is None
    assert ProbeMatch().read(module, []) is None


def test_a_probe_that_has_grown_has_no_rollouts_of_the_first_student(tmp_path):
    module, measure = ready(tmp_path), ProbeMatch()
    measure.read(module, PROBE[:1])
    with pytest.raises(ValueError, match=rf"data\.probe: {len(PROBE) - 1} problems, {PROBE[1].id} first"):
        measure.read(module, PROBE)


class Asks(Exposure):
    """Keeps what it is told as windows open."""

    needs_progress = True

    def __init__(self) -> None:
        self.readings: list[float | None] = []

    def begin_window(self, state: TrainingState, progress: float | None) -> list[Credit]:
        self.readings.append(progress)
        return []

    def ratios(self, state: TrainingState) -> list[float]:
        return [0.5] * len(state.problem_ids)


@pytest.mark.slow
@pytest.mark.parametrize("measure", [RolloutAccuracy, ReweightedAccuracy, ProbeAccuracy, ProbeNLL, ProbeMatch])
def test_reading_leaves_the_run_as_it_is(tmp_path, measure: type[ProgressMeasure]):
    """A strategy that reads progress trains bit for bit as one that does not."""
    runs = []
    for strategy in (Asks(), Fixed(0.5)):
        module = distillation(saved_model(tmp_path), engine=TransformersEngine())
        one = trainer(4, callbacks=[ExposureControl(strategy, 2, measure())])
        one.fit(module, problems_of(2, probe=Listed(PROBE)))
        runs.append((module, one.logger, strategy))
    (a, log, asks), (b, plain, _) = runs
    torch.testing.assert_close(dict(a.student.named_parameters()), dict(b.student.named_parameters()), rtol=0, atol=0)
    assert log.values("loss/divergence") == plain.values("loss/divergence")
    assert len(asks.readings) == 2
    assert (asks.readings[0] is None) == (measure is RolloutAccuracy)
    assert all(math.isfinite(r) for r in asks.readings[1:])
    shares = log.values("time/probe_share")
    assert len(shares) == 4
    assert all(0 <= share < 1 for share in shares)
    assert not plain.values("time/probe_share")


def test_a_probe_measure_without_a_probe_says_what_to_set(tmp_path):
    module = distillation(saved_model(tmp_path))
    one = trainer(2, callbacks=[ExposureControl(Asks(), 1, ProbeNLL())])
    with pytest.raises(ValueError, match=r"exposure\.progress \(ProbeNLL\) reads a probe: set data\.probe"):
        one.fit(module, problems_of(2))
    trainer(1, callbacks=[ExposureControl(Fixed(), 1, ProbeNLL())]).fit(module, problems_of(2))  # nobody asks


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match=r"exposure\.progress\.init_args\.samples"):
        ProbeAccuracy(0)
