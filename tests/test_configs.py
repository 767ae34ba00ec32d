"""Every file in configs/ parses; base.yaml says all there is to set; overlays are small; tiny.yaml runs anywhere."""

import importlib
import inspect
import json
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import yaml

from lit_atex.cli import main
from lit_atex.prompts import PromptStyle

CONFIGS = Path(__file__).parents[1] / "configs"
BASE = CONFIGS / "base.yaml"
TINY = CONFIGS / "tiny.yaml"
# configs/ablations holds grids of runs, which are no overlays: tests/test_ablate.py parses each of their runs.
OVERLAYS = sorted(path for path in CONFIGS.rglob("*.yaml") if path != BASE and path.parent.name != "ablations")


def named(paths):
    return [pytest.param(path, id=str(path.relative_to(CONFIGS))) for path in paths]


@cache
def resolve(*paths, arguments=()):
    """The configuration that `lit-atex fit` makes of the stacked files."""
    stack = [word for path in paths for word in ("--config", str(path))]
    out = StringIO()
    with redirect_stdout(out), pytest.raises(SystemExit) as end:
        main(["fit", *stack, *arguments, "--print_config"])
    assert end.value.code == 0
    return yaml.safe_load(out.getvalue())


def load(class_path):
    module, _, name = class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def defaults(thing):
    parameters = list(inspect.signature(thing).parameters.values())
    return {p.name: p.default for p in parameters if p.name != "self"}


def plain(value):
    """A default as YAML would hold it."""
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.slow
@pytest.mark.parametrize("path", named(OVERLAYS))
def test_an_overlay_parses_on_the_base_and_changes_it(path):
    assert resolve(BASE, path) != resolve(BASE)


@pytest.mark.parametrize("path", named([BASE, *OVERLAYS]))
def test_a_config_opens_with_a_comment(path):
    assert path.read_text(encoding="utf-8").startswith("# ")


@pytest.mark.parametrize("path", named(OVERLAYS))
def test_an_overlay_has_at_most_25_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 25


@pytest.mark.slow
def test_tiny_on_top_of_everything_needs_no_network_and_no_optional_package():
    config = resolve(BASE, *(path for path in OVERLAYS if path != TINY), TINY)
    student = config["model"]["student"]["init_args"]
    assert student["name"] == "embedded"
    assert student["lora"] is None
    assert student["attn_implementation"] is None
    assert config["model"]["engine"]["class_path"] == "lit_atex.rollout.TransformersEngine"
    sources = [config["data"]["train"], *config["data"]["validation"].values(), *config["data"]["test"].values()]
    assert {source["class_path"] for source in sources} == {"lit_atex.sources.Embedded"}
    assert config["data"]["probe"] is None
    assert config["trainer"]["accelerator"] == "cpu"
    assert config["trainer"]["max_steps"] == 6


def test_a_tall_stack_parses_and_the_last_file_wins():
    config = resolve(BASE, CONFIGS / "model/smollm2.yaml", CONFIGS / "data/gsm_symbolic.yaml", TINY,
                     CONFIGS / "model/lora.yaml", arguments=("--trainer.max_steps", "2"))  # fmt: skip
    assert config["model"]["student"]["init_args"]["lora"]["rank"] == 16
    assert config["model"]["student"]["init_args"]["name"] == "embedded"
    assert config["model"]["optimizer"]["init_args"]["lr"] == pytest.approx(2e-4)
    assert list(config["data"]["validation"]) == ["level-4"]
    assert config["trainer"]["max_steps"] == 2


@pytest.mark.slow
def test_a_tall_stack_runs(tmp_path):
    overlays = ["model/smollm2.yaml", "data/gsm_symbolic.yaml", "model/lora.yaml", "exposure/scheduled.yaml"]
    stack = [word for path in (BASE, *(CONFIGS / name for name in overlays), TINY) for word in ("--config", str(path))]
    main(["fit", *stack, "--run", str(tmp_path), "--trainer.max_steps", "2"])
    assert (tmp_path / "student" / "model.safetensors").is_file()
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [r["name"] for r in results["step-0"]] == [r["name"] for r in results["step-2"]] == ["level-4"]


# base.yaml holds every setting that there is, with the value that the code would take without it. Where it says
# something else, the reason stands here.
REASONS = {
    "model.prompts.init_args.student": "the embedded reasoner was trained on bare questions",
    "model.prompts.init_args.teacher": "the same",
    "model.prompts.init_args.mark": "the embedded reasoner has no symbol to spare",
    "data.batch_size": "the embedded reasoner is small enough for 64 problems at a time; 8 suits a language model",
    "data.validation": "the base names its sets",
    "data.test": "the same",
}


