"""Answers are on disk as they come; an evaluation that was stopped anywhere goes on to the same bytes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_atex import outcomes
from lit_atex.cli import main
from lit_atex.compare import compare
from lit_atex.outcomes import Outcomes
from lit_atex.progress import StepProgress
from lit_atex.protocol import weights_digest
from lit_atex.rollout import TransformersEngine
from lit_atex.stream import EvalBatches
from lit_atex.types import Problem

ROOT = Path(__file__).parents[1]
WORDS = [
    *("evaluate", "embedded", "--sets", str(ROOT / "configs/tiny.yaml"), "--samples", "2", "--limit", "7"),
    *("--data.eval_batch_size", "2", "--max_new_tokens", "48"),
]
NAME = "test.level-4.jsonl"


def evaluate(run, *words):
    main([*WORDS, "--run", str(run), *words])


def refused(run, *words):
    with pytest.raises(SystemExit) as end:
        evaluate(run, *words)
    return end.value.code


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An evaluation that nobody disturbed; tests only read it."""
    run = tmp_path_factory.mktemp("whole")
    evaluate(run)
    return run


@pytest.mark.slow
def test_what_is_left(whole):
    names = {path.name for path in whole.iterdir()}
    assert names == {
        *("config-test.yaml", "manifest.json", "outcomes", "results.json", "tensorboard"),
        *("evaluation.md", "evaluation.json", "evaluation.png"),
    }
    assert {path.name for path in (whole / "outcomes").iterdir()} == {NAME, "test.protocol.json"}
    rows = [json.loads(line) for line in (whole / "outcomes" / NAME).read_text(encoding="utf-8").splitlines()]
    assert [row["id"] for row in rows] == [f"test-0-4-{i}" for i in range(7)]
    for row in rows:
        assert [len(row[k]) for k in ("completions", "answers", "verdicts", "lengths", "ended")] == [2] * 5
    assert load(whole / "manifest.json")["commands"][0]["command"][:3] == ["lit-atex", "evaluate", "embedded"]


