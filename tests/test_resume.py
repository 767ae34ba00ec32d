"""A run that was cut off and goes on from its checkpoint gives the numbers of the undisturbed run, bit for bit."""

import math
from collections import Counter, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import SIX
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from test_module import LORA, Listed, Memory, Spoiled, distillation, problems_of, saved_model, trainer, weights
from test_ranks import Answers
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from lit_atex.adaptive import CompetenceBased, MismatchTarget
from lit_atex.callbacks import ExposureControl
from lit_atex.checkpoint import Checkpoint, check_plain
from lit_atex.divergence import ForwardKL
from lit_atex.estimator import CompetenceEstimator
from lit_atex.exposure import Exposure, Fixed, Random, TrainingState
from lit_atex.models import LanguageModel, Lora
from lit_atex.module import SelfDistillation
from lit_atex.rollout import TransformersEngine
from lit_atex.teacher import Ema, Frozen, Gated, Live
from lit_atex.types import StepFeedback
from lit_atex.weighting import GroupRelative, Weighting

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

TIMED = ("time/", "throughput/completion")


class Learner(Exposure):
    """Follows what it was told: its state is a function of all feedback so far."""

    def __init__(self) -> None:
        self.level = 0.5

    def ratios(self, state: TrainingState) -> list[float]:
        return [self.level] * len(state.problem_ids)

    def update(self, feedback: StepFeedback) -> None:
        self.level = (self.level + 0.37 * feedback.mismatch + 0.11 * feedback.mean_length) % 1.0

    def state_dict(self) -> dict[str, float]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.level = state["level"]


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


def make(name: str, teacher, lora: Lora | None, **options) -> SelfDistillation:
    return distillation(
        name,
        lora,
        teacher(),
        engine=TransformersEngine(),
        optimizer=lambda params: AdamW(params, lr=0.01, weight_decay=0.01),
        schedule=lambda step: 1 / (1 + 0.3 * step),
        samples=2,
        max_new_tokens=6,
        **options,
    )


def run(
    folder: Path, module: SelfDistillation, steps: int, strategy: Exposure, hold=1, resume: str | None = None, **options
):
    """Train to `steps`; returns the module, the two callbacks and what was logged."""
    exposure, competence = ExposureControl(strategy, hold), CompetenceEstimator()
    save = ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=1)
    one = trainer(steps, callbacks=[exposure, competence, save], enable_checkpointing=True, **options)
    # A pass has three batches, so that checkpoints fall into the midst of passes and on their ends.
    data = problems_of(2, SIX, seed=3)
    data.shuffle_buffer = 4
    one.fit(module, data, ckpt_path=None if resume is None else folder / resume, weights_only=True)
    assert module.global_step == steps
    return module, exposure, competence, one.logger


def numbers(log: Memory) -> dict[int, dict[str, float]]:
    return {s: {k: v for k, v in row.items() if not k.startswith(TIMED)} for s, row in log.steps.items()}


