"""StepLog in a real Trainer: what it writes, when, and where; and that Lightning has nothing to collect."""

import csv
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_module import SIX, Drawn, Listed, Memory, Spoiled, distillation, problems_of, saved_model, trainer
from torch.utils.tensorboard import SummaryWriter

from lit_atex.adaptive import MismatchTarget
from lit_atex.callbacks import ExposureControl
from lit_atex.collapse import CollapseMonitor
from lit_atex.estimator import CompetenceEstimator
from lit_atex.exposure import Fixed
from lit_atex.metrics_csv import OF_STEPS, MetricsCsv
from lit_atex.teacher import Live


class Counting(Memory):
    """A logger that keeps every call."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[int | None, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        super().log_metrics(metrics, step)
        self.calls.append((step, dict(metrics)))


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


def fit(name: str, steps: int, *callbacks, module=None, batch_size: int = 2, **options) -> pl.Trainer:
    """Three batches of two problems an epoch, unless told otherwise."""
    run = trainer(steps, callbacks=list(callbacks), **({"max_epochs": -1} | options))
    run.fit(module or distillation(name), problems_of(batch_size))
    return run


def control() -> list[pl.Callback]:
    return [ExposureControl(MismatchTarget(0.5)), CompetenceEstimator(), CollapseMonitor(window=1)]


@pytest.mark.slow
def test_lightning_collects_none_of_our_numbers(name) -> None:
    """At 0.8 ms a name and step they would cost more than all that makes them; so each logger is called once a step."""
    run = fit(name, 4, *control(), logger=Counting())
    assert run.logged_metrics == {}
    assert [step for step, _ in run.logger.calls] == [0, 1, 2, 3]
    row = run.logger.calls[-1][1]
    assert len(row) > 30
    assert {key.split("/")[0] for key in row} == OF_STEPS | {"epoch"}
    assert {type(value) for value in row.values()} == {float, int}
    assert row["loss/lr"] == 1e-3  # not rounded to float32


class Mine(pl.Callback):
    """Logs a number by Lightning's means; can stop the run out of turn."""

    def __init__(self, stop: int | None = None) -> None:
        self.stop = stop

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        pl_module.log("mine", float(trainer.global_step - 1), batch_size=1)
        trainer.should_stop = trainer.global_step == self.stop


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("every", "stop", "logged"), [(1, None, [0, 1, 2, 3, 4]), (2, None, [1, 3]), (50, None, []),
                                                       (2, 3, [1, 2]), (0, 3, [])])  # fmt: skip
def test_steps_and_epochs_are_those_of_lightning(name, every, stop, logged, accumulate) -> None:
    run = fit(name, 5, Mine(stop), accumulate_grad_batches=accumulate, log_every_n_steps=every)
    assert sorted(run.logger.steps) == logged
    for step, row in run.logger.steps.items():
        assert row["mine"] == step
        assert row["epoch"] == step // (3 if accumulate == 1 else 2)
        assert row["loss/divergence"] > 0


@pytest.mark.slow
def test_both_write_one_row_of_the_same_epoch(name) -> None:
    run = fit(name, 5, Mine(), logger=Counting())
    epochs = {step: {row["epoch"] for at, row in run.logger.calls if at == step} for step in range(5)}
    assert epochs == {0: {0}, 1: {0}, 2: {0}, 3: {1}, 4: {1}}


@pytest.mark.slow
def test_a_skipped_step_has_no_numbers_but_the_count(name) -> None:
    module = distillation(name, divergence=Spoiled(1), chunk_tokens=1000)
    rows = fit(name, 3, *control(), module=module).logger.steps
    assert rows[1] == {"loss/skipped_steps": 1.0, "data/prompt_too_long": 0.0, "epoch": 0}
    assert rows[0].keys() & rows[2].keys() > {"loss/divergence", "exposure/ratio", "competence/running"}


@pytest.mark.slow
def test_numbers_of_an_interrupted_step_are_forgotten(name) -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            raise RuntimeError("here")

    module = distillation(name)
    with pytest.raises(RuntimeError, match="here"):
        fit(name, 1, Interrupt(), module=module)
    run = fit(name, 1, module=module, accumulate_grad_batches=3, logger=Counting())
    assert [step for step, _ in run.logger.calls] == [0]


