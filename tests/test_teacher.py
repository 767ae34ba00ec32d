"""Where the teacher's weights come from, that training leaves them alone, and what a checkpoint holds of them."""

import copy
from contextlib import contextmanager, nullcontext

import lightning.pytorch as pl
import pytest
import torch
from fakes import SIX, ScriptedEngine, byte_tokenizer, two_layer_model
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel
from test_module import Listed, Spoiled, distillation, fit, problems_of, saved_model, trainer
from torch import nn
from torch.optim import SGD

from lit_atex.frozen import fingerprint
from lit_atex.models import LanguageModel, Lora
from lit_atex.rollout import TransformersEngine
from lit_atex.teacher import Copied, Ema, Frozen, Gated, Live, Teacher
from lit_atex.types import StepFeedback, Verdict

IDS = torch.tensor([[5, 6, 7, 8, 9], [15, 16, 17, 18, 19]])
LORA = Lora(rank=2, alpha=4.0)


def shake(model: nn.Module, seed: int = 1, only: str = "") -> nn.Module:
    """Other values in whatever is trained."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.requires_grad and only in name:
                p.add_(torch.randn(p.shape, generator=generator), alpha=0.1)
    return model


def logits(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def scores(teacher: Teacher, student: nn.Module) -> torch.Tensor:
    with teacher.scorer(student) as scorer:
        return logits(scorer)


def feedback(right: int, count: int) -> StepFeedback:
    """A step with so many rollouts, so many of them right."""
    verdicts = [Verdict.CORRECT] * right + [Verdict.WRONG] * (count - right)
    return StepFeedback(0, ["a"], ["1"], [1.0], verdicts, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 9)


def lora_student(tmp_path) -> PeftModel:
    return LanguageModel(saved_model(tmp_path / "base"), lora=LORA).load()[0]


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


# ---------------------------------------------------------------- frozen


def test_a_frozen_teacher_is_the_student_in_memory_not_the_files(name):
    """The weights change after loading: the teacher must have the changed ones."""

    class Merged(LanguageModel):
        def load(self):
            model, tokenizer = super().load()
            return shake(model), tokenizer

    module = distillation(name)
    module.source = Merged(name)
    module.configure_model()
    in_files = LanguageModel(name).load()[0].eval()
    expected = logits(module.student.eval())
    assert not torch.allclose(expected, logits(in_files), atol=1e-2)
    assert torch.equal(scores(module.teacher, module.student), expected)


@pytest.mark.parametrize("kind", ["full", "merged", "resumed", "adapter"])
@pytest.mark.parametrize("teacher", [Frozen, Ema, Gated, Live])
def test_the_teacher_starts_where_the_student_starts(tmp_path, kind, teacher):
    """Whatever the student has been through before: trained, trained adapters merged, trained adapters kept."""
    if kind == "full":
        student = two_layer_model()
    elif kind == "merged":
        student = shake(lora_student(tmp_path)).merge_and_unload().requires_grad_(True)
    elif kind == "resumed":
        student = LanguageModel(saved_model(tmp_path / "base")).load()[0]
        student.load_state_dict(shake(two_layer_model()).state_dict())
    else:
        shake(lora_student(tmp_path)).save_pretrained(tmp_path / "adapter")
        student = LanguageModel(str(tmp_path / "adapter")).load()[0]
    expected = logits(student.eval())
    student.train()
    subject = teacher()
    subject.attach(student)
    assert torch.equal(scores(subject, student), expected)
    shake(student, 2)
    assert not torch.allclose(logits(student.eval()), expected, atol=1e-3)
    assert torch.equal(scores(subject, student), expected) == (teacher is not Live)


def test_a_frozen_teacher_of_new_adapters_is_the_base_model_without_a_copy(tmp_path):
    base = LanguageModel(saved_model(tmp_path / "base")).load()[0].eval()
    student = LanguageModel(saved_model(tmp_path / "base"), lora=LORA).load()[0]
    teacher = Frozen()
    teacher.attach(student)
    shake(student)
    assert not torch.allclose(logits(student.eval()), logits(base), atol=1e-2)
    assert torch.equal(scores(teacher, student), logits(base))
    with teacher.scorer(student) as scorer:
        assert scorer is student
    assert teacher.state_dict() == {"fingerprint": ""}


def test_a_frozen_teacher_forgets_the_run_before(tmp_path):
    """Given to another one, whose adapters are new."""
    teacher, student = Frozen(), lora_student(tmp_path)
    teacher.attach(shake(two_layer_model()))
    teacher.attach(student)
    with teacher.scorer(student) as scorer:
        assert scorer is student
    assert teacher.state_dict() == {"fingerprint": ""}


def test_a_gate_forgets_the_run_before():
    """Given to another module: it would refresh, or wait, by another student's success."""
    teacher, student, given = Gated(0.5, 0.0), two_layer_model(), ((0, 4), (4, 4), (4, 4))
    told = []
    for _ in range(2):
        teacher.attach(student)
        told.append([])
        for right, count in given:
            teacher.after_step(student, feedback(right, count))
            told[-1].append((teacher.scalars(), teacher.state_dict()["gate"]))
    assert told[0] == told[1]
    assert told[0][-1][0] == {"refreshes": 1.0, "reached": 1.0}


