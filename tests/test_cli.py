"""The command line: help, unknown keys, the errors that a user meets, resuming, what it imports. In one process."""

import ast
import csv
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_atex.api import load
from lit_atex.cli import Cli, default_run, main
from lit_atex.divergence import ReverseKL
from lit_atex.exposure import Exposure, Fixed
from lit_atex.sources import Embedded

ROOT = Path(__file__).parents[1]
TINY = ["--config", str(ROOT / "configs/base.yaml"), "--config", str(ROOT / "configs/tiny.yaml")]


def leave(*words):
    """Runs the command line, which must end; its exit code, or its message (which stands for code 1)."""
    with pytest.raises(SystemExit) as end:
        main(list(words))
    return end.value.code


def refused(capsys, *words):
    """What the parser says against the words: one line, code 2."""
    assert leave(*words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert error.startswith("lit-atex: error: ")
    return error


# Help


def test_help_names_all_commands(capsys):
    assert leave("--help") == 0
    text = capsys.readouterr().out
    for word in ("fit", "validate", "test", "predict", "pretrain", "evaluate", "compare", "configs/base.yaml"):
        assert word in text


def test_no_arguments_show_the_help(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["lit-atex"])
    assert leave() == 0
    assert "fit" in capsys.readouterr().out


def test_help_of_fit_carries_the_docstrings(capsys):
    assert leave("fit", "--help") == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "--run RUN The one folder this run writes to." in text
    assert "--model.samples SAMPLES Rollouts per problem (G), >= 1." in text
    assert "--exposure.hold HOLD Optimizer steps for which a decision holds" in text
    assert "--optimizer " not in text  # a second one would override model.optimizer


def test_help_of_fit_can_be_read(capsys, monkeypatch):
    """It had 1,049 lines, of which 500 were Lightning's docstrings; every key is named still."""
    monkeypatch.setenv("COLUMNS", "80")
    assert leave("fit", "--help") == 0
    text = capsys.readouterr().out
    assert text.startswith("usage: lit-atex fit --config FILE")
    assert text.count("\n") < 350
    assert max(map(len, text.splitlines())) <= 120
    words = set(re.findall(r"[\w.]+", text))
    with pytest.raises(SystemExit):
        main(["fit", *TINY, "--print_config"])
    config = yaml.safe_load(capsys.readouterr().out)
    named = {f"{name}.{key}": key for name, group in config.items() if isinstance(group, dict) for key in group}
    words |= {word.rpartition(".")[0] for word in words}  # of model.sampling its fields are named
    missing = {path for path, key in named.items() if not {path, key} & words}
    assert missing == set()
    assert "divergence DIVERGENCE The loss per token. (required, type: Divergence, known subclasses: ForwardKL, " in (
        " ".join(text.split())
    )


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_help_says_what_a_command_does_in_whole_sentences(capsys, command):
    assert leave(command, "--help") == 0
    assert capsys.readouterr().out.partition("\n\noptions:")[0].endswith(".")


def test_help_of_a_class(capsys):
    assert leave("fit", "--model.divergence.help", "ForwardKL") == 0
    text = capsys.readouterr().out
    assert "teacher first" in text
    assert "--config FILE" not in text


def test_help_of_pretrain(capsys):
    assert leave("pretrain", "--help") == 0
    assert "Folder to write" in capsys.readouterr().out


def test_print_config(capsys):
    assert leave("fit", *TINY, "--print_config") == 0
    assert "eval_samples: 2" in capsys.readouterr().out


class Own(Exposure):
    def __init__(self, ratio: float = 0.3):
        self.ratio = ratio

    def ratios(self, state):
        return [self.ratio for _ in state.problem_ids]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--exposure.strategy", "test_cli.Own"], "ratio: 0.3"),
        (["--config", "{strategy: {class_path: test_cli.Own}}"], "ratio: 0.3"),
        (["--exposure.strategy", "test_cli.Own", "--exposure.strategy.ratio", "0.2"], "ratio: 0.2"),
        (["--exposure.strategy.ratio", "0.7", "--exposure.strategy", "Fixed"], "ratio: 0.7"),  # the class it was
        (["--model.lr_scheduler", "LinearLR"], "total_iters: 5"),
    ],
)
def test_another_class_begins_with_its_own_defaults(capsys, tmp_path, words, told):
    if words[0] == "--config":
        (tmp_path / "mine.yaml").write_text(f"exposure: {words[1]}")
        words = ["--config", str(tmp_path / "mine.yaml")]
    assert leave("fit", *TINY, *words, "--print_config") == 0
    assert told in capsys.readouterr().out


