"""Sums over parts against the same sum in one piece."""

from __future__ import annotations

import weakref

import pytest
import torch
from fakes import two_layer_model

from lit_atex.micro import split, sum_of_parts
from lit_atex.types import seeded


def test_parts_fill_the_budget_and_hold_every_rollout_once():
    assert split([(4, 6)] * 4, 1, 20) == [slice(0, 2), slice(2, 4)]
    assert split([(4, 6)] * 8, 2, 20) == [slice(i, i + 2) for i in range(0, 8, 2)]
    assert split([(2, 3), (20, 30), (2, 3), (1, 4)], 1, 20) == [slice(0, 1), slice(1, 2), slice(2, 4)]
    assert split([(9, 1), (1, 9)], 1, 20) == [slice(0, 1), slice(1, 2)]  # 18 wide, not 10
    assert split([(1, 2)] * 2 + [(2, 2)] * 2, 2, 1000) == [slice(0, 4)]
    assert split([], 1, 10) == []


def test_a_problem_that_alone_is_too_much_is_cut_and_no_other():
    widths = [(4, 6)] * 3 + [(4, 96), (4, 1), (4, 6)] + [(4, 6)] * 6
    assert split(widths, 3, 60) == [slice(0, 3), slice(3, 4), slice(4, 6), slice(6, 12)]
    assert split([(1, 1)] * 4, 2, 1) == [slice(i, i + 1) for i in range(4)]


@pytest.mark.parametrize("samples", [1, 2, 5])
@pytest.mark.parametrize("budget", [1, 40, 130, 400, 10_000])
def test_a_part_is_as_many_as_fit_and_a_problem_that_fits_is_whole(samples, budget):
    numbers = seeded(0, "test")
    prompts = numbers.integers(1, 20, 12).repeat(samples).tolist()
    widths = [(p, int(n)) for p, n in zip(prompts, numbers.integers(0, 40, 12 * samples))]

    def tokens(start, stop):
        return (stop - start) * sum(max(sides) for sides in zip(*widths[start:stop]))

    parts = split(widths, samples, budget)
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(len(widths)))
    for part in parts:
        assert tokens(part.start, part.stop) <= budget or part.stop == part.start + 1
    edges = {part.start for part in parts}
    for start in range(0, len(widths), samples):
        if tokens(start, start + samples) <= budget:
            assert not edges & set(range(start + 1, start + samples))


@pytest.mark.parametrize("sizes", [[6], [3, 3], [1, 2, 3], [1] * 6])
def test_value_and_gradients_are_those_of_the_whole(sizes):
    model, ids = two_layer_model(), torch.arange(60).view(6, 10)
    model.lm_head.weight.requires_grad_(True)
    model.model.layers[0].mlp.up_proj.weight.requires_grad_(False)

    def loss(rows):
        logits = model(input_ids=rows).logits
        return logits.log_softmax(-1)[..., 5].sum(), len(rows)

    (3 * loss(ids)[0]).backward()
    want = [p.grad for p in model.parameters()]
    model.zero_grad()
    total, rest = sum_of_parts([lambda r=r: loss(r) for r in ids.split(sizes)], list(model.parameters()))
    assert rest == sizes
    torch.testing.assert_close(total, loss(ids)[0])
    (3 * total).backward()
    for p, expected in zip(model.parameters(), want, strict=True):
        assert (p.grad is None) == (expected is None)
        if expected is not None:
            assert (p.grad - expected).norm() <= 1e-5 * expected.norm()
    total, _ = sum_of_parts([lambda r=r: loss(r) for r in ids.split(sizes)], list(model.parameters()))
    total.backward()  # accumulates
    assert (model.lm_head.weight.grad - want[0] * 4 / 3).norm() <= 1e-5 * want[0].norm()


def test_activations_of_one_part_only_are_alive():
    weight = torch.ones(4, requires_grad=True)
    alive = most = 0

    class Tracked(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            nonlocal alive, most
            alive += 1
            most = max(most, alive)
            return x * 2

        @staticmethod
        def backward(ctx, g):
            nonlocal alive
            alive -= 1
            return g * 2

    total, _ = sum_of_parts([lambda: (Tracked.apply(weight).sum(), None)] * 5, [weight])
    assert (most, alive) == (1, 0)
    total.backward()
    assert weight.grad.tolist() == [10.0] * 4
    with pytest.raises(RuntimeError, match=r"once only|second time"):
        total.backward()


def test_without_gradients_the_parts_are_only_summed():
    weight = torch.ones(3, requires_grad=True)
    with torch.no_grad():
        total, rest = sum_of_parts([lambda: (weight.sum(), "a"), lambda: (weight.sum(), "b")], [weight])
    assert (total.item(), rest, total.requires_grad) == (6.0, ["a", "b"], False)
    fixed = torch.tensor(2.0)
    total, _ = sum_of_parts([lambda: (fixed, None), lambda: (weight.sum(), None)], [weight])
    total.backward()
    assert weight.grad.tolist() == [1.0] * 3


def test_gradients_of_a_part_are_let_go_one_by_one():
    weights = [torch.ones(4, requires_grad=True) for _ in range(6)]
    made, most = [], 0

    class Made(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 3

        @staticmethod
        def backward(ctx, g):
            nonlocal most
            gradient = g * 3
            made.append(weakref.ref(gradient))
            most = max(most, sum(ref() is not None for ref in made))
            return gradient

    def part():
        total = weights[0].new_zeros(())
        for weight in weights:  # one after the other: a gradient is made after the one before has been added
            total = Made.apply(weight).sum() + total * 2
        return total, None

    total, _ = sum_of_parts([part] * 3, weights)
    assert len(made) == 18
    assert most == 1
    total.backward()
    assert [w.grad[0].item() for w in weights] == [9.0 * 2**n for n in (5, 4, 3, 2, 1, 0)]
    assert not any(w._backward_hooks for w in weights)