@pytest.mark.slow
def test_the_report_says_how_it_was_done(whole):
    text = (whole / "evaluation.md").read_text(encoding="utf-8")
    found = load(whole / "results.json")["test"][0]
    for name, one in found["metrics"].items():
        assert f"| {name} | {one['value']:.4f} | [" in text
    for line in ("model.eval_samples: 2", "model.eval_sampling.temperature: 1.0", "seed_everything: 0", "- commit: "):
        assert line in text
    assert "<|user|>4+4+2*2*3<|end|><|assistant|>" in text
    data = json.loads((whole / "evaluation.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)  # no NaN
    assert data["protocol"]["model.eval_sampling.top_p"] == 1.0
    assert data["results"][0]["metrics"]["pass@2"]["value"] == found["metrics"]["pass@2"]["value"]
    assert (whole / "evaluation.png").read_bytes().startswith(b"\x89PNG")
    events = EventAccumulator(str(whole / "tensorboard"))
    events.Reload()
    assert events.Tags()["images"] == ["test/pass@k"]


def cut(whole, run, size):
    """What an evaluation leaves that was killed when so many bytes of its outcomes were on disk."""
    (run / "outcomes").mkdir(parents=True)
    shutil.copy(whole / "outcomes" / "test.protocol.json", run / "outcomes")
    (run / "outcomes" / NAME).write_bytes((whole / "outcomes" / NAME).read_bytes()[:size])


class Counting(TransformersEngine):
    """Counts the prompts that are sampled from."""

    prompts = 0

    def generate(self, model, prompts, *args):
        Counting.prompts += len(prompts)
        return super().generate(model, prompts, *args)


class Interrupted(TransformersEngine):
    """Ctrl-C in the second batch."""

    batches = 0

    def generate(self, *args):
        Interrupted.batches += 1
        if Interrupted.batches > 1:
            raise KeyboardInterrupt
        return super().generate(*args)


@pytest.mark.slow
def test_an_evaluation_goes_on_wherever_it_was_cut(whole, tmp_path):
    sizes = [len(line) + 1 for line in (whole / "outcomes" / NAME).read_bytes().split(b"\n")[:-1]]
    ends = [sum(sizes[:i]) for i in range(8)]
    # in the middle of a line; after the first line of a batch; after two batches; all but the last byte; all of it
    for number, (size, left) in enumerate([(5, 7), (ends[3], 5), (ends[4], 3), (ends[7] - 1, 1), (ends[7], 0)]):
        run = tmp_path / f"{number}"
        cut(whole, run, size)
        Counting.prompts = 0
        evaluate(run, "--resume", "--model.engine", "test_outcomes.Counting")
        assert (run / "outcomes" / NAME).read_bytes() == (whole / "outcomes" / NAME).read_bytes()
        assert (run / "results.json").read_bytes() == (whole / "results.json").read_bytes()
        assert Counting.prompts == left  # what is on disk in whole batches is not drawn again


@pytest.mark.slow
def test_an_evaluation_that_is_killed(tmp_path):
    """As a user starts it, killed as soon as some batches are there; then gone on with, and compared to the byte."""
    words = [*WORDS[:4], "--samples", "8", "--data.eval_batch_size", "1", "--max_new_tokens", "64"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run, straight = tmp_path / "killed", tmp_path / "straight"
    path = run / "outcomes" / "test.level-4.jsonl"
    command = [sys.executable, "-m", "lit_atex", *words, "--run", str(run)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, cwd=tmp_path) as process:
        while process.poll() is None and not (path.is_file() and path.read_bytes().count(b"\n") > 1):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (run / "results.json").exists()
    main([*words, "--run", str(run), "--resume"])
    main([*words, "--run", str(straight)])
    for other in sorted((straight / "outcomes").iterdir()):
        assert (run / "outcomes" / other.name).read_bytes() == other.read_bytes(), other.name
    assert (run / "results.json").read_bytes() == (straight / "results.json").read_bytes()


@pytest.mark.slow
def test_an_evaluation_that_is_interrupted_says_how_to_go_on(tmp_path, caplog):
    caplog.set_level("INFO", "lit_atex")
    words = ["--model.engine", "test_outcomes.Interrupted", "--run", str(tmp_path)]
    with pytest.raises(SystemExit):
        main([*WORDS, *words])
    assert f"go on with --run {tmp_path} --resume" in caplog.text
    assert len((tmp_path / "outcomes" / NAME).read_text(encoding="utf-8").splitlines()) == 2


@pytest.mark.slow
def test_an_evaluation_of_two_devices_is_not_begun_anew_by_one(whole, tmp_path):
    """Its files have other names; without a look at them all problems would be there twice."""
    cut(whole, tmp_path, 10**6)
    rows = (tmp_path / "outcomes" / NAME).read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "outcomes" / NAME).unlink()
    for rank in (0, 1):
        (tmp_path / "outcomes" / f"test.level-4.rank{rank}.jsonl").write_text("".join(rows[rank:4:2]))
    protocol = load(tmp_path / "outcomes/test.protocol.json") | {"trainer.devices": 2}
    (tmp_path / "outcomes/test.protocol.json").write_text(json.dumps(protocol))
    assert "trainer.devices: 2 and 1" in refused(tmp_path, "--resume")
    assert not (tmp_path / "outcomes" / NAME).exists()


@pytest.mark.slow
def test_nothing_is_written_over_unasked(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = (run / "outcomes" / NAME).read_bytes()
    message = refused(run)
    for word in (NAME, "--resume", "--overwrite true", "another folder"):
        assert word in message
    assert "give one of them" in refused(run, "--resume", "--overwrite")
    assert (run / "outcomes" / NAME).read_bytes() == before
    evaluate(run, "--overwrite", "--seed_everything", "1")
    assert (run / "outcomes" / NAME).read_bytes() != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--temperature", "0.5"], ["model.eval_sampling.temperature: 1.0 and 0.5"]),
        (["--samples", "3", "--seed_everything", "1"], ["model.eval_samples: 2 and 3", "seed_everything: 0 and 1"]),
        (["--limit", "6"], ["7 problems, checksum"]),
        (["--data.eval_batch_size", "4"], ["data.eval_batch_size: 2 and 4"]),
        (
            ["--model.prompts.init_args.student", "{question}="],
            ["model.prompts.student: '{question}' and '{question}='"],
        ),
    ],
)
def test_going_on_with_other_settings_is_refused_and_says_which(whole, tmp_path, words, told):
    cut(whole, tmp_path, len((whole / "outcomes" / NAME).read_bytes()) // 2)
    before = (tmp_path / "outcomes" / NAME).read_bytes()
    message = refused(tmp_path, "--resume", *words)
    assert all(word in message for word in [*told, "--resume"])
    assert (tmp_path / "outcomes" / NAME).read_bytes() == before


@pytest.mark.slow
def test_going_on_with_other_weights_is_refused(whole, tmp_path):
    from lit_atex.models import LanguageModel

    model, tokenizer = LanguageModel().load()
    model.model.norm.weight.data[0] += 0.25
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "other")
    cut(whole, tmp_path / "run", len((whole / "outcomes" / NAME).read_bytes()) // 2)
    words = [tmp_path / "other", *WORDS[2:], "--model.prompts.init_args.student", "{question}", "--resume"]
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, words), "--run", str(tmp_path / "run")])
    assert "weights: " in end.value.code


