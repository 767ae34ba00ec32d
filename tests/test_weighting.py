"""What rollouts count for by their verdicts, against brute force: advantages, a step's gradient, the expected one."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from fakes import SIX
from hypothesis import given
from hypothesis import strategies as st
from test_module import Drawn, distillation, fit, saved_model, weights
from torch.optim import SGD

from lit_atex.supervised import NegativeLogLikelihood
from lit_atex.types import Verdict
from lit_atex.weighting import Correct, GroupRelative, Weighting, check_weighting, rollout_weights

VERDICTS = st.lists(st.sampled_from(list(Verdict)), min_size=12, max_size=12)


@given(VERDICTS, st.sampled_from([2, 3, 4, 6]), st.booleans())
def test_group_relative_is_the_reward_against_the_group(verdicts, samples, scaled) -> None:
    found = rollout_weights(GroupRelative(scaled), verdicts, samples)
    rewards = [float(v == Verdict.CORRECT) for v in verdicts]
    for start in range(0, 12, samples):
        group = rewards[start : start + samples]
        mean = sum(group) / samples
        spread = (sum((r - mean) ** 2 for r in group) / (samples - 1)) ** 0.5 if scaled else 1.0
        expected = [(r - mean) / spread if r != mean else 0.0 for r in group]
        assert found[start : start + samples].tolist() == pytest.approx(expected, abs=1e-5)


@given(VERDICTS)
def test_correct_keeps_what_was_right(verdicts) -> None:
    assert rollout_weights(Correct(), verdicts, 3).tolist() == [float(v == Verdict.CORRECT) for v in verdicts]
    assert rollout_weights(None, verdicts, 3) is None


def test_the_expected_gradient_is_that_of_the_expected_reward() -> None:
    """Every pair of one-token answers, with its probability: no sampling. Dr. GRPO's is (G - 1) times as long."""
    logits = torch.tensor([0.3, -1.0, 0.8], dtype=torch.float64, requires_grad=True)
    right, nll = [1], NegativeLogLikelihood()
    probabilities = logits.softmax(-1)
    (truth,) = torch.autograd.grad(probabilities[right].sum(), logits)
    expected = torch.zeros(3, dtype=torch.float64)
    for pair in product(range(3), repeat=2):
        verdicts = [Verdict.CORRECT if y in right else Verdict.WRONG for y in pair]
        ids, rows = torch.tensor(pair), logits.expand(2, 3)
        loss = (rollout_weights(GroupRelative(scaled=False), verdicts, 2) * nll.per_token(rows, rows, ids).value).sum()
        (gradient,) = torch.autograd.grad(loss, logits)
        expected += probabilities[list(pair)].prod().detach() * gradient
    torch.testing.assert_close(-expected, truth)


class Given(Weighting):
    """Weights that are known beforehand."""

    def __init__(self, by_row: list[float]) -> None:
        self.by_row = torch.tensor(by_row)

    def weights(self, correct):
        return self.by_row[: correct.numel()].view_as(correct)


@pytest.fixture(scope="module")
def name(tmp_path_factory) -> str:
    return saved_model(tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize("part_tokens", [10_000, 60])
def test_a_step_is_that_of_the_weighted_sum_row_by_row(name, part_tokens) -> None:
    by_row = [1.0, -1.0, 0.5, 0.0, 2.0, -0.25, 0.0, 0.0, 1.5, 1.0, -3.0, 0.75]
    module = distillation(
        name,
        divergence=NegativeLogLikelihood(),
        samples=2,
        part_tokens=part_tokens,
        optimizer=lambda parameters: SGD(parameters, lr=0.1),
        engine=Drawn(),
    )
    module.weighting = Given(by_row)
    module.configure_model()
    before = copy.deepcopy(module.student).double()
    logged = fit(module)
    ((prompts, rows),) = module.engine.calls
    total, tokens = torch.zeros((), dtype=torch.float64), sum(map(len, rows))
    for i, (row, weight) in enumerate(zip(rows, by_row, strict=True)):
        ids = torch.tensor([prompts[i // 2] + row])
        log_q = before(input_ids=ids).logits[0, -len(row) - 1 : -1].log_softmax(-1)
        total = total - weight * log_q[range(len(row)), row].sum()
    (total / tokens).backward()
    assert len(prompts) == len(SIX)
    assert logged.values("loss/divergence") == pytest.approx([total.item() / tokens], rel=1e-5)
    assert logged.values("loss/weighted_share") == [pytest.approx(9 / 12)]
    for key, after in weights(module).items():
        parameter = dict(before.named_parameters())[key]
        torch.testing.assert_close(after.double(), parameter - 0.1 * parameter.grad, rtol=1e-4, atol=1e-6)


def test_a_step_whose_rollouts_all_count_for_nothing_moves_nothing(name) -> None:
    module = distillation(name, samples=2, optimizer=lambda parameters: SGD(parameters, lr=0.1))
    module.weighting = GroupRelative()  # random ids are never right
    module.configure_model()
    before = copy.deepcopy(weights(module))
    assert fit(module).values("loss/weighted_share") == [0.0]
    assert all(torch.equal(after, before[key]) for key, after in weights(module).items())


def test_what_it_cannot_work_with_is_said(name) -> None:
    class Short(Weighting):
        def weights(self, correct):
            return correct[:, :1]

    with pytest.raises(ValueError, match=r"model.weighting: Short.weights must return .* one for each of \[2, 3\]"):
        rollout_weights(Short(), [Verdict.WRONG] * 6, 3)
    module = distillation(name, samples=1)
    module.weighting = GroupRelative()  # set from Python; from a config it is refused before anything is read
    with pytest.raises(ValueError, match=r"model.samples must be at least 2 for GroupRelative, got 1"):
        fit(module)
    with pytest.raises(ValueError, match=r"Correct weighs rollouts, and model\.completions is reference: .*null"):
        check_weighting(Correct(), 1, "reference")
