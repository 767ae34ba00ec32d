"""The loss in parts against the loss in one piece, and both against logits of whole rows."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from fakes import two_layer_model
from test_module import LORA, distillation, fit, saved_model, weights
from torch.optim import SGD
from transformers import Qwen3ForCausalLM

from lit_atex.distil import distil
from lit_atex.divergence import ForwardKL, SampledToken
from lit_atex.rollout import evaluating
from lit_atex.teacher import Ema, Frozen, Live, Teacher
from lit_atex.types import Rollouts, seeded

SAMPLES = 3


def batch(empty: bool = False):
    numbers = seeded(1, "test")
    prompts = [numbers.integers(1, 259, n).tolist() for n in (5, 9, 3, 7)]
    hints = [p + numbers.integers(1, 259, 6).tolist() for p in prompts]
    lengths = torch.from_numpy(numbers.integers(0, 9, 4 * SAMPLES)) * (not empty)
    ids = torch.from_numpy(numbers.integers(0, 259, (len(lengths), 9)))
    return prompts, hints, Rollouts(ids, lengths, lengths > 0)


def started(teacher):
    """A student one step away from its start, and its teacher."""
    student = two_layer_model().train()
    teacher.attach(student)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(0.02 * torch.sin(torch.arange(parameter.numel()).float()).view_as(parameter))
    return student, teacher


def by_rows(divergence, student, teacher, prompts, hints, rollouts):
    """One rollout at a time, all logits, plain autograd."""
    total, values = torch.zeros(()), []
    for i, (ids, n) in enumerate(zip(rollouts.ids, rollouts.lengths.tolist())):
        logits = []
        for model, prompt in ((student, prompts[i // SAMPLES]), (teacher, hints[i // SAMPLES])):
            row = torch.cat([torch.tensor(prompt), ids[:n]])[None]
            logits.append(model(input_ids=row).logits[0, len(prompt) - 1 : -1])
        if n:
            found = divergence.per_token(logits[0], logits[1].detach(), ids[:n]).value
            total, values = total + found.sum(), [*values, found.detach()]
    return total, torch.cat(values)


@pytest.mark.slow
@pytest.mark.parametrize("part_tokens", [1, 30, 150, 10_000])
@pytest.mark.parametrize("divergence", [ForwardKL(temperature=0.7), SampledToken()], ids=repr)
@pytest.mark.parametrize("kind", [Frozen, Live])
def test_parts_add_up_to_the_plain_loss(kind, divergence, part_tokens):
    student, teacher = started(kind())
    prompts, hints, rollouts = batch()
    phases = []

    class Timed:
        def __init__(self, phase):
            phases.append(phase)

        def __enter__(self):
            pass

        def __exit__(self, *error):
            pass

    loss, tokens = distil(divergence, student, teacher, prompts, hints, rollouts, SAMPLES, 5, part_tokens, timed=Timed)
    assert phases == ["teacher", "student"] * {1: 12, 30: 6, 150: 2, 10_000: 1}[part_tokens]
    (2 * loss).backward()
    got = [p.grad.clone() for p in student.parameters()]
    student.zero_grad()
    with teacher.scorer(student) as scorer:
        scorer = scorer if kind is Frozen else student
    want, values = by_rows(divergence, student, scorer, prompts, hints, rollouts)
    (2 * want).backward()
    torch.testing.assert_close(loss, want, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.value, values, rtol=1e-4, atol=1e-5)
    assert not any(field.requires_grad for field in tokens)
    for ours, parameter in zip(got, student.parameters(), strict=True):
        assert (ours - parameter.grad).norm() <= 2e-5 * parameter.grad.norm()


@pytest.mark.slow
@pytest.mark.parametrize("samples", [1, 2, 8])
@pytest.mark.parametrize("hints", [0, 40])
@pytest.mark.parametrize("budget", [1, 70, 130, 10_000])
def test_no_pass_of_student_or_teacher_has_more_tokens_than_a_part_may(samples, hints, budget):
    student, teacher = started(Frozen())
    prompts = [[1] * n for n in (20, 2, 20, 2, 3, 3)]
    lengths = torch.tensor([2, 20, 2, 20, 3, 3]).repeat_interleave(samples)
    ids = torch.full((len(lengths), 20), 5)
    rollouts = Rollouts(ids, lengths, torch.ones(len(lengths), dtype=torch.bool))
    longest = [[2] * hints + p for p in prompts]
    seen = []
    with teacher.scorer(student) as scorer:
        for side, model in (("student", student), ("teacher", scorer)):
            model.get_decoder().register_forward_pre_hook(
                lambda _, args, given, side=side: seen.append((side, given["input_ids"].numel())), with_kwargs=True
            )
    distil(ForwardKL(), student, teacher, prompts, longest, rollouts, samples, 5, budget)
    alone = max(len(p) + n for p, n in zip(longest, lengths[::samples].tolist()))  # one rollout always goes
    assert {side for side, _ in seen} == {"student", "teacher"}
    assert max(count for _, count in seen) <= max(budget, alone)


def test_the_teachers_prompt_and_weights_of_the_student_cost_exactly_nothing():
    student = two_layer_model()
    teacher = Frozen()
    teacher.attach(student)
    prompts, _, rollouts = batch()
    for part_tokens in (1, 150, 10_000):
        loss, tokens = distil(ForwardKL(), student, teacher, prompts, prompts, rollouts, SAMPLES, 5, part_tokens)
        assert loss.item() == 0.0
        assert (tokens.value == 0.0).all()


class Own(Teacher):
    """A user's: another model, or the student itself."""

    def __init__(self, model=None):
        self.model = model

    @contextmanager
    def scorer(self, student):
        with evaluating(self.model or student):
            yield self.model or student


