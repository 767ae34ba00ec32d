"""CollapseMonitor: each measure against a plain count, the limits, and real runs, of which one is made to collapse."""

import logging
import random
import re
from collections import Counter
from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from fakes import SIX, ScriptedEngine, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import ModelCheckpoint
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from test_module import Drawn, Spoiled, distillation, problems_of, saved_model, trainer
from test_run_folder import STACK, load, metrics

from lit_atex.cli import main
from lit_atex.collapse import ADVICE, ELSEWHERE, CollapseMonitor
from lit_atex.rollout import RolloutEngine
from lit_atex.symptoms import (
    DELIBERATION,
    MEASURES,
    against,
    count,
    deliberation_words,
    distinct_answers,
    measures,
    repeated_ngrams,
    total,
)
from lit_atex.types import Rollouts, Verdict
from lit_atex.verify import Verifier
from lit_atex.window import Seen

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")

# The measures


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5))
def test_repeated_ngrams(ids, n):
    grams = [tuple(ids[i : i + n]) for i in range(max(len(ids) - n + 1, 0))]
    again = sum(gram in grams[:i] for i, gram in enumerate(grams))
    assert repeated_ngrams(ids, n) == (again, len(grams))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", 0),
        ("1+2=3\n####3", 0),
        ("Wait, maybe. WAIT wait!", 4),
        ("awaiting, actual, maybes", 0),
        ("**Wait**\u2014let me  check:\nhmm...", 3),
        ("Let\u2019s check. Double-check; let me verify_it", 3),
        ("On second thought, hold on", 2),
        ("Ich warte, peut-\u00eatre", 0),
    ],
)
def test_deliberation_words(text, expected):
    assert deliberation_words(text) == expected


@given(st.lists(st.sampled_from([*DELIBERATION, "so", "the", "answer", "let", "me"]), max_size=20), st.integers(0, 99))
def test_deliberation_words_in_any_order(words, seed):
    """Against a search word by word."""
    draw = random.Random(seed)
    text = "".join(draw.choice([w, w.upper(), w.title()]) + draw.choice([" ", ", ", ".\n"]) for w in words)
    plain = re.findall("[a-z']+", text.lower())
    phrases = [phrase.split() for phrase in DELIBERATION]
    expected = sum(plain[i : i + len(p)] == p for p in phrases for i in range(len(plain)))
    assert deliberation_words(text) == expected


@given(st.lists(st.one_of(st.none(), st.tuples(st.integers(-3, 3), st.sampled_from([1, 2]))), max_size=6))
def test_distinct_answers(drawn):
    spelled = [None if d is None else f"{d[0]}/{d[1]}" if i % 2 else str(d[0] / d[1]) for i, d in enumerate(drawn)]
    assert distinct_answers(spelled) == len({Fraction(*d) for d in drawn if d is not None})


TEXTS = {"Wait, maybe \\boxed{1}": (2, "1"), "\\boxed{1.0}": (0, "1"), "\\boxed{2}": (0, "2"), "hmm": (1, None)}
"""Completions with their deliberation words and their answer."""


def example(problems: int, samples: int, seed: int) -> Seen:
    """Made-up rollouts with all that the monitor reads of them."""
    draw = random.Random(seed)
    rollouts = problems * samples
    lengths = [draw.randint(0, 12) for _ in range(rollouts)]
    ids = torch.tensor([[draw.randint(0, 2) for _ in range(12)] for _ in range(rollouts)]).reshape(rollouts, 12)
    ended = torch.tensor([draw.random() < 0.6 for _ in range(rollouts)], dtype=torch.bool)
    completions = [draw.choice(list(TEXTS)) for _ in range(rollouts)]
    verdicts = [draw.choice(list(Verdict)) for _ in range(rollouts)]
    given_problems = [SIX[i % 6] for i in range(problems)]
    return Seen(given_problems, [], [], [], Rollouts(ids, torch.tensor(lengths), ended), completions, verdicts, ids)


