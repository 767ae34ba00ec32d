"""Whether a model, as it is loaded, does what lit_atex relies on; tried on a few tokens, not looked up by name."""

from __future__ import annotations

import logging
import warnings
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import OneCycleLR, ReduceLROnPlateau

from lit_atex.decode import decoder_for
from lit_atex.models import unwrap
from lit_atex.prompts import PromptStyle
from lit_atex.reveal import KINDS
from lit_atex.rollout import evaluating
from lit_atex.scoring import head_of
from lit_atex.sources import Source
from lit_atex.stream import Tally, read

log = logging.getLogger("lit_atex")


@torch.no_grad()
def check_head(model: nn.Module) -> None:
    """Compare `head_of` with the model's own logits on three tokens; NaN says nothing, and is told of in the step.

    Raises:
        ValueError: If they differ: the family does something to its logits that lit_atex does not know.
    """
    base = unwrap(model)
    ids = torch.tensor([[0, 1, 2]], device=base.device)
    with evaluating(model):
        own = base(input_ids=ids, use_cache=False).logits[0].float()
        states = _states(base, ids)
    if states is None:
        called = type(base.get_decoder()).__name__
        raise ValueError(
            f"{type(base).__name__}: its get_decoder() is {called}, and not a decoder that gives hidden states, from "
            "which lit_atex makes logits."
        )
    if not own.isnan().any() and not close(own, head_of(model)(states[0]).float(), 1e-3):
        raise ValueError(f"{type(base).__name__} changes its logits in a way that lit_atex does not know.")


@torch.no_grad()
def check_rows(model: nn.Module) -> None:
    """Compare rollouts' way through the model, padded prompts, shared, then rows that leave, with plain forward passes.

    Raises:
        ValueError: If they differ: the model has no cache, rows that cannot be chosen, or attention that sees padding.
    """
    base = unwrap(model)

    def ids(*tokens: int) -> Tensor:
        return torch.tensor(tokens, device=base.device)

    with evaluating(model):
        # Long enough, and padded by an odd number: DeepSeek-V4 sums up every four positions of a row, padding included.
        long, short = [0, 1, 2] * 4, [1, 2, 0, 1, 2]
        rows = [ids(*long, 1), ids(*short, 2), ids(*short, 3)]
        plain = [base(input_ids=row[None], use_cache=False).logits[0, -1].float() for row in rows]
        try:
            decoder = decoder_for(model)
            decoder.read([long, short], 2, 2)
            decoder.keep(ids(0, 2, 3))
            found = decoder.step(ids(1, 2, 3)).float()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a family raises
            why = f"{type(error).__name__}: {error}"
        else:
            half = next(base.parameters()).dtype in (torch.bfloat16, torch.float16)
            why = "" if close(torch.stack(plain), found, 0.1 if half else 1e-2) else "its logits are others"
    if why:
        raise ValueError(
            f"model.engine: {type(base).__name__} cannot be sampled from in this process, where rows of a batch share "
            f"prompts and end at different times ({why}). VllmEngine may know it."
        )


def _states(base: Any, ids: Tensor) -> Tensor | None:
    """Final hidden states by the decoder alone; None if there is none that gives them."""
    try:
        return base.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    except (AttributeError, RuntimeError, TypeError):  # none, or what is called so is the head or all of it
        return None


