"""What README says is so: the map, the snippet, the files and the make targets it names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
import yaml

from lit_atex.api import load
from lit_atex.cli import main
from lit_atex.competence import Competence
from lit_atex.exposure import TrainingState
from lit_atex.types import StepFeedback, Verdict

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_map_lists_every_module_and_nothing_else() -> None:
    tree = README.split("## Map")[1].split("```")[1]
    named = set(re.findall(r"^  (\w+\.py) ", tree, re.MULTILINE))
    there = {p.name for p in (ROOT / "lit_atex").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert named == there
    folders = re.findall(r"^(\w+)/ ", tree, re.MULTILINE)
    assert folders
    assert all((ROOT / folder).is_dir() for folder in folders)


def test_every_named_path_exists() -> None:
    named = set(re.findall(r"\b(?:configs|docs|tests|benchmarks|results)/[\w./-]+\.(?:yaml|md|png|py|json)", README))
    assert named
    assert [p for p in named if not (ROOT / p).is_file()] == []


def test_every_named_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)\b *(?:#|`|,)", README))
    assert {"demo", "test"} <= named <= targets


def test_ci_runs_the_test_command() -> None:
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_constraints_pin_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [d for name in ("lora", "gym", "hub", "dev") for d in project["optional-dependencies"][name]]
    names = {re.split(r"[\[><=;]", d)[0].lower().replace("_", "-") for d in [*project["dependencies"], *extras]}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines if "==" in line}
    assert names - pinned == {"lit-atex"}


def test_no_module_has_two_ideas_in_it() -> None:
    long = {
        str(p.relative_to(ROOT)): len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.glob("lit_atex/**/*.py")
    }
    assert {name: n for name, n in long.items() if n > 300} == {}


def snippet() -> str:
    return next(code for code in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "class ByLevel" in code)


def test_snippet_fits_in_fifteen_lines_and_does_what_it_says() -> None:
    code = snippet()
    body = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(body) <= 15
    names: dict = {}
    exec(code, names)
    strategy = names["ByLevel"](least=0.25)
    competence = Competence()
    state = TrainingState(0, 10, 0, problem_ids=["a", "b"], levels=["easy", "hard"], competence=competence)
    assert strategy.ratios(state) == [0.5, 0.5]  # nothing is known yet
    verdicts = [Verdict.CORRECT, Verdict.WRONG]
    for step in range(60):
        competence.update(StepFeedback(step, ["a", "b"], ["easy", "hard"], [0.5, 0.5], verdicts, *[0.0] * 7))
    easy, hard = strategy.ratios(state)
    assert easy == 0.25
    assert hard > 0.8


@pytest.mark.slow
def test_snippet_runs_from_a_file_of_ones_own(tmp_path, monkeypatch) -> None:
    (tmp_path / "my_exposure.py").write_text(snippet(), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    stack = [word for name in ("base", "tiny") for word in ("--config", str(ROOT / f"configs/{name}.yaml"))]
    run = tmp_path / "run"
    main(
        [
            "fit",
            *stack,
            "--run",
            str(run),
            "--exposure.strategy",
            "my_exposure.ByLevel",
            "--trainer.max_steps",
            "2",
        ]
    )
    assert "my_exposure.ByLevel" in (run / "config.yaml").read_text(encoding="utf-8")
    assert (run / "student" / "model.safetensors").is_file()


def test_docs_explain_nothing_that_is_not_logged() -> None:
    """That all of it is explained, a run shows: tests/test_run_folder.py."""
    page = (ROOT / "docs" / "logged.md").read_text(encoding="utf-8").split("## Evaluations")[0]
    names = {re.sub("_(ratio|change|fall)$", "", name) for name in re.findall(r"`[a-z]+/([a-z_]+)`", page)}
    assert len(names) > 50
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "lit_atex").glob("*.py"))
    assert [name for name in names if not re.search(rf"[\"/]{name}\b", code)] == []


@pytest.mark.slow
def test_a_divergence_of_ones_own_as_docs_show_it(tmp_path, monkeypatch) -> None:
    text = (ROOT / "docs" / "divergences.md").read_text(encoding="utf-8")
    code = text.split("```python\n# my_divergence.py\n")[1].split("```")[0]
    (tmp_path / "my_divergence.py").write_text(code, encoding="utf-8")
    words = text.split("lit-atex fit --config base ")[1].split("\n")[0].split()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    run = load("base", "tiny", {"trainer.max_steps": 1}, run=str(tmp_path / "run"))
    assert type(run.model.divergence).__name__ == "ForwardKL"
    main(
        [
            "fit",
            "--config",
            "base",
            "--config",
            "tiny",
            *words,
            "--trainer.max_steps",
            "1",
            "--run",
            str(tmp_path / "b"),
        ]
    )
    import my_divergence

    teacher, student = torch.randn(2, 3, 7, dtype=torch.float64).softmax(-1)
    value = (
        my_divergence.Power(scale=10).per_token(student.log(), teacher.log(), torch.zeros(3, dtype=torch.long)).value
    )
    torch.testing.assert_close(value, 10 * ((student - teacher) ** 2).sum(-1))


def test_every_overlay_is_named_and_there() -> None:
    table = README.split("| what | overlay, in `configs/` |")[1].split("\n\n")[0]
    configs, named = ROOT / "configs", set()
    for row in table.splitlines()[2:]:
        folder = ""
        for name in re.findall(r"`([\w./-]+)`", row.split("|")[2]):  # "`hint/suffix`, `masked`": the folder goes on
            folder = name.rpartition("/")[0] or folder
            places = [configs / f"{name}.yaml", configs / folder / f"{name}.yaml", *(configs / name).glob("*.yaml")]
            found = [place for place in places if place.is_file()]
            assert found, name
            named.update(found)
    there = {p for p in ROOT.glob("configs/*/*.yaml") if p.parent.name != "ablations"}
    of_a_stack = {"chain_sum", "gsm_symbolic", "embedded", "aime24", "aime25", "hmmt_feb25"}
    assert {p.stem for p in there - named} == of_a_stack


PAGES = [*ROOT.glob("*.md"), *ROOT.glob("[bdr]*/**/*.md"), ROOT / "lit_atex" / "embedded" / "model" / "README.md"]


@pytest.mark.parametrize("page", sorted(PAGES), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page) -> None:
    links = [x for x in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")) if "://" not in x]
    assert [link for link in links if not page.parent.joinpath(link).exists()] == []


def test_the_method_on_a_page_is_so() -> None:
    method = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    names: dict = {}
    exec(method.split("```python\n")[1].split("```")[0], names)
    assert names["earned"] == [0.15, 0.1]
    base = yaml.safe_load((ROOT / "configs" / "base.yaml").read_text(encoding="utf-8"))
    keys = [key for key in re.findall(r"`((?:model|exposure)\.[a-z_.]+)`", method) if not key.endswith(".py")]
    assert len(keys) > 8
    for key in keys:
        value = base
        for part in key.split(".init_args")[0].split("."):  # arguments are those of classes that base.yaml may not have
            value = value[part]
    modules = set(re.findall(r"`(\w+\.py)`", method))
    assert {name for name in modules if not (ROOT / "lit_atex" / name).is_file()} == set()


@pytest.mark.slow
def test_a_run_from_python_is_that_of_the_command_line(tmp_path, monkeypatch) -> None:
    code = README.split("```python\nfrom lit_atex.api import load\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec("from lit_atex.api import load\n" + code, found)
    run = found["run"]
    assert (run.run_folder / "manifest.json").is_file()
    manifest = json.loads((run.run_folder / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["finished"] is True
    steps = str(run.trainer.max_steps)
    main(["fit", "--config", "base", "--config", "tiny", "--config", "exposure/bandit", "--trainer.max_steps", steps,
          "--model.divergence", "ReverseKL", "--run", "line"])  # fmt: skip
    for file in ("outcomes/step-2.level-4.jsonl", "decisions.jsonl"):
        assert (run.run_folder / file).read_text() == (tmp_path / "line" / file).read_text()


@pytest.mark.slow
def test_two_runs_from_python_do_not_lock_each_other_out(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    stack = ("base", "tiny", {"trainer.max_steps": 1, "data.validation": None})
    first, second = load(*stack), load(*stack, "exposure/bandit")
    assert first.run_folder.name.endswith("-tiny")
    first.train()
    second.train()
    with pytest.raises(RuntimeError, match=r"has been trained: .*resume=True\) goes on"):
        first.train()
    more = load(*stack, {"trainer.max_steps": 2}, run=str(first.run_folder), resume=True)
    more.train()
    assert more.trainer.global_step == 2
    for run in (first, second):
        assert json.loads((run.run_folder / "manifest.json").read_text(encoding="utf-8"))["finished"] is True
        hold_in_another = (
            "import sys; from pathlib import Path; from lit_atex.resume import hold; hold(Path(sys.argv[1]))"
        )
        subprocess.run([sys.executable, "-c", hold_in_another, str(run.run_folder)], check=True, cwd=ROOT)


def test_what_is_wrong_is_said_from_python_too(tmp_path) -> None:
    with pytest.raises(SystemExit):
        load("base", {"model.sampling.temprature": 1.0}, run=str(tmp_path / "run"))
    with pytest.raises(ValueError, match="Is it exposure/bandit"):
        load("base", "exposure/bandti")


@pytest.mark.slow
def test_benchmarks_find_what_they_import() -> None:
    """None of them is run here: a name that moved would be noticed months later."""
    code = "import runpy, sys; [runpy.run_path(path, run_name='imported') for path in sys.argv[1:]]"
    paths = sorted(map(str, (ROOT / "benchmarks").glob("*.py")))
    assert len(paths) > 8
    done = subprocess.run(
        [sys.executable, "-c", code, *paths], cwd=ROOT / "benchmarks", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