def test_attaching_leaves_adapters_as_they_are(tmp_path):
    student = shake(lora_student(tmp_path))
    before = copy.deepcopy(student.state_dict())
    Frozen().attach(student)
    torch.testing.assert_close(dict(student.state_dict()), dict(before), rtol=0, atol=0)
    assert student.training
    assert all(p.requires_grad == ("lora_" in n) for n, p in student.named_parameters())


class Wrapper(nn.Module):
    """A wrapper that has the method but does nothing."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **kwargs):
        return self.inner(**kwargs)

    @contextmanager
    def disable_adapter(self):
        yield


@pytest.mark.parametrize("trained", [False, True])
def test_a_wrapper_that_does_not_switch_the_adapter_off_is_refused(tmp_path, trained):
    student = lora_student(tmp_path)
    if trained:
        shake(student)
    with pytest.raises(ValueError, match="switching the adapter off"):
        Frozen().attach(Wrapper(student))


def test_a_layer_that_does_not_listen_is_found(tmp_path):
    """The trained values must not matter with the adapter off; that none has a gradient there hides nothing."""
    student = lora_student(tmp_path)
    layer = next(m for n, m in student.named_modules() if n.endswith("down_proj"))
    own, adapter = layer.base_layer, [next(iter(part.values())) for part in (layer.lora_A, layer.lora_B)]
    layer.forward = lambda x: own(x) + adapter[1](adapter[0](x))
    with pytest.raises(ValueError, match="switching the adapter off"):
        Frozen().attach(student)


def test_adapters_that_train_biases_of_the_base_model_are_refused(tmp_path):
    """With the adapter off such a bias stays: the teacher would move with the student."""
    student = lora_student(tmp_path)
    next(p for n, p in student.named_parameters() if n.endswith("norm.weight")).requires_grad_(True)
    with pytest.raises(ValueError, match="switching the adapter off"):
        Frozen().attach(student)


# ---------------------------------------------------------------- beside the module


@pytest.mark.parametrize("teacher", [Frozen, Ema, Gated, Live])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_no_teacher_is_a_submodule(name, tmp_path, teacher, lora):
    module = distillation(name, lora, teacher())
    module.configure_model()
    count = len(list(module.student.parameters()))
    assert len(list(module.parameters())) == count
    assert all(n.startswith("student.") for n, _ in module.named_parameters())
    assert set(module.state_dict()) == {f"student.{n}" for n in module.student.state_dict()}
    run = trainer(1)
    run.fit(module, problems_of(3))
    run.save_checkpoint(tmp_path / "x.ckpt")
    checkpoint = torch.load(tmp_path / "x.ckpt", weights_only=True)
    weights = module.student.state_dict(keep_vars=True)  # a base model that stays as it is is not written with adapters
    assert set(checkpoint["state_dict"]) == {f"student.{n}" for n, w in weights.items() if w.requires_grad}
    assert checkpoint["kinds"]["teacher"] == teacher.__name__
    state = checkpoint["teacher"]
    if "copy" in state:
        assert set(state["copy"]) == {n for n, w in module.student.named_parameters() if w.requires_grad}
    held = {Frozen: {"fingerprint"}, Ema: {"copy"}, Gated: {"copy", "gate"}, Live: set()}[teacher]
    assert set(state) == held
    trained = [p for p in module.student.parameters() if p.requires_grad]
    assert len(checkpoint["optimizer_states"][0]["param_groups"][0]["params"]) == len(trained)


@pytest.mark.parametrize("kind", [Frozen, Ema, Gated, Live])
@pytest.mark.parametrize("lora", [None, Lora(rank=2, dropout=0.5)], ids=["full", "lora"])
def test_a_teacher_scores_in_evaluation_mode_without_gradients(name, kind, lora):
    module = distillation(name, lora, kind())
    module.configure_model()
    module.train()
    with module.teacher.scorer(module.student) as scorer:
        assert not any(m.training for m in scorer.modules())
        assert not scorer(input_ids=IDS).logits.requires_grad
        first, second = logits(scorer), logits(scorer)
    assert torch.equal(first, second)  # no dropout
    assert all(m.training for m in module.student.modules())
    assert module.student(input_ids=IDS).logits.requires_grad


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_training_does_not_move_a_frozen_teacher(name, lora):
    module = distillation(name, lora, optimizer=lambda p: SGD(p, lr=0.5))
    module.configure_model()
    expected = scores(module.teacher, module.student)
    fit(module, 3)
    assert torch.equal(scores(module.teacher, module.student), expected)
    assert not torch.allclose(logits(module.student.eval()), expected, atol=1e-3)


def test_a_live_teacher_stops_the_gradient(name):
    """At exposure 0 it is the student itself: loss 0 at every step, and no gradient through the teacher's side."""
    module = distillation(name, teacher=Live(), engine=TransformersEngine(), optimizer=lambda p: SGD(p, lr=0.5))
    module.configure_model()
    start = copy.deepcopy(module.student.state_dict())
    module.exposure = 0.0
    assert fit(module, 2).values("loss/divergence") == [0.0, 0.0]
    torch.testing.assert_close(dict(module.student.state_dict()), dict(start), rtol=0, atol=0)
    frozen, live = distillation(name), distillation(name, teacher=Live())
    fit(frozen), fit(live)  # at the first step, teacher and gradient are the same for both
    torch.testing.assert_close(dict(live.student.state_dict()), dict(frozen.student.state_dict()), rtol=0, atol=0)


