"""The LightningModule: student, teacher, and the training step that reads like the method (docs/method.md).

It never imports an exposure strategy; `exposure` is an attribute that a callback sets. Our choices where the paper is
silent: hints are cut at step borders, the divergence is an option, the loss is a mean over a step's completion tokens.
"""

from __future__ import annotations

import logging
import math
import time
from itertools import compress
from typing import Any, Literal

import torch
from jaxtyping import Float
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from lit_atex.attempts import Attempts, attempt, rollout
from lit_atex.checks import check_hints, check_memory, check_optimizer, check_precision, check_schedule
from lit_atex.distil import distil
from lit_atex.divergence import Divergence
from lit_atex.frozen import FrozenWeights
from lit_atex.heap import give_back
from lit_atex.models import LanguageModel
from lit_atex.parts import Parts
from lit_atex.prompts import PromptStyle
from lit_atex.resume import open_next_pass
from lit_atex.rollout import RolloutEngine, Sampling
from lit_atex.solver import Solver
from lit_atex.step_log import SHOWN, StepLog
from lit_atex.teacher import Frozen, Teacher
from lit_atex.types import Problem, Rollouts, StepFeedback, seeded
from lit_atex.verify import Verifier
from lit_atex.weighting import Weighting, check_weighting, rollout_weights
from lit_atex.window import BadSteps, Batch, PhaseClock, Seen, StepWindow

log = logging.getLogger("lit_atex")


