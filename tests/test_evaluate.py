"""`lit-atex evaluate`: what its words come to, which models and sets it takes, and what it refuses."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from fakes import CHAT
from test_sources import AIME25, GSM8K, HMMT, MATH

from lit_atex.cli import main
from lit_atex.embedded import MODEL_DIR
from lit_atex.evaluate import find_config, of_evaluations, parser, sets_of, translate
from lit_atex.models import LanguageModel, Lora
from lit_atex.prompts import PromptStyle

ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "configs/tiny.yaml")
FEW = ["--samples", "2", "--limit", "2", "--max_new_tokens", "48"]


def value(words, key):
    return words[words.index(f"--{key}") + 1]


def refused(*words):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", *map(str, words)])
    return end.value.code


# Words


def test_words_become_keys():
    words = translate(
        "embedded --sets tiny.yaml --samples 12 --temperature 0.6 --top_p 0.95 --thinking true --limit 100 --run R "
        "--resume --data.eval_batch_size 4".replace("tiny.yaml", TINY).split()
    )
    assert words[:3] == ["test", "--config", str(ROOT / "configs/base.yaml")]
    expected = {
        "model.student.init_args.name": "embedded",
        "model.eval_samples": "12",
        "model.eval_sampling.temperature": "0.6",
        "model.eval_sampling.top_p": "0.95",
        "model.prompts.init_args.eval_thinking": "true",
        "data.limit_held_out": "100",
        "data.eval_batch_size": "4",
        "run": "R",
    }
    assert {key: value(words, key) for key in expected} == expected
    assert list(json.loads(value(words, "data.test"))) == ["level-4"]
    assert "--resume" in words


def test_the_thinking_mode_of_a_teacher_is_its_own():
    words = translate(["embedded", "--exposure", "0.5", "--thinking", "true", "--run", "R"])
    assert value(words, "model.eval_exposure") == "0.5"
    assert value(words, "model.prompts.init_args.teacher_thinking") == "true"
    assert "--model.prompts.init_args.eval_thinking" not in words


@pytest.mark.parametrize("exposure", ["1.5", "-0.1"])
def test_an_exposure_out_of_range_is_refused(tmp_path, exposure):
    assert "model.eval_exposure must be in [0, 1]" in refused(
        *["embedded", "--sets", TINY, f"--exposure={exposure}", "--run", tmp_path / "run"]
    )


def test_several_sets_are_put_together():
    words = translate(["Qwen/Qwen3-1.7B", "--sets", "aime24", "math500", "--config", "protocol/paper", "--run", "R"])
    sets = json.loads(value(words, "data.test"))
    assert list(sets) == ["aime24", "math500"]
    assert [i + 1 for i, w in enumerate(words) if w == "--config"] == [
        words.index(str(ROOT / "configs" / name)) for name in ("base.yaml", "model/chat.yaml", "protocol/paper.yaml")
    ]
    assert value(translate(["x/y", "--sets", "gsm8k"]), "run").split("evaluate-")[1] == "y"


def test_the_sets_of_a_run_keep_their_order(tmp_path):
    (path := tmp_path / "config.yaml").write_text("data: {test: {level-8: {}, level-12: {}}}")
    assert list(yaml.safe_load(of_evaluations(path, "validation"))["data"]["test"]) == ["level-8", "level-12"]


def test_validation_sets():
    words = translate(["embedded", "--validation", "--run", "R"])
    assert words[0] == "validate"
    assert "--data.validation" not in words  # those of the configs
    assert value(words, "data.test") == "null"


def test_chat_prompts_are_the_defaults_of_the_class():
    config = yaml.safe_load(find_config("model/chat").read_text(encoding="utf-8"))
    defaults = {k: p.default for k, p in inspect.signature(PromptStyle).parameters.items()}
    given = config["model"]["prompts"]["init_args"]
    assert given == {k: defaults[k] for k in ("mark", "student", "teacher")}


def test_help_is_short(capsys):
    assert refused("--help") == 0
    text = capsys.readouterr().out
    assert len(text.splitlines()) < 60
    for word in ("MODEL", "--resume", "--thinking", "--limit", "a run folder", "LoRA", "lit-atex compare"):
        assert word in text


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["embedded", "--sets", "nosuch"], ["no config 'nosuch'", "aime24", "gsm8k"]),
        (["embedded", "--sets", ROOT / "configs/model/lora.yaml"], ["has no data.test", "--sets"]),
        (["embedded", "--checkpoint", "best"], ["embedded is no run folder"]),
        (["./nosuch", "--sets", TINY], ["there is no such folder"]),
        (["no/such", "--sets", TINY], ["model.student.init_args.name='no/such'", "could not be loaded"]),
    ],
)
def test_what_is_not_there_is_said(tmp_path, words, told):
    message = refused(*words, "--run", tmp_path / "run")
    assert all(word in message for word in told)


def test_two_sets_of_one_name_are_refused(tmp_path):
    """One of them would be lost without a word."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.yaml").write_text("data: {test: {mine: {class_path: lit_atex.sources.Embedded}}}")
    message = refused("embedded", "--sets", tmp_path / "a.yaml", tmp_path / "b.yaml")
    assert "--sets has mine more than once" in message