def assert_same(straight, resumed, first: int) -> None:
    (a, exposure_a, competence_a, log_a), (b, exposure_b, competence_b, log_b) = straight, resumed
    torch.testing.assert_close(weights(b), weights(a), rtol=0, atol=0)
    states = [m.trainer.optimizers[0].state_dict() for m in (a, b)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    teachers = [m.teacher.state_dict() for m in (a, b)]
    copies = [dict(teacher.pop("copy", {})) for teacher in teachers]
    torch.testing.assert_close(copies[0], copies[1], rtol=0, atol=0)
    assert teachers[0] == teachers[1]
    assert exposure_a.state_dict() == exposure_b.state_dict()
    assert competence_a.state_dict() == competence_b.state_dict()
    rows_a, rows_b = numbers(log_a), numbers(log_b)
    assert sorted(rows_a) == list(range(len(rows_a)))
    assert sorted(rows_b) == list(range(first, len(rows_a)))
    assert rows_b == {step: row for step, row in rows_a.items() if step >= first}
    assert all(row["loss/divergence"] > 0 for row in rows_a.values())


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("teacher", [Frozen, lambda: Ema(0.7)], ids=["frozen", "ema"])
def test_six_steps_are_three_and_three(tmp_path, name, teacher, lora, accumulate):
    options = {"accumulate_grad_batches": accumulate}
    strategy = lambda: Random(per="problem", seed=4)  # noqa: E731
    straight = run(tmp_path / "straight", make(name, teacher, lora), 6, strategy(), **options)
    run(tmp_path / "cut", make(name, teacher, lora), 3, strategy(), **options)
    resumed = run(tmp_path / "cut", make(name, teacher, lora), 6, strategy(), resume="step=3.ckpt", **options)
    assert_same(straight, resumed, 3)


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 2, 4, 5])
def test_a_run_may_be_cut_at_any_step(tmp_path, name, cut):
    """Three batches a pass in windows of two: cuts in the midst of a pass, at its end, and after a short window."""
    make_one = lambda: make(name, lambda: Ema(0.7), None)  # noqa: E731
    straight = run(tmp_path, make_one(), 6, Learner(), hold=2, accumulate_grad_batches=2)
    checkpoint = f"step={cut}.ckpt"
    resumed = run(tmp_path, make_one(), 6, Learner(), hold=2, resume=checkpoint, accumulate_grad_batches=2)
    assert_same(straight, resumed, cut)


class Watch(Callback):
    """Notes after how many batches a checkpoint is written."""

    def __init__(self):
        self.batches = []

    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        self.batches.append(trainer.fit_loop.epoch_loop.batch_progress.total.processed)


@pytest.mark.slow
def test_no_checkpoint_is_written_in_the_midst_of_a_window(tmp_path, name):
    """Lightning's own callback does so after resuming, at each batch that finds the step of the checkpoint."""
    for steps, resume in ((2, None), (4, "last.ckpt")):
        callbacks = [watch := Watch(), Checkpoint(tmp_path, every_n_train_steps=1, save_last=True)]
        one = trainer(steps, callbacks=callbacks, enable_checkpointing=True, accumulate_grad_batches=2)
        data = problems_of(1, SIX)
        one.fit(make(name, Frozen, None), data, ckpt_path=resume and tmp_path / resume, weights_only=True)
        assert set(watch.batches) == ({2, 4} if resume is None else {6, 8})


@pytest.mark.slow
def test_none_is_written_by_a_validation_in_the_midst_either(tmp_path, name):
    """Such a validation comes after every third batch; a checkpoint there would hold a position, and no gradient."""
    keep = Checkpoint(tmp_path, monitor=None, every_n_epochs=1, save_last=True)
    often = {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1}
    options = {"enable_checkpointing": True, "accumulate_grad_batches": 2, **often}
    one = trainer(4, callbacks=[watch := Watch(), keep], **options)
    one.fit(
        make(name, Frozen, None),
        problems_of(1, SIX, validation={"v": Listed([SIX[0]._replace(id="v", question="9+9")])}),
    )
    assert watch.batches
    assert all(batches % 2 == 0 for batches in watch.batches), watch.batches


@pytest.mark.slow
@pytest.mark.parametrize("by_validation", [False, True])
def test_a_run_that_is_stopped_in_the_midst_of_a_window_ends_with_it(tmp_path, name, by_validation):
    """As by Lightning's Timer (trainer.max_time), or its EarlyStopping."""

    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop |= batch_idx == 2 and not by_validation

        def on_validation_end(self, trainer, pl_module):
            trainer.should_stop |= by_validation

    options = {"enable_checkpointing": True, "accumulate_grad_batches": 2}
    options |= (
        {"val_check_interval": 3, "check_val_every_n_epoch": None, "limit_val_batches": 1} if by_validation else {}
    )
    saved = Checkpoint(tmp_path, monitor=None, every_n_train_steps=50, save_last=True)
    one = trainer(9, callbacks=[Stop(), watch := Watch(), saved], **options)
    validation = {"v": Listed([SIX[0]._replace(id="v", question="9+9")])}
    one.fit(make(name, Frozen, None), problems_of(1, SIX, validation=validation))
    assert one.global_step == 2
    assert watch.batches == [4]
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