@pytest.mark.slow
def test_what_a_micro_batch_adds_waits_for_its_step(name) -> None:
    class Adds(pl.Callback):
        """In every micro-batch; what is added last is in the row, as with any name that is added twice."""

        def on_train_batch_end(self, trainer, module, *args) -> None:
            module.step_log.add(trainer, {"own/batch": float(trainer.fit_loop.total_batch_idx)})

    run = fit(name, 3, Adds(), batch_size=1, accumulate_grad_batches=2, logger=Counting())
    assert [step for step, _ in run.logger.calls] == [0, 1, 2]
    assert run.logger.values("own/batch") == [1.0, 3.0, 5.0]


@pytest.mark.slow
def test_numbers_of_other_kinds_are_numbers_in_the_row_and_the_start_has_one(name) -> None:
    class Adds(pl.Callback):
        def on_train_start(self, trainer, module) -> None:
            module.step_log.add(trainer, {"own/start": 1})

        def on_train_batch_end(self, trainer, module, *args) -> None:
            own = {"own/true": True, "own/bool": np.bool_(False), "own/tensor": torch.tensor(2.5)}
            module.step_log.add(trainer, own)

    run = fit(name, 2, Adds(), logger=Counting())
    assert [run.logger.values(f"own/{key}") for key in ("start", "true", "bool", "tensor")] == [
        *([1], [1.0, 1.0], [0.0, 0.0], [2.5, 2.5])
    ]
    assert not any(isinstance(v, bool) for key in ("true", "bool") for v in run.logger.values(f"own/{key}"))


@pytest.mark.slow
def test_an_evaluation_has_no_step_for_a_number(name) -> None:
    class Adds(pl.Callback):
        def on_validation_end(self, trainer, module) -> None:
            module.step_log.add(trainer, {"own/validation": 1.0})

    with pytest.raises(ValueError, match=r"own/validation outside of `fit`.*model\.eval_metrics"):
        trainer(1, callbacks=[Adds()], limit_val_batches=1).validate(
            distillation(name), problems_of(2, validation={"one": Listed(SIX[:2])}), verbose=False
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("added", "told"),
    [
        ({"loss/divergence": 1.0}, "'loss/divergence' is a number of this batch already"),
        ({"epoch": 1.0}, "'epoch' is a number"),
        ({"own/text": "high"}, "'own/text' is 'high', which is no number"),
        ({"own/list": [1.0]}, r"'own/list' is \[1.0\], which is no number: give float"),
    ],
)
def test_what_would_be_lost_or_written_by_no_logger_is_refused(name, added, told) -> None:
    class Adds(pl.Callback):
        def on_train_batch_end(self, trainer, module, *args) -> None:
            module.step_log.add(trainer, {"own/one": np.float32(1), "own/two": 2} | added)

    with pytest.raises(ValueError, match=rf"step_log\.add: {told}"):
        fit(name, 1, Adds())


@pytest.mark.slow
def test_a_teacher_has_no_number_of_ours(name) -> None:
    class Telling(Live):
        def scalars(self) -> dict[str, float]:
            return {"truncated": 7.0}

    with pytest.raises(
        ValueError, match=r"model\.teacher: Telling\.scalars: 'teacher/truncated' is a number of this batch already"
    ):
        fit(name, 1, module=distillation(name, teacher=Telling()))


@pytest.mark.slow
def test_a_strategy_is_named_whose_number_is_none(name) -> None:
    class Telling(Fixed):
        def scalars(self) -> dict[str, Any]:
            return {"mode": "high"}

    with pytest.raises(
        ValueError, match=r"exposure\.strategy: Telling\.scalars: 'exposure/mode' is 'high', which is no"
    ):
        fit(name, 1, ExposureControl(Telling()))


@pytest.mark.slow
def test_a_training_number_can_be_monitored(name, tmp_path) -> None:
    """By whatever reads `callback_metrics`: in the step, and at the end of a pass."""
    best = ModelCheckpoint(tmp_path, "{step}", monitor="loss/divergence", every_n_train_steps=1, save_top_k=1)
    run = fit(name, 6, best, enable_checkpointing=True)
    losses = run.logger.values("loss/divergence")
    assert len(set(losses)) == 6
    assert best.best_model_score.item() == pytest.approx(min(losses))
    assert best.best_model_path == str(tmp_path / f"step={losses.index(min(losses)) + 1}.ckpt")

    early = EarlyStopping("collapse/answer_rate_change", patience=2, check_on_train_epoch_end=True)
    run = fit(name, 30, early, CollapseMonitor(window=1), module=distillation(name, engine=Drawn()))
    assert run.global_step == 9  # no change in three passes of three steps
    assert early.best_score == 0


