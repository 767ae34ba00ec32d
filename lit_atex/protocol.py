"""What the numbers of an evaluation depend on, by config key: to go on with one, and to compare two.

It knows a solver and its data module; it knows no file.
"""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from lit_atex.types import Problem
from lit_atex.verify import Verifier

if TYPE_CHECKING:
    import lightning.pytorch as pl

    from lit_atex.solver import Solver

log = logging.getLogger("lit_atex")

KINDS = {"validate": "validation", "test": "test"}
"""Which sets an evaluation by itself is of."""

OF_THE_MODEL = (
    *("model.student", "weights", "ckpt_path", "trainer.", "data.eval_batch_size", "seed_everything"),
    "model.eval_metrics",  # of the user's own: those that both have are compared
)
"""Beginnings of the keys in which two evaluations that are compared may differ."""


def protocol(trainer: pl.Trainer, module: Solver, stage: str) -> dict[str, Any]:
    """The settings, problems and weights of an evaluation, as plain data.

    Args:
        trainer: The one that evaluates; its data module has read its sets.
        module: The solver, with the weights that are evaluated.
        stage: "validate" or "test".

    Returns:
        Config key -> value; sets and weights as checksums.

    Raises:
        ValueError: If solutions are to be shown, and a set has none.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    kind = KINDS[stage]
    style, source = module.prompts, module.source
    known: dict[str, Any] = {f"model.student.{k}": v for k, v in vars(source).items()}
    known["model.student.lora"] = asdict(source.lora) if source.lora is not None else None
    known |= {"weights": weights_digest(module.student), "seed_everything": module.seed}
    known |= {"model.eval_samples": module.eval_samples}
    known |= {f"model.eval_metrics.{name}": path for name, path in module.own.paths.items()}
    known |= {f"model.eval_sampling.{k}": v for k, v in asdict(module.eval_sampling).items()}
    known |= {"model.prompts.student": style.student_template, "model.prompts.system": style.system}
    known |= {"model.prompts.eval_thinking": style.eval_thinking}
    known |= {"model.prompts.max_prompt_tokens": style.max_prompt_tokens}
    if module.eval_exposure > 0:
        known |= {"model.eval_exposure": module.eval_exposure, "model.prompts.teacher": style.teacher_template}
        kept = ("teacher_thinking", "hint", "mark", "unit", "hide_answer", "max_teacher_tokens")
        known |= {f"model.prompts.{k}": getattr(style, k) for k in kept}
    known |= {f"model.verifier.{k}": v for k, v in vars(module.verifier).items() if not k.startswith("_")}
    if type(module.verifier) is not Verifier:
        known["model.verifier"] = f"{type(module.verifier).__module__}.{type(module.verifier).__qualname__}"
    for name in module.evaluation.names:
        problems = data.held_out(f"data.{kind}.{name}")
        if module.eval_exposure > 0 and all(p.solution == f"#### {p.answer}" for p in problems):  # see rows.py
            raise ValueError(
                f"data.{kind}.{name} has no reference solutions, of which --exposure (model.eval_exposure) could "
                "show a part: leave it out, or take another set."
            )
        known[f"data.{kind}.{name}"] = f"{len(problems)} problems, checksum {problems_digest(problems)}"
    known |= {"data.eval_batch_size": data.eval_batch_size, "trainer.devices": trainer.world_size}
    known |= {"trainer.precision": str(trainer.precision)}
    return json.loads(json.dumps(known, default=str))  # as it is when read back


def describe(trainer: pl.Trainer, module: Solver, stage: str) -> str:
    """Say how answers are sampled, and show the first prompt as the model sees it.

    Returns:
        That prompt.

    Raises:
        ValueError: If the chat template has a thinking mode and nobody has said whether to use it.
    """
    whose = "teacher_thinking" if module.eval_exposure > 0 else "eval_thinking"
    thinking, template = getattr(module.prompts, whose), str(module.tokenizer.chat_template or "")
    if thinking is None and "enable_thinking" in template:
        raise ValueError(
            "the model's chat template has a thinking mode: say --thinking true or false "
            f"(model.prompts.init_args.{whose}); what it does by itself differs between models."
        )
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    problems = data.held_out(f"data.{KINDS[stage]}.{module.evaluation.names[0]}")[: data.eval_batch_size]
    prompts, _ = module.eval_prompts(problems, module.eval_exposure)
    prompt = str(module.tokenizer.decode(prompts[0]))
    if trainer.is_global_zero:
        settings = asdict(module.eval_sampling) | {
            **{"samples": module.eval_samples, "thinking": "not in the template" if thinking is None else thinking},
            **({"exposure": module.eval_exposure} if module.eval_exposure > 0 else {}),
        }
        log.info("%s", ", ".join(f"{k} {v}" for k, v in (settings | {"seed": module.seed}).items()))
        log.info("===== the first prompt, %s\n%s\n=====", problems[0].id, prompt)
    return prompt


def differences(then: Mapping[str, Any], now: Mapping[str, Any], compared: bool = False) -> list[str]:
    """What differs between two protocols, one line for each key.

    Args:
        then: The first.
        now: The second.
        compared: Leave out what may differ between evaluations that are compared: the model, and how it was run.
    """
    keys = [k for k in sorted(then.keys() | now.keys()) if not (compared and k.startswith(OF_THE_MODEL))]
    return [f"{k}: {then.get(k)!r} and {now.get(k)!r}" for k in keys if then.get(k) != now.get(k)]


def weights_digest(model: torch.nn.Module) -> int:
    """A checksum of all bytes of all weights, in the order of their names; half a second for a gigabyte."""
    total = 0
    for name, value in sorted(model.state_dict().items()):
        data = value.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
        total = zlib.crc32(data.numpy(), zlib.crc32(f"{name} {value.dtype} {list(value.shape)}".encode(), total))
    return total


def problems_digest(problems: list[Problem]) -> int:
    """A checksum of ids, questions and answers, in order."""
    texts = (part for p in problems for part in (p.id, p.question, p.answer))
    return zlib.crc32("\0".join(texts).encode("utf-8", "backslashreplace"))
