"""Modules of a decoding step as functions, with products that are fast for few rows. It knows no model.

For few rows a product with a large matrix takes as long as reading the matrix does, if the library lets it. What torch
calls by itself takes two to five times as long for 2 to 16 rows on some processors; oneDNN is given one packed for it.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

PACKED = 2**16
"""Elements from which on a matrix is packed: a smaller one is in the cache, and a call of oneDNN takes longer."""
PATIENCE = 4
"""Products before that: packing takes as long as three to eight of them (docs/speed.md)."""


def norm(module: Any) -> Callable[[Tensor], Tensor]:
    """A Llama RMSNorm as a function."""
    if not type(module).__name__.endswith("RMSNorm"):
        return module  # an adapter
    weight, eps = module.weight, module.variance_epsilon

    def run(x: Tensor) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, eps) if x.dtype == weight.dtype else module(x)  # autocast

    return run


def linear(module: Any) -> Callable[[Tensor], Tensor]:
    """The module as a function; on a CPU in float32 a large matrix is packed, once it has had a few products of rows.

    The weights must not change while the function is in use, and are there twice then: of a student that is trained all
    at once, while its gradients are not there; else (accumulated gradients, evaluations, frozen layers) on top.
    """
    if type(module) is not nn.Linear:  # an adapter, a quantised layer
        return module
    weight, bias = module.weight, module.bias
    packable = weight.device.type == "cpu" and weight.dtype == torch.float32 and torch.backends.mkldnn.is_available()
    if not packable or weight.numel() < PACKED:
        return lambda x: F.linear(x, weight, bias)
    products, packed = count(1), list[Tensor]()

    def run(x: Tensor) -> Tensor:
        other = torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or not torch.backends.mkldnn.enabled
        if other or x.shape[0] < 2 or x.dtype != torch.float32 or (not packed and next(products) <= PATIENCE):
            return F.linear(x, weight, bias)
        if not packed:
            packed.append(torch.ops.mkldnn._reorder_linear_weight(weight.detach(), x.shape[0]))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed[0], bias, "none", [], "")
        return out

    return run