@pytest.mark.slow
def test_a_file_of_other_problems_is_refused(whole, tmp_path):
    cut(whole, tmp_path, 10**6)
    path = tmp_path / "outcomes" / NAME
    path.write_text(path.read_text(encoding="utf-8").replace("test-0-4-1", "other"), encoding="utf-8")
    assert "holds other problems than data.test.level-4" in refused(tmp_path, "--resume")


def test_settings_and_first_prompt_are_shown_first(tmp_path, caplog, capsys):
    caplog.set_level("INFO", "lit_atex")
    evaluate(tmp_path, "--temperature", "0.5", "--top_p", "0.9", "--limit", "2")
    first, second = caplog.text.index("temperature 0.5, top_p 0.9"), caplog.text.index("the first prompt, test-0-4-0")
    assert "samples 2, thinking not in the template, seed 0" in caplog.text[first:second]
    assert "<|user|>4+4+2*2*3<|end|><|assistant|>" in caplog.text[second:]
    text = (tmp_path / "evaluation.md").read_text(encoding="utf-8")
    assert "- model.eval_sampling.top_p: 0.9" in text
    assert "- model.prompts.eval_thinking: None" in text


@pytest.mark.slow
def test_a_teacher_is_evaluated_with_what_it_would_see(tmp_path, caplog, capsys):
    """The prompt of the teacher, and its protocol: no number of a student by mistake."""
    caplog.set_level("INFO", "lit_atex")
    evaluate(tmp_path / "teacher", "--exposure", "1", "--limit", "4")
    assert "exposure 1.0, seed 0" in caplog.text
    assert "<|user|>4+4+2*2*3\n4+4=8\n8+2=0\n" in caplog.text
    known = json.loads((tmp_path / "teacher/outcomes/test.protocol.json").read_text(encoding="utf-8"))
    assert known["model.eval_exposure"] == 1.0
    assert known["model.prompts.hint"] == "prefix"
    evaluate(tmp_path / "student", "--limit", "4")
    known = json.loads((tmp_path / "student/outcomes/test.protocol.json").read_text(encoding="utf-8"))
    assert not {"model.eval_exposure", "model.prompts.hint"} & known.keys()
    with pytest.raises(ValueError, match=r"model\.eval_exposure: None and 1\.0"):
        compare(str(tmp_path / "student"), str(tmp_path / "teacher"))


@pytest.mark.slow
def test_a_set_without_solutions_has_no_teacher(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"problem": "1+2", "answer": "3"}\n', encoding="utf-8")
    of_answers = {
        "path": str(tmp_path / "rows.jsonl"),
        "columns": {"solution": None, "answer": "answer"},
        "answer_only": True,
    }
    mine = {"class_path": "lit_atex.sources.JsonLines", "init_args": of_answers}
    (tmp_path / "set.yaml").write_text(json.dumps({"data": {"test": {"mine": mine}}}))
    words = ["evaluate", "embedded", "--sets", str(tmp_path / "set.yaml")]
    main([*words, "--run", str(tmp_path / "student")])
    with pytest.raises(SystemExit, match=r"data\.test\.mine has no reference solutions"):
        main([*words, "--run", str(tmp_path / "teacher"), "--exposure", "0.5"])


def test_time_left_is_that_of_what_is_not_answered_yet(capsys):
    bar = StepProgress(seconds_between_lines=0.0)
    bar._terminal = False
    module = SimpleNamespace(evaluation=SimpleNamespace(names=["a"]), eval_samples=2)
    bar.on_test_start(SimpleNamespace(num_test_batches=[103]), module)
    for _ in range(100):  # answered by an evaluation that is gone on with
        bar.on_test_batch_end(None, module, None, [], 0)
    assert capsys.readouterr().err == "evaluating a: 2 completions a problem\n"
    bar._evaluation_began -= 60  # a minute for the first batch that is sampled, so two for the two that are left
    bar.on_test_batch_end(None, module, None, ["problem"], 0)
    assert capsys.readouterr().err == "evaluated 101/103 batches  0:02:00 left\n"


