"""SampleLog, ExposureControl and StepProgress in a real Trainer, on the embedded reasoner."""

import csv
import io
import json
import sys
from pathlib import Path

import pytest

from lit_atex.callbacks import ExposureControl
from lit_atex.cli import main
from lit_atex.exposure import Exposure, Fixed, Random, TrainingState
from lit_atex.sample_log import SampleLog, as_markdown

ROOT = Path(__file__).parents[1]
STACK = ["--config", str(ROOT / "configs/base.yaml"), "--config", str(ROOT / "configs/tiny.yaml")]
SHORT = ["--data.validation", "null", "--model.sampling.max_new_tokens", "8", "--checkpoint.every_n_train_steps", "1"]
RANDOM = ["--exposure.strategy", "lit_atex.exposure.Random", "--exposure.strategy.seed", "3"]
EPOCHS_OF_TWO_BATCHES = ["--data.train.init_args.size", "8", "--trainer.max_epochs", "-1"]


def fit(run, *words):
    main(["fit", *STACK, *SHORT, "--run", str(run), *words])


def column(run, name):
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        return [float(row[name]) for row in csv.DictReader(file)]


def draws(*steps):
    """What Random(seed=3) gives when it decides at these steps."""
    states = [TrainingState(step, 6, 0, ["any"], [""]) for step in steps]
    return pytest.approx([Random(seed=3).ratios(state)[0] for state in states], abs=1e-6)


class Recorder(Exposure):
    """Half to everyone; keeps what it was asked and told."""

    states: list = []  # noqa: RUF012
    feedback: list = []  # noqa: RUF012

    def ratios(self, state):
        self.states.append(state)
        return [0.5] * len(state.problem_ids)

    def update(self, feedback):
        self.feedback.append(feedback)


# ExposureControl


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hold", "decided"), [("1", [0, 1, 2, 3, 4, 5]), ("2", [0, 0, 2, 2, 4, 4]), ("4", [0] * 4 + [4] * 2)]
)
def test_a_decision_is_held_for_optimizer_steps(tmp_path, hold, decided):
    fit(tmp_path, *RANDOM, "--exposure.hold", hold)
    assert column(tmp_path, "exposure/ratio") == draws(*decided)


@pytest.mark.slow
def test_a_decision_is_held_for_an_epoch(tmp_path):
    fit(tmp_path, *RANDOM, *EPOCHS_OF_TWO_BATCHES, "--exposure.hold", "epoch")
    assert column(tmp_path, "exposure/ratio") == draws(0, 0, 2, 2, 4, 4)
    assert column(tmp_path, "epoch") == [0, 0, 1, 1, 2, 2]


class ByCompetence(Exposure):
    """Asks at each batch."""

    def ratios(self, state):
        return [state.competence.mean(level=level, problem=p) for level, p in zip(state.levels, state.problem_ids)]


@pytest.mark.slow
def test_competence_holds_still_within_a_window(tmp_path):
    fit(tmp_path, "--exposure.strategy", f"{__name__}.ByCompetence", "--exposure.hold", "3")
    found = column(tmp_path, "exposure/ratio")
    assert found[:3] == [0.5] * 3
    assert len(set(found)) == 2
    assert len(set(column(tmp_path, "competence/running"))) == 6


@pytest.mark.slow
def test_a_window_outlives_a_stop(tmp_path):
    words = [*RANDOM, *EPOCHS_OF_TWO_BATCHES, "--exposure.hold", "epoch"]
    fit(tmp_path, *words, "--trainer.max_steps", "3")
    fit(tmp_path, *words, "--trainer.max_steps", "6", "--ckpt_path", "last")
    assert column(tmp_path, "exposure/ratio") == draws(0, 0, 2, 2, 4, 4)
    assert column(tmp_path, "epoch") == [0, 0, 1, 1, 2, 2]