@pytest.mark.parametrize("text", ["a: [1", "- a", "data: 5", "data: {test: [1]}", "", "\x00"])
def test_a_file_of_sets_that_is_none(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    message = refused("embedded", "--sets", tmp_path / "x.yaml")
    assert str(tmp_path / "x.yaml") in message
    assert "is no YAML" in message or "has no data.test" in message


def test_all_devices_write_to_one_folder(monkeypatch):
    """Those after the first are started later, by the same words."""
    monkeypatch.delenv("LIT_ATEX_RUN", raising=False)
    run = value(translate(["embedded", "--sets", TINY]), "run")
    assert run.endswith("-evaluate-embedded")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("LIT_ATEX_RUN", "runs/of-the-first")
    monkeypatch.setenv("LIT_ATEX_FIRST", "1")
    assert value(translate(["embedded", "--sets", TINY]), "run") == "runs/of-the-first"


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE"])
def test_processes_of_another_launcher_must_be_given_a_folder(monkeypatch, variable):
    """Else each names one by its own clock, and results are torn apart."""
    monkeypatch.delenv("LIT_ATEX_RUN", raising=False)
    monkeypatch.setenv(variable, "2")
    message = refused("embedded", "--sets", TINY)
    assert f"{variable}=2" in message
    assert "--run" in message
    assert value(translate(["embedded", "--sets", TINY, "--run", "there"]), "run") == "there"
    monkeypatch.setenv(variable, "1")
    assert "-evaluate-embedded" in value(translate(["embedded", "--sets", TINY]), "run")


def test_two_commands_of_one_second_have_folders_of_their_own(monkeypatch, tmp_path):
    monkeypatch.delenv("LIT_ATEX_RUN", raising=False)
    monkeypatch.chdir(tmp_path)
    runs = {value(translate(["embedded", "--sets", TINY]), "run") for _ in range(5)}
    assert len(runs) == 5


def test_the_value_of_an_unknown_option_is_not_the_model():
    assert "name it before --seed_everything" in refused("--seed_everything", "3", "embedded", "--sets", TINY)


@pytest.mark.slow
def test_a_missing_model_is_found_before_data_are_read(tmp_path):
    """Data sets may take minutes; that of this test cannot be read at all."""
    (tmp_path / "sets.yaml").write_text(
        "data: {test: {x: {class_path: lit_atex.sources.JsonLines, init_args: {path: nosuch.jsonl}}}}"
    )
    words = ["--sets", tmp_path / "sets.yaml", "--run", tmp_path / "run"]
    assert "no file 'nosuch.jsonl'" in refused("embedded", *words)
    folder = tmp_path / "model"
    folder.mkdir()
    told = lambda: refused(folder, *words)  # noqa: E731
    assert f"{folder} has no config.json" in told()
    shutil.copy(MODEL_DIR / "config.json", folder)
    assert f"{folder} lacks model.safetensors or pytorch_model.bin: copy it there" in told()
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "one", "b": "two"}}')
    (folder / "two").write_text("")
    assert f"{folder} lacks one: copy it there" in told()
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(folder)}))
    assert f"{adapter} lacks adapter_model.safetensors" in refused(adapter, *words)
    (adapter / "adapter_model.safetensors").write_text("")
    message = refused(adapter, *words)
    assert all(word in message for word in (str(adapter), "base model", f"{folder} lacks one"))
    assert "there is no such folder" in refused(f"{folder}/deeper", *words)
    assert "there is no such folder" in refused("runs/no/such", *words)