class Unwanted(Teacher):
    """Another model, say."""

    def attach(self, student):
        raise AssertionError("the teacher was built")

    def scorer(self, student):
        raise AssertionError("the teacher was asked")


@pytest.mark.parametrize("how", ["validate", "test", "predict"])
def test_an_evaluation_builds_no_teacher(name, how):
    """It would be a second set of weights, or another model's."""
    module = distillation(name, teacher=Unwanted())
    sets = {"validation" if how == "validate" else "test": {"v": Listed([SIX[0]])}}
    getattr(trainer(1, limit_val_batches=1), how)(module, problems_of(3, **sets))
    with pytest.raises(AssertionError, match="was built"):
        trainer(1).fit(module, problems_of(3))


def test_a_module_that_was_evaluated_first_trains_as_one_that_was_not(name):
    modules = [distillation(name, teacher=Ema(0.5)) for _ in range(2)]
    data = lambda: problems_of(3, test={"t": Listed([SIX[0]._replace(id="t", question="9+9")])})  # noqa: E731
    trainer(1).test(modules[0], data())
    for module in modules:
        trainer(2).fit(module, data())
    weights = [m.student.state_dict() | m.teacher.state_dict()["copy"] for m in modules]
    torch.testing.assert_close(dict(weights[0]), dict(weights[1]), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("goes_on", [False, True])
@pytest.mark.parametrize("by_hand", [False, True])
def test_a_run_begins_with_its_own_weights_whatever_checkpoint_was_evaluated(tmp_path, name, lora, goes_on, by_hand):
    """Student and teacher, as if nothing had been; or with those of the checkpoint that it goes on from."""
    first, one = distillation(name, lora, Frozen(), optimizer=lambda p: SGD(p, lr=0.5)), trainer(2)
    one.fit(first, problems_of(3))
    one.save_checkpoint(tmp_path / "a.ckpt")
    begun = {n: w.clone() for n, w in distillation(name, lora).source.load()[0].state_dict().items() if "lora" not in n}
    modules = [distillation(name, lora, Frozen(), optimizer=lambda p: SGD(p, lr=0.5)) for _ in range(2)]
    data = problems_of(3, test={"t": Listed([SIX[0]._replace(id="t", question="9+9")])})
    if by_hand:
        modules[0].configure_model()  # to look at its parts, which makes its teacher
    trainer(1).test(modules[0], data, ckpt_path=tmp_path / "a.ckpt")
    for module in modules:
        trainer(3 if goes_on else 1).fit(module, problems_of(3), ckpt_path=tmp_path / "a.ckpt" if goes_on else None)
        with module.teacher.scorer(module.student) as teacher:
            found = {n: w for n, w in teacher.state_dict().items() if "lora" not in n}
        torch.testing.assert_close(found, begun, rtol=0, atol=0)
    ours, theirs = (dict(module.student.state_dict()) for module in modules)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("teacher", [Frozen, Ema, Gated])
def test_a_teacher_that_is_exchanged_starts_where_the_student_is(tmp_path, name, teacher):
    """In a module that has trained, whether or not from a checkpoint."""
    module, one = distillation(name, optimizer=lambda p: SGD(p, lr=0.5)), trainer(1)
    one.fit(module, problems_of(3))
    one.save_checkpoint(tmp_path / "a.ckpt")
    for checkpoint in (None, tmp_path / "a.ckpt"):
        module = distillation(name, optimizer=lambda p: SGD(p, lr=0.5))
        trainer(2).fit(module, problems_of(3), ckpt_path=checkpoint)
        expected, module.teacher = logits(module.student.eval()), teacher()
        trainer(1, limit_train_batches=0).fit(module, problems_of(3))
        assert torch.equal(scores(module.teacher, module.student), expected)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_a_checkpoint_may_be_evaluated_in_another_precision_and_without_its_teacher(tmp_path, name, lora, caplog):
    module, one = distillation(name, lora, Frozen(), optimizer=lambda p: SGD(p, lr=0.5)), trainer(2)
    one.fit(module, problems_of(3))
    one.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    other = distillation(name, lora, Unwanted())
    other.source = LanguageModel(name, lora=lora, dtype="bfloat16")
    data = problems_of(3, test={"t": Listed([SIX[0]])})
    trainer(1).test(other, data, ckpt_path=tmp_path / "best.ckpt", weights_only=True)
    trained = {n: p for n, p in module.student.named_parameters() if p.requires_grad}
    found = dict(other.student.named_parameters())
    for n, p in trained.items():
        assert torch.equal(found[n], p.to(found[n]))
    assert any(p.dtype == torch.bfloat16 for p in found.values())
    assert ("base model in another dtype" in caplog.text) == (lora is not None)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_are_not_evaluated_on_another_base_model(tmp_path, name, dtype):
    """Its weights are not those of the run, nor those of the run rounded."""
    one = trainer(1)
    one.fit(distillation(name, LORA), problems_of(3))
    one.save_checkpoint(tmp_path / "best.ckpt", weights_only=True)
    other = distillation(name, LORA)
    other.source = LanguageModel(name, lora=LORA, dtype=dtype)
    other.configure_model()
    next(p for p in other.student.parameters() if not p.requires_grad).data[0, 0] += 1
    data = problems_of(3, test={"t": Listed([SIX[0]])})
    with pytest.raises(ValueError, match=r"adapters of another base model.*model\.student\.init_args.*start"):
        trainer(1).test(other, data, ckpt_path=tmp_path / "best.ckpt", weights_only=True)


# ---------------------------------------------------------------- the average


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5])
def test_a_decay_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match=r"model\.teacher\.init_args\.decay.*Frozen"):
        Ema(decay)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_average_begins_at_step_0_and_follows_the_formula(name, lora, accumulate):
    module = distillation(name, lora, Ema(0.8), optimizer=lambda p: SGD(p, lr=0.5))
    module.configure_model()
    expected = {n: p.detach().double().clone() for n, p in module.student.named_parameters()}
    averages = lambda: dict(module.teacher._copy.named_parameters())  # noqa: E731
    torch.testing.assert_close({n: p.double() for n, p in averages().items()}, expected, rtol=0, atol=0)
    steps = 0

    class Follow(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            nonlocal steps
            if trainer.global_step == steps:
                return
            steps += 1
            for n, p in module.student.named_parameters():
                expected[n] = 0.8 * expected[n] + 0.2 * p.detach().double()
            for n, p in averages().items():
                torch.testing.assert_close(p.double(), expected[n], rtol=1e-5, atol=1e-6)

    fit(module, 4, 3, accumulate_grad_batches=accumulate, callbacks=[Follow()])
    assert steps == 4
    current = dict(module.student.named_parameters())
    assert any(not torch.allclose(p, current[n], atol=1e-3) for n, p in averages().items())
    # weights that are not trained are bit for bit those of the start
    assert all(torch.equal(p, current[n]) for n, p in averages().items() if not current[n].requires_grad)


def test_a_skipped_step_does_not_move_the_average(name):
    module = distillation(name, teacher=Ema(0.5), divergence=Spoiled(1), chunk_tokens=1000)
    kept = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            kept.append(fingerprint(module.teacher._copy.state_dict()))

    fit(module, 3, callbacks=[Look()])
    assert kept[0] == kept[1] != kept[2]


def test_the_average_survives_a_round_trip():
    student = two_layer_model()
    first, second = Ema(0.5), Ema(0.5)
    first.attach(student)
    shake(student)
    first.after_step(student, feedback(1, 1))
    second.attach(student)
    assert not torch.equal(scores(first, student), scores(second, student))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(scores(first, student), scores(second, student))
    student.requires_grad_(True)
    assert not any(p.requires_grad for p in second._copy.parameters())


# ---------------------------------------------------------------- the gate


def passes(margin: float, decay: float, history: list[tuple[int, int]]) -> list[int]:
    """The steps after which the gate opens, by the book: sums over the whole history."""
    memory, reached, opened = round(1 / (1 - decay)), 0.0, []
    for now in range(len(history)):
        weights = [decay ** (now - then) for then in range(now + 1)]
        correct = sum(w * right for w, (right, _) in zip(weights, history))
        success = correct / sum(w * n for w, (_, n) in zip(weights, history))
        if now < memory:
            reached = success
        elif success >= reached + margin:
            reached = success
            opened.append(now)
    return opened


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(1, 8).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), max_size=40),
    st.floats(0.01, 0.5),
    st.sampled_from([0.0, 0.5, 0.8, 0.9]),
)
def test_the_gate_opens_when_success_has_risen_by_the_margin(history, margin, decay):
    student, teacher = nn.Linear(1, 1), Gated(margin, decay)
    teacher.attach(student)
    opened = []
    for now, (right, count) in enumerate(history):
        with torch.no_grad():
            student.weight.fill_(float(now))
        teacher.after_step(student, feedback(right, count))
        if float(teacher._copy.weight) == now:
            opened.append(now)
    # Success on the verge of the margin may fall to either side by rounding.
    assert opened == passes(margin + 1e-9, decay, history) or opened == passes(margin - 1e-9, decay, history)
    assert teacher.scalars()["refreshes"] == len(opened)


