"""ExposureControl in a real Trainer: windows open once each, decisions are recorded, every strategy resumes."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import SIX
from test_measures import PROBE
from test_module import LORA, Listed, distillation, problems_of, saved_model, trainer, weights
from test_ranks import Answers

from lit_atex.adaptive import CompetenceBased, MismatchTarget
from lit_atex.bandit import Bandit
from lit_atex.beta_policy import BetaPolicy
from lit_atex.callbacks import ExposureControl
from lit_atex.checkpoint import Checkpoint
from lit_atex.competence import Competence
from lit_atex.data import ProblemDataModule
from lit_atex.estimator import CompetenceEstimator
from lit_atex.exposure import Credit, Exposure, Fixed, TrainingState
from lit_atex.learners import Reinforce, Surrogate
from lit_atex.measures import ProbeAccuracy, ProbeMatch, ProbeNLL, ProgressMeasure, RolloutAccuracy
from lit_atex.reweighted import ReweightedAccuracy
from lit_atex.teacher import Ema, Frozen, Live
from lit_atex.types import StepFeedback

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")


class Diary(Exposure):
    """Writes down every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def begin_window(self, state: TrainingState, progress: float | None) -> list[Credit]:
        assert progress is None  # it did not ask
        assert state.competence is not None
        self.calls.append(("window", state.step))
        return []

    def ratios(self, state: TrainingState) -> list[float]:
        self.calls.append(("ratios", state.step))
        return [0.5] * len(state.problem_ids)

    def update(self, feedback: StepFeedback) -> None:
        self.calls.append(("update", feedback.step))

    def finish(self, progress: float | None) -> list[Credit]:
        self.calls.append(("finish", -1))
        return []


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


def train(folder: Path, name: str, strategy: Exposure, steps: int, hold=2, resume=None, lora=None, **options):
    """Three batches of two problems a pass; checkpoints at every step."""
    progress, probe = options.pop("progress", None), options.pop("probe", PROBE)
    control = ExposureControl(strategy, hold, progress)
    save = Checkpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)
    callbacks = [control, CompetenceEstimator(), save]
    one = trainer(steps, callbacks=callbacks, enable_checkpointing=True, default_root_dir=folder, **options)
    module = distillation(name, lora, engine=Answers(), samples=2, seed=1)
    one.fit(module, problems_of(2, SIX, probe=Listed(probe)), ckpt_path=resume, weights_only=True)
    return module, control, one.logger


def decisions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "decisions.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_a_window_opens_once_before_its_first_batch(tmp_path, name):
    diary = Diary()
    train(tmp_path, name, diary, 5, accumulate_grad_batches=2)
    # Three batches a pass: a step of two micro-batches, then one of the batch that is left.
    micro = {0: 2, 1: 1, 2: 2, 3: 1, 4: 2}
    expected: list[tuple[str, int]] = []
    for step, count in micro.items():
        window = step - step % 2
        expected += [("window", window)] if step == window else []
        expected += [("ratios", window)] * count + [("update", step)]
    assert diary.calls == [*expected, ("finish", -1)]


@pytest.mark.slow
def test_epochs_are_windows(tmp_path, name):
    diary = Diary()
    train(tmp_path, name, diary, 7, hold="epoch")
    assert [step for call, step in diary.calls if call == "window"] == [0, 3, 6]


