"""A divergence whose formula and gradient torch.compile fuses into a few kernels; it has no formula of its own."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from lit_atex.divergence import Divergence, Ids, Logits, TeacherLogits, TokenDivergence, Values


@dataclass(frozen=True, kw_only=True)
class Compiled(Divergence):
    """Another divergence, compiled: the same values and gradients, but for rounding.

    Compiling takes some seconds at the first steps, and needs what torch.compile needs: Triton on a GPU, a C++ compiler
    on a CPU. What has a closed form in `fused` is no faster by it on a CPU (docs/divergences.md).

    Args:
        of: The divergence, with its temperature; also one of your own.
    """

    of: Divergence
    temperature: float = field(init=False, repr=False)  # what it is told, `of` knows

    def __post_init__(self) -> None:
        if isinstance(self.of, Compiled):
            raise ValueError("model.divergence.of is compiled already: name the divergence itself")
        object.__setattr__(self, "temperature", self.of.temperature)
        super().__post_init__()

    @cached_property
    def _compiled(self) -> Any:
        return torch.compile(self.of.per_token)

    def per_token(self, student_logits: Logits, teacher_logits: TeacherLogits, ids: Ids) -> TokenDivergence:
        """See `Divergence.per_token`; as it is where nothing is to be differentiated, or a single token."""
        if not torch.is_grad_enabled() or len(ids) == 1:  # each would be compiled by itself
            return self.of.per_token(student_logits, teacher_logits, ids)
        try:
            return TokenDivergence(*self._compiled(student_logits, teacher_logits, ids))
        except RuntimeError as error:
            error.add_note("model.divergence is Compiled: name what it compiles instead, and nothing is compiled.")
            raise

    def _value(self, log_p: Tensor, log_q: Tensor, ids: Tensor) -> tuple[Values, Values]:
        return self.of._value(log_p, log_q, ids)

    def __getstate__(self) -> dict[str, Any]:
        """Without what was compiled, which no other process can read."""
        return {f.name: getattr(self, f.name) for f in fields(self)}