class Disk(Checkpoint):
    """Writes a checkpoint in each step, and reads what is on disk then."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.rows, self.events = folder, [], []

    def on_train_batch_end(self, trainer, *args) -> None:
        trainer.save_checkpoint(self.folder / "any.ckpt")
        with open(self.folder / "metrics.csv", newline="", encoding="utf-8") as file:
            self.rows.append(list(csv.DictReader(file)))
        self.events.append(read(self.folder / "tensorboard"))


def read(folder: Path) -> dict[str, dict[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


@pytest.mark.slow
def test_a_step_is_on_disk_before_its_checkpoint(name, tmp_path) -> None:
    """And as it was given to any other logger."""
    loggers = [memory := Memory(), MetricsCsv(str(tmp_path)), TensorBoardLogger(str(tmp_path), "tensorboard", "")]
    fit(name, 3, *control(), disk := Disk(tmp_path), logger=loggers, enable_checkpointing=True)
    for done, (rows, events) in enumerate(zip(disk.rows, disk.events, strict=True), 1):
        assert [{key: float(value) for key, value in row.items() if value} for row in rows] == [
            memory.steps[step] | {"step": step} for step in range(done)
        ]
        for key in set().union(*(memory.steps[step] for step in range(done))):
            expected = {s: memory.steps[s][key] for s in range(done) if key in memory.steps[s]}
            assert events[key] == pytest.approx(expected, rel=1e-6), key
    assert len(disk.rows) == 3


class Flushes(pl.Callback):
    """Counts the flushes before a checkpoint and in it."""

    def __init__(self, monkeypatch) -> None:
        self.count, self.seen = 0, []
        monkeypatch.setattr(SummaryWriter, "flush", self.flush)

    def flush(self, *args) -> None:
        self.count += 1

    def on_train_batch_end(self, trainer, *args) -> None:
        before = self.count
        trainer.save_checkpoint(Path(trainer.default_root_dir) / "any.ckpt")
        self.seen.append((before, self.count))


@pytest.mark.slow
def test_tensorboard_is_flushed_for_a_checkpoint_and_not_in_each_step(name, tmp_path, monkeypatch) -> None:
    flushes = Flushes(monkeypatch)
    fit(name, 3, flushes, logger=[TensorBoardLogger(str(tmp_path), "tensorboard", "")], default_root_dir=tmp_path)
    assert flushes.seen == [(1 + k, 2 + k) for k in range(3)]  # and one as the logger begins


@pytest.mark.slow
def test_a_prefix_of_tensorboard_stays(name, tmp_path) -> None:
    fit(name, 2, logger=[TensorBoardLogger(str(tmp_path), "tensorboard", "", prefix="a")])
    assert read(tmp_path / "tensorboard")["a-loss/skipped_steps"] == {0: 0.0, 1: 0.0}


class Hour(pl.Callback):
    """An evaluation that takes an hour, by a clock that is ours."""

    def __init__(self, monkeypatch) -> None:
        self.passed = 0.0
        real = time.perf_counter
        monkeypatch.setattr(time, "perf_counter", lambda: real() + self.passed)

    def on_validation_batch_end(self, *args, **kwargs) -> None:
        self.passed += 3600.0


@pytest.mark.slow
def test_the_time_of_a_step_leaves_out_evaluations(name, monkeypatch) -> None:
    hour, log = Hour(monkeypatch), Counting()
    data = problems_of(2, validation={"one": Listed(SIX[:2])}, eval_batch_size=2)
    options = {"val_check_interval": 1, "limit_val_batches": 1.0, "num_sanity_val_steps": -1, "logger": log}
    module, one = distillation(name), trainer(3, callbacks=[hour], **options)
    one.validate(module, data, verbose=False)  # nor is time taken off for what was before
    one.fit(module, data)
    assert hour.passed == 5 * 3600
    times = [call["time/step"] for _, call in log.calls if "time/step" in call]
    assert len(times) == 3
    assert all(0 < seconds < 3600 for seconds in times)