def test_the_gate_by_hand():
    """Success 0.5 for the two steps that only measure; then it rises, falls, and rises again."""
    student = two_layer_model()
    teacher = Gated(margin=0.2, decay=0.5)
    teacher.attach(student)
    start = fingerprint(student.state_dict())

    def told(right: int) -> bool:
        shake(student, right + 1)
        before = fingerprint(teacher._copy.state_dict())
        teacher.after_step(student, feedback(right, 4))
        assert fingerprint(teacher._copy.state_dict()) in (before, fingerprint(student.state_dict()))
        return fingerprint(teacher._copy.state_dict()) != before

    assert [told(2), told(2)] == [False, False]
    assert not told(3)  # (1.5 + 3) / (3 + 4) is 0.64, not yet 0.7
    assert fingerprint(teacher._copy.state_dict()) == start
    assert told(4)  # (2.25 + 4) / (3.5 + 4) is 0.83
    assert teacher.scalars() == {"refreshes": 1.0, "reached": pytest.approx(12.5 / 15)}
    assert not any([told(0), told(0), told(0)])  # it got worse: the teacher stays
    assert not any([told(4), told(4)])  # back to where it was
    assert not told(4)  # it cannot exceed 0.83 by 0.2
    teacher.after_step(student, feedback(0, 0))  # a step without rollouts says nothing
    assert teacher.scalars()["refreshes"] == 1.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_refresh_is_an_exact_copy_of_what_is_trained(dtype):
    student = two_layer_model().to(dtype)
    student.lm_head.requires_grad_(False)
    teacher = Gated(0.5, 0.0)
    teacher.attach(student)
    teacher.after_step(student, feedback(0, 4))
    shake(student)
    assert fingerprint(teacher._copy.state_dict()) != fingerprint(student.state_dict())
    teacher.after_step(student, feedback(4, 4))
    assert fingerprint(teacher._copy.state_dict()) == fingerprint(student.state_dict())
    shake(student, 3)
    assert fingerprint(teacher._copy.state_dict()) != fingerprint(student.state_dict())  # a copy, not the same tensors