@settings(deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(0, 99))
def test_measures_of_a_batch(problems, samples, seed):
    seen = example(problems, samples, seed)
    found = measures(count(seen, samples, Verifier().extract))
    lengths, ended = seen.rollouts.lengths.tolist(), seen.rollouts.ended.tolist()
    finished = [n for n, end in zip(lengths, ended) if end]
    cut = [n for n, end in zip(lengths, ended) if not end]
    grams = [[tuple(row[i : i + 4].tolist()) for i in range(n - 3)] for row, n in zip(seen.rollouts.ids, lengths)]
    words = sum(TEXTS[text][0] for text in seen.completions)
    answers = [TEXTS[text][1] for text in seen.completions]
    groups = [{a for a in answers[i * samples : (i + 1) * samples] if a} for i in range(problems)]
    expected = {
        "entropy": 0.0 if sum(lengths) else None,
        "length_finished": sum(finished) / len(finished) if finished else None,
        "length_cut": sum(cut) / len(cut) if cut else None,
        "share_cut": len(cut) / len(ended),
        "repetition": 1 - sum(len(set(g)) for g in grams) / sum(map(len, grams)) if any(grams) else None,
        "answer_rate": sum(v.value != "unparsed" for v in seen.verdicts) / len(ended),
        "accuracy": sum(v.value == "correct" for v in seen.verdicts) / len(ended),
        "deliberation": 100 * words / sum(lengths) if sum(lengths) else None,
        "distinct_answers": sum(map(len, groups)) / problems if samples > 1 else None,
    }
    assert found == pytest.approx({name: value for name, value in expected.items() if value is not None})


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 6), st.integers(0, 99))
def test_micro_batches_add_up(problems, cut, seed):
    whole, extract = example(problems, 2, seed), Verifier().extract

    def part(first, last):
        rows = slice(first * 2, last * 2)
        rollouts = Rollouts(*(x[rows] for x in whole.rollouts))
        return whole._replace(problems=whole.problems[first:last], rollouts=rollouts,
                              completions=whole.completions[rows], verdicts=whole.verdicts[rows])  # fmt: skip

    parts = [count(part(first, last), 2, extract) for first, last in ((0, cut), (cut, problems))]
    assert total(parts) == count(whole, 2, extract)


def test_against_the_start():
    start = {"entropy": 0.5, "share_cut": 0.1, "deliberation": 0.0, "length_cut": 8.0}
    now = {"entropy": 0.2, "share_cut": 0.4, "deliberation": 1.0, "repetition": 0.3}
    assert against(start, now) == pytest.approx({"entropy_ratio": 0.4, "share_cut_change": 0.3})


def test_every_limit_bounds_something_that_is_logged():
    for limit in CollapseMonitor().limits:
        measure, _, kind = limit.partition("_")[2].rpartition("_")
        assert MEASURES[measure].compared == kind
        assert ADVICE[measure]
    assert ELSEWHERE.keys() < MEASURES.keys()


# The limits

STEADY = {"rollouts": 10.0, "tokens": 100.0, "finished": 10.0, "tokens_finished": 100.0, "ngrams": 70.0,
          "repeated": 7.0, "answered": 10.0, "correct": 5.0, "entropy": 50.0}  # fmt: skip


def feed(monitor: CollapseMonitor, *steps: dict) -> list[dict[str, float]]:
    return [monitor.add(i, STEADY | change) for i, change in enumerate(steps)]


def test_a_warning_says_what_where_and_what_to_do(caplog):
    monitor = CollapseMonitor(window=2)
    feed(monitor, {}, {}, {"entropy": 1.0}, {"entropy": 0.6}, {"entropy": 0.6})
    (record,) = caplog.records  # once, though it stays there
    for word in ("step 3", "entropy 0.008", "0.016 times", "start, 0.5:", "below collapse.min_entropy_ratio 0.02",
                 "learning rate"):  # fmt: skip
        assert word in record.message
    assert "\n" not in record.message


@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"tokens_finished": 40.0}, "min_length_finished_ratio"),
        ({"tokens_finished": 210.0}, "max_length_finished_ratio"),
        ({"cut": 4.0}, "max_share_cut_change"),
        ({"repeated": 30.0}, "max_repetition_change"),
        ({"answered": 6.0}, "min_answer_rate_change"),
        ({"correct": 1.0}, "max_accuracy_fall"),
    ],
)
def test_each_limit_fires_alone(caplog, change, limit):
    monitor = CollapseMonitor(window=1)
    feed(monitor, {}, change)
    (record,) = caplog.records
    assert f"collapse.{limit} " in record.message
    monitor = CollapseMonitor(window=1, **{limit: None})
    caplog.clear()
    feed(monitor, {}, change)
    assert not caplog.records


def test_accuracy_falls_from_its_best_not_from_its_start(caplog):
    """As a run that learned to 0.98 and lost it, and was at its start again when it ended (results/reverse)."""
    monitor = CollapseMonitor(window=2)
    learned = [{"correct": c} for c in (4.0, 5.0, 9.0, 10.0, 9.0, 7.0, 4.0, 5.0)]
    falls = [values.get("accuracy_fall") for values in feed(monitor, *learned)]
    means = [(a["correct"] + b["correct"]) / 20 for a, b in pairwise(learned)]
    assert falls[1:] == pytest.approx([max(means[: i + 1]) - mean for i, mean in enumerate(means)])
    (record,) = caplog.records
    assert "step 6: accuracy 0.55 is 0.4 below its best, 0.95: above collapse.max_accuracy_fall 0.3" in record.message
    resumed = CollapseMonitor(window=2)
    resumed.load_state_dict(monitor.state_dict())
    assert resumed.add(8, STEADY)["accuracy_fall"] == pytest.approx(0.45)