STRATEGIES = {
    "beta": lambda: BetaPolicy(horizon=2, seed=4),
    "reinforce": lambda: BetaPolicy(Reinforce(), horizon=2, seed=4),
    "bandit": lambda: Bandit(horizon=2, seed=4),
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES.keys())
def test_every_decision_is_recorded_once_in_order_and_none_is_lost(tmp_path, name, strategy):
    _, _, log = train(tmp_path, name, strategy(), 11, hold=2)
    rows = decisions(tmp_path)
    assert [row["decision"] for row in rows] == list(range(6))
    assert [row["decided_at"] for row in rows] == [0, 2, 4, 6, 8, 10]
    assert [row["step"] for row in rows] == [4, 6, 8, 10, 11, 11]  # two windows later, or at the end
    assert [row["complete"] for row in rows] == [True] * 4 + [False] * 2
    ratios = log.values("exposure/ratio")
    assert [ratios[row["decided_at"]] for row in rows] == pytest.approx([row["ratio"] for row in rows], abs=1e-6)
    # The rewards by the book, from the accuracies that were logged; a window's progress is that of the one before.
    correct = log.values("competence/correct")
    p = [None, *(sum(correct[i : i + 2]) / 2 for i in range(0, 10, 2)), correct[10]]
    p[0] = p[1]
    for k, row in enumerate(rows):
        known = [p[k + j] - p[k + j - 1] for j in (1, 2) if k + j < len(p)]
        assert row["reward"] == pytest.approx(sum(0.9**j * x for j, x in enumerate(known)), abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("hold", [2, "epoch"])
@pytest.mark.parametrize("cut", [3, 6, 7])
def test_a_cut_run_records_what_the_straight_one_does(tmp_path, name, cut, hold):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train(straight, name, BetaPolicy(horizon=2), 9, hold=hold)
    # What a run that is killed after this step leaves behind, less what RunFolder drops on resuming.
    resumed.mkdir()
    kept = [json.dumps(row) + "\n" for row in decisions(straight) if row["step"] < cut]
    (resumed / "decisions.jsonl").write_text("".join(kept), encoding="utf-8")
    train(resumed, name, BetaPolicy(horizon=2), 9, hold=hold, resume=straight / f"step={cut}.ckpt")
    assert decisions(resumed) == decisions(straight)
    assert [row["decision"] for row in decisions(straight)] == list(range(5 if hold == 2 else 3))


@pytest.mark.slow
def test_a_run_that_has_nothing_left_records_its_end_once(tmp_path, name):
    train(tmp_path, name, BetaPolicy(horizon=2), 5)
    once = decisions(tmp_path)
    train(tmp_path, name, BetaPolicy(horizon=2), 5, resume=tmp_path / "step=5.ckpt")
    assert decisions(tmp_path) == once


EVERY = STRATEGIES | {
    "competence": lambda: CompetenceBased(per="problem"),
    "competence of all": lambda: CompetenceBased(per="all"),
    "mismatch": MismatchTarget,
    "probe accuracy": lambda: (BetaPolicy(horizon=1), ProbeAccuracy()),
    "probe nll": lambda: (BetaPolicy(horizon=3), ProbeNLL()),
    "probe match": lambda: (BetaPolicy(horizon=2), ProbeMatch()),
    "reweighted": lambda: (BetaPolicy(horizon=2), ReweightedAccuracy()),
}


def parts(make) -> tuple[Exposure, dict]:
    made = make()
    return (made[0], {"progress": made[1]}) if isinstance(made, tuple) else (made, {"progress": RolloutAccuracy()})


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("make", EVERY.values(), ids=EVERY.keys())
def test_every_strategy_resumes_bit_for_bit(tmp_path, name, make, lora):
    """Cut in the midst of a window and of a pass, with decisions pending and micro-batches accumulated."""
    options = {"hold": 2, "accumulate_grad_batches": 2, "lora": lora}
    strategy, progress = parts(make)
    a, control_a, log_a = train(tmp_path / "a", name, strategy, 9, **options, **progress)
    strategy, progress = parts(make)
    cut = tmp_path / "a" / "step=5.ckpt"
    b, control_b, log_b = train(tmp_path / "b", name, strategy, 9, **options, **progress, resume=cut)
    torch.testing.assert_close(weights(b), weights(a), rtol=0, atol=0)
    assert str(control_b.state_dict()) == str(control_a.state_dict())
    of_a, of_b = (one.progress.state_dict().get("before", {}) for one in (control_a, control_b))
    torch.testing.assert_close(of_b, of_a, rtol=0, atol=0)  # a text leaves out most of large tensors
    timed = ("time/", "throughput/completion")
    for step in range(5, 9):
        row_a, row_b = ({k: v for k, v in log.steps[step].items() if not k.startswith(timed)} for log in (log_a, log_b))
        assert row_a == row_b
        assert all(math.isfinite(v) for v in row_a.values())


@pytest.mark.slow
@pytest.mark.parametrize("learner", [Surrogate, Reinforce])
def test_a_policy_that_has_learned_resumes_bit_for_bit(tmp_path, name, learner):
    def made():
        return BetaPolicy(learner(lr=0.1), horizon=1)

    a, control_a, _ = train(tmp_path / "a", name, made(), 9, hold=1)
    b, control_b, _ = train(tmp_path / "b", name, made(), 9, hold=1, resume=tmp_path / "a" / "step=7.ckpt")
    saved = torch.load(tmp_path / "a" / "step=7.ckpt", weights_only=True)
    (then,) = (x["strategy"]["policy"] for k, x in saved["callbacks"].items() if k.startswith("ExposureControl"))
    assert not then["last.bias"].equal(made().policy.last.bias)  # it had moved before the cut
    torch.testing.assert_close(weights(b), weights(a), rtol=0, atol=0)
    assert str(control_b.state_dict()) == str(control_a.state_dict())


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (lambda: BetaPolicy(), lambda: BetaPolicy(Reinforce()), "learner was Surrogate.*is Reinforce"),
        (
            lambda: BetaPolicy(statistics=["time"]),
            lambda: BetaPolicy(statistics=[]),
            r"statistics was \['time'\].*is \[\]",
        ),
        (lambda: BetaPolicy(hidden=16), lambda: BetaPolicy(hidden=8), "hidden was 16.*is 8"),
        (lambda: BetaPolicy(horizon=3), lambda: BetaPolicy(horizon=1), "horizon was 3.*is 1"),
        (lambda: BetaPolicy(), lambda: BetaPolicy(high=0.2), r"high was 1\.0.*is 0\.2"),
        (lambda: Bandit(arms=6), lambda: Bandit(arms=3), "arms was 6.*is 3"),
        (lambda: Bandit(), lambda: Bandit(high=0.4), r"high was 1\.0.*is 0\.4"),
        (lambda: Bandit(), lambda: Bandit(discount=0.5), r"discount was 0\.9.*is 0\.5"),
    ],
)
def test_a_run_goes_on_with_what_its_numbers_mean(before, after, message):
    with pytest.raises(ValueError, match=message):
        after().load_state_dict(before().state_dict())