def objects(config):
    """(key, class or function, what is set) for everything of ours that base.yaml configures."""
    from lit_atex.callbacks import ExposureControl
    from lit_atex.collapse import CollapseMonitor
    from lit_atex.contamination import ContaminationCheck
    from lit_atex.data import ProblemDataModule
    from lit_atex.estimator import CompetenceEstimator
    from lit_atex.module import SelfDistillation
    from lit_atex.rollout import Sampling
    from lit_atex.sample_log import SampleLog

    yield "model", SelfDistillation, config["model"]
    yield "model.sampling", Sampling, config["model"]["sampling"]
    yield "model.eval_sampling", Sampling, config["model"]["eval_sampling"]
    yield "data", ProblemDataModule, config["data"]
    yield "exposure", ExposureControl, config["exposure"]
    yield "competence", CompetenceEstimator, config["competence"]
    yield "sample_log", SampleLog, config["sample_log"]
    yield "collapse", CollapseMonitor, config["collapse"]
    yield "contamination", ContaminationCheck, config["contamination"]
    parts = {f"model.{key}": part for key, part in config["model"].items()}
    parts |= {"data.train": config["data"]["train"], "exposure.strategy": config["exposure"]["strategy"]}
    for key, part in parts.items():
        if isinstance(part, dict) and part.get("class_path", "").startswith("lit_atex."):
            yield f"{key}.init_args", load(part["class_path"]), part.get("init_args", {})


LINKED = {"model.seed", "data.seed"}
"""Set from `seed_everything` by the command line."""


def test_the_base_is_complete():
    config = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    for key, thing, given in objects(config):
        missing = {f"{key}.{name}" for name in defaults(thing)} - {f"{key}.{name}" for name in given} - LINKED
        assert not missing, f"configs/base.yaml lacks {sorted(missing)}"


def test_the_base_agrees_with_the_defaults_in_the_code():
    config = yaml.safe_load(BASE.read_text(encoding="utf-8"))
    differing = {
        f"{key}.{name}"
        for key, thing, given in objects(config)
        for name, default in defaults(thing).items()
        if default is not inspect.Parameter.empty and name in given and given[name] != plain(default)
    }
    assert differing == REASONS.keys()


@pytest.mark.slow
def test_quick_shortens_and_exchanges_nothing():
    """It is to try one's own model, data and prompts."""
    for paths in ((BASE,), (BASE, CONFIGS / "model/qwen3.yaml", CONFIGS / "data/jsonl.yaml")):
        long, quick = resolve(*paths), resolve(*paths, CONFIGS / "quick.yaml")
        assert quick["trainer"]["max_steps"] == 2
        for section, keys in {
            "model": ("student", "prompts", "divergence"),
            "data": ("train", "validation", "test"),
        }.items():
            assert all(quick[section][key] == long[section][key] for key in keys)


def test_data_of_ones_own_leaves_no_embedded_sets_behind():
    for name in ("jsonl", "openthoughts", "gsm8k"):
        data = resolve(BASE, CONFIGS / "data" / f"{name}.yaml")["data"]
        sets = [data["train"], *(data["validation"] or {}).values(), *(data["test"] or {}).values()]
        assert all("Embedded" not in source["class_path"] for source in sets)


def test_a_language_models_overlay_has_its_own_numbers_and_prompts():
    """Those of base.yaml are the embedded reasoner's: a thousandth as learning rate would ruin another."""
    for name in ("qwen3", "smollm2"):
        model = resolve(BASE, CONFIGS / "model" / f"{name}.yaml")["model"]
        prompts = PromptStyle(**model["prompts"]["init_args"])
        assert "reason step by step" in prompts.student_template
        assert "{hint}" in prompts.teacher_template
        assert prompts.mark
        assert model["optimizer"]["init_args"]["lr"] < 1e-3
        assert model["sampling"]["max_new_tokens"] > 128


def test_grpo_samples_from_the_policy_whose_gradient_it_takes():
    """Whatever a model's config says of rollouts."""
    model = resolve(BASE, CONFIGS / "model/qwen3.yaml", CONFIGS / "objective/grpo.yaml")["model"]
    whole = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
    assert model["sampling"] == whole | {"max_new_tokens": 1024}
    assert model["divergence"]["init_args"]["temperature"] == whole["temperature"]


@pytest.mark.slow
@pytest.mark.parametrize("last", named(path for path in OVERLAYS if path.parent.name == "objective"))
def test_the_last_objective_of_a_stack_holds(last):
    """GRPO's weights on references, which are all alike, would train nothing."""
    others = (path for path in OVERLAYS if path.parent == last.parent and path != last)
    found, alone = (resolve(BASE, *paths)["model"] for paths in ((*others, last), (last,)))
    assert all(found[key] == alone[key] for key in ("completions", "weighting"))
