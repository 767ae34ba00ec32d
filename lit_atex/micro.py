"""A loss over parts of a batch, each part's backward pass taken at once: activations of one part only are alive.

Sum and gradient are those of the whole; memory does not grow with the batch. It knows neither models nor losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def split(widths: Sequence[tuple[int, int]], samples: int, budget: int) -> list[slice]:
    """Which rollouts go together: those of as many problems in a row as fit into a budget of tokens, padding included.

    A problem that does not fit alone is cut, into as many of its rollouts in a row as fit; at least one.

    Args:
        widths: Tokens of each rollout's prompt, and of its completion. They are padded apart: a part is as wide as the
            longest prompt and the longest completion in it together.
        samples: Rollouts per problem, which stand together.
        budget: Most tokens of a part.
    """
    problems = _runs(widths, range(0, len(widths), samples), budget)
    return [part for run in problems for part in _runs(widths, range(run.start, run.stop), budget)]


def _runs(widths: Sequence[tuple[int, int]], starts: range, budget: int) -> list[slice]:
    """As many units of `starts.step` rollouts in a row as fit; at least one."""
    found: list[slice] = []
    first = prompt = completion = 0
    for start in starts:
        stop = start + starts.step
        prompts, completions = zip(*widths[start:stop])
        wide = max(prompt, *prompts), max(completion, *completions)
        if found and sum(wide) * (stop - first) <= budget:
            found[-1] = slice(first, stop)
        else:
            first, wide = start, (max(prompts), max(completions))
            found.append(slice(start, stop))
        prompt, completion = wide
    return found


def sum_of_parts(
    parts: Sequence[Callable[[], tuple[Tensor, T]]], parameters: Sequence[Tensor]
) -> tuple[Tensor, list[T]]:
    """Σ of the parts' losses, with the gradient of the sum.

    Args:
        parts: Each returns its loss, a scalar, and whatever else came of it, whose graph is dropped. Called in turn.
        parameters: What the losses depend on, as far as gradients are wanted. A tensor that requires no gradient gets
            none.

    Returns:
        The sum, differentiable once and by `parameters` alone, and what else the parts returned.
    """
    if len(parts) == 1 or not torch.is_grad_enabled():
        found = [part() for part in parts]
        total = found[0][0]
        for loss, _ in found[1:]:
            total = total + loss
        return total, [more for _, more in found]
    results: list[T] = []
    wanted = [p for p in parameters if p.requires_grad]
    return _Sum.apply(parts, results, *wanted), results


def _without_graph(more: Any) -> Any:
    """Tensors, alone or in a tuple, detached: a graph that they hold would keep its part alive."""
    if isinstance(more, Tensor):
        return more.detach()
    if isinstance(more, tuple):
        found = [_without_graph(x) for x in more]
        return type(more)(*found) if hasattr(more, "_fields") else tuple(found)
    return more


def _add_gradients(loss: Tensor, parameters: Sequence[Tensor], sums: list[Tensor | None]) -> None:
    """Add the gradients of a loss, each as it is made and then let go: two sets of all of them are never alive.

    A hook takes a gradient and leaves a view of one zero in its place for `torch.autograd.grad`, which would keep it.
    """

    def taken(i: int, gradient: Tensor) -> Tensor:
        known = sums[i]  # the first is copied: gradients of two parameters may be one tensor
        sums[i] = gradient.clone() if known is None else known.add_(gradient)
        return gradient.new_zeros(()).expand_as(gradient)

    hooks = [p.register_hook(partial(taken, i)) for i, p in enumerate(parameters)]
    try:
        torch.autograd.grad(loss, parameters, allow_unused=True)
    finally:
        for hook in hooks:
            hook.remove()


class _Sum(torch.autograd.Function):
    """Gradients for a unit cotangent are made in the forward pass; the backward pass only scales them."""

    @staticmethod
    def forward(ctx: Any, parts: Sequence[Any], results: list[Any], *parameters: Tensor) -> Tensor:
        total: Tensor | None = None
        sums: list[Tensor | None] = [None] * len(parameters)
        for part in parts:
            with torch.enable_grad():
                loss, more = part()
            results.append(_without_graph(more))
            total = loss.detach() if total is None else total + loss.detach()
            if not loss.requires_grad:
                continue
            _add_gradients(loss, parameters, sums)
        assert total is not None
        ctx.sums = sums
        return total

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.sums is None:
            raise RuntimeError("sum_of_parts can be differentiated once only: its gradients are given away, not copied")
        sums, ctx.sums = ctx.sums, None
        return None, None, *(None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in sums)