@pytest.mark.slow
def test_another_teacher_divergence_or_weighting_is_refused(tmp_path, name):
    run(tmp_path, make(name, Frozen, None), 1, Fixed(1.0))
    for teacher in (Live, lambda: Ema(0.9)):
        with pytest.raises(ValueError, match=r"model\.teacher is (Live|Ema), and the run had Frozen"):
            run(tmp_path, make(name, teacher, None), 2, Fixed(1.0), resume="step=1.ckpt")
    other = make(name, Frozen, None, divergence=ForwardKL(temperature=2.0))
    with pytest.raises(ValueError, match=r"model\.divergence is ForwardKL\(temperature=2\.0, .*and the run had Forw"):
        run(tmp_path, other, 2, Fixed(1.0), resume="step=1.ckpt")
    weighted = make(name, Frozen, None)
    weighted.weighting = GroupRelative(scaled=False)
    with pytest.raises(ValueError, match=r"model\.weighting is GroupRelative\(scaled=False\), and the run had None"):
        run(tmp_path, weighted, 2, Fixed(1.0), resume="step=1.ckpt")


class Counting(Ema):
    """Of a user, with an attribute that changes as it trains, and another that may be set."""

    def __init__(self, decay: float, every: int = 1) -> None:
        super().__init__(decay)
        self.every, self.steps, self.anything = every, 0, object()

    def after_step(self, student, feedback):
        super().after_step(student, feedback)
        self.steps += 1


class Lenient(Weighting):
    """Of a user: a plain class, whose `repr` has none of its settings."""

    def __init__(self, wrong: float = 0.5) -> None:
        self.wrong = wrong

    def weights(self, correct):
        return correct + self.wrong * (1 - correct)


@pytest.mark.slow
def test_other_settings_of_a_part_are_refused(tmp_path, name):
    """From Python: no config shows them."""
    made = lambda decay=0.9, every=1, wrong=0.5: make(  # noqa: E731
        name, lambda: Counting(decay, every), None, weighting=Lenient(wrong)
    )
    run(tmp_path, made(), 2, Fixed(1.0))
    for change in ({"decay": 0.5}, {"every": 2}, {"wrong": 0.25}):
        [(key, value)] = change.items()
        part = "weighting" if key == "wrong" else "teacher"
        other = made(**change)
        with pytest.raises(ValueError, match=rf"model\.{part}\.{key} is {value}, and the run had"):
            run(tmp_path, other, 3, Fixed(1.0), resume="step=2.ckpt")
    other.weighting.wrong = 0.5  # set back, as it says
    run(tmp_path, other, 3, Fixed(1.0), resume="step=2.ckpt")
    run(tmp_path, made(), 3, Fixed(1.0), resume="step=2.ckpt")  # what it has counted is no setting
    run(tmp_path, made(), 4, Fixed(1.0), resume="step=3.ckpt")


@pytest.mark.slow
def test_a_checkpoint_without_settings_goes_on(tmp_path, name):
    """Those of commit 96f7758 and before had the classes alone."""
    run(tmp_path, make(name, lambda: Ema(0.9), None), 1, Fixed(1.0))
    path = tmp_path / "step=1.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["kinds"].pop("teacher.decay") == 0.9
    assert checkpoint["kinds"].pop("weighting") == "None"
    assert set(checkpoint["kinds"]) == {"teacher", "divergence"}
    torch.save(checkpoint, path)
    run(tmp_path, make(name, lambda: Ema(0.9), None), 2, Fixed(1.0), resume="step=1.ckpt")