@pytest.mark.parametrize("flag", [["--config", "base"], ["--config=base"], ["-c", "configs/base.yaml"]])
def test_what_ships_is_found_from_anywhere(capsys, monkeypatch, tmp_path, flag):
    monkeypatch.chdir(tmp_path)
    assert leave("fit", *flag, "--config", "exposure/bandit", "--print_config") == 0
    assert "lit_atex.bandit.Bandit" in capsys.readouterr().out


def test_a_config_that_is_not_there_is_named_with_those_that_ship():
    message = str(leave("fit", "--config", "nosuch.yaml"))
    assert "'nosuch.yaml': give a YAML file, or one of base, data/aime24" in message
    assert "exposure/bandit" in message


@pytest.mark.parametrize(("word", "near"), [("fti", " Is it fit?"), ("evalute", " Is it evaluate?"), ("nosuch", "")])
def test_a_command_that_is_not_there(capsys, word, near):
    error = refused(capsys, word)
    assert error == f"lit-atex: error: there is no command {word!r}.{near} (see `lit-atex --help`)\n"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("inspect", "the following arguments are required: run"),
        ("inspect x --smaples 3", "unrecognized arguments: --smaples 3"),
        ("inspect x --samples a", "Parser key \"samples\": Expected a <class 'int'>. Got value: a"),
        ("pretrain", "the following arguments are required: out"),
        ("pretrain --out x --step 3", "unrecognized arguments: --step"),
        ("compare a", "the following arguments are required: B"),
        ("compare a b --forc", "unrecognized arguments: --forc"),
        ("report", "the following arguments are required: FOLDER"),
        ("ablate x.yaml --job 2", "unrecognized arguments: --job 2"),
        ("evaluate", "the following arguments are required: MODEL"),
    ],
)
def test_what_a_command_refuses_is_said_in_one_line(capsys, words, told):
    command, *_ = words.split()
    assert told in (error := refused(capsys, *words.split()))
    assert error.endswith(f" (see `lit-atex {command} --help`)\n")


def test_a_file_of_problems_in_the_place_of_a_config(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"problem": "1+1?", "solution": "\\\\boxed{2}"}\n')
    for words in (["fit", *TINY, "--config"], ["evaluate", "embedded", "--sets"]):
        message = leave(*words, str(tmp_path / "train.jsonl"))
        assert "train.jsonl holds problems and is no config: name it in one, as data/jsonl.yaml does" in message


def test_version(capsys):
    assert leave("--version") == 0
    assert re.fullmatch(r"lit-atex \d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.slow
def test_the_command_that_is_named_first_has_the_only_parser(capsys, tmp_path):
    """To make those of the other three took more than half of the time of parsing."""
    assert [*load("base", "tiny", run=str(tmp_path / "run")).subcommands()] == ["fit"]
    assert leave("predict", "--help") == 0
    assert capsys.readouterr().out.startswith("usage: lit-atex predict ")
    for command in ("fit", "validate", "test", "predict"):  # of no command: all, to choose from
        assert f"'{command}'" in refused(capsys, "--config", "{}", "nosuch")


# Mistakes


@pytest.mark.parametrize("word", ["--model.nosuch", "--nosuch", "--model.student.init_args.nosuch", "--data.nosuch"])
def test_an_unknown_key_on_the_command_line_is_named(capsys, word):
    assert "nosuch" in refused(capsys, "fit", *TINY, word, "1")


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    [
        "nosuch: 1",
        "model: {nosuch: 1}",
        "model: {sampling: {nosuch: 1}}",
        "model: {prompts: {class_path: lit_atex.prompts.PromptStyle, init_args: {nosuch: 1}}}",
        "model: {student: {init_args: {lora: {nosuch: 1}}}}",
        "data: {test: {a: {class_path: lit_atex.sources.Embedded, init_args: {nosuch: 1}}}}",
        "exposure: {strategy: {class_path: lit_atex.exposure.Fixed, init_args: {nosuch: 1}}}",
        "trainer: {nosuch: 1}",
    ],
)
def test_an_unknown_key_in_a_file_is_named(capsys, tmp_path, text):
    (tmp_path / "wrong.yaml").write_text(text)
    assert "nosuch" in refused(capsys, "fit", *TINY, "--config", str(tmp_path / "wrong.yaml"))