def check_precision(model: nn.Module) -> None:
    """Warn of weights that are trained in half precision: most of what an optimizer adds to them rounds away."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if half := [p for p in trained if p.dtype in (torch.bfloat16, torch.float16)]:
        share = sum(p.numel() for p in half) / sum(p.numel() for p in trained)
        warnings.warn(
            f"{share:.0%} of what is trained is held in {str(half[0].dtype).removeprefix('torch.')}, where what an "
            "optimizer adds at usual learning rates rounds away (bfloat16: a weight of 0.02 changes by 6e-5 or not at "
            "all). Set model.student.init_args.dtype to float32, and trainer.precision to bf16-mixed; or train "
            "adapters (model.student.init_args.lora).",
            stacklevel=2,
        )


def check_hints(prompts: PromptStyle, tokenizer: Any, room: int, data: Any) -> None:
    """Try a hint function of the user's own on the first training problems, before a first evaluation.

    Args:
        prompts: Makes the prompts.
        tokenizer: The model's.
        room: Longest prompt that leaves room for a completion, in tokens.
        data: The data module; a user's own may have no `train`.

    Raises:
        ValueError: As `PromptStyle.teachers`.
    """
    source = getattr(data, "train", None)
    if prompts.hint in KINDS or not isinstance(source, Source):
        return
    held_out: frozenset[str] = getattr(data, "held_out_questions", frozenset)()
    found = list(islice(read(source, Tally(), "data.train", 1.0, held_out), 8))
    for ratio in (0.5, 1.0):
        prompts.teachers(found, [ratio] * len(found), tokenizer, room)


def check_optimizer(optimizer: torch.optim.Optimizer, again: bool = False) -> None:
    """Whether an optimizer takes a step from one gradient.

    Args:
        optimizer: The optimizer.
        again: Whether it has asked for a second gradient of the same step, as SAM does.

    Raises:
        ValueError: If it evaluates a step several times: each time other rollouts would be drawn and counted.
    """
    if again or isinstance(optimizer, torch.optim.LBFGS):
        name = type(optimizer).__name__
        raise ValueError(f"model.optimizer: {name} evaluates a step several times; take one that does so once.")


def check_schedule(scheduler: Any, steps: int) -> None:
    """Whether a learning-rate schedule can be followed to the end of a run.

    Args:
        scheduler: The schedule.
        steps: Optimizer steps of the run; -1: not known, as where it ends after `trainer.max_epochs`.

    Raises:
        ValueError: If it asks for a metric, or would fail in the midst of the run.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        raise ValueError(
            "model.lr_scheduler: ReduceLROnPlateau reads a metric, and a schedule is stepped here once an optimizer "
            "step, where there is none: take one that counts steps, such as torch.optim.lr_scheduler.OneCycleLR."
        )
    if not isinstance(scheduler, OneCycleLR):
        return
    if steps < 0:
        raise ValueError(
            f"model.lr_scheduler: OneCycleLR ends at step {scheduler.total_steps}, and trainer.max_steps sets no end: "
            f"set it to {scheduler.total_steps} or less; trainer.max_epochs may end the run earlier."
        )
    if scheduler.total_steps < steps:
        raise ValueError(
            f"model.lr_scheduler: OneCycleLR ends at step {scheduler.total_steps}, and trainer.max_steps is {steps}: "
            "set model.lr_scheduler.init_args.total_steps to that; a run that goes on cannot, and ends where it ends."
        )


def check_memory(key: str, kind: type[Any], base: type[Any], *learns: str) -> None:
    """Whether a resumed run would know what a part of it has learned; warn if nothing of it is saved.

    Args:
        key: The config key that the part stands under.
        kind: Its class.
        base: The class that saves nothing, or nothing that changes.
        learns: Names of the methods by which a part learns.

    Raises:
        ValueError: If it has one of `state_dict` and `load_state_dict` alone.
    """
    names = ["state_dict", "load_state_dict"]
    written = [name for name in names if getattr(kind, name) is not getattr(base, name)]
    if len(written) == 1:
        raise ValueError(
            f"{key}: {kind.__name__} has one of {' and '.join(names)} alone, {written[0]}: if this run were resumed, "
            "what it has learned would be lost. Write both."
        )
    own = [name for name in learns if getattr(kind, name) is not getattr(base, name)]
    if own and not written:
        told = "%s has an `%s` but no `state_dict`: if this run is resumed, what it has learned is lost."
        log.warning(told, kind.__name__, own[0])


def close(one: Tensor, other: Tensor, tolerance: float) -> bool:
    """Whether two sets of logits are equal but for rounding, against the largest."""
    return bool(torch.allclose(one, other, rtol=tolerance, atol=tolerance * float(one.abs().max())))
