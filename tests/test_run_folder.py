"""What a run leaves in its folder, and what happens to it when the run is repeated, extended, killed or evaluated."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForCausalLM

from lit_atex.cli import main
from lit_atex.evaluation import Estimate, Result
from lit_atex.frozen import FrozenWeights
from lit_atex.metrics_csv import MetricsCsv
from lit_atex.models import LanguageModel
from lit_atex.outcomes import clear
from lit_atex.resume import FORMAT, hold, prepare, release
from lit_atex.stats import paired_interval
from lit_atex.text_tables import before_after_table, interval_text, read_results
from lit_atex.versions import git

ROOT = Path(__file__).parents[1]
STACK = ["--config", str(ROOT / "configs/base.yaml"), "--config", str(ROOT / "configs/tiny.yaml")]
OFTEN = ["--checkpoint.every_n_train_steps", "1", "--sample_log.every_n_steps", "1"]
TIMES = re.compile("time/|throughput/")


def fit(run, steps, *words):
    main(["fit", *STACK, *OFTEN, "--run", str(run), "--trainer.max_steps", str(steps), *words])


def refused(*words):
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


def metrics(run):
    """metrics.csv without what depends on the clock."""
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if v and not TIMES.match(k)} for row in rows]


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of 6 steps in one go; tests only read it."""
    run = tmp_path_factory.mktemp("straight")
    fit(run, 6)
    return run


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """The same run, but of 3 steps; tests that change it copy it."""
    run = tmp_path_factory.mktemp("short")
    fit(run, 3)
    return run


# What is there


@pytest.mark.slow
def test_the_folder_holds_everything(straight):
    names = {path.name for path in straight.iterdir()}
    assert names == {
        *("config.yaml", "manifest.json", "prompts.txt", "metrics.csv", "samples.jsonl", "results.json"),
        *("outcomes", "tensorboard", "checkpoints", "student", "contamination.json"),
    }
    assert {p.name for p in (straight / "checkpoints").iterdir()} == {"last.ckpt", "epoch=0-step=6.ckpt"}


@pytest.mark.slow
def test_the_manifest(straight):
    manifest = load(straight / "manifest.json")
    assert manifest["finished"] is True
    assert manifest["optimizer_steps"] == 6
    assert manifest["seed"] == 0
    assert {"python", "torch", "lightning", "transformers"} <= manifest["versions"].keys()
    assert manifest["git_commit"] == git("rev-parse", "HEAD")
    assert "error" not in manifest
    assert [command["command"][:2] for command in manifest["commands"]] == [["lit-atex", "fit"]]
    assert "--trainer.max_steps" in manifest["commands"][0]["command"]
    assert manifest["data"]["train"]["problems"] >= 24


@pytest.mark.slow
def test_the_config_says_what_was_set_and_nothing_that_resumes_or_deletes(straight):
    config = yaml.safe_load((straight / "config.yaml").read_text(encoding="utf-8"))
    assert config["trainer"]["max_steps"] == 6
    assert config["run"] == str(straight)
    assert config["checkpoint"]["dirpath"] is None
    assert config["ckpt_path"] is None
    assert config["overwrite"] is False


@pytest.mark.slow
def test_the_prompts_are_those_of_the_models(straight):
    text = (straight / "prompts.txt").read_text(encoding="utf-8")
    assert text.count("· student, thinking None ·") == text.count("· evaluation, thinking None ·") == 4
    assert text.count("· teacher, thinking None, exposure 1.000 ·") == 4


@pytest.mark.slow
def test_the_student_is_the_trained_module(straight):
    student = AutoModelForCausalLM.from_pretrained(straight / "student")
    checkpoint = torch.load(straight / "checkpoints" / "last.ckpt", weights_only=True)
    trained = {k.removeprefix("student."): v for k, v in checkpoint["state_dict"].items() if k.startswith("student.")}
    weights = student.state_dict()
    assert trained.keys() == weights.keys()
    assert all(torch.equal(trained[name], weights[name]) for name in trained)
    start = LanguageModel().load()[0].state_dict()
    assert any(not torch.equal(start[name], weights[name]) for name in start)