@pytest.mark.slow
def test_a_key_is_not_cut_short_but_the_nearest_is_named(capsys, tmp_path):
    """argparse would take `--exposure.hol` for `--exposure.hold`, and a typing error for a setting."""
    assert "--trainer.max_step 3. Is it trainer.max_steps?" in refused(capsys, "fit", *TINY, "--trainer.max_step", "3")
    assert "--exposure.hol=3. Is it exposure.hold?" in refused(capsys, "fit", *TINY, "--exposure.hol=3")
    assert "Is it resume?" in refused(capsys, "fit", *TINY, "--resum")
    assert "Is it trainer.max_steps?" in refused(capsys, "fit", *TINY, "--trainer.max-steps", "3")
    assert "Is it seed_everything?" in refused(capsys, "fit", *TINY, "--seed", "3")  # not data.seed, which follows it
    assert "Is it terseness?" in refused(capsys, "fit", *TINY, "--data.train.init_args.tersness", "1")
    (tmp_path / "wrong.yaml").write_text("model: {sampling: {temperatur: 1}}")
    message = refused(capsys, "fit", *TINY, "--config", str(tmp_path / "wrong.yaml"))
    assert "'model.sampling.temperatur'. Is it model.sampling.temperature?" in message
    assert "Is it" not in refused(capsys, "fit", *TINY, "--nothing.like.this", "1")


def test_a_config_that_is_no_yaml_is_named(tmp_path):
    (tmp_path / "wrong.yaml").write_text("model:\n  samples: 2\n sampling: {}\n")
    message = leave("fit", *TINY, "--config", str(tmp_path / "wrong.yaml"))
    assert f"{tmp_path / 'wrong.yaml'} is no YAML: " in message
    assert "line 3" in message


def test_without_a_configuration_the_way_on_is_shown(capsys):
    assert "--config configs/base.yaml" in refused(capsys, "fit")
    told = refused(capsys, "fit", *TINY, "--trainer.logger", "CSVLogger")  # it wants an argument of its own
    assert "save_dir" in told
    assert "configs/base.yaml" not in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nosuch"], ["'nosuch'", "lit-atex --help"]),
        (["fit", *TINY, "--data.batch_size", "zero"], ["data.batch_size", "zero"]),
        (
            ["fit", *TINY, "--model.divergence", "NoSuch"],
            ["model.divergence", "no Divergence of the name NoSuch", "ForwardKL, JSD"],
        ),
        (["fit", *TINY, "--exposure.strategy", "nowhere.Mine"], ["nowhere.Mine", "BetaPolicy, ", "exposure.Exposure"]),
        (
            ["fit", *TINY, "--exposure.progress", "Probe"],
            ["no ProgressMeasure of the name Probe", "ProbeNLL"],
        ),
        (["fit", *TINY, "--model.verifier", "nowhere.Mine"], ["nowhere.Mine", "subclass of lit_atex.verify.Verifier"]),
        (["fit", *TINY, "--model.weighting", "Corect"], ["no Weighting of the name Corect", "Is it Correct?"]),
        (["fit", *TINY, "--exposure.strategy.ratoi", "1"], ["exposure.strategy", "ratoi"]),
        (["fit", *TINY, "--exposure.hold", "often"], ["exposure.hold", "often"]),
    ],
)
def test_what_does_not_parse(capsys, words, told):
    text = refused(capsys, *words)
    assert all(word.lower() in text.lower() for word in told)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--exposure.strategy.init_args.ratio", "1.5"], ["exposure.strategy.init_args.ratio", "1.5"]),
        (["--data.batch_size", "0"], ["data.batch_size"]),
        (["--model.samples", "0"], ["model.samples"]),
        (["--trainer.max_steps", "-5"], ["max_steps"]),
        (["--ckpt_path", "nosuch.ckpt"], ["--ckpt_path", "nosuch.ckpt", "checkpoints/last.ckpt"]),
        (["--checkpoint.dirpath", "elsewhere"], ["checkpoint.dirpath", "--run"]),
        (["--trainer.default_root_dir", "elsewhere"], ["trainer.default_root_dir", "--run"]),
    ],
)
def test_a_wrong_value_leaves_a_message_and_no_folder(tmp_path, words, told):
    message = leave("fit", *TINY, "--run", str(tmp_path / "run"), *words)
    assert message.startswith("lit-atex: error: ")
    assert "\n" not in message
    assert all(word in message for word in told)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["no/such", "pypi:no-such"])