def test_one_noisy_step_does_no_harm_and_a_second_crossing_is_told_again(caplog):
    monitor = CollapseMonitor(window=5)
    feed(monitor, *[{}] * 5, {"answered": 0.0}, *[{}] * 5)
    assert not caplog.records
    monitor = CollapseMonitor(window=1)
    feed(monitor, {}, {"answered": 0.0}, {}, {"answered": 0.0})
    assert len(caplog.records) == 2


class FakeTrainer:
    should_stop = False


def test_it_stops_after_so_many_steps_in_a_row():
    low = {"answered": 0.0}
    monitor, one = CollapseMonitor(window=1, stop_after=3), FakeTrainer()
    for step, change in enumerate([{}, low, low, {}, low, low, low]):
        assert not one.should_stop
        monitor.add(step, STEADY | change)
        monitor._stop(one, step)
    assert one.should_stop
    assert monitor.stopped.startswith("stopped by collapse.stop_after at step 6: answer rate 0 is -1 against")


@pytest.mark.parametrize(
    ("words", "stays"),
    [({"stop_after": 1}, True), ({"stop_after": 1, "min_answer_rate_change": None}, False), ({}, False)],
)
def test_a_stopped_run_stays_stopped_until_the_limits_change(words, stays):
    feed(first := CollapseMonitor(window=1, stop_after=1), {}, {"answered": 0.0})
    second, one = CollapseMonitor(window=1, **words), FakeTrainer()
    second.load_state_dict(first.state_dict())
    second._stop(one, 1)
    assert one.should_stop is stays


def test_what_cannot_be_measured_is_not_logged():
    values = CollapseMonitor(window=1).add(0, {"rollouts": 4.0, "tokens": 0.0, "cut": 4.0, "tokens_cut": 0.0})
    compared = {"share_cut_change": 0.0, "answer_rate_change": 0.0, "accuracy_fall": 0.0}
    assert values == {"length_cut": 0.0} | compared


@pytest.mark.parametrize("words", [{"window": 0}, {"stop_after": 0}])
def test_a_count_below_one_is_refused(words):
    with pytest.raises(ValueError, match=r"collapse\.window and collapse\.stop_after"):
        CollapseMonitor(**words)


# In the Trainer, on fakes


class OnceCut(RolloutEngine):
    """Does not end the first time."""

    end = 3

    def generate(self, model, prompts, samples, sampling, end_ids, generators) -> Rollouts:
        end, self.end = self.end, 0
        return ScriptedEngine([[5, 6, end]]).generate(model, prompts, samples, sampling, end_ids, generators)


class Changing(RolloutEngine):
    """Waits, answers and ends now and then, set by the generators alone."""

    def generate(self, model, prompts, samples, sampling, end_ids, generators) -> Rollouts:
        rows = []
        for g in generators:
            text = "wait " * int(g.integers(3)) + "." * int(g.integers(4)) + f"\\boxed{{{g.choice([5, 24, 3])}}}"
            ids = byte_tokenizer()(text, add_special_tokens=False)["input_ids"]
            rows.append(ids + [0] * int(g.integers(2)))
        return ScriptedEngine(rows).generate(model, prompts, samples, sampling, end_ids, generators)


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


def test_what_a_step_lacks_is_not_in_its_row(name):
    rows = run(name, 2, CollapseMonitor(window=5), module=distillation(name, engine=OnceCut()))
    assert rows[0]["collapse/length_cut"] == 3
    assert rows[1].keys() == (rows[0].keys() - {"collapse/length_cut"}) | {"collapse/length_finished"}


def run(name, steps, monitor, batch_size=2, resume=None, module=None, callbacks=(), **options):
    module = module or distillation(name, engine=Changing(), samples=2)
    one = trainer(steps, callbacks=[monitor, *callbacks], **options)
    one.fit(module, problems_of(batch_size, SIX[:4]), ckpt_path=resume, weights_only=True)
    rows = one.logger.steps
    return {step: {k: v for k, v in row.items() if k.startswith("collapse/")} for step, row in rows.items()}


def test_it_logs_every_step_and_compares_once_there_is_a_start(name):
    rows = run(name, 4, monitor := CollapseMonitor(window=2))
    measured = {"length_finished", "length_cut", "repetition", "deliberation", "distinct_answers"}
    assert rows[0].keys() == {f"collapse/{name}" for name in measured}
    compared = {f"collapse/{name}_{m.compared}" for name, m in MEASURES.items()}
    assert rows[1].keys() == rows[3].keys() == rows[0].keys() | compared
    assert all(rows[1][key] == pytest.approx(float("ratio" in key)) for key in compared)
    assert rows[3]["collapse/length_finished_ratio"] != 1
    assert monitor.start.keys() == MEASURES.keys()