def test_what_may_change_in_a_run_is_that_of_now():
    steep = BetaPolicy(Surrogate(lr=0.1))
    steep.load_state_dict(BetaPolicy(Surrogate(lr=0.01)).state_dict())
    assert [group["lr"] for group in steep.learner.optimizer.param_groups] == [0.1]
    then, now = MismatchTarget(start=0.9), MismatchTarget(start=0.2, ceiling=0.3)
    state = TrainingState(0, 10, 0, ["a"], ["1"], Competence())
    now.load_state_dict(then.state_dict())
    assert then.ratios(state) == [0.9]
    assert now.ratios(state) == [0.3]


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_strategy_alone(tmp_path, name):
    train(tmp_path, name, Bandit(horizon=2), 2)
    for other in (BetaPolicy(horizon=2), MismatchTarget()):
        with pytest.raises(
            ValueError, match=r"were lit_atex\.bandit\.Bandit.*, and are lit_atex\.\w+\.\w+.*set them back"
        ):
            train(tmp_path, name, other, 4, resume=tmp_path / "step=2.ckpt")


class Given(Exposure):
    def __init__(self, given) -> None:
        self.given = given

    def ratios(self, state):
        return self.given(len(state.problem_ids))

    def update(self, feedback):
        self.told = feedback


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [
        lambda n: [0.5] * (n + 1),
        lambda n: None,
        lambda n: 0.5,
        lambda n: ["half"] * n,
        lambda n: [math.nan] * n,
        lambda n: [1.2] * n,
    ],
)
def test_what_a_strategy_returns_is_checked(tmp_path, name, given):
    with pytest.raises(ValueError, match=r"Given\.ratios must return a number in \[0, 1\] for each of the 2 problems"):
        train(tmp_path, name, Given(given), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "credits", [[0.5], [Credit(0, 0, np.float32(0.5), None, True, {})], iter([Credit(0, 0, 0.5, 0.1, True, {})])]
)
def test_credits_are_looked_at(tmp_path, name, credits):
    mine = Given(lambda n: [0.5] * n)
    mine.begin_window = lambda state, progress: credits
    with pytest.raises(
        ValueError, match=r"exposure\.strategy: Given\.begin_window and \.finish must return a list of Cr"
    ):
        train(tmp_path, name, mine, 1)
    assert not (tmp_path / "decisions.jsonl").exists()


@pytest.mark.slow
def test_arrays_will_do_and_a_memory_that_is_not_saved_is_said(tmp_path, name, caplog):
    _, _, log = train(tmp_path, name, Given(lambda n: np.full(n, 0.25)), 1)
    assert log.values("exposure/ratio") == [0.25]
    assert "Given has an `update` but no `state_dict`" in caplog.text
    caplog.clear()
    train(tmp_path / "saved", name, BetaPolicy(), 1)
    assert "state_dict" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("half", ["state_dict", "load_state_dict"])