def test_a_model_that_is_not_there(tmp_path, name):
    message = leave("fit", *TINY, "--run", str(tmp_path), "--model.student.init_args.name", name)
    assert f"model.student.init_args.name='{name}'" in message


def test_a_hint_function_that_is_not_there_is_told_of_before_data_are_read(tmp_path):
    words = ["--model.prompts.init_args.hint", "nosuch.hint", "--data.train", "lit_atex.sources.JsonLines"]
    message = leave("fit", *TINY, "--run", str(tmp_path), *words, "--data.train.path", "nosuch")
    assert "model.prompts.hint: nosuch.hint could not be imported" in message


def test_a_model_whose_folder_is_not_there_is_told_of_before_data_are_read(tmp_path):
    words = ["--model.student.init_args.name", "runs/a/student", "--data.train", "lit_atex.sources.JsonLines"]
    message = leave("fit", *TINY, "--run", str(tmp_path), *words, "--data.train.path", "nosuch")
    assert "name='runs/a/student' could not be loaded: there is no such folder" in message


@pytest.mark.slow
def test_a_run_that_failed_before_its_first_checkpoint_may_be_started_again(tmp_path, capsys):
    words = ["fit", *TINY, "--run", str(tmp_path), "--trainer.max_steps", "1", "--data.validation", "null"]
    assert "no file" in leave(*words, "--data.train", "lit_atex.sources.JsonLines", "--data.train.path", "nosuch")
    main(words)
    assert (tmp_path / "student").is_dir()


@pytest.mark.parametrize(("command", "key"), [("validate", "data.validation"), ("test", "data.test")])
def test_evaluating_no_set(tmp_path, command, key):
    assert f"{key} is empty" in leave(command, *TINY, "--run", str(tmp_path), f"--{key}", "null")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words", "told"),
    [
        ("fit", ["--run", "x", "--resume", "--ckpt_path", "other.ckpt"], "leave out --ckpt_path other.ckpt"),
        ("fit", ["--resume"], "--resume needs --run"),
        ("predict", ["--run", "x", "--resume", "true"], "--resume does not go on with predict"),
        ("fit", ["--run", "x", "--checkpoint.save_on_exception", "true"], "checkpoint.save_on_exception"),
    ],
)
def test_resuming_what_cannot_be_resumed(tmp_path, monkeypatch, command, words, told):
    monkeypatch.chdir(tmp_path)
    message = leave(command, *TINY, *words)
    assert message.startswith("lit-atex: error: ")
    assert told in message


@pytest.mark.slow
def test_resuming_nothing_says_that_it_begins_at_the_start(tmp_path, caplog):
    main(["fit", *TINY, "--run", str(tmp_path / "misspelt"), "--resume", "--trainer.max_steps", "1"])
    assert "--resume: no checkpoint in" in caplog.text
    assert "begins at step 0" in caplog.text


def test_evaluating_a_checkpoint_that_is_not_there(tmp_path):
    message = leave("test", *TINY, "--run", str(tmp_path), "--ckpt_path", "last")
    assert f"there is no checkpoint in {tmp_path}/checkpoints" in message


class Broken(Exposure):
    """Has a bug."""

    def ratios(self, state):
        return [float("no number")]


@pytest.mark.slow
def test_a_bug_keeps_its_traceback(tmp_path):
    with pytest.raises(ValueError, match="could not convert"):
        main(["fit", *TINY, "--run", str(tmp_path), "--exposure.strategy", "test_cli.Broken"])


# Folders


def test_the_default_folder_has_date_and_config_names(monkeypatch):
    monkeypatch.delenv("LIT_ATEX_RUN", raising=False)
    config = type("C", (), {"config": ["configs/base.yaml", "configs/tiny.yaml", "x/mine.yaml"]})
    run = default_run(config)
    assert run.parts[0] == "runs"
    assert run.name.endswith("-tiny-mine")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LIT_ATEX_FIRST", "1")  # the process that chose it
    assert default_run(type("C", (), {"config": []})) == run  # what Lightning starts for a second device