def test_an_evaluations_folder_is_no_model(tmp_path):
    run = tmp_path / "evaluated"
    (run / "outcomes").mkdir(parents=True)
    (run / "outcomes/test.protocol.json").write_text('{"model.student.name": "some/model"}')
    assert f"{run} is an evaluation of some/model, and holds no model itself" in refused(run)
    command = ["lit-atex", "evaluate", "--samples", "2", "runs/demo", "--checkpoint", "best"]
    (run / "manifest.json").write_text(json.dumps({"commands": [{"command": command}]}))
    assert f"{run} is an evaluation of runs/demo" in refused(run)
    (run / "config.json").write_text("{}")  # evaluated into its own folder
    assert "lacks model.safetensors" in refused(run, "--overwrite")


@pytest.mark.slow
def test_a_grader_of_ones_own_is_part_of_the_protocol(tmp_path, monkeypatch):
    grader = """
        from lit_atex.verify import Verdict, Verifier
        class Kind(Verifier):
            def verify(self, texts, answers):
                return [Verdict.CORRECT for _ in texts]
        class Truths(Verifier):
            def verify(self, texts, answers):
                return [True for _ in texts]
        class Few(Verifier):
            def verify(self, texts, answers):
                return [Verdict.CORRECT]
        class Nothing(Verifier):
            def verify(self, texts, answers):
                [Verdict.CORRECT for _ in texts]
    """
    (tmp_path / "my_grader.py").write_text(textwrap.dedent(grader))
    monkeypatch.syspath_prepend(tmp_path)
    run = tmp_path / "run"
    main(["evaluate", "embedded", "--sets", TINY, *FEW, "--model.verifier", "my_grader.Kind", "--run", str(run)])
    protocol = json.loads((run / "outcomes/test.protocol.json").read_text(encoding="utf-8"))
    assert protocol["model.verifier"] == "my_grader.Kind"
    [result] = results(run)["test"]
    assert result["metrics"]["avg@2"]["value"] == 1.0
    few = "[<Verdict.CORRECT: 'correct'>]"
    for kind, returned in (("Truths", "[True, True, True, True]"), ("Few", few), ("Nothing", "None")):
        words = ["--model.verifier", f"my_grader.{kind}", "--run", tmp_path / kind]
        message = refused("embedded", "--sets", TINY, *FEW, *words)
        assert f"{kind}.verify must return a Verdict (types.py) for each of 4 texts; it returned {returned}" in message


def test_an_unknown_option_is_an_error(capsys):
    assert refused("embedded", "--nosuch", "1", "--sets", TINY) == 2
    assert "nosuch" in capsys.readouterr().err
    assert refused() == 2
    assert "MODEL" in capsys.readouterr().err