class Sure(ScriptedEngine):
    """Always wrong in the first steps, always right from a step on."""

    def __init__(self, right_from: int) -> None:
        self.calls, self.right_from = 0, right_from

    def generate(self, model, prompts, samples, sampling, end_ids, generators):
        tokenizer = byte_tokenizer()
        solved = [next(p.answer for p in SIX if p.question in tokenizer.decode(prompt)) for prompt in prompts]
        answers = solved if self.calls >= self.right_from else ["99"] * len(prompts)
        self.calls += 1
        rows = [tokenizer(f"\\boxed{{{a}}}", add_special_tokens=False)["input_ids"] for a in answers]
        return ScriptedEngine(rows).generate(model, prompts, samples, sampling, end_ids, generators)


@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_training_refreshes_a_gated_teacher_and_logs_it(name, lora):
    teacher, prints = Gated(0.4, 0.5), []
    module = distillation(name, lora, teacher, engine=Sure(3), optimizer=lambda p: SGD(p, lr=0.5), max_new_tokens=20)

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args):
            prints.append((fingerprint(teacher._copy.state_dict()), fingerprint(module.student.state_dict())))

    log = fit(module, 6, callbacks=[Look()])
    copies, students = zip(*prints)
    assert copies[0] == copies[1] == copies[2] != copies[3] == students[3]
    assert log.values("teacher/refreshes") == [0.0, 0.0, 0.0, 0.0, 1.0, 1.0 if copies[4] == copies[3] else 2.0]
    assert not any(p.requires_grad for p in teacher._copy.parameters())