@pytest.mark.slow
def test_nothing_is_written_outside_the_run_folder(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("LIT_ATEX_RUN", raising=False)
    main(["fit", *TINY, "--trainer.max_steps", "1", "--data.validation", "null"])
    assert [path.name for path in here.iterdir()] == ["runs"]
    assert [path.name.endswith("-tiny") for path in (here / "runs").iterdir()] == [True]
    main(["test", *TINY, "--run", "tested"])
    assert sorted(path.name for path in here.iterdir()) == ["runs", "tested"]
    assert not (here / "tested" / "metrics.csv").exists()


# Trainer settings of the user's own


@pytest.mark.slow
def test_the_users_loggers_and_callbacks_are_kept(tmp_path):
    words = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", str(tmp_path / "own")]
    words += ["--trainer.callbacks", "LearningRateMonitor", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.max_steps", "1", "--data.validation", "null"]
    cli = Cli(["fit", *TINY, "--run", str(tmp_path / "run"), *words])
    assert any(isinstance(logger, CSVLogger) for logger in cli.trainer.loggers)
    assert "LearningRateMonitor" in {type(callback).__name__ for callback in cli.trainer.callbacks}
    assert (tmp_path / "run" / "metrics.csv").is_file()


# Starting

HEAVY = ["datasets", "peft", "reasoning_gym", "math_verify", "matplotlib", "sympy", "pandas", "pyarrow", "gguf"]


def python(*words, **environment):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300, env=environment)


@pytest.fixture(scope="module")
def imported():
    """A process that has imported what a command of a trainer does: what was there then, and what libraries said."""
    code = """
        import logging, sys
        from lit_atex.console import quiet
        quiet()
        import lit_atex.cli
        print([name for name in sys.argv[1:] if name in sys.modules])
        import huggingface_hub, lightning.pytorch
        for name in ("huggingface_hub.file_download", "lightning.fabric.utilities", "lightning.pytorch.utilities"):
            logging.getLogger(name).warning("said by " + name)
    """
    return python("-c", textwrap.dedent(code), *HEAVY)


@pytest.mark.slow
def test_the_command_line_imports_nothing_heavy(imported):
    # torch itself imports sympy, and torchmetrics matplotlib where it is there; that much is not ours to mend.
    assert set(ast.literal_eval(imported.stdout)) <= {"matplotlib", "sympy"}, imported.stderr


@pytest.mark.slow
def test_lines_of_libraries_come_once(imported):
    assert len(imported.stderr.splitlines()) == len(set(imported.stderr.splitlines())) == 3


@pytest.mark.slow
def test_a_new_users_first_run_is_quiet_and_shows_its_progress(tmp_path):
    done = python("-m", "lit_atex", "fit", *TINY, "--run", str(tmp_path))
    assert done.returncode == 0
    lines = done.stderr.splitlines()
    shown, path = next(i for i, line in enumerate(lines) if line.startswith("=====")), tmp_path / "prompts.txt"
    last = lines.index(f"all prompts of the first batch: {path}")
    assert path.read_text(encoding="utf-8").startswith("\n".join(lines[shown:last]) + "\n")
    known = ("step ", "evaluating level-4", "epoch 0, step 6: running success", *"┏┃┡│└")
    assert [line for line in lines[:shown] + lines[last + 1 :] if not line.startswith(known)] == []
    end = next(line for line in lines if line.startswith("step 6/6  0:00:00 left  loss "))
    for word in ("exposure 1.00", "mismatch", "accuracy", "tok/s"):
        assert word in end
    assert "before and after" in done.stdout
    assert done.stdout.rstrip().endswith(f"TensorBoard: tensorboard --logdir {tmp_path}")


@pytest.mark.slow
def test_a_class_of_the_users_own_beside_the_configs(tmp_path):
    (tmp_path / "my_exposure.py").write_text(
        "from lit_atex.exposure import Exposure\n"
        "class Half(Exposure):\n"
        "    def ratios(self, state):\n"
        "        return [0.5 for _ in state.problem_ids]\n"
    )
    words = [*TINY, "--trainer.max_steps", "1", "--exposure.strategy", "my_exposure.Half"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-P", "-m", "lit_atex", "fit", *words, "--run", "run"]  # -P: as `lit-atex` is started
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "exposure 0.50" in done.stderr


@pytest.mark.slow
def test_threads_that_wait_sleep_unless_the_user_says_otherwise():
    """On a machine with other work, spinning ones make a step take ten times as long, or worse."""
    code = "import os, sys; from lit_atex.commands import main; sys.argv = ['lit-atex', 'compare', '--help']\n"
    code += "try: main()\nexcept SystemExit: print(os.environ['OMP_WAIT_POLICY'], 'torch' in sys.modules)"
    assert python("-c", code, OMP_WAIT_POLICY="active").stdout.splitlines()[-1].startswith("active")
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, env=environment)
    assert done.stdout.splitlines()[-1].startswith("passive"), done.stderr
    light = python("-c", "import sys, lit_atex.commands; print('torch' in sys.modules)")
    assert light.stdout == "False\n"  # else it would be too late


@pytest.mark.slow
def test_reading_results_does_not_wait_for_lightning_nor_torchmetrics():
    code = """
        import sys
        from lit_atex.commands import main
        from lit_atex.evaluation import metric_names
        for command in ("compare", "report", "inspect"):
            try:
                main([command, "--help"])
            except SystemExit:
                metric_names(4)
                print(command, sorted({"lightning", "torchmetrics", "transformers", "scipy"} & sys.modules.keys()))
    """
    lines = python("-c", textwrap.dedent(code)).stdout.splitlines()
    for command in ("compare", "report", "inspect"):
        assert f"{command} []" in lines


def test_keys_given_to_load_are_those_of_the_command_line(tmp_path):
    """As keys of a file they named no set among several, and `lr` kept the class of the optimizer before."""
    keys = {"data.validation.mine": "Embedded", "data.validation.mine.init_args.size": 2}
    keys |= {"model.optimizer": "SGD", "model.optimizer.lr": 0.1, "model.student.init_args.revision": "007"}
    run = load("base", "tiny", keys, run=str(tmp_path / "run"))
    assert len(list(run.datamodule.validation["mine"])) == 2
    assert len(run.datamodule.validation) > 1
    assert run.config.fit.model.optimizer.class_path == "torch.optim.SGD"
    assert run.config.fit.model.student.init_args.revision == "007"


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["Solve: {question}", "[{question}]", "- {question}", "{question}\n{hint}", "### {question}", "yes", "1e-3", "7"],
)
def test_a_text_stays_one_where_the_key_takes_a_text(tmp_path, text):
    """Of which YAML would make a mapping, a list, a truth or a number."""
    keys = {"model.prompts.init_args.system": text, "model.student.init_args.revision": text}
    keys |= {"model.student.init_args.name": tmp_path / text, "model.sampling.temperature": "1e-1"}
    given = load("base", "tiny", keys, run=str(tmp_path / "run")).config.fit
    assert given.model.prompts.init_args.system == given.model.student.init_args.revision == text
    assert given.model.student.init_args.name == str(tmp_path / text)
    assert given.model.sampling.temperature == 0.1


