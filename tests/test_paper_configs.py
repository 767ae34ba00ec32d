"""The paper's runs: each says what it is, parses to what OPSD published, and takes two steps with the reasoner."""

import json
from pathlib import Path

import pytest
import yaml

from lit_atex.cli import main
from lit_atex.prompts import PromptStyle
from lit_atex.settings import changed, resolve

ROOT = Path(__file__).parents[1]
CONFIGS = ROOT / "configs"
PAPER = sorted((CONFIGS / "paper").glob("*.yaml"))
SIZES = {"1.7b": ("Qwen/Qwen3-1.7B", 2048), "4b": ("Qwen/Qwen3-4B", 1024), "8b": ("Qwen/Qwen3-8B", 1024)}


def stack(path, *more):
    names = ["base.yaml", "model/chat.yaml", "data/openthoughts.yaml"]
    return ["fit", *(w for p in [*(CONFIGS / n for n in names), path, *more] for w in ("--config", str(p)))]


def test_there_are_two_for_each_model():
    assert [p.stem for p in PAPER] == sorted(f"qwen3-{size}-{m}" for size in SIZES for m in ("opsd", "atesd"))


@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_the_header_says_what_was_not_done(path):
    text = path.read_text(encoding="utf-8")
    head = " ".join(line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#"))
    for words in ("NOT RUN HERE", "+0.95 to +2.33 points of Average@12", "an estimate", "2605.11458", "d75fcc7"):
        assert words in head
    # The stack that the header names is the one that is tested below.
    assert [w for w in head.split() if w.startswith("configs/")] == [
        "configs/base.yaml", "configs/model/chat.yaml", "configs/data/openthoughts.yaml"]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_the_settings_are_those_that_opsd_published(path):
    config = resolve(stack(path))
    name, tokens = SIZES[path.stem.split("-")[1]]
    model = config["model"]
    assert model["student"]["init_args"]["name"] == name
    lora = {"rank": 64, "alpha": 128, "dropout": 0.0, "target_modules": "all-linear"}
    assert model["student"]["init_args"]["lora"] == lora
    assert model["optimizer"]["init_args"]["lr"] == pytest.approx(2e-4)
    assert model["sampling"] == {"temperature": 1.1, "top_p": 0.95, "top_k": 20, "min_p": 0.0, "max_new_tokens": tokens}
    assert model["divergence"]["init_args"]["temperature"] == 1.1
    assert model["teacher"]["class_path"].endswith("Frozen")
    assert "Problem: {question}" in PromptStyle(**model["prompts"]["init_args"]).student_template
    trainer = config["trainer"]
    assert trainer["devices"] * trainer["accumulate_grad_batches"] * config["data"]["batch_size"] == 32
    assert config["data"]["train"]["init_args"]["dataset"] == "siyanzhao/Openthoughts_math_30k_opsd"


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_the_two_methods_differ_in_exposure_alone(size):
    opsd, atesd = (resolve(stack(CONFIGS / f"paper/qwen3-{size}-{method}.yaml")) for method in ("opsd", "atesd"))
    assert opsd["exposure"]["strategy"] == {"class_path": "lit_atex.exposure.Fixed", "init_args": {"ratio": 1.0}}
    assert atesd["exposure"]["strategy"]["class_path"] == "lit_atex.beta_policy.BetaPolicy"
    del opsd["exposure"], atesd["exposure"]
    assert changed(opsd, atesd) == []


def test_the_protocol_is_average_at_12_on_the_three_competitions():
    protocol = yaml.safe_load((CONFIGS / "protocol/paper.yaml").read_text(encoding="utf-8"))
    assert protocol["model"]["eval_samples"] == 12
    for path in PAPER:
        text = path.read_text(encoding="utf-8")
        assert "evaluate RUN --sets aime24 aime25 hmmt_feb25 --config protocol/paper" in text
    assert all((CONFIGS / f"data/{name}.yaml").is_file() for name in ("aime24", "aime25", "hmmt_feb25"))


@pytest.mark.slow
@pytest.mark.parametrize("path", PAPER, ids=lambda p: p.stem)
def test_two_steps_with_tiny_on_top(path, tmp_path):
    main([*stack(path, CONFIGS / "tiny.yaml"), "--run", str(tmp_path), "--trainer.max_steps", "2"])
    manifest = json.loads((tmp_path / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["finished"]
    assert manifest["optimizer_steps"] == 2
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert list(results) == ["step-0", "step-2"]