@pytest.mark.slow
def test_the_length_of_training_may_be_asked_for_while_the_optimizer_is_made(tmp_path, name):
    """Lightning then makes the loader before the checkpoint is read, and loses a stateful one's position (#20550)."""

    class Warm(SelfDistillation):
        def configure_optimizers(self):
            total = self.trainer.estimated_stepping_batches
            assert total == 6
            configured = super().configure_optimizers()
            configured["lr_scheduler"]["scheduler"] = LambdaLR(configured["optimizer"], lambda s: 1 - s / total)
            return configured

    def make_one():
        module = make(name, Frozen, None)
        module.__class__ = Warm
        return module

    straight = run(tmp_path, make_one(), 6, Learner(), accumulate_grad_batches=2)
    resumed = run(tmp_path, make_one(), 6, Learner(), resume="step=4.ckpt", accumulate_grad_batches=2)
    assert_same(straight, resumed, 4)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("cut", [1, 3, 5])
def test_a_gate_goes_on(tmp_path, name, lora, cut):
    """Cuts while it only measures, between two refreshes, and after the last: the copy cannot be rebuilt."""

    def make_one() -> SelfDistillation:
        module = make(name, lambda: Gated(0.02, 0.5), lora)
        module.engine = Answers()
        return module

    straight = run(tmp_path, make_one(), 7, Random())
    resumed = run(tmp_path, make_one(), 7, Random(), resume=f"step={cut}.ckpt")
    assert_same(straight, resumed, cut)
    refreshes = straight[3].values("teacher/refreshes")
    assert refreshes[0] == 0 < refreshes[-1] < 5


@pytest.mark.slow
@pytest.mark.parametrize("hold", [2, "epoch"])
@pytest.mark.parametrize("strategy", [lambda: CompetenceBased("problem"), CompetenceBased, lambda: MismatchTarget(0.5)])
def test_rules_that_follow_what_was_measured_go_on(tmp_path, name, strategy, hold):
    """Windows of two steps in passes of three, so that problems come again; cut in the midst of a window."""

    def make_one() -> SelfDistillation:
        module = make(name, Frozen, None)
        module.engine = Answers()
        return module

    straight = run(tmp_path, make_one(), 7, strategy(), hold)
    resumed = run(tmp_path, make_one(), 7, strategy(), hold, resume="step=5.ckpt")
    assert_same(straight, resumed, 5)
    assert len(set(straight[3].values("exposure/ratio"))) > 1


@pytest.mark.slow
def test_a_strategy_that_learns_and_a_window_of_a_pass_go_on(tmp_path, name):
    straight = run(tmp_path, make(name, Live, None), 7, Learner(), hold="epoch")
    resumed = run(tmp_path, make(name, Live, None), 7, Learner(), hold="epoch", resume="step=4.ckpt")
    assert_same(straight, resumed, 4)
    levels = [row["exposure/ratio"] for row in numbers(straight[3]).values()]
    assert len(set(levels)) > 1  # it did learn


@pytest.mark.slow
def test_dropout_goes_on(tmp_path, name):
    """Lightning does not save the state of torch's generator."""
    lora = Lora(rank=2, dropout=0.4)
    straight = run(tmp_path, make(name, Frozen, lora), 4, Random())
    torch.manual_seed(99)
    resumed = run(tmp_path, make(name, Frozen, lora), 4, Random(), resume="step=2.ckpt")
    assert_same(straight, resumed, 2)


@pytest.mark.slow
def test_bf16_mixed_goes_on(tmp_path, name):
    straight = run(tmp_path, make(name, Frozen, None), 4, Random(), precision="bf16-mixed")
    resumed = run(tmp_path, make(name, Frozen, None), 4, Random(), resume="step=2.ckpt", precision="bf16-mixed")
    assert_same(straight, resumed, 2)


@pytest.mark.slow
def test_bad_steps_in_a_row_are_counted_across_the_cut(tmp_path, name):
    first = distillation(name, divergence=Spoiled(2, 3), chunk_tokens=1000)
    run(tmp_path, first, 4, Random())
    assert first.skipped.total == 2
    second = distillation(name, divergence=Spoiled(0), chunk_tokens=1000)
    with pytest.raises(FloatingPointError, match="3 optimizer steps in a row"):
        run(tmp_path, second, 6, Random(), resume="step=4.ckpt")
    assert second.skipped.total == 3
    third = distillation(name, divergence=Spoiled(1), chunk_tokens=1000)
    *_, log = run(tmp_path, third, 6, Random(), resume="step=4.ckpt")
    assert log.values("loss/skipped_steps") == [2.0, 3.0]
    assert all(math.isfinite(v) for v in log.values("loss/divergence"))