def test_time_left_to_train_is_told_by_training_alone(capsys, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr("lit_atex.progress.time.perf_counter", lambda: clock[0])
    bar = StepProgress(seconds_between_lines=0.0)
    bar._terminal = False
    trainer = SimpleNamespace(
        global_step=0, max_steps=200, progress_bar_metrics={}, sanity_checking=False, num_val_batches=[1]
    )
    module = SimpleNamespace(evaluation=SimpleNamespace(names=["a"]), eval_samples=2)
    bar.on_train_start(trainer, module)
    clock[0], trainer.global_step = 2000.0, 100
    bar.on_validation_start(trainer, module)
    clock[0] += 500.0
    bar.on_validation_end(trainer, module)
    capsys.readouterr()
    bar.on_train_batch_end(trainer, module, None, None, 0)
    assert capsys.readouterr().err == "step 100/200  0:16:40 left  \n"  # 10 seconds a step


# The parts


def test_empty_batches_stand_for_what_is_answered():
    problems = [Problem(f"{i}", f"{i}", "", "") for i in range(5)]
    batches = list(EvalBatches(problems, 2, answered=4))
    assert [[p.id for p in batch] for batch in batches] == [[], [], ["4"]]
    # two ranks, each with a file and a count of its own
    ranks = [list(EvalBatches(problems, 1, 2, rank, answered)) for rank, answered in ((0, 2), (1, 1))]
    assert [[[p.id for p in batch] for batch in rank] for rank in ranks] == [[[], [], ["4"]], [[], ["3"], []]]


def test_rows_of_all_ranks_are_read_together_in_the_order_of_the_sets(tmp_path):
    for rank, ids in ((".rank0", "ac"), (".rank1", "b")):
        files = Outcomes(tmp_path / "outcomes", "test", rank)
        files.begin({"data.test.z": "", "data.test.a": ""})
        for name in ("a", "z"):
            files.append(name, [{"id": id_} for id_ in ids])
    found = outcomes.read(tmp_path, "test")
    assert list(found) == ["z", "a"]
    assert [row["id"] for row in found["a"]] == ["a", "c", "b"]
    with pytest.raises(ValueError, match="no evaluation 'validate'"):
        outcomes.read(tmp_path, "validate")


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"id": "a"}, {"id": "b"}, {"id": "a"}], "1 problems twice, such as 'a'"),
        ([{"id": "a", "verdicts": ["wrong"]}, {"id": "b", "verdicts": []}], r"problems with \[0, 1\] samples"),
    ],
)
def test_rows_of_several_evaluations_are_refused(tmp_path, rows, told):
    for rank, part in (("", rows[:1]), (".rank1", rows[1:])):
        files = Outcomes(tmp_path / "outcomes", "test", rank)
        files.begin({})
        files.append("x", part)
    with pytest.raises(ValueError, match=f"test.x.*{told}.*--overwrite"):
        outcomes.read(tmp_path, "test")


@pytest.mark.parametrize("line", ["{", "[]", "{}", "nonsense"])
def test_a_damaged_line_is_named(tmp_path, line):
    files = Outcomes(tmp_path / "outcomes", "test")
    files.begin({})
    files.append("x", [{"id": "a"}])
    with open(files.path("x"), "a", encoding="utf-8") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"test\.x\.jsonl, line 2: this is no outcome"):
        outcomes.read(tmp_path, "test")


def test_answers_without_a_protocol_are_not_gone_on_with(tmp_path):
    files = Outcomes(tmp_path / "outcomes", "test")
    files.begin({})
    files.append("x", [{"id": "a"}])
    (tmp_path / "outcomes/test.protocol.json").unlink()
    again = Outcomes(tmp_path / "outcomes", "test")
    again.find(SimpleNamespace(test_names=[], eval_batch_size=1), "test")
    with pytest.raises(ValueError, match=r"test\.protocol\.json is not there"):
        again.begin({})
    assert len(outcomes.read(tmp_path, "test")["x"]) == 1


def test_the_checksum_of_weights_sees_every_value():
    model = torch.nn.Sequential(torch.nn.Linear(2000, 3000), torch.nn.BatchNorm1d(3)).to(torch.bfloat16)
    before = weights_digest(model)
    assert weights_digest(model) == before
    model[0].weight.data[-1, -1] += 1
    assert weights_digest(model) != before
    assert weights_digest(model.float()) != weights_digest(model.to(torch.bfloat16))


def test_an_evaluation_that_came_to_nothing_is_no_evaluation(tmp_path):
    Outcomes(tmp_path / "outcomes", "test").begin({"a": 1})
    path = tmp_path / "outcomes" / "test.a.jsonl"
    path.write_text('{"torn')
    outcomes.clear(tmp_path, "test", resume=False, overwrite=False)
    assert path.read_text() == '{"torn'
    path.write_text('{"id": "p"}\n{"torn')
    with pytest.raises(ValueError, match="holds an evaluation already"):
        outcomes.clear(tmp_path, "test", resume=False, overwrite=False)