@pytest.mark.slow
@pytest.mark.parametrize("text", ["Solve: {question}", "[{question}]", "### {question}", "### Problem\n{question}"])
def test_a_prompt_stays_a_text_on_the_command_line_and_in_a_file(capsys, tmp_path, text):
    """YAML would make a mapping of the first, and of the third nothing, in whose place the default would stand."""
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"model": {"prompts": {"init_args": {"student": text}}}}))
    for words in (["--model.prompts.init_args.student", text], ["--config", str(file)]):
        assert leave("fit", *TINY, *words, "--print_config") == 0
        assert yaml.safe_load(capsys.readouterr().out)["model"]["prompts"]["init_args"]["student"] == text


@pytest.mark.slow
@pytest.mark.parametrize("text", ["3e-4", "12e4567", "1.0e5", ".5e3"])
def test_a_text_that_looks_like_a_number_is_one_in_the_config_that_is_saved(capsys, tmp_path, text):
    """A folder's name. Without quotes `evaluate RUN` would refuse the run, as the name was no text."""
    assert leave("fit", *TINY, "--model.student.init_args.name", text, "--print_config") == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert leave("fit", "--config", str(tmp_path / "config.yaml"), "--print_config") == 0
    assert f"      name: '{text}'\n" in capsys.readouterr().out