def test_two_micro_batches_are_one(name):
    one = run(name, 3, CollapseMonitor(window=2), batch_size=4)
    two = run(name, 3, CollapseMonitor(window=2), batch_size=2, accumulate_grad_batches=2)
    for step in range(3):
        assert two[step] == pytest.approx(one[step], rel=1e-4)


@pytest.mark.slow
def test_a_resumed_run_logs_what_the_undisturbed_one_logs(tmp_path, name):
    save = lambda: ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)  # noqa: E731
    straight = run(name, 6, a := CollapseMonitor(window=3), callbacks=[save()], enable_checkpointing=True)
    for cut in (2, 4):  # before and after there is a start
        b = CollapseMonitor(window=3)
        resumed = run(name, 6, b, resume=tmp_path / f"step={cut}.ckpt", callbacks=[save()], enable_checkpointing=True)
        assert resumed == {step: row for step, row in straight.items() if step >= cut}
        assert b.state_dict() == a.state_dict()


def test_a_skipped_step_does_not_count(name):
    module = distillation(name, engine=Drawn(), divergence=Spoiled(1), chunk_tokens=1000, samples=2)
    run(name, 3, monitor := CollapseMonitor(window=2), module=module)
    assert module.skipped.total == 1
    assert sum(sums["rollouts"] for sums in monitor._recent) == 8  # two steps of two problems, two samples each


# Real runs

COLLAPSING = ["--model.optimizer.init_args.lr", "0.1", "--trainer.gradient_clip_val", "null"]


def fit(folder, *words):
    main(["fit", *STACK, "--data.validation", "null", "--run", str(folder), *words])


@pytest.mark.slow
def test_a_run_that_collapses_is_stopped(tmp_path, caplog):
    """A learning rate a hundred times too high wrecks the student within a few steps."""
    words = [*COLLAPSING, "--collapse.window", "2", "--collapse.stop_after", "2", "--trainer.max_steps", "50"]
    fit(tmp_path, *words)
    manifest, rows = load(tmp_path / "manifest.json"), metrics(tmp_path)
    steps = manifest["optimizer_steps"]
    assert steps < 15
    assert len(rows) == steps
    assert manifest["finished"] is True
    assert manifest["stopped"].startswith(f"stopped by collapse.stop_after at step {steps - 1}: ")
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings[-1] == manifest["stopped"]
    assert max(Counter(message.partition(": ")[2] for message in warnings).values()) <= 2
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == steps
    assert checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] == 0  # resumes in the open epoch
    assert (tmp_path / "student" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_stopped_run_is_evaluated_as_any(tmp_path):
    words = [*COLLAPSING, "--collapse.window", "1", "--collapse.stop_after", "1", "--trainer.max_steps", "50"]
    main(["fit", *STACK, "--run", str(tmp_path), *words])
    results, steps = load(tmp_path / "results.json"), load(tmp_path / "manifest.json")["optimizer_steps"]
    assert results.keys() == {"step-0", f"step-{steps}"}
    assert steps < 15
    main(["fit", *STACK, "--run", str(tmp_path), *words, "--ckpt_path", "last"])
    manifest = load(tmp_path / "manifest.json")
    assert manifest["optimizer_steps"] == steps
    assert "stopped by collapse.stop_after" in manifest["stopped"]


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    learned = ("--exposure.strategy", "Bandit", "--exposure.strategy.init_args.horizon", "1", "--exposure.hold", "1")
    fit(folder, "--collapse.stop_after", "1", "--trainer.max_steps", "12", *learned)
    return folder


@pytest.mark.slow
def test_a_healthy_run_is_left_alone(healthy):
    rows = metrics(healthy)
    assert len(rows) == 12
    assert 0.05 < float(rows[-1]["collapse/entropy_ratio"]) < 2
    assert "stopped" not in load(healthy / "manifest.json")


@pytest.mark.slow
def test_the_page_of_custom_scalars(healthy):
    events = EventAccumulator(str(healthy / "tensorboard"))
    events.Reload()
    (tensor,) = events.Tensors("custom_scalars__config__")
    page = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in page.category for chart in category.chart}
    wanted = ["exposure/ratio", "competence/running", "mismatch/forward_kl", "exposure/reward"]
    assert charts["all four over the same axis"] == [f"^{tag}$" for tag in wanted]
    there = events.Tags()["scalars"]
    assert set(wanted) <= set(there)
    rewards = [event.value for event in events.Scalars("exposure/reward")]
    assert len(set(rewards)) > 1
    for title in (
        "exposure",
        "competence",
        "mismatch",
        "reward",
        "ratio to the start",
        "change from the start",
        "fall from the best",
    ):
        assert any(re.match(pattern, tag) for pattern in charts[title] for tag in there), title