@pytest.mark.slow
def test_metrics_have_a_row_for_each_step(straight):
    table = metrics(straight)
    assert [row["step"] for row in table] == [str(i) for i in range(7)]
    assert all(float(row["loss/divergence"]) > 0 for row in table[:6])
    assert [row["step"] for row in table if "validation/level-4/avg@2" in row] == ["0", "6"]  # before, after


@pytest.mark.slow
@pytest.mark.parametrize("words", [["exposure/bandit", "--model.samples", "2"], ["exposure/beta_policy"],
                                   ["exposure/mismatch", "--config", "teacher/gated"]])  # fmt: skip
def test_docs_say_what_is_logged(tmp_path, words):
    fit(tmp_path, 6, "--exposure.hold", "1", "--trainer.num_sanity_val_steps", "0", "--config", *words)
    text = (ROOT / "docs/logged.md").read_text(encoding="utf-8")
    documented = re.findall(r"`([\w/]+)`", "".join(re.findall(r"^\|(.*?)\|", text, re.MULTILINE)))
    known = re.compile("|".join(re.sub("[A-Z]+", ".+", name) for name in documented))
    assert {name for row in table(tmp_path / "metrics.csv") for name in row if not known.fullmatch(name)} == {"step"}


@pytest.mark.slow
def test_results_and_outcomes(straight):
    results = load(straight / "results.json")
    assert results.keys() == {"step-0", "step-6"}
    for name in results:
        outcomes = rows(straight / "outcomes" / f"{name}.level-4.jsonl")
        assert len(outcomes) == 8
        assert all(len(row["completions"]) == len(row["verdicts"]) == 2 for row in outcomes)
        correct = sum(row["verdicts"].count("correct") for row in outcomes)
        assert results[name][0]["average"] == pytest.approx(correct / 16)


@pytest.mark.slow
def test_the_table_of_before_and_after(tmp_path, capsys):
    fit(tmp_path, 1)
    text = capsys.readouterr().out
    head, _, row = text[text.index("before and after") :].partition("level-4")
    assert "difference" in head
    assert "interval" in head
    results = load(tmp_path / "results.json")
    before, after = (results[key][0]["average"] for key in ("step-0", "step-1"))
    assert re.search(rf"{before:.3f} │ +{after:.3f} │ +{re.escape(f'{after - before:+.3f}')} │ +\[", row)
    assert f"run folder: {tmp_path}" in text