def test_a_gate_survives_a_round_trip():
    student = two_layer_model()
    first, second = Gated(0.3, 0.5), Gated(0.3, 0.5)
    first.attach(student)
    second.attach(student)
    for i, right in enumerate((1, 1, 4, 3)):
        shake(student, i)
        first.after_step(student, feedback(right, 4))
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert first.scalars() == second.scalars()
    assert first.scalars()["refreshes"] == 1.0
    for teacher in (first, second):
        teacher.after_step(shake(student, 9), feedback(4, 4))
    assert first.state_dict()["gate"] == second.state_dict()["gate"]
    torch.testing.assert_close(dict(first.state_dict()["copy"]), dict(second.state_dict()["copy"]), rtol=0, atol=0)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.1, float("nan")])
def test_a_margin_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"model\.teacher\.init_args\.margin must lie in \(0, 1\]"):
        Gated(value)


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan")])
def test_a_memory_out_of_range_is_refused(value):
    with pytest.raises(ValueError, match=r"model\.teacher\.init_args\.decay must lie in \[0, 1\)"):
        Gated(decay=value)


# ---------------------------------------------------------------- start weights


def test_a_fingerprint_tells_any_change_and_nothing_else():
    model = two_layer_model()
    start = fingerprint(model.state_dict())
    assert fingerprint(two_layer_model().state_dict()) == start
    assert fingerprint(copy.deepcopy(model).eval().requires_grad_(False).state_dict()) == start
    for change in ("bit", "swap", "dtype"):
        other = copy.deepcopy(model)
        weight = other.model.layers[1].mlp.up_proj.weight
        with torch.no_grad():
            if change == "bit":
                weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(9.0))
            elif change == "swap":
                weight.copy_(weight.flip(0))
            else:
                other.bfloat16()
        assert fingerprint(other.state_dict()) != start
    assert len(fingerprint(copy.deepcopy(model).bfloat16().state_dict())) == 16


