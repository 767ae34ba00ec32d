"""A run that was cut off and goes on from its checkpoint gives the numbers of the undisturbed run, bit for bit."""

import math
from pathlib import Path

import pytest
import torch
from conftest import SIX
from lightning.pytorch.callbacks import ModelCheckpoint
from test_module import LORA, Memory, Spoiled, distillation, problems_of, saved_model, trainer, weights
from torch.optim import AdamW

from lit_atex.callbacks import CompetenceEstimator, ExposureControl
from lit_atex.exposure import Exposure, Random, TrainingState
from lit_atex.models import Lora
from lit_atex.module import SelfDistillation
from lit_atex.rollout import TransformersEngine
from lit_atex.teacher import Ema, Frozen, Live
from lit_atex.types import StepFeedback

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
    if isinstance(a.teacher, Ema):
        torch.testing.assert_close(dict(teachers[0]["average"]), dict(teachers[1]["average"]), rtol=0, atol=0)
    else:
        assert teachers[0] == teachers[1]
    assert exposure_a.state_dict() == exposure_b.state_dict()
    assert competence_a.state_dict() == competence_b.state_dict()
    rows_a, rows_b = numbers(log_a), numbers(log_b)
    assert sorted(rows_a) == list(range(len(rows_a)))
    assert sorted(rows_b) == list(range(first, len(rows_a)))
    assert rows_b == {step: row for step, row in rows_a.items() if step >= first}
    assert all(row["loss/divergence"] > 0 for row in rows_a.values())


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


@pytest.mark.parametrize("cut", [1, 2, 4, 5])
def test_a_run_may_be_cut_at_any_step(tmp_path, name, cut):
    """Three batches a pass in windows of two: cuts in the midst of a pass, at its end, and after a short window."""
    make_one = lambda: make(name, lambda: Ema(0.7), None)  # noqa: E731
    straight = run(tmp_path, make_one(), 6, Learner(), hold=2, accumulate_grad_batches=2)
    checkpoint = f"step={cut}.ckpt"
    resumed = run(tmp_path, make_one(), 6, Learner(), hold=2, resume=checkpoint, accumulate_grad_batches=2)
    assert_same(straight, resumed, cut)


def test_a_strategy_that_learns_and_a_window_of_a_pass_go_on(tmp_path, name):
    straight = run(tmp_path, make(name, Live, None), 7, Learner(), hold="epoch")
    resumed = run(tmp_path, make(name, Live, None), 7, Learner(), hold="epoch", resume="step=4.ckpt")
    assert_same(straight, resumed, 4)
    levels = [row["exposure/ratio"] for row in numbers(straight[3]).values()]
    assert len(set(levels)) > 1  # it did learn


def test_dropout_goes_on(tmp_path, name):
    """Lightning does not save the state of torch's generator."""
    lora = Lora(rank=2, dropout=0.4)
    straight = run(tmp_path, make(name, Frozen, lora), 4, Random())
    torch.manual_seed(99)
    resumed = run(tmp_path, make(name, Frozen, lora), 4, Random(), resume="step=2.ckpt")
    assert_same(straight, resumed, 2)


def test_bf16_mixed_goes_on(tmp_path, name):
    straight = run(tmp_path, make(name, Frozen, None), 4, Random(), precision="bf16-mixed")
    resumed = run(tmp_path, make(name, Frozen, None), 4, Random(), resume="step=2.ckpt", precision="bf16-mixed")
    assert_same(straight, resumed, 2)


def test_bad_steps_in_a_row_are_counted_across_the_cut(tmp_path, name):
    first = distillation(name, divergence=Spoiled(2, 3), chunk_tokens=1000)
    run(tmp_path, first, 4, Random())
    assert first.skipped_steps == 2
    second = distillation(name, divergence=Spoiled(0), chunk_tokens=1000)
    with pytest.raises(FloatingPointError, match="3 optimizer steps in a row"):
        run(tmp_path, second, 6, Random(), resume="step=4.ckpt")
    assert second.skipped_steps == 3
    third = distillation(name, divergence=Spoiled(1), chunk_tokens=1000)
    *_, log = run(tmp_path, third, 6, Random(), resume="step=4.ckpt")
    assert log.values("loss/skipped_steps") == [2.0, 3.0]
    assert all(math.isfinite(v) for v in log.values("loss/divergence"))