@pytest.mark.slow
def test_tensorboard_shows_the_run(straight):
    events = EventAccumulator(str(straight / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    tags = events.Tags()
    groups = {tag.split("/")[0] for tag in tags["scalars"]}
    wanted = {
        *("loss", "exposure", "mismatch", "competence", "length"),
        *("entropy", "throughput", "time", "validation"),
    }
    assert wanted <= groups
    assert [event.step for event in events.Scalars("loss/divergence")] == list(range(6))
    assert [event.step for event in events.Scalars("validation/level-4/avg@2")] == [0, 6]
    assert "competence/problems" in tags["histograms"]
    sample = rows(straight / "samples.jsonl")[0]
    shown = events.Tensors("samples/0/text_summary")[0].tensor_proto.string_val[0].decode()
    for text in (sample["question"], sample["hint"].splitlines()[0], sample["verdict"], sample["completion"][:5]):
        assert text in shown


# Again, on, after a kill


@pytest.mark.slow
def test_a_finished_run_is_not_written_over(straight):
    before = metrics(straight)
    message = refused("fit", *STACK, "--run", str(straight))
    assert "finished run" in message
    for way in ("name another folder", "--resume", "--trainer.max_steps", "--overwrite true"):
        assert way in message
    assert metrics(straight) == before


@pytest.mark.slow
def test_overwriting_does_the_same_again(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    (run / "notes.txt").write_text("mine")
    (run / "config-test.yaml").write_text("old")
    fit(run, 3, "--overwrite", "true")
    assert metrics(run) == metrics(short)
    assert len(rows(run / "samples.jsonl")) == len(rows(short / "samples.jsonl"))
    assert (run / "notes.txt").read_text() == "mine"
    assert not (run / "config-test.yaml").exists()
    assert len(load(run / "manifest.json")["commands"]) == 1


@pytest.mark.slow
def test_overwriting_what_is_resumed_is_a_contradiction(short):
    message = refused("fit", *STACK, "--run", str(short), "--resume", "--overwrite")
    assert "give one of them" in message
    assert (short / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_the_saved_config_makes_the_same_run(short, tmp_path):
    main(["fit", "--config", str(short / "config.yaml"), "--run", str(tmp_path)])
    assert metrics(tmp_path) == metrics(short)


@pytest.mark.slow
def test_a_finished_run_is_extended(short, straight, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    fit(run, 6, "--ckpt_path", "last")
    losses = [row["loss/divergence"] for row in metrics(straight)[:6]]
    assert [row["loss/divergence"] for row in metrics(run)[:6]] == losses
    assert [row["step"] for row in metrics(run)] == [str(i) for i in range(7)]
    assert rows(run / "samples.jsonl") == rows(straight / "samples.jsonl")
    assert load(run / "results.json")["step-6"] == load(straight / "results.json")["step-6"]
    assert load(run / "results.json").keys() == {"step-0", "step-3", "step-6"}
    assert "before and after" in capsys.readouterr().out
    assert load(run / "manifest.json")["finished"] is True
    assert len(load(run / "manifest.json")["commands"]) == 2


@pytest.mark.slow
def test_without_frequent_checkpoints_the_last_step_is_still_there_to_go_on_from(straight, tmp_path):
    rarely = ["--checkpoint.every_n_train_steps", "2"]
    fit(tmp_path, 3, *rarely)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3
    fit(tmp_path, 6, *rarely, "--ckpt_path", "last")
    assert [r["loss/divergence"] for r in metrics(tmp_path)[:6]] == [
        r["loss/divergence"] for r in metrics(straight)[:6]
    ]


@pytest.mark.slow
def test_nothing_left_to_train_is_said(short, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    fit(run, 3, "--ckpt_path", "last")
    assert "nothing left to train: the run is at step 3, and trainer.max_steps is 3." in caplog.text
    assert metrics(run) == metrics(short)


FROZEN = (FrozenWeights.KEY, FrozenWeights.ROUNDED)


def keys_of(state, depth=4):
    """Dotted keys of what we keep in a checkpoint; what goes by problem or level is one key."""
    found = set()
    for key, value in state.items() if isinstance(state, dict) and depth else ():
        name = "*" if key.startswith("train-") or key.isdigit() else key
        found |= {f"{name}.{below}" for below in keys_of(value, depth - 1)} or {name}
    return found


@pytest.mark.slow
def test_a_checkpoint_has_the_keys_of_its_format(tmp_path):
    """A key that changes makes earlier checkpoints unreadable: raise resume.FORMAT, and renew the golden file.

    Of adapters, whose checkpoints have all that others have, and what frozen weights they leave out.
    """
    words = [word for name in ("exposure/beta_policy", "model/lora") for word in ("--config", name)]
    fit(tmp_path, 3, *words, "--exposure.hold", "1")
    checkpoint = torch.load(tmp_path / "checkpoints/last.ckpt", weights_only=True)
    ours = {name: state for name, state in checkpoint["callbacks"].items() if not name.startswith("Checkpoint")}
    modules = ("ProblemDataModule", "kinds", "teacher", "skipped_steps", "validation_due", *FROZEN)
    ours |= {name: checkpoint[name] for name in modules}
    lines = [f"format {checkpoint['lit_atex_format']}", *sorted(keys_of(ours))]
    path = ROOT / "tests/golden/checkpoint.txt"
    if os.environ.get("LIT_ATEX_RENEW_GOLDEN"):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert lines == path.read_text(encoding="utf-8").splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("found", [None, FORMAT + 1])
@pytest.mark.parametrize("command", ["fit", "validate"])
def test_a_checkpoint_of_another_version_is_refused(short, tmp_path, found, command):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    path = run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint.pop("lit_atex_format")
    torch.save(checkpoint | ({} if found is None else {"lit_atex_format": found}), path)
    before = sorted(run.rglob("*"))
    words = ["--resume", "--trainer.max_steps", "4"] if command == "fit" else ["--ckpt_path", str(path)]
    message = refused(command, *STACK, "--run", str(run), *words)
    assert f"its format is {found}, this one's {FORMAT}" in message
    assert sorted(run.rglob("*")) == before


@pytest.mark.slow
def test_weights_alone_are_evaluated_but_not_gone_on_from(short, tmp_path):
    run, path = tmp_path / "run", tmp_path / "weights.ckpt"
    checkpoint = torch.load(short / "checkpoints/last.ckpt", weights_only=True)
    kept = checkpoint.keys() - {"callbacks", "optimizer_states", "lr_schedulers", "ProblemDataModule"}  # as best.ckpt
    torch.save({name: checkpoint[name] for name in kept}, path)
    message = refused("fit", *STACK, "--run", str(run), "--ckpt_path", str(path))
    assert "holds weights alone" in message
    main(["validate", *STACK, "--run", str(run), "--ckpt_path", str(path)])
    assert (run / "results.json").is_file()


def as_if_killed(short, run):
    """A run killed after step 5 whose last checkpoint is that of step 3."""
    shutil.copytree(short, run)
    manifest = load(run / "manifest.json") | {"finished": False}
    (run / "manifest.json").write_text(json.dumps(manifest))
    logger = MetricsCsv(str(run))
    for step in (3, 4):
        logger.log_metrics({"loss/divergence": 99.0, "exposure/new": 1.0}, step)
    with open(run / "samples.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": 3}) + "\n" + json.dumps({"step": 4}) + "\n")


@pytest.mark.slow
def test_a_killed_run_is_refused_unless_told_what_to_do_with_it(short, tmp_path):
    as_if_killed(short, tmp_path / "run")
    message = refused("fit", *STACK, "--run", str(tmp_path / "run"))
    assert "did not finish" in message
    assert "--resume" in message
    assert "--overwrite true" in message


@pytest.mark.slow
def test_a_killed_run_goes_on_and_repeats_no_step(short, straight, tmp_path):
    run = tmp_path / "run"
    as_if_killed(short, run)
    fit(run, 6, "--resume")
    rid = lambda table: [{k: v for k, v in r.items() if not k.startswith("validation")} for r in table]  # noqa: E731
    assert rid(metrics(run)) == rid(metrics(straight))
    assert rows(run / "samples.jsonl") == rows(straight / "samples.jsonl")


@pytest.mark.slow
def test_a_killed_run_without_a_checkpoint_begins_anew_if_told_to_go_on(short, tmp_path):
    run = tmp_path / "run"
    as_if_killed(short, run)
    shutil.rmtree(run / "checkpoints")
    fit(run, 3, "--resume")
    assert metrics(run) == metrics(short)


@pytest.mark.slow
def test_an_exception_is_noted(tmp_path):
    refused("fit", *STACK, "--run", str(tmp_path), "--model.student.init_args.name", "no/such")
    manifest = load(tmp_path / "manifest.json")
    assert manifest["finished"] is False
    assert manifest["error"].startswith("ValueError: model.student.init_args.name='no/such'")


class Interrupted(pl.Callback):
    """By Ctrl-C in the third step, for which no checkpoint is due."""

    def on_train_batch_start(self, trainer, *args):
        if trainer.global_step == 2:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_run_that_is_interrupted_says_from_which_step_it_would_go_on(tmp_path, caplog):
    before = signal.getsignal(signal.SIGINT)  # Lightning ignores it from there on
    words = ["--trainer.callbacks", "test_run_folder.Interrupted", "--trainer.num_sanity_val_steps", "0"]
    try:
        for every, last in [("1", 2), ("5", 0)]:
            refused("fit", *STACK, *words, "--checkpoint.every_n_train_steps", every, "--run", str(tmp_path / every))
            assert f"stopped at step 2; --run {tmp_path / every} --resume goes on from step {last} (" in caplog.text
    finally:
        signal.signal(signal.SIGINT, before)


class Stops(pl.Callback):
    """After a step."""

    def on_train_batch_end(self, *args):
        raise RuntimeError("stopped here")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model.divergence", "ReverseKL"], r"model\.divergence\.class_path was .*ForwardKL, is .*ReverseKL"),
        (["--exposure.strategy", "Bandit"], r"exposure\.strategy\.class_path was .*Fixed, is .*Bandit"),
        (["--exposure.hold", "3"], r"exposure\.hold was 1, is 3"),
        (["--model.samples", "2"], r"model\.samples was 1, is 2"),
        (["--model.teacher", "Live"], r"model\.teacher\.class_path was .*Frozen, is .*Live.*loss, teacher and all"),
        (["--model.weighting", "Correct"], r"model\.weighting was null, is set"),
        (["--seed_everything", "9"], r"seed_everything was 0, is 9"),
        (["--trainer.gradient_clip_algorithm", "value"], r"gradient_clip_algorithm was None, is value"),
        (["--model.student.init_args.name", "no"], r"model\.student\.init_args\.name='no'"),
    ],
)
def test_a_run_does_not_go_on_as_another_and_a_refusal_changes_nothing(short, tmp_path, words, told):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert re.search(
        told, refused("fit", *STACK, *OFTEN, "--run", str(run), "--resume", "--trainer.max_steps", "6", *words)
    )
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path in before} == before


@pytest.mark.slow
def test_an_earlier_checkpoint_of_the_run_is_held_to_its_method_too(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    earlier = next(path for path in (run / "checkpoints").glob("*.ckpt") if path.name != "best.ckpt")
    words = ["fit", *STACK, *OFTEN, "--run", str(run), "--trainer.max_steps", "6", "--model.samples", "2"]
    assert "model.samples was 1, is 2" in refused(*words, "--ckpt_path", str(earlier))


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [["--model.optimizer.init_args.lr", "1e-5"], ["--model.lr_scheduler.init_args.factor", "0.5"],
     ["--model.optimizer", "torch.optim.SGD", "--model.optimizer.lr", "0.001"]],
)  # fmt: skip
def test_a_new_run_does_not_keep_another_optimizer_than_its_config_says(short, tmp_path, words):
    """Lightning restores the learning rate with the optimizer's state, and the schedule: the config's had no effect."""
    checkpoint = ["--ckpt_path", str(short / "checkpoints/last.ckpt"), "--trainer.max_steps", "4"]
    message = refused("fit", *STACK, *OFTEN, "--run", str(tmp_path / "new"), *checkpoint, *words)
    key = words[0].removeprefix("--")
    assert f"--ckpt_path: {key}" in message
    assert f"--model.student.init_args.name {short}/student" in message
    assert not (tmp_path / "new").exists()
    assert (short / "student").is_dir()  # and that is a way that leads somewhere


@pytest.mark.slow
def test_a_new_run_goes_on_from_a_checkpoint_with_other_settings(short, tmp_path):
    words = ["--ckpt_path", str(short / "checkpoints/last.ckpt"), "--model.samples", "2"]
    fit(tmp_path, 4, *words)
    assert load(tmp_path / "manifest.json")["optimizer_steps"] == 4


def test_processes_that_are_forked_are_refused(tmp_path):
    words = ["--run", str(tmp_path), "--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"]
    assert "lose the run's state: take ddp" in refused("fit", *STACK, *words)


@pytest.mark.slow
def test_a_run_that_goes_on_does_not_say_that_it_has_ended(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    assert load(run / "manifest.json").keys() >= {"ended", "optimizer_steps", "data"}
    stops = ["--trainer.callbacks+", "test_run_folder.Stops"]
    with pytest.raises(RuntimeError, match="stopped here"):
        main(["fit", *STACK, *OFTEN, "--run", str(run), "--resume", "--trainer.max_steps", "6", *stops])
    manifest = load(run / "manifest.json")
    assert (manifest["finished"], len(manifest["commands"])) == (False, 2)
    assert not manifest.keys() & {"ended", "optimizer_steps", "skipped_steps", "selection", "data"}


# Evaluating


@pytest.mark.slow
def test_testing_the_trained_student(straight, tmp_path, capsys):
    student = ["--model.student.init_args.name", str(straight / "student")]
    main(["test", *STACK, *student, "--run", str(tmp_path)])
    text = capsys.readouterr().out
    assert text.count("set ") == 1  # one table
    assert "test: 2 completions a problem" in text
    assert {path.name for path in tmp_path.iterdir()} == {
        *("config-test.yaml", "manifest.json", "outcomes", "results.json", "tensorboard"),
        *("evaluation.md", "evaluation.json", "evaluation.png"),
    }
    assert len(rows(tmp_path / "outcomes" / "test.level-4.jsonl")) == 8
    assert "finished" not in load(tmp_path / "manifest.json")
    fit(tmp_path, 1, "--data.validation", "null")  # a folder that holds evaluations alone is free for training
    assert load(tmp_path / "results.json").keys() == {"test"}
    weights = load(straight / "manifest.json")["weights"]
    assert weights == load(tmp_path / "outcomes" / "test.protocol.json")["weights"]


@pytest.mark.slow
def test_validating_in_the_folder_of_a_run_leaves_the_run_as_it_is(short, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    student = ["--model.student.init_args.name", str(run / "student")]
    main(["validate", "--config", str(run / "config.yaml"), "--run", str(run), *student])
    assert capsys.readouterr().out.count("set ") == 1
    results = load(run / "results.json")
    assert results.keys() == {"step-0", "step-3", "validate"}
    assert results["validate"] == results["step-3"]  # the same weights and the same draws
    assert metrics(run) == metrics(short)
    old, new = load(short / "manifest.json"), load(run / "manifest.json")
    assert new | {"commands": old["commands"]} == old


@pytest.mark.slow
def test_validating_a_checkpoint(short, tmp_path):
    main(["validate", *STACK, "--run", str(tmp_path), "--ckpt_path", str(short / "checkpoints" / "last.ckpt")])
    assert load(tmp_path / "results.json")["validate"] == load(short / "results.json")["step-3"]


@pytest.mark.slow
def test_predicting(tmp_path, capsys):
    main(["predict", *STACK, "--run", str(tmp_path), "--model.eval_samples", "3"])
    text = capsys.readouterr().out
    assert text.count("set ") == 1
    assert f"completions: {tmp_path}/predictions" in text
    predictions = rows(tmp_path / "predictions" / "level-4.jsonl")
    assert len(predictions) == 8
    assert all(len(row["completions"]) == 3 for row in predictions)


@pytest.mark.slow
def test_an_adapter_is_written_as_one_and_loads(tmp_path):
    lora = ["--config", str(ROOT / "configs/model/lora.yaml"), "--data.validation", "null"]
    fit(tmp_path, 1, *lora)
    assert (tmp_path / "student" / "adapter_model.safetensors").is_file()
    model, _ = LanguageModel(name=str(tmp_path / "student")).load()
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    trained = {k.removeprefix("student."): v for k, v in checkpoint["state_dict"].items() if "lora_" in k}
    assert trained
    weights = model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in trained.items())


# metrics.csv by itself


def table(path):
    with open(path, newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def test_a_step_that_is_logged_twice_has_one_row(tmp_path):
    logger = MetricsCsv(str(tmp_path))
    logger.log_metrics({"validation/a": 0.5}, 0)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.log_metrics({"loss": 2.0}, 1)
    logger.log_metrics({"loss": 3.0, "late": 7.0}, 2)
    logger.log_metrics({"validation/a": 0.75}, 2)
    assert table(tmp_path / "metrics.csv") == [
        {"step": "0", "validation/a": "0.5", "loss": "1.0"},
        {"step": "1", "loss": "2.0"},
        {"step": "2", "loss": "3.0", "late": "7.0", "validation/a": "0.75"},
    ]


def test_another_process_goes_on_in_the_same_file(tmp_path):
    MetricsCsv(str(tmp_path)).log_metrics({"loss": 1.0}, 0)
    again = MetricsCsv(str(tmp_path))
    again.log_metrics({"validation/a": 0.5}, 0)
    again.log_metrics({"loss": 2.0}, 1)
    assert table(tmp_path / "metrics.csv") == [
        {"step": "0", "loss": "1.0", "validation/a": "0.5"},
        {"step": "1", "loss": "2.0"},
    ]


def test_what_is_logged_for_an_earlier_step_joins_its_row(tmp_path):
    """A callback's `trainer.global_step` is the number of the next step already, and a pass ends before its number."""
    logger = MetricsCsv(str(tmp_path))
    for step in (0, 2):
        logger.log_metrics({"own/x": 7.0}, step + 1)
        logger.log_metrics({"loss": 1.0 + step}, step)
    logger.log_metrics({"loss": 5.0}, 4)
    assert table(tmp_path / "metrics.csv") == [
        *[{"step": "0", "loss": "1.0"}, {"step": "1", "own/x": "7.0"}, {"step": "2", "loss": "3.0"}],
        *[{"step": "3", "own/x": "7.0"}, {"step": "4", "loss": "5.0"}],
    ]


def test_going_on_from_a_step_keeps_what_was_measured_before_it(tmp_path):
    logger = MetricsCsv(str(tmp_path))
    for step in range(4):
        logger.log_metrics({"loss/a": float(step), "exposure/b": 1.0, "validation/a": 0.5, "own/val": 7.0}, step)
    again = MetricsCsv(str(tmp_path))
    again.go_on_from(2)
    assert table(tmp_path / "metrics.csv")[2:] == [{"step": "2", "validation/a": "0.5", "own/val": "7.0"}]
    again.log_metrics({"loss/a": 20.0}, 2)
    assert table(tmp_path / "metrics.csv")[1:] == [
        {"step": "1", "loss/a": "1.0", "exposure/b": "1.0", "validation/a": "0.5", "own/val": "7.0"},
        {"step": "2", "loss/a": "20.0", "validation/a": "0.5", "own/val": "7.0"},
    ]
    again.go_on_from(0)
    again.log_metrics({"loss/a": 3.0}, 0)
    assert len(table(tmp_path / "metrics.csv")) == 1


class LogsInValidation(pl.Callback):
    """Has a number of its own."""

    def on_validation_epoch_end(self, trainer, module):
        module.log("own/val", float(trainer.global_step))


@pytest.mark.slow
def test_what_a_callback_logs_in_validation_is_in_the_row_of_ours(tmp_path):
    own = ["--trainer.callbacks", f"{__name__}.LogsInValidation", "--trainer.val_check_interval", "1"]
    fit(tmp_path, 3, *own)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == ["0", "1", "2", "3"]
    assert [row.get("own/val") for row in rows[1:]] == ["1.0", "2.0", "3.0"]
    assert all("validation/level-4/avg@2" in row for row in rows)


class LogsAPass(pl.Callback):
    """Has a number of its own for each pass."""

    def on_train_batch_end(self, trainer, module, *rest):
        module.log("own/pass", 1.0, on_step=False, on_epoch=True, batch_size=1)


def test_what_a_callback_logs_of_a_pass_that_is_validated_is_in_the_row_of_its_last_step(tmp_path):
    own = ["--trainer.callbacks", f"{__name__}.LogsAPass", "--data.train.init_args.size", "8"]
    fit(tmp_path, 4, *own)
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows if row.get("own/pass")] == ["1", "3"]
    assert [row["step"] for row in rows] == ["0", "1", "2", "3", "4"]


# Tables


def result(name, per_problem, n=2):
    average = sum(per_problem.values()) / len(per_problem)
    names = ("wrong", "unparsed", "timeout", "cut", f"maj@{n}", "length")
    metrics = {f"avg@{n}": average, f"pass@{n}": 1.0, **dict.fromkeys(names, 0.0)}
    return Result(name, len(per_problem), n, {k: Estimate(v, (0.0, 1.0), (0.0, 1.0)) for k, v in metrics.items()},
                  per_problem)  # fmt: skip


def test_before_and_after_compares_problem_by_problem():
    before = [result("a", {"x": 0.5, "y": 0.0}), result("other", {"x": 0.5})]
    after = [result("a", {"x": 1.0, "y": 0.5, "new": 0.0}, n=4), result("apart", {"z": 1.0})]
    text = before_after_table(read_results([r.to_json() for r in before]), after)
    assert re.search(r"│ a +│ avg@2/4 +│", text)
    assert f"+0.500 │ {interval_text(paired_interval([0.5, 0.5]))}" in text
    assert "pass@" not in text  # of 2 and of 4 samples
    assert "other" not in text
    assert "apart" not in text


def test_before_and_after_leaves_out_a_set_whose_problems_were_exchanged():
    assert "nan" not in before_after_table([result("a", {"x": 0.5})], [result("a", {"y": 0.5})])


@pytest.mark.slow
def test_the_first_prompts_are_shown_before_the_first_step_with_the_exposure_that_was_decided(tmp_path, caplog):
    run = tmp_path / "run"
    caplog.set_level("INFO", "lit_atex")
    main(["fit", *STACK, "--run", str(run), "--trainer.max_steps", "1", "--exposure.strategy.init_args.ratio", "0.25"])
    assert "· student, thinking None · " in caplog.text
    assert "· teacher, thinking None, exposure 0.250 · " in caplog.text


@pytest.mark.slow
def test_a_run_that_begins_anew_deletes_what_fit_wrote_alone(short, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(short, run)
    (run / "checkpoints" / "last.ckpt").unlink()
    for name in ("outcomes/test.a.jsonl", "evaluation.md", "predictions/a.jsonl", "comparison-b/comparison.md", "mine"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("{}")
    (run / "results.json").write_text(json.dumps(load(run / "results.json") | {"test": []}))
    for manifest in ({"finished": False}, {"finished": False, "error": "out of memory"}):
        (run / "checkpoints" / "best.ckpt").write_text("")
        (run / "manifest.json").write_text(json.dumps(load(short / "manifest.json") | manifest))
        for path in (run / "checkpoints").iterdir():
            if path.name != "best.ckpt":
                path.unlink()
        with pytest.raises(ValueError, match="did not finish"):  # there is something to lose: it must be said
            prepare(run, None, False, overwrite=False)
    (run / "checkpoints" / "best.ckpt").unlink()
    prepare(run, None, False, overwrite=False)
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert left == {
        *("outcomes/test.a.jsonl", "evaluation.md", "predictions/a.jsonl", "comparison-b/comparison.md", "mine"),
        "results.json",
    }
    assert load(run / "results.json") == {"test": []}


def test_other_ranks_check_and_delete_nothing(tmp_path):
    (tmp_path / "outcomes").mkdir()
    (tmp_path / "outcomes/test.a.jsonl").write_text('{"id": "1"}\n', encoding="utf-8")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_text("")
    (tmp_path / "manifest.json").write_text(json.dumps({"finished": False, "commands": []}))
    everything = sorted(tmp_path.rglob("*"))
    prepare(tmp_path, None, False, overwrite=True, clears=False)
    clear(tmp_path, "test", False, overwrite=True, clears=False)
    assert sorted(tmp_path.rglob("*")) == everything
    with pytest.raises(ValueError, match="did not finish"):
        prepare(tmp_path, None, False, overwrite=False, clears=False)
    with pytest.raises(ValueError, match="holds an evaluation already"):
        clear(tmp_path, "test", False, overwrite=False, clears=False)
    clear(tmp_path, "test", False, overwrite=True)
    prepare(tmp_path, None, False, overwrite=True)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == []


def test_more_processes_than_the_trainer_knows_of_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = refused("fit", *STACK, "--run", str(tmp_path / "run"))
    assert "a launcher started 2 processes, and the trainer has 1: set --trainer.devices" in told


@pytest.mark.slow
def test_validations_within_a_run_are_logged_under_the_steps_that_were_done(tmp_path):
    fit(tmp_path, 2, "--trainer.val_check_interval", "1")
    by_step = {row["step"]: row.get("validation/level-4/avg@2") for row in metrics(tmp_path)}
    results = load(tmp_path / "results.json")
    assert {f"step-{step}": float(value) for step, value in by_step.items()} == {
        name: result[0]["metrics"]["avg@2"]["value"] for name, result in results.items()
    }
    assert list(results) == ["step-0", "step-1", "step-2"]


@pytest.mark.slow
def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    code = "import sys; from pathlib import Path; from lit_atex.resume import hold; hold(Path(sys.argv[1])); "
    own = [sys.executable, "-c", f"{code} print('mine', flush=True); sys.stdin.read()", str(tmp_path)]
    with subprocess.Popen(own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout.readline() == "mine\n"
        (tmp_path / "manifest.json").write_text(json.dumps({"finished": False, "commands": []}))
        told = refused("fit", *STACK, "--run", str(tmp_path), "--resume")
        assert "another process is training there" in told
        other.kill()  # the lock ends with the process, however it ends
    hold(tmp_path)
    hold(tmp_path)  # by the same process twice
    release(tmp_path)


def test_overwrite_deletes_nothing_of_a_folder_that_is_not_ours(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web app", "finished": true}', encoding="utf-8")
    (tmp_path / "student").mkdir()
    with pytest.raises(ValueError, match="not lit_atex's"):
        prepare(tmp_path, None, False, overwrite=True)
    assert (tmp_path / "student").is_dir()