def test_a_fingerprint_does_not_depend_on_the_number_of_threads():
    """Sums of floats do: a run resumed with another number of threads would be refused."""
    model = nn.Linear(1500, 1500)
    threads = torch.get_num_threads()
    found = set()
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        found.add(fingerprint(model.state_dict()))
    torch.set_num_threads(threads)
    assert len(found) == 1


def test_a_frozen_teacher_that_cannot_be_rebuilt_stops_the_resumption(name, tmp_path):
    run = trainer(1)
    run.fit(distillation(name), problems_of(3))
    run.save_checkpoint(tmp_path / "x.ckpt")
    again = trainer(2)
    again.fit(distillation(name), problems_of(3), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert again.global_step == 2
    other = distillation(saved_model(tmp_path / "other", seed=5))
    again = distillation(name, optimizer=lambda p: SGD(p, lr=0.5))
    trainer(1).fit(again, problems_of(3))
    again.teacher = Frozen()  # it begins where the module is, and the run began where it was
    told = r"model\.student\.init_args\.name gives other weights .* or it is new in a module that has trained.*original"
    for module in (other, again):
        with pytest.raises(ValueError, match=told):
            trainer(2).fit(module, problems_of(3), ckpt_path=tmp_path / "x.ckpt", weights_only=True)


def test_an_average_in_half_precision_is_refused():
    with pytest.raises(ValueError, match="dtype: float32"):
        Ema(0.99).attach(two_layer_model().to(torch.bfloat16))


@pytest.mark.parametrize(
    ("base", "method", "written", "told"),
    [
        (Copied, "attach", lambda self, student: None, r" has no copy .* super\(\)\.attach\(student\)"),
        (Live, "scorer", lambda self, student: student, r"\.scorer must be a context manager: .* @contextmanager"),
        (Live, "scorer", lambda self, student: nullcontext(student), r"\.scorer must yield .*in training mode"),
        (Live, "scorer", lambda self, student: nullcontext(), r"\.scorer must yield .* it yields a NoneType"),
    ],
)
def test_a_teacher_of_the_users_is_looked_at(name, base, method, written, told):
    mine = type("Mine", (base,), {method: written})
    with pytest.raises(ValueError, match=rf"model\.teacher: Mine{told}"):
        fit(distillation(name, teacher=mine()))