class SelfDistillation(Solver):
    """A student solves problems by itself; a teacher that sees part of the solution says how it would have gone on."""

    def __init__(
        self,
        student: LanguageModel,
        prompts: PromptStyle,
        teacher: Teacher,
        divergence: Divergence,
        engine: RolloutEngine,
        sampling: Sampling,
        eval_sampling: Sampling,
        verifier: Verifier,
        optimizer: OptimizerCallable,
        lr_scheduler: LRSchedulerCallable,
        samples: int = 1,
        eval_samples: int = 8,
        eval_exposure: float = 0.0,
        chunk_tokens: int = 512,
        part_tokens: int = 16384,
        completions: Literal["student", "reference", "hinted_reference"] = "student",
        weighting: Weighting | None = None,
        seed: int = 0,
        eval_metrics: dict[str, str] | None = None,
    ) -> None:
        """Store the parts; weights are read when the trainer starts.

        Args:
            student: Which model, and how it is loaded.
            prompts: How problems and hints become prompts.
            teacher: What the teacher's weights are.
            divergence: The loss per token.
            engine: What samples rollouts.
            sampling: How rollouts are sampled in training.
            eval_sampling: How completions are sampled in validation, test and predict.
            verifier: Finds final answers and compares them with the reference's.
            optimizer: Made from the student's trainable parameters.
            lr_scheduler: Made from the optimizer; stepped once an optimizer step.
            samples: Rollouts per problem (G), >= 1.
            eval_samples: Completions per problem in validation and test (n), >= 1.
            eval_exposure: Share of the reference shown in evaluations, in [0, 1]; above 0 the prompt is the teacher's.
            chunk_tokens: Completion tokens whose logits are alive at a time; less memory and slower if small.
            part_tokens: Tokens that go through student or teacher at a time, padding included; more are done in parts.
            completions: What is trained on: rollouts, or references after either prompt (`supervised.py`).
            weighting: What each rollout counts for by its verdict; None: 1, whatever it is (`weighting.py`).
            seed: Seed of all sampling; the command line sets it from `seed_everything`.
            eval_metrics: Own metrics by name: dotted paths of functions of a completion and its problem (`own.py`).

        Raises:
            ValueError: If a number is out of range.
        """
        evaluation = eval_sampling, verifier, eval_samples, eval_exposure
        super().__init__(student, prompts, engine, *evaluation, seed, eval_metrics)
        for name, value in {"samples": samples, "chunk_tokens": chunk_tokens, "part_tokens": part_tokens}.items():
            if value < 1:
                raise ValueError(f"model.{name} must be at least 1, got {value}.")
        check_weighting(weighting, samples, completions)
        self.teacher, self.divergence, self.weighting, self.sampling = teacher, divergence, weighting, sampling
        self.make_optimizer, self.make_scheduler, self.completions = optimizer, lr_scheduler, completions
        self.samples, self.chunk_tokens, self.part_tokens = samples, chunk_tokens, part_tokens
        self.exposure: float | list[float] = 1.0
        """Reveal ratio of the coming batch, one for all or one per problem; 1 unless a callback sets it: plain OPSD."""
        self.feedback: StepFeedback | None = None
        """What came of the optimizer step that was just taken; None between steps and after a skipped one."""
        self.seen: Seen | None = None
        self.step_log, self.window, self.skipped, self._parts = StepLog(), StepWindow(), BadSteps(), Parts()
        self.clock, self._loss_is_finite, self._is_restored = PhaseClock(), True, False
        self._ahead: tuple[list[Problem], Attempts] | None = None
        self._attached: Teacher | None = None
        self.step_seconds = self._step_began = 0.0

    def configure_model(self) -> None:
        """Read the weights once; to train, the teacher takes its own from memory, before a checkpoint is restored."""
        super().configure_model()
        if not hasattr(self, "_frozen"):
            self._frozen = FrozenWeights(self.student, "student.")
        if not self._trains():
            return
        self._parts.note(teacher=self.teacher, divergence=self.divergence, weighting=self.weighting)
        if self._is_restored and not self._step_began:  # a checkpoint was evaluated: no run begins there
            self.student.load_state_dict(self._load()[0].state_dict())
        if self._attached is not self.teacher:
            self.train_room = self.room(self.sampling, "model.sampling")
            self.teacher.attach(self.student)
            self._attached = self.teacher

    def _trains(self) -> bool:
        """False in an evaluation by itself, which needs no teacher: a second set of weights, or another model."""
        return self._trainer is None or self._trainer.state.fn == TrainerFn.FITTING

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """The optimizer over what is trainable, and its schedule in optimizer steps."""
        check_precision(self.student)
        try:
            optimizer = self.make_optimizer([p for p in self.student.parameters() if p.requires_grad])
        except ValueError as error:
            raise ValueError(f"model.optimizer: {error}") from error
        check_optimizer(optimizer)
        schedule: Any = {"scheduler": self.make_scheduler(optimizer), "interval": "step"}
        check_schedule(schedule["scheduler"], self._trainer.max_steps if self._trainer else 0)
        return {"optimizer": optimizer, "lr_scheduler": schedule}

    def configure_callbacks(self) -> StepLog:
        """The callback that writes a step's numbers: it runs after all others but those that write checkpoints."""
        return self.step_log

    def on_fit_start(self) -> None:
        """Start the clock of the first step, and forget one that was interrupted."""
        give_back(self.student.parameters())
        check_weighting(self.weighting, self.samples, self.completions)  # again: it may have been set from Python
        check_hints(self.prompts, self.tokenizer, self.train_room, getattr(self.trainer, "datamodule", None))
        base = Frozen if isinstance(self.teacher, Frozen) else Teacher  # that one counts on weights that stay
        check_memory("model.teacher", type(self.teacher), base, "after_step")
        self._step_began, self.seconds_evaluating = time.perf_counter(), 0.0
        self.window.clear()
        self._loss_is_finite, self.feedback, self.seen, self._ahead, self.clock.seconds = True, None, None, None, {}

    def training_step(self, problems: list[Problem], batch_idx: int) -> Float[Tensor, ""]:
        """Rollouts -> hints -> both sides' scores on the same ids -> divergence.

        Returns:
            The sum of the divergence over this micro-batch's completion tokens. `on_before_optimizer_step` divides the
            gradient by the tokens of the whole optimizer step, which are known only then.
        """
        dropout = seeded(self.seed, "dropout", self.global_step, self.global_rank, batch_idx).integers(2**63)
        torch.manual_seed(int(dropout))
        fits, _, prompts, rollouts, completions, verdicts, broke = self.attempt(problems)
        self._ahead, ratios = None, list(compress(self.ratios(problems), fits))
        problems = list(compress(problems, fits))
        teacher_prompts = self.prompts.teachers(problems, ratios, self.tokenizer, self.train_room)
        if self.completions == "hinted_reference":
            prompts = [t.ids for t in teacher_prompts]
        weights = rollout_weights(self.weighting, verdicts, self.samples)
        sides = (self.student, self.teacher, prompts, [t.ids for t in teacher_prompts])
        sizes = (self.samples, self.chunk_tokens, self.part_tokens)
        loss, tokens = distil(self.divergence, *sides, rollouts, *sizes, weights, self.clock.timed)
        values = tokens.value.detach()
        self.seen = Seen(problems, prompts, teacher_prompts, ratios, rollouts, completions, verdicts, values)
        sums = {"loss": loss.detach()} | {name: getattr(tokens, name).sum() for name in tokens._fields[1:]}
        self._loss_is_finite &= not broke and bool(torch.isfinite(loss))
        self.window.add(
            Batch(
                problem_ids=[p.id for p in problems],
                levels=[p.level for p in problems],
                exposures=ratios,
                verdicts=verdicts,
                rollouts=rollouts,
                sums=sums if weights is None else sums | {"weighted": (weights != 0).sum()},
                truncated=sum(t.truncated for t in teacher_prompts),
                skipped=fits.count(False),
                seconds=self.clock.seconds,
            )
        )
        self.clock.seconds = {}
        # Lightning divides by the accumulated micro-batches and averages over ranks: a sum survives both.
        return loss * self.trainer.accumulate_grad_batches * self.trainer.world_size

    def ratios(self, problems: list[Problem]) -> list[float]:
        """The exposure of each problem of the coming batch."""
        ratios = self.exposure if isinstance(self.exposure, list) else [self.exposure] * len(problems)
        assert len(ratios) == len(problems), "module.exposure must have one ratio per problem"
        return ratios

    def attempt(self, problems: list[Problem]) -> Attempts:
        """The student's attempts at the coming batch, which has no exposure yet: asked again before its step, the same.

        Args:
            problems: The batch as the step will be given it.

        Raises:
            ValueError: If another batch was drawn before, and not trained on.
        """
        if self._ahead is None:
            self._ahead = problems, attempt(self, problems)
        if self._ahead[0] != problems:
            raise ValueError("module.attempt draws for the coming batch alone, and was given other problems before it.")
        return self._ahead[1]

    def rollout(self, problems: list[Problem], prompts: list[list[int]]) -> Rollouts:
        """The completions that the step trains on, `samples` of each problem; see `attempts.rollout`."""
        return rollout(self, problems, prompts)

    def on_before_backward(self, loss: Tensor) -> None:
        """Start the clock of the backward pass."""
        self.clock.begin("backward")

    def on_after_backward(self) -> None:
        """Stop the clock of the backward pass."""
        self.window.totals["seconds/backward"] += self.clock.end()  # type: ignore[assignment]

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Divide the gradient by the step's tokens; drop it if it is not finite, and a step without rollouts.

        Lightning calls the callbacks' hook of this name before this one: there, gradients are still sums.
        `gradient/norm` is logged as it is after the division and before clipping.
        """
        check_optimizer(optimizer, again=self.feedback is not None)
        gradients = [p.grad for p in self.student.parameters() if p.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))
        self.window.totals["not_finite"] = int(not (self._loss_is_finite and math.isfinite(norm)))
        self.window.reduce()
        bad, empty = bool(self.window.totals["not_finite"]), not self.window.totals["rollouts"]
        began, self._step_began = self._step_began + self.seconds_evaluating, time.perf_counter()
        self.step_seconds, self.seconds_evaluating = self._step_began - began, 0.0
        scalars = self.window.scalars(self.step_seconds)
        if bad or not self.window.totals["tokens"]:
            optimizer.zero_grad(set_to_none=True)  # an optimizer leaves weights without a gradient alone
        if bad or empty:
            scalars = {name: value for name, value in scalars.items() if name.startswith("data/")}
            self.skipped.add(self.global_step, self.window.problem_ids, empty and not bad, self.window.teacher_broke)
        else:
            tokens = max(self.window.totals["tokens"], 1)
            for gradient in gradients:
                gradient.div_(tokens)
            self.skipped.in_a_row = 0
            self.feedback = self.window.feedback(self.global_step, self.sampling.max_new_tokens)
            self.trainer.progress_bar_metrics.update({name: scalars[long] for name, long in SHOWN.items()})
            scalars |= {"loss/lr": float(optimizer.param_groups[0]["lr"]), "gradient/norm": norm / tokens}
        self.step_log.add(self.trainer, scalars | {"loss/skipped_steps": float(self.skipped.total)})
        if self.feedback is not None:
            told = {f"teacher/{name}": x for name, x in self.teacher.scalars().items()}
            self.step_log.add(self.trainer, told, f"model.teacher: {type(self.teacher).__name__}.scalars")

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Step, and let the teacher follow: before callbacks, of which one writes the checkpoint."""
        super().optimizer_step(*args, **kwargs)
        self.student.zero_grad()  # Lightning would keep the old gradients in memory through the next forward pass
        if self.feedback is not None:
            self.teacher.after_step(self.student, self.feedback)
        self.window.clear()
        self._loss_is_finite = True

    def on_train_batch_start(self, batch: list[Problem], batch_idx: int) -> None:
        """The feedback of the step before has been read by now."""
        self.feedback = None

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the teacher's state and the counters; leave out what is read again at the start."""
        checkpoint["kinds"], checkpoint["teacher"] = self._parts.told(), self.teacher.state_dict()
        checkpoint["skipped_steps"] = (self.skipped.total, self.skipped.in_a_row)
        self._frozen.leave_out(checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore them; an evaluation by itself takes the weights alone."""
        self._frozen.put_back(checkpoint, exactly=self._trains())
        if not self._trains():
            self._is_restored = True
            return
        open_next_pass(checkpoint)
        self._parts.check(checkpoint["kinds"])
        self.teacher.load_state_dict(checkpoint["teacher"])
        self.skipped.total, self.skipped.in_a_row = checkpoint["skipped_steps"]