@pytest.mark.slow
def test_micro_batches_of_a_step_share_a_decision_and_one_feedback(tmp_path):
    Recorder.states, Recorder.feedback = [], []
    words = ["--trainer.accumulate_grad_batches", "2", "--trainer.max_steps", "3"]
    fit(tmp_path, "--exposure.strategy", "test_callbacks.Recorder", *words)
    assert [state.step for state in Recorder.states] == [0, 0, 1, 1, 2, 2]
    assert {state.max_steps for state in Recorder.states} == {3}
    assert [feedback.step for feedback in Recorder.feedback] == [0, 1, 2]
    for step, feedback in enumerate(Recorder.feedback):
        first, second = Recorder.states[2 * step : 2 * step + 2]
        assert feedback.problem_ids == first.problem_ids + second.problem_ids
        assert feedback.exposures == [0.5] * 8
        assert len(feedback.verdicts) == 8
    assert column(tmp_path, "exposure/ratio") == [0.5] * 3


@pytest.mark.parametrize("hold", [0, -1])
def test_a_hold_below_one_is_refused(hold):
    with pytest.raises(ValueError, match=r"exposure\.hold"):
        ExposureControl(Fixed(), hold)


# SampleLog


def samples(run):
    return [json.loads(line) for line in (run / "samples.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_samples_come_at_their_steps_and_say_everything(tmp_path):
    fit(tmp_path, "--sample_log.every_n_steps", "2", "--sample_log.samples", "3", "--model.samples", "2",
        "--model.sampling.max_new_tokens", "60")  # fmt: skip
    rows = samples(tmp_path)
    assert [row["step"] for row in rows] == [0, 0, 0, 2, 2, 2, 4, 4, 4]
    first, second, third = rows[:3]
    assert first["id"] == second["id"] != third["id"]  # two rollouts a problem
    for row in rows:
        assert row["question"]
        assert row["hint"].endswith(row["answer"])  # the whole solution, at exposure 1
        assert row["exposure"] == 1.0
        assert row["verdict"] in ("correct", "wrong", "unparsed", "timeout")
        assert len(row["tokens"]) == len(row["divergence"])
        assert "".join(row["tokens"]).startswith(row["completion"])


@pytest.mark.slow
def test_more_samples_than_rollouts_are_all_rollouts(tmp_path):
    fit(tmp_path, "--sample_log.samples", "100", "--trainer.max_steps", "1")
    assert len(samples(tmp_path)) == 4


def test_a_sample_as_text_keeps_bars_under_their_tokens():
    row = {"verdict": "wrong", "exposure": 0.5, "answer": "2", "id": "a", "question": "1+1", "hint": "",
           "tokens": ["3", "\n", "4"], "divergence": [4.0, 0.0, 0.0]}  # fmt: skip
    text = as_markdown(row)
    assert "**wrong** · exposure 0.50" in text
    assert "(nothing)" in text  # no hint
    assert "    3↵\n    █ \n    4" in text


@pytest.mark.parametrize("words", [{"every_n_steps": 0}, {"samples": 0}])
def test_no_samples_are_refused(words):
    with pytest.raises(ValueError, match="at least 1"):
        SampleLog(**words)


# StepProgress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.slow
def test_without_a_terminal_there_are_lines(tmp_path, capfd):
    main(["fit", *STACK, "--run", str(tmp_path), "--trainer.max_steps", "2"])
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "evaluating level-4: 2 completions a problem"
    first, last = (line for line in lines if line.startswith("step "))
    assert first.startswith("step 1/2  0:00:")
    assert "  loss " in first  # of the step itself, not of the one before
    assert last.startswith("step 2/2  0:00:00 left  loss ")
    for word in ("exposure 1.00  mismatch ", "accuracy ", "tok/s "):
        assert word in last


@pytest.mark.slow
def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch, capsys):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    main(["fit", *STACK, "--run", str(tmp_path), "--trainer.max_steps", "2"])
    shown = terminal.getvalue()
    assert "2/2 [" in shown
    assert "loss " in shown.split("2/2 [")[1]
    assert "evaluating level-4: 2 completions a problem" in shown
    assert "step 1/2" not in shown
    assert "before and after" in capsys.readouterr().out