# Models


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of a few steps that is evaluated while it trains, and whose best is not its last; tests only read it."""
    run = tmp_path_factory.mktemp("trained")
    stack = [word for name in ("base", "tiny") for word in ("--config", str(ROOT / f"configs/{name}.yaml"))]
    often = ["--trainer.val_check_interval", "2", "--trainer.max_steps", "6", "--checkpoint.mode", "max"]
    often += ["--model.optimizer.init_args.lr", "1e-3"]  # at which the last of these steps is not the best
    main(["fit", *stack, *often, "--run", str(run)])
    return run


def results(run):
    return json.loads((run / "results.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_folder_last_and_best(trained, tmp_path):
    """Both are evaluated with the run's prompts and sets; on its validation sets they repeat what the run has seen."""
    chosen = json.loads((trained / "manifest.json").read_text(encoding="utf-8"))["selection"]
    assert (chosen["last"], chosen["best"]) == (6, 2)
    for which in ("last", "best"):
        main(["evaluate", str(trained), "--validation", "--checkpoint", which, "--run", str(tmp_path / which)])
        [now], [then] = results(tmp_path / which)["validate"], results(trained)[f"step-{chosen[which]}"]
        assert now == then
        text = (tmp_path / which / "evaluation-validate.md").read_text(encoding="utf-8")
        assert f"- weights: {which} of {trained}, step {chosen[which]}" in text
        assert "best on validation: step 2" in text
    main(["evaluate", str(trained / "student"), "--run", str(tmp_path / "student"), *FEW])
    protocol = json.loads((tmp_path / "student/outcomes/test.protocol.json").read_text(encoding="utf-8"))
    assert protocol["model.prompts.student"] == "{question}"  # the run's
    assert protocol["model.student.name"] == str(trained / "student")