@pytest.mark.parametrize(
    ("key", "base"), [("exposure.strategy", Given), ("exposure.progress", ProbeNLL), ("model.teacher", Live)]
)
def test_half_a_memory_is_refused(tmp_path, name, half, key, base):
    mine = type("Mine", (base,), {half: lambda self, *state: {}})
    parts = {key: mine(lambda n: [0.5] * n) if base is Given else mine()}
    control = ExposureControl(parts.get("exposure.strategy", Fixed()), progress=parts.get("exposure.progress"))
    module = distillation(name, teacher=parts.get("model.teacher"))
    with pytest.raises(ValueError, match=rf"{key}: Mine has one of state_dict and load_state_dict alone, {half}: "):
        trainer(1, callbacks=[control]).fit(module, problems_of(2))


@pytest.mark.slow
@pytest.mark.parametrize("base", [Live, Frozen])
def test_a_teacher_that_follows_and_is_not_saved_is_said(name, caplog, base):
    mine = type("Mine", (base,), {"after_step": lambda self, student, feedback: None})
    trainer(1).fit(distillation(name, teacher=mine()), problems_of(2))
    assert "Mine has an `after_step` but no `state_dict`" in caplog.text
    caplog.clear()
    trainer(1).fit(distillation(name, teacher=Ema()), problems_of(2))
    assert "state_dict" not in caplog.text


@pytest.mark.slow
def test_a_pass_that_never_ends_is_no_window(tmp_path, name):
    control = ExposureControl(BetaPolicy(), hold="epoch")
    endless = Listed(SIX)
    endless.finite = False
    with pytest.raises(ValueError, match=r"exposure\.hold: epoch .* never ends: set data\.train\.init_args\.size"):
        trainer(1, callbacks=[control]).fit(distillation(name), ProblemDataModule(endless, batch_size=2))
    diary, limit = Diary(), {"limit_train_batches": 2, "max_epochs": -1}
    six = ProblemDataModule(endless, batch_size=1)
    callbacks = [ExposureControl(diary, hold="epoch"), CompetenceEstimator()]
    trainer(5, callbacks=callbacks, **limit).fit(distillation(name), six)
    assert [step for what, step in diary.calls if what == "window"] == [0, 2, 4]


class Forgetful(RolloutAccuracy):
    """Remembers, and does not say so."""

    def update(self, feedback):
        self.seen = feedback

    state_dict, load_state_dict = ProgressMeasure.state_dict, ProgressMeasure.load_state_dict


@pytest.mark.slow
def test_a_measure_that_is_not_saved_or_not_read_is_said(tmp_path, name, caplog):
    train(tmp_path, name, Bandit(), 1, progress=Forgetful())
    assert "Forgetful has an `update` but no `state_dict`" in caplog.text
    assert "exposure.progress is not read" not in caplog.text
    train(tmp_path / "fixed", name, Fixed(), 1, progress=ProbeNLL())
    assert "exposure.progress is not read: Fixed learns nothing." in caplog.text


@pytest.mark.slow
def test_two_ends_of_a_run_are_warned_of(tmp_path, name, caplog):
    assert train(tmp_path, name, Fixed(), 2, max_epochs=2)[0].trainer.global_step == 2
    assert "trainer.max_epochs (2) are both set: the first to be reached ends the run." in caplog.text
    caplog.clear()
    assert train(tmp_path / "epochs", name, Fixed(), -1, max_epochs=2)[0].trainer.global_step == 6
    assert "ends the run" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("progress", [ProbeNLL, ProbeMatch])
def test_progress_on_another_probe_is_none(tmp_path, name, progress):
    train(tmp_path, name, Bandit(), 2, hold=1, progress=progress())
    train(tmp_path, name, Bandit(), 3, hold=1, progress=progress(), resume=tmp_path / "step=2.ckpt")
    with pytest.raises(ValueError, match=r"--resume: data\.probe holds other problems than as this run began"):
        train(
            tmp_path, name, Bandit(), 4, hold=1, progress=progress(), resume=tmp_path / "step=2.ckpt", probe=PROBE[1:]
        )


@pytest.mark.slow
def test_the_probe_share_is_of_the_steps(tmp_path, name):
    _, _, log = train(tmp_path, name, BetaPolicy(horizon=1), 4, hold=2, progress=ProbeNLL())
    probe, steps = log.values("time/probe"), log.values("time/step")
    assert [x > 0 for x in probe] == [True, False, True, False]  # only where the probe is read
    assert log.values("time/probe_share")[-1] == pytest.approx(sum(probe) / sum(steps))
