"""Modules of a decoding step as functions, with products that are fast for few rows. It knows no model.

For few rows a product with a large matrix takes as long as reading the matrix does, if the library lets it. What torch
calls by itself reads it two to five times more slowly on some processors; oneDNN is given one that is packed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKED = 2**16
"""Elements from which on a matrix is packed: a smaller one is in the cache, and a call of oneDNN takes longer."""


def norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A Llama RMSNorm as a function."""
    if not type(module).__name__.endswith("RMSNorm"):
        return module  # an adapter
    weight, eps = module.weight, module.variance_epsilon

    def run(x: Tensor) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, eps) if x.dtype == weight.dtype else module(x)  # autocast

    return run


def linear(module: Any) -> Callable[[Tensor], Tensor]:
    """The module as a function; on a CPU in float32 a large matrix is packed, at its first product with several rows.

    The weights must not change while the function is in use, and are there twice as long: while a student samples, in
    the place of its gradients. Packing takes as long as two to five products (docs/speed.md).
    """
    if type(module) is not nn.Linear:  # an adapter, a quantised layer
        return module
    weight, bias = module.weight.detach(), module.bias
    if (
        weight.device.type != "cpu"
        or weight.dtype != torch.float32
        or weight.numel() < PACKED
        or not torch.backends.mkldnn.is_available()
    ):
        return lambda x: F.linear(x, weight, bias)
    packed: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        if x.shape[0] < 2 or x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return F.linear(x, weight, bias)
        if not packed:
            packed.append(torch.ops.mkldnn._reorder_linear_weight(weight, x.shape[0]))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed[0], bias, "none", [], "")
        return out

    return run
