"""CompetenceEstimator in a real Trainer: what it logs each step, what it sums up, and when."""

import csv
import logging
import os
import re
from pathlib import Path

import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_module import Memory, Spoiled, distillation, problems_of, saved_model, trainer

from lit_atex.callbacks import ExposureControl
from lit_atex.cli import main
from lit_atex.competence import Competence
from lit_atex.estimator import CompetenceEstimator
from lit_atex.exposure import Exposure
from lit_atex.text_tables import competence_table
from lit_atex.types import StepFeedback, Verdict


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


class Told(Competence):
    """Keeps the feedback that it was told, for a second opinion."""

    def __init__(self, *args) -> None:
        super().__init__(*args)
        self.heard: list[StepFeedback] = []

    def update(self, feedback: StepFeedback) -> None:
        super().update(feedback)
        self.heard.append(feedback)


class Reader(Exposure):
    """Notes how many rollouts were known whenever it decides."""

    def __init__(self) -> None:
        self.known: list[int] = []

    def ratios(self, state):
        self.known.append(state.competence.tally().rollouts)
        return [1.0] * len(state.problem_ids)


def fit(name: str, steps: int, *callbacks, module=None, **options) -> Memory:
    """Three batches of two problems an epoch, unless told otherwise."""
    run = trainer(steps, callbacks=list(callbacks), **options)
    run.fit(module or distillation(name), problems_of(2))
    return next(logger for logger in run.loggers if isinstance(logger, Memory))


def tables(caplog) -> list[str]:
    return [r.getMessage() for r in caplog.records if "running success on training problems" in r.getMessage()]


def test_each_step_logs_what_is_known_after_it(name) -> None:
    estimator, second = CompetenceEstimator(0.8, 0.6, 3.0, 4), Competence(0.8, 0.6, 3.0, 4)
    estimator.competence = told = Told(0.8, 0.6, 3.0, 4)
    log = fit(name, 5, estimator)
    assert len(told.heard) == 5
    for step, feedback in enumerate(told.heard):
        second.update(feedback)
        row = log.steps[step]
        assert row["competence/running"] == pytest.approx(second.mean())
        assert (row["competence/running_low"], row["competence/running_high"]) == pytest.approx(second.interval())
        levels = second.levels()
        logged = {key for key in row if key.startswith("competence/running_level_")}
        assert logged == {f"competence/running_level_{level}" for level in levels if len(levels) > 1}
        for key in logged:
            assert row[key] == pytest.approx(second.mean(level=key.removeprefix("competence/running_level_")))
    assert estimator.state_dict() == second.state_dict()
    assert len(list(told.problems())) == 4


@pytest.mark.parametrize("first", ["estimator", "control"])
def test_whoever_decides_knows_all_steps_before(name, first) -> None:
    """In whatever order the callbacks stand."""
    reader = Reader()
    callbacks = [CompetenceEstimator(), ExposureControl(reader)]
    fit(name, 4, *(callbacks if first == "estimator" else callbacks[::-1]))
    assert reader.known == [0, 2, 4, 6]


def test_micro_batches_are_one_step_and_skipped_steps_are_none(name) -> None:
    estimator = CompetenceEstimator()
    log = fit(name, 2, estimator, accumulate_grad_batches=3)
    assert estimator.competence.tally().rollouts == 12
    assert len(log.values("competence/running")) == 2
    estimator = CompetenceEstimator()
    fit(name, 3, estimator, module=distillation(name, divergence=Spoiled(1), chunk_tokens=1000))
    assert estimator.competence.tally().rollouts == 4


def test_each_epoch_is_summed_up_and_the_end_too(name, caplog) -> None:
    with caplog.at_level(logging.INFO, "lit_atex"):
        fit(name, 8, CompetenceEstimator(), max_epochs=-1)
    titles = [table.splitlines()[0] for table in tables(caplog)]
    assert [re.findall(r"\d+", t)[:2] for t in titles] == [["0", "3"], ["1", "6"], ["2", "8"]]
    rows = [line.strip("│ ").split("│") for line in tables(caplog)[0].splitlines() if line.startswith("│")]
    found = {row[0].strip(): [cell.strip() for cell in row[1:3]] for row in rows}
    assert found == {"1": ["2", "2"], "2": ["2", "2"], "3": ["2", "2"], "all": ["6", "6"]}


def test_a_pass_that_never_ends_is_summed_up_when_training_does(name, caplog) -> None:
    with caplog.at_level(logging.INFO, "lit_atex"):
        fit(name, 2, CompetenceEstimator())
    assert len(tables(caplog)) == 1