class Odd(Random):
    """Keeps what no checkpoint can be read back with."""

    def state_dict(self):
        return {"shown": {"a": [1.0, np.float64(0.5)]}}

    def load_state_dict(self, state):
        """Not reached."""


@pytest.mark.slow
def test_a_state_that_could_not_be_read_back_is_refused_as_it_is_written(tmp_path, name):
    module = make(name, Frozen, None)
    module_trainer = trainer(2, callbacks=[ExposureControl(Odd()), Checkpoint(tmp_path)], enable_checkpointing=True)
    with pytest.raises(TypeError, match=r"callbacks\.ExposureControl\.strategy\.shown\.a\.1, a float64,.*float\(x\)"):
        module_trainer.fit(module, problems_of(2))
    assert list(tmp_path.iterdir()) == []
    check_plain({"mine": {"a": [1, "b", None, (2.0, {"c": torch.ones(2)})], "d": Counter("ab")}})
    for bad in (np.ones(2), deque([1]), defaultdict(int)):
        with pytest.raises(TypeError, match=rf"mine\.1\.x, a {type(bad).__name__},"):
            check_plain({"mine": [0, {"x": bad}]})
        with pytest.raises(TypeError, match=rf"a {type(bad).__name__},"):
            check_plain({"teacher": {"a": bad}, "optimizer_states": [{"param_groups": [{"lr": 1e-3}]}]})
    check_plain({("a", 1): {2: {3}}})
    with pytest.raises(TypeError, match=r"a, its key 0\.5, a float64,"):
        check_plain({"a": {np.float64(0.5): 1}})
    with pytest.raises(TypeError, match=r"optimizer_states\.0\.param_groups\.0\.lr, a float64,"):
        check_plain({"optimizer_states": [{"param_groups": [{"lr": np.float64(1e-3)}]}]})


@pytest.mark.slow
def test_adapters_go_on_from_their_base_model_alone(tmp_path, name):
    run(tmp_path, make(name, Frozen, LORA), 1, Fixed(1.0))
    other = make(name, Frozen, LORA)
    other.configure_model()
    frozen = next(p for p in other.student.parameters() if not p.requires_grad)
    frozen.data[0, 0] += 1
    with pytest.raises(ValueError, match=r"adapters of another base model.*model\.student\.init_args"):
        run(tmp_path, other, 2, Fixed(1.0), resume="step=1.ckpt")


class Unfreezes(Callback):
    """Trains from the first step on what the model was read with as frozen."""

    def on_train_batch_start(self, trainer, module, *args):
        for weight in module.student.parameters():
            weight.requires_grad_(True)


class Half(LanguageModel):
    """Half of its layers are not trained."""

    def load(self):
        student, tokenizer = super().load()
        for weight in student.model.layers[0].parameters():
            weight.requires_grad_(False)
        return student, tokenizer


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
def test_what_is_trained_later_is_in_the_checkpoint(tmp_path, name, lora):
    def one(steps, resume=None):
        module = make(name, Frozen, lora)
        if lora is None:
            module.source = Half(name=module.source.name)
        save = ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
        fit = trainer(steps, callbacks=[Unfreezes(), save], enable_checkpointing=True)
        kept = None if resume is None else tmp_path / resume
        fit.fit(module, problems_of(2, SIX, seed=3), ckpt_path=kept, weights_only=True)
        return torch.load(tmp_path / f"step={steps}.ckpt", weights_only=True)["state_dict"], module

    straight, module = one(4)
    assert straight.keys() == module.state_dict().keys()
    torch.testing.assert_close(one(4, "step=3.ckpt")[0], straight, rtol=0, atol=0)
