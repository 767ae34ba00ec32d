"""Supervised fine-tuning against transformers' own loss, and references as completions under the teacher's targets."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from fakes import SIX, byte_tokenizer
from test_module import Drawn, distillation, fit, saved_model, weights
from torch.optim import SGD

from lit_atex.cli import main
from lit_atex.divergence import ForwardKL
from lit_atex.supervised import NegativeLogLikelihood, references
from lit_atex.teacher import Frozen, Live
from lit_atex.weighting import GroupRelative

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    folder = saved_model(tmp_path_factory.mktemp("student"))
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = "<|pad|>"  # the chat template ends an answer with <|im_end|>, id 0, as Gemma's with another
    tokenizer.save_pretrained(folder)
    return folder


def own_loss(student, module, ratios) -> torch.Tensor:
    """Mean cross-entropy per reference token, end token included, by transformers' `labels`, row by row."""
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for problem, ratio in zip(SIX, ratios, strict=True):
        prompt = module.prompts.teacher(problem, ratio, module.tokenizer).ids
        answer = [*module.tokenizer(problem.solution)["input_ids"], 0]
        ids = torch.tensor([prompt + answer])
        labels = ids.clone()
        labels[:, : len(prompt)] = -100
        total = total + student(input_ids=ids, labels=labels).loss * len(answer)
        tokens += len(answer)
    return total / tokens


@pytest.mark.parametrize("samples", [1, 2])  # the mean over references is the same
@pytest.mark.parametrize("completions", ["reference", "hinted_reference"])
def test_loss_and_update_are_those_of_transformers(name, completions, samples):
    module = distillation(
        name,
        divergence=NegativeLogLikelihood(),
        max_new_tokens=200,
        optimizer=lambda parameters: SGD(parameters, lr=0.1),
        engine=Drawn(),
    )
    module.completions, module.samples = completions, samples
    module.exposure = shown = [0.0, 1.0, 0.5, 0.0, 0.7, 1.0]
    module.configure_model()
    before = copy.deepcopy(module.student).double()
    logged = fit(module)
    loss = own_loss(before, module, shown if completions == "hinted_reference" else [0.0] * 6)
    loss.backward()
    assert logged.values("loss/divergence") == pytest.approx([loss.item()], rel=1e-5)
    assert module.engine.calls == []  # the student was not asked
    read = [module.prompts.teacher(p, u, module.tokenizer).ids for p, u in zip(SIX, shown)]
    assert (module.seen.student_prompts == read) == (completions == "hinted_reference")
    for key, after in weights(module).items():
        parameter = dict(before.named_parameters())[key]
        torch.testing.assert_close(after.double(), parameter - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_hint_that_does_not_fit_is_shortened_before_the_reference(name):
    nll = NegativeLogLikelihood()
    module = distillation(name, divergence=nll, max_new_tokens=200, engine=Drawn())
    module.completions, module.prompts.max_teacher_tokens = "hinted_reference", 50
    module.configure_model()
    before = copy.deepcopy(module.student).double()
    logged = fit(module)  # exposure 1
    assert logged.values("loss/divergence") == pytest.approx([own_loss(before, module, [1.0] * 6).item()], rel=1e-5)
    short = [prompt.truncated for prompt in module.seen.teacher_prompts]
    assert any(short)
    assert all(len(ids) <= 50 for ids in module.seen.student_prompts)
    assert all(ended for ended in module.seen.rollouts.ended)  # no reference was


def test_a_loss_that_reads_no_teacher_trains_the_same_student_without_a_second_set_of_weights(name):
    """As configs/objective/grpo.yaml says."""
    found = []
    for teacher in (Frozen(), Live()):
        module = distillation(name, None, teacher, NegativeLogLikelihood(), samples=2, weighting=GroupRelative())
        module.exposure = 0.0
        found.append((module, fit(module, 3).values("mismatch/forward_kl")))
    (frozen, drift), (live, none) = found
    torch.testing.assert_close(weights(live), weights(frozen), rtol=0, atol=0)
    assert drift[2] > drift[0] == 0 == max(none)


def test_references_end_with_the_end_token_and_are_cut_at_the_limit():
    tokenizer = byte_tokenizer()
    ids = [tokenizer(p.solution)["input_ids"] for p in SIX[:2]]
    found = references(ids, 2, 0, 45, torch.device("cpu"))
    assert len(ids[0]) < 45 < len(ids[1]) + 1
    assert [row[:n].tolist() for row, n in zip(found.ids, found.lengths)] == [[*ids[0], 0]] * 2 + [ids[1][:45]] * 2
    assert found.ended.tolist() == [True, True, False, False]


def test_the_value_is_that_of_cross_entropy():
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 5, 11, dtype=torch.float64)
    ids = torch.randint(11, (5,))
    found = NegativeLogLikelihood(temperature=2.0).per_token(student, teacher, ids)
    torch.testing.assert_close(found.value, torch.nn.functional.cross_entropy(student / 2, ids, reduction="none"))
    torch.testing.assert_close(found.mismatch, ForwardKL(temperature=2.0).per_token(student, teacher, ids).value)


@pytest.mark.slow
@pytest.mark.parametrize("overlay", ["sft", "off_policy", "hinted_sft", "grpo", "rejection"])
def test_the_overlays_train_on_tiny(overlay, tmp_path):
    stack = [CONFIGS / "base.yaml", CONFIGS / "objective" / f"{overlay}.yaml", CONFIGS / "tiny.yaml"]
    main(["fit", *(word for path in stack for word in ("--config", str(path))), "--run", str(tmp_path)])
    assert (tmp_path / "results.json").is_file()
    text = (tmp_path / "prompts.txt").read_text(encoding="utf-8")
    blocks = [block.partition("\n") for block in text.split("===== ")[1:]]
    roles = ("student", "teacher", "evaluation")
    student, teacher, bare = ([body for head, _, body in blocks if f"· {role}, " in head] for role in roles)
    assert (student == teacher) == (overlay != "off_policy")  # the others show nothing to either
    assert (student == bare) == (overlay != "hinted_sft")