def test_nothing_is_summed_up_twice(name, caplog, tmp_path) -> None:
    estimator = CompetenceEstimator()
    run = trainer(3, callbacks=[estimator])
    run.fit(distillation(name), problems_of(2))
    run.save_checkpoint(tmp_path / "x.ckpt")
    caplog.clear()
    with caplog.at_level(logging.INFO, "lit_atex"):
        again = CompetenceEstimator()
        one = trainer(3, callbacks=[again])
        one.fit(distillation(name), problems_of(2), ckpt_path=tmp_path / "x.ckpt", weights_only=True)
    assert again.state_dict() == estimator.state_dict()
    assert tables(caplog) == []


def test_tensorboard_has_a_histogram_of_the_problems(name, tmp_path) -> None:
    estimator = CompetenceEstimator()
    loggers = [Memory(), TensorBoardLogger(str(tmp_path), name="tb", version="")]
    fit(name, 6, estimator, logger=loggers, max_epochs=-1)
    loggers[1].finalize("success")
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"histograms": 0})
    events.Reload()
    histograms = events.Histograms("competence/problems")
    assert [h.step for h in histograms] == [2, 5]
    assert [h.histogram_value.num for h in histograms] == [6, 6]
    competence = estimator.competence
    means = [competence.mean(level=level, problem=problem) for level, problem in competence.problems()]
    assert histograms[-1].histogram_value.sum == pytest.approx(sum(means), rel=1e-5)


@pytest.mark.parametrize("level", ["①", "algebra [/B]", "[hard]", ":smile:", "²"])
def test_a_level_is_named_as_the_data_name_it(level):
    table = competence_table("x", told({level: [Verdict.CORRECT], "4": [Verdict.WRONG]}))
    assert f" {level} " in table


def told(levels: dict[str, list[Verdict]]) -> Competence:
    competence = Competence()
    for i, (level, verdicts) in enumerate(levels.items()):
        step = StepFeedback(i, [f"p{i}"], [level], [1.0], verdicts, 0, 0, 0, 0, 1, 0, 10)
        competence.update(step)
    return competence


def test_the_table_by_hand() -> None:
    right, wrong, unparsed, timeout = Verdict
    table = competence_table(
        "epoch 3", told({"Level 10": [right] * 3 + [unparsed], "Level 9": [wrong, timeout], "": [right]})
    )
    assert table.startswith("epoch 3: running success on training problems; intervals 95 %")
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in table.splitlines() if line[0] == "│"]
    assert [row[0] for row in rows] == ["(none)", "Level 9", "Level 10", "all"]  # by number, not by letter
    assert [row[1:3] for row in rows] == [["1", "1"], ["1", "2"], ["1", "4"], ["3", "7"]]
    assert [row[3] for row in rows[:2]] == ["0.667", f"{1 / 3.8:.3f}"]
    assert rows[1][5:] == ["0.500", "0.000", "0.500"]
    assert rows[2][5:] == ["0.000", "0.250", "0.000"]
    low, high = (float(x) for x in rows[0][4].strip("[]").split(","))
    assert (low, high) == pytest.approx((0.025**0.5, 0.975**0.5), abs=1e-3)  # Beta(2, 1) has the distribution x²


def test_one_level_needs_no_row_for_all() -> None:
    assert "all" not in competence_table("x", told({"4": [Verdict.CORRECT]}))
    assert "all" in competence_table("x", Competence())


@pytest.mark.slow
def test_in_a_run_folder(tmp_path) -> None:
    """The names that TensorBoard pages and documents rely on, as the command line writes them."""
    root = Path(__file__).parents[1]
    stack = [word for n in ("base", "tiny") for word in ("--config", str(root / f"configs/{n}.yaml"))]
    words = ["--data.validation", "null", "--trainer.max_steps", "2", "--model.sampling.max_new_tokens", "8"]
    main(["fit", *stack, *words, "--run", str(tmp_path / "run")])
    with open(tmp_path / "run" / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        low, middle, high = (float(row[f"competence/running{x}"]) for x in ("_low", "", "_high"))
        assert 0 <= low < middle < high <= 1
        shares = [float(row[f"competence/{v.value}"]) for v in Verdict]
        assert sum(shares) == pytest.approx(1)
    assert os.listdir(tmp_path / "run" / "tensorboard")


def test_a_level_may_be_called_as_the_total_is():
    table = competence_table("x", told({"all": [Verdict.CORRECT], "4": [Verdict.WRONG]}))
    assert [line.split()[1] for line in table.splitlines() if line.split()[1:2] in (["all"], ["4"])] == [
        "4",
        "all",
        "all",
    ]