class Tempered(Qwen3ForCausalLM):
    """A family that does something to its logits that no config tells."""

    def forward(self, *args, **given):
        output = super().forward(*args, **given)
        output.logits = output.logits * 0.25
        return output


@pytest.mark.parametrize("half", [False, True])
def test_a_teacher_of_ones_own_whose_logits_would_be_others_is_refused(half):
    student, prompts, hints, rollouts = two_layer_model().train(), *batch()
    model = Tempered(student.config)
    with (
        torch.autocast("cpu", torch.bfloat16, enabled=half),
        pytest.raises(ValueError, match=r"^model\.teacher: Own\.scorer yields .* Tempered changes its logits"),
    ):
        distil(ForwardKL(), student, Own(model), prompts, hints, rollouts, SAMPLES, 5, 10_000)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("itself", [False, True])
def test_a_teacher_of_ones_own_is_looked_at_once_and_changes_nothing(half, itself):
    student, prompts, hints, rollouts = two_layer_model().train(), *batch()
    model = student if itself else two_layer_model().eval()
    looks = []
    model.register_forward_hook(lambda *args: looks.append(1))  # scoring takes the decoder alone
    losses = []
    for teacher in [Own(None if itself else model)] * 2:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss, _ = distil(ForwardKL(), student, teacher, prompts, hints, rollouts, SAMPLES, 5, 60)
        losses.append(loss.item())
    loss.backward()
    assert looks == [1]
    assert losses[0] == losses[1] > 0
    assert student.training
    assert all(p.grad is not None for p in student.parameters())


def test_no_tokens_is_a_loss_of_zero_with_a_gradient():
    student, teacher = started(Frozen())
    loss, tokens = distil(ForwardKL(), student, teacher, *batch(empty=True), SAMPLES, 5, 60)
    loss.backward()
    assert loss.item() == 0.0
    assert len(tokens.value) == 0
    assert all((p.grad == 0).all() for p in student.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "settings"),
    [
        ("full", {"gradient_clip_val": 0.01}),
        ("lora", {}),
        ("ema", {"accumulate_grad_batches": 2}),
        ("checkpointing", {}),
        ("full", {"precision": "bf16-mixed"}),
        ("lora", {"precision": "bf16-mixed"}),
    ],
)
def test_a_run_in_parts_is_the_run_in_one_piece(tmp_path, case, settings):
    """Several optimizer steps through the trainer: weights, and everything that is logged."""
    logs, finals = [], []
    for part_tokens in (10_000, 1):
        module = distillation(
            saved_model(tmp_path / "model"),
            lora=LORA if case == "lora" else None,
            teacher=Ema(0.5) if case == "ema" else Frozen(),
            optimizer=lambda params: SGD(params, lr=0.3),
            samples=2,
            part_tokens=part_tokens,
        )
        module.source.gradient_checkpointing = case == "checkpointing"
        logs.append(fit(module, 4, 3, **settings).steps)
        finals.append(weights(module))
    half = "precision" in settings  # the type of the matrix products, and so of what the sums over parts are made of
    torch.testing.assert_close(finals[1], finals[0], rtol=1e-5, atol=2e-3 if half else 1e-6)
    for step, row in logs[0].items():
        steady = {k: v for k, v in row.items() if not k.startswith(("time/", "throughput/completion"))}
        assert "loss/divergence" in steady
        assert {k: logs[1][step][k] for k in steady} == pytest.approx(steady, rel=3e-2 if half else 1e-4, abs=1e-6)