SIZED = {"class_path": "Embedded", "init_args": {"size": 2, "split": "other"}}
OWN_PROMPT = {"student": "Solve: {question}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "at", "wanted"),
    [
        ("data.validation.mine", SIZED, "size", 2),
        ("data.validation.level-4", SIZED, "split", "other"),
        ("data.validation.level-4", {"init_args": {"size": 2}}, "size", 2),
        ("model.prompts.init_args", OWN_PROMPT, "student", "Solve: {question}"),
        ("model.prompts", {"init_args": OWN_PROMPT}, "student", "Solve: {question}"),
        ("model.student.init_args", {"revision": None}, "revision", None),
        ("exposure.strategy.init_args", {"ratio": 0.25}, "ratio", 0.25),
    ],
)
def test_a_class_with_its_arguments_is_no_text(capsys, key, value, at, wanted):
    """Nor the arguments alone: what is given as one word below a key, as `load` gives a dictionary."""
    assert leave("fit", *TINY, f"--{key}", json.dumps(value), "--print_config") == 0
    given = yaml.safe_load(capsys.readouterr().out)
    for name in key.removesuffix(".init_args").split("."):
        given = given[name]
    assert given["init_args"][at] == wanted


def embedded(split, size=3):
    return Embedded(level=4, size=size, split=split)


@pytest.mark.slow
@pytest.mark.parametrize("before", ["null", "{a: {class_path: Embedded, init_args: {size: 2, split: other}}}"])
def test_sets_and_strategy_are_exchanged_from_python(tmp_path, before):
    keys = {"data.validation": before, "trainer.max_steps": 1, "trainer.val_check_interval": 1}
    run = load("base", "tiny", keys, run=str(tmp_path / "run"))
    run.datamodule.validation, run.datamodule.test = {"mine": embedded("validation")}, {}
    assert (run.datamodule.validation_names, run.datamodule.test_names) == (["mine"], [])
    run.exposure.strategy = Fixed(0.25)
    run.train()
    results = json.loads((tmp_path / "run/results.json").read_text(encoding="utf-8"))
    assert {(step, one["name"]) for step, many in results.items() for one in many} >= {("step-1", "mine")}
    assert {one["name"] for many in results.values() for one in many} == {"mine"}
    with open(tmp_path / "run/metrics.csv", newline="", encoding="utf-8") as file:
        assert [row["exposure/ratio"] for row in csv.DictReader(file) if row["exposure/ratio"]] == ["0.25"]


@pytest.mark.slow
def test_an_evaluation_before_the_training_changes_nothing_of_it(tmp_path):
    """Of one that finds its answers already there too: training evaluates all problems again."""
    found, left_out = [], ("time/", "throughput/completion")
    for name, kinds in (("plain", ()), ("after", ("validate", "test", "validate"))):
        run = load("base", "tiny", {"trainer.max_steps": 2}, run=str(tmp_path / name))
        for kind in kinds:
            getattr(run.trainer, kind)(run.model, datamodule=run.datamodule, verbose=False)
        run.train()
        results = json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8"))
        assert results.keys() == {"step-0", "step-2", *kinds}
        assert all(results[kind][0]["problems"] == 8 for kind in results)
        with open(tmp_path / name / "metrics.csv", newline="", encoding="utf-8") as file:
            rows = [{k: v for k, v in row.items() if not k.startswith(left_out)} for row in csv.DictReader(file)]
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text(encoding="utf-8"))
        manifest = json.loads((tmp_path / name / "manifest.json").read_text(encoding="utf-8"))
        found.append((rows, results["step-2"], config | {"run": None}, manifest["finished"], manifest["weights"]))
    assert found[0] == found[1]


@pytest.mark.slow
def test_an_evaluation_before_a_run_goes_on_is_in_none_of_its_logs(tmp_path):
    for name in ("plain", "evaluated"):
        for steps in (1, 2):
            run = load("base", "tiny", {"trainer.max_steps": steps}, run=tmp_path / name, resume=steps > 1)
            if steps > 1 and name == "evaluated":
                run.trainer.validate(run.model, datamodule=run.datamodule, verbose=False)
            run.train()
    plain, evaluated = (points(tmp_path / name) for name in ("plain", "evaluated"))
    assert plain == evaluated
    assert [step for tag, step in plain if tag == "validation/level-4/avg@2"] == [0, 1, 2]