@pytest.mark.slow
def test_classes_that_trained_a_run_may_be_gone(trained, tmp_path):
    """What no evaluation asks; of the rest nothing changes: not the numbers, nor what they depend on."""
    run, gone = tmp_path / "run", {"class_path": "gone.Mine", "init_args": {"a": 1}}
    shutil.copytree(trained, run)
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    for part in ("teacher", "divergence", "weighting", "optimizer", "lr_scheduler"):
        config["model"][part] = gone
    config["exposure"] |= {"strategy": gone, "progress": gone}
    config["data"] |= {"train": gone, "probe": gone, "validation": {"mine": gone}}
    config["trainer"] |= {"logger": gone, "callbacks": [gone]}
    config["model"]["prompts"]["init_args"]["hint"] = "gone.hint"
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    for one in (trained, run):
        main(["evaluate", str(one), *FEW, "--run", str(tmp_path / f"of-{one.name}")])
    folders = [tmp_path / f"of-{one.name}" for one in (trained, run)]
    files = [[json.loads(p.read_text()) for p in sorted(f.glob("outcomes/*.protocol.json"))] for f in folders]
    assert len(files[0]) == 1
    assert files[0][0].pop("model.student.name") != files[1][0].pop("model.student.name")
    assert files[0] == files[1]
    assert results(folders[0]) == results(folders[1])
    told = refused(run, *FEW, "--exposure", "0.5", "--run", tmp_path / "hint")  # it shows what the function makes
    assert "model.prompts.hint: gone.hint could not be imported" in told
    config["model"]["engine"] = gone
    (run / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    assert refused(run, *FEW, "--run", tmp_path / "engine") == 2  # it samples


@pytest.mark.slow
@pytest.mark.parametrize("which", ["last", "best"])
def test_weights_are_evaluated_in_another_precision_whatever_trained_them(trained, tmp_path, which):
    """Neither has an average in half precision been built, nor is a frozen teacher's fingerprint compared."""
    words = ["--checkpoint", which, "--config", "teacher/ema", "--model.student.init_args.dtype", "bfloat16"]
    main(["evaluate", str(trained), *FEW, *words, "--run", str(tmp_path / which)])
    protocol = json.loads((tmp_path / which / "outcomes/test.protocol.json").read_text(encoding="utf-8"))
    assert protocol["model.student.dtype"] == "bfloat16"
    assert results(tmp_path / which)["test"]


@pytest.mark.slow
def test_sets_of_the_words_then_of_a_config_then_of_the_run(trained, tmp_path):
    run, source = (
        tmp_path / "run",
        "{class_path: lit_atex.sources.Embedded, init_args: {level: 2, size: 3, split: test}}",
    )
    shutil.copytree(trained, run)
    for name in ("mine", "others"):
        (tmp_path / f"{name}.yaml").write_text(f"data: {{test: {{{name}: {source}}}}}")
    few = ["--samples", "1", "--max_new_tokens", "16", "--config", tmp_path / "mine.yaml"]
    evaluated = lambda name: [one["name"] for one in results(tmp_path / name)["test"]]  # noqa: E731
    main(["evaluate", *map(str, [run, *few, "--run", tmp_path / "a"])])
    assert evaluated("a") == ["mine"]
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config["data"]["test"] = None
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    main(["evaluate", *map(str, [run, *few, "--sets", tmp_path / "others.yaml", "--run", tmp_path / "b"])])
    assert evaluated("b") == ["others"]
    assert "data.test is empty" in refused(run, "--run", tmp_path / "c")


@pytest.mark.slow
def test_a_run_that_is_not_whole(trained, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    (run / "checkpoints/best.ckpt").unlink()
    assert "best.ckpt is not there" in refused(run, "--checkpoint", "best", "--run", tmp_path / "x")
    shutil.rmtree(run / "student")
    assert "has no student/: its training did not end" in refused(run, "--run", tmp_path / "x")


def test_a_run_that_kept_no_weights(tmp_path):
    for name in ("config.yaml", "manifest.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="no student/: it stopped before its first checkpoint, and has no weights"):
        translate([str(tmp_path), "--run", "R"])


@pytest.mark.slow
def test_a_folder_and_an_adapter(tmp_path):
    """An untrained adapter changes nothing; without its weights, or its base, it is an error, never the base model."""
    pytest.importorskip("peft")
    base = tmp_path / "base"
    shutil.copytree(MODEL_DIR, base)
    model, tokenizer = LanguageModel(name=str(base), lora=Lora(rank=2)).load()
    adapter = tmp_path / "adapter"
    model.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    bare = ["--sets", TINY, *FEW, "--model.prompts.init_args.student", "{question}"]
    for name in ("base", "adapter"):
        main(["evaluate", str(tmp_path / name), *bare, "--run", str(tmp_path / f"of-{name}")])
    assert results(tmp_path / "of-base") == results(tmp_path / "of-adapter")

    kept = (adapter / "adapter_model.safetensors").read_bytes()
    (adapter / "adapter_model.safetensors").unlink()
    assert "could not be loaded" in refused(adapter, *bare, "--run", tmp_path / "x")
    (adapter / "adapter_model.safetensors").write_bytes(kept)
    (base / "model.safetensors").unlink()
    assert "could not be loaded" in refused(adapter, *bare, "--run", tmp_path / "x")
    assert "could not be loaded" in refused(base, *bare, "--run", tmp_path / "x")
    assert not (tmp_path / "x" / "results.json").exists()


@pytest.mark.slow
def test_a_thinking_mode_must_be_said(tmp_path):
    """The flag that eight threads about OPSD are about: with a template that has it, no silent default."""
    model, tokenizer = LanguageModel().load()
    tokenizer.chat_template = CHAT.replace("<|im_start|>", "").replace("<|im_end|>", "")
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "model")
    words = [tmp_path / "model", "--sets", TINY, *FEW, "--run", tmp_path / "run"]
    style = ["--model.prompts.init_args.student", "{question}" * 30]
    message = refused(*words, *style)
    assert "--thinking true or false" in message
    assert list((tmp_path / "run").glob("outcomes/*")) == []  # so the same command may be repeated with the flag


# Benchmarks: their configs, on local data sets of the same schema


AIME24 = [{"id": 60, "problem": "1+1?", "solution": r"\boxed{2}", "answer": "2", "url": "u", "year": "2024"}]
LOCAL = {"aime24": AIME24, "aime25": AIME25, "hmmt_feb25": HMMT, "math500": MATH, "gsm8k": GSM8K}


@pytest.mark.parametrize("name", LOCAL)
def test_a_benchmarks_config_reads_a_data_set_of_its_schema(name, tmp_path):
    from lit_atex.sources import Hub

    config = sets_of(find_config(name, "data"), "test")[name]["init_args"]
    assert len(config["revision"]) == 40
    assert int(config["revision"], 16)
    pq.write_table(pa.Table.from_pylist(LOCAL[name]), tmp_path / f"{config.get('split', 'train')}.parquet")
    from lit_atex.rows import Columns

    columns = Columns(**config.pop("columns"))
    problems = list(Hub(**config | {"dataset": str(tmp_path), "columns": columns, "name": None}))
    assert len(problems) == len(LOCAL[name])
    row = LOCAL[name][0]
    assert problems[0].question == row.get("problem", row.get("question"))
    assert problems[0].answer == ("72" if name == "gsm8k" else row["answer"])
    assert problems[0].answer in problems[0].solution


def test_generated_sets_need_no_network():
    pytest.importorskip("reasoning_gym")
    from lit_atex.sources import ReasoningGym

    for name in ("chain_sum", "gsm_symbolic"):
        problems = list(ReasoningGym(**sets_of(find_config(name, "data"), "test")[name]["init_args"] | {"size": 3}))
        assert len({p.question for p in problems}) == 3
        assert all(float(p.answer) == float(p.answer) and p.answer in p.solution for p in problems)
    assert list(sets_of(find_config("embedded", "data"), "test")) == [f"level-{i}" for i in (4, 6, 8, 10, 12)]


def test_competitions_are_the_three_by_themselves():
    together = sets_of(find_config("competitions", "data"), "test")
    alone = {name: sets_of(find_config(name, "data"), "test")[name] for name in ("aime24", "aime25", "hmmt_feb25")}
    drop = lambda sets: {k: {"split": "train"} | v["init_args"] for k, v in sets.items()}  # noqa: E731
    assert drop(together) == drop(alone)


def test_the_protocols():
    for name, samples in (("paper", 12), ("opsd", 16)):
        model = yaml.safe_load(find_config(f"protocol/{name}").read_text(encoding="utf-8"))["model"]
        assert model["eval_samples"] == samples
        assert model["eval_sampling"] == {
            **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
            "max_new_tokens": 38912,
        }
        assert model["prompts"]["init_args"]["eval_thinking"] is True
        assert model["verifier"]["init_args"]["forms"] == ["boxed"]


# The package


@pytest.mark.slow
def test_the_wheel_takes_the_configs_along(tmp_path):
    """`evaluate` finds them in the package where there is no checkout beside it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {"configs": "lit_atex/configs"}
    package = tmp_path / "site-packages" / "lit_atex"
    shutil.copytree(ROOT / "lit_atex", package, ignore=shutil.ignore_patterns("model", "__pycache__"))
    shutil.copytree(ROOT / "configs", package / "configs")
    code = "from lit_atex.evaluate import translate; print(translate(['embedded', '--sets', 'aime24'])[2])"
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.strip() == str(package / "configs" / "base.yaml"), done.stderr


def test_overwrite_takes_the_value_that_messages_name():
    assert parser().parse_args(["embedded", "--overwrite", "true"]).overwrite is True
    assert parser().parse_args(["embedded", "--overwrite"]).overwrite is True
    assert parser().parse_args(["embedded", "--overwrite", "false"]).overwrite is False
    assert parser().parse_args(["embedded"]).overwrite is False