def points(run):
    """Tag and step of all numbers in TensorBoard."""
    found = EventAccumulator(str(run / "tensorboard"), {"scalars": 0}).Reload()
    return [(tag, event.step) for tag in sorted(found.Tags()["scalars"]) for event in found.Scalars(tag)]


@pytest.mark.slow
def test_sets_may_be_taken_away_from_python(tmp_path, recwarn):
    run = load("base", "tiny", {"trainer.max_steps": 1}, run=str(tmp_path / "run"))
    run.datamodule.validation = {}
    run.train()
    assert not (tmp_path / "run/results.json").exists() or not json.loads((tmp_path / "run/results.json").read_text())
    assert not [one for one in recwarn if "dataloader" in str(one.message)]


def test_a_set_of_a_name_that_no_file_can_have_is_refused_from_python_too(tmp_path):
    run = load("base", "tiny", run=str(tmp_path / "run"))
    run.datamodule.validation = {"a/b": embedded("validation")}
    with pytest.raises(ValueError, match=r"data\.validation: 'a/b' becomes part of the names of files"):
        run.train()


@pytest.mark.slow
def test_what_python_evaluates_before_it_trains_changes_nothing_of_the_run(tmp_path):
    def made(name):
        run = load("base", "tiny", {"trainer.max_steps": 1}, run=tmp_path / name)
        return run, {"model": run.model, "datamodule": run.datamodule, "verbose": False}

    plain, _ = made("plain")
    plain.train()
    early, parts = made("run")
    early.trainer.validate(**parts)
    run, parts = made("run")
    run.trainer.validate(**parts)  # it goes on with the answers that are there
    sets, run.datamodule.validation = run.datamodule.validation, {"mine": embedded("other")}
    run.trainer.validate(**parts)
    assert [path.name for path in (tmp_path / "run/outcomes").glob("*.jsonl")] == ["validate.mine.jsonl"]
    run.datamodule.validation = sets
    run.trainer.test(**parts)
    run.train()
    assert sorted(run.folder.results) == ["step-0", "step-1", "test", "validate"]
    assert {name: run.folder.results[name] for name in plain.folder.results} == plain.folder.results
    torch.testing.assert_close(dict(run.model.state_dict()), dict(plain.model.state_dict()), rtol=0, atol=0)
    for name in ("config.yaml", "student/config.json"):
        assert (tmp_path / "run" / name).is_file()
    manifest = json.loads((tmp_path / "run/manifest.json").read_text(encoding="utf-8"))
    assert (manifest["finished"], manifest["optimizer_steps"]) == (True, 1)


def test_an_exposure_that_a_strategy_would_replace_is_refused(tmp_path):
    run = load("base", "tiny", run=str(tmp_path / "run"))
    run.model.exposure = 0.25
    with pytest.raises(ValueError, match=r"run\.model\.exposure = 0\.25 .*run\.exposure\.strategy"):
        run.train()
    run.model.exposure = 1.0
    run.exposure.strategy = Fixed(0.25)


@pytest.mark.parametrize(
    ("key", "value"), [("model.divergence", ReverseKL()), ("data.validation", {"a": embedded("test")})]
)
def test_an_object_in_the_place_of_a_key_is_refused(tmp_path, key, value):
    with pytest.raises(
        ValueError, match=rf"^{re.escape(key)}: an object .*class_path.* of run\.model, .*run\.datamodule"
    ):
        load("base", "tiny", {key: value}, run=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_path_is_a_text(tmp_path):
    student = {"class_path": "LanguageModel", "init_args": {"name": tmp_path / "b"}}
    for key, value in (("model.student.init_args.name", tmp_path / "b"), ("model.student", student)):
        run = load("base", "tiny", {key: value}, run=str(tmp_path / "run"))
        assert run.config.fit.model.student.init_args.name == str(tmp_path / "b")
    (tmp_path / "own.yaml").write_text("trainer: {max_steps: 3}")
    run = load("base", "tiny", tmp_path / "own.yaml", run=tmp_path / "run")
    assert (run.run_folder, run.trainer.max_steps) == (tmp_path / "run", 3)
    with pytest.raises(ValueError, match=r"there is no config '.*not_there\.yaml'"):
        load("base", tmp_path / "not_there.yaml")
