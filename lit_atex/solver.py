"""A LightningModule that solves problems: loads a model, samples, grades, counts. It knows no teacher and no training.

`validate`, `test` and `predict` need no more than this; `module.SelfDistillation` adds the training step.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch

from lit_atex.checks import check_head, check_rows
from lit_atex.evaluation import Evaluation, metric_names
from lit_atex.models import LanguageModel, context_of, end_ids
from lit_atex.own import OwnMetrics
from lit_atex.prompts import PromptStyle
from lit_atex.rollout import RolloutEngine, Sampling, TransformersEngine, check_rollouts
from lit_atex.types import Problem, Rollouts, Verdict, row_generators
from lit_atex.verify import Verifier, canonical

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger("lit_atex")


class Solver(pl.LightningModule):
    """A language model, the prompts it is given, and the grader of its answers."""

    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    def __init__(
        self,
        student: LanguageModel,
        prompts: PromptStyle,
        engine: RolloutEngine,
        eval_sampling: Sampling,
        verifier: Verifier,
        eval_samples: int = 8,
        eval_exposure: float = 0.0,
        seed: int = 0,
        eval_metrics: dict[str, str] | None = None,
    ) -> None:
        """Store the parts; weights are read when the trainer starts. The arguments are those of `SelfDistillation`."""
        super().__init__()
        if eval_samples < 1:
            raise ValueError(f"model.eval_samples must be at least 1, got {eval_samples}.")
        if not 0 <= eval_exposure <= 1:
            raise ValueError(f"model.eval_exposure must be in [0, 1], got {eval_exposure}.")
        self.source, self.prompts, self.engine, self.verifier = student, prompts, engine, verifier
        self.eval_sampling, self.eval_samples, self.eval_exposure = eval_sampling, eval_samples, eval_exposure
        self.seed = seed
        self.own = OwnMetrics(eval_metrics, metric_names(eval_samples))
        self.evaluation = Evaluation()
        self.seconds_evaluating = self._evaluation_began = 0.0

    def configure_model(self) -> None:
        """Read the weights and the tokenizer, once."""
        if hasattr(self, "student"):
            return
        self.student, self.tokenizer = self._load()
        self.end_ids = end_ids(self.student, self.tokenizer)
        self.end_id = self.prompts.end(self.tokenizer, self.end_ids)
        for doubt in self.prompts.doubts(self.tokenizer, self.end_ids):
            log.warning("%s", doubt)
        check_head(self.student)
        if isinstance(self.engine, TransformersEngine):
            check_rows(self.student)
        self.eval_room = self.room(self.eval_sampling, "model.eval_sampling")

    def _load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """What the run begins with; new adapters are the same on every rank, as a teacher copies them at once."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            return self.source.load()

    def room(self, sampling: Sampling, key: str) -> int:
        """Longest prompt in tokens that leaves room for a completion in the model's context.

        Raises:
            ValueError: If completions alone fill the context; names `key`.
        """
        context, name = context_of(self.student)
        if context is not None and sampling.max_new_tokens >= context:
            raise ValueError(
                f"{key}.max_new_tokens={sampling.max_new_tokens} leaves no room for a prompt in the model's context of "
                f"{context} tokens ({name}): lower it."
            )
        return sys.maxsize if context is None else context - sampling.max_new_tokens

    def setup(self, stage: str) -> None:
        """Make one set of metrics per validation or test set of the data module.

        Raises:
            ValueError: If the trainer or the data module is one that this cannot work with; names the key.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if type(self.trainer.strategy).__name__ in ("FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"):
            raise ValueError(
                "trainer.strategy: sharded parameters are not supported, as ranks make unequal numbers of forward "
                "passes while they sample: take ddp, or one device."
            )
        if stage == "fit":
            self._check_fit(data)
        names = getattr(data, "test_names" if stage in ("test", "predict") else "validation_names", [])
        self.evaluation.begin(list(names), self.eval_samples, list(self.own.paths))

    def _check_fit(self, data: Any) -> None:
        """Refuse settings that training cannot work with, and warn of one that would surprise."""
        if self.eval_exposure > 0:
            raise ValueError("model.eval_exposure must be 0 in fit: validation measures the student, who sees no hint.")
        if (precision := str(self.trainer.precision)) not in ("32-true", "bf16-mixed"):
            why = "would convert the student and not its teacher"
            if precision == "16-mixed":
                why = "cannot hold the sum of the divergence over a step's tokens"
            raise ValueError(
                f"trainer.precision: {precision} {why}: take bf16-mixed; or leave it out, and for adapters on "
                "a base model in half precision set model.student.init_args.dtype to bfloat16."
            )
        if self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ValueError(
                "trainer.overfit_batches repeats nothing here, where training goes on in its source: to train on a few "
                "problems again and again, set data.train.init_args.size to their number, or data.train to a file of "
                "them; data.validation must hold others."
            )
        if self.prompts.hint == "other" and getattr(data, "batch_size", 2) < 2:
            raise ValueError(
                "model.prompts.hint: other shows a solution of the same batch: set data.batch_size to 2 or more."
            )
        interval, window = self.trainer.val_check_interval, self.trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval < window:  # a float is a share of a pass
            log.warning(
                "trainer.val_check_interval: %d counts batches, of which a step takes %d "
                "(trainer.accumulate_grad_batches): the same weights are evaluated several times; take a multiple.",
                *(interval, window),
            )

    def generate(
        self, prompts: list[list[int]], samples: int, sampling: Sampling, generators: Sequence[np.random.Generator]
    ) -> Rollouts:
        """The engine's rollouts; see `RolloutEngine.generate`. Those of a user's own engine are checked."""
        rollouts = self.engine.generate(self.student, prompts, samples, sampling, self.end_ids, generators)
        if not (kind := type(self.engine)).__module__.startswith("lit_atex."):
            check_rollouts(rollouts, len(generators), self.student, kind.__name__)
        return rollouts

    def decode(self, rollouts: Rollouts) -> list[str]:
        """Completions as text, without special tokens; for graders and readers, never encoded again."""
        rows = rollouts.lists()
        return self.tokenizer.batch_decode(rows, skip_special_tokens=True) if rows else []

    def grade(self, completions: list[str], problems: list[Problem], samples: int) -> list[Verdict]:
        """A verdict for each of the completions, `samples` of each problem.

        Raises:
            ValueError: If a verifier of the user's returns something else.
        """
        verdicts = self.verifier.verify(completions, [p.answer for p in problems for _ in range(samples)])
        known = isinstance(verdicts, list | tuple) and all(isinstance(v, Verdict) for v in verdicts)
        if not known or len(verdicts) != len(completions):
            raise ValueError(
                f"model.verifier: {type(self.verifier).__name__}.verify must return a Verdict (types.py) for each of "
                f"{len(completions)} texts; it returned {verdicts!r:.200}"
            )
        return verdicts

    def eval_prompts(self, problems: list[Problem], exposure: float) -> tuple[list[list[int]], int]:
        """Prompts as token ids, with this share of the solutions shown; and the longest that is answered, in tokens."""
        if exposure == 0:
            prompts = [self.prompts.evaluation(p, self.tokenizer) for p in problems]
            return prompts, min(self.prompts.max_prompt_tokens, self.eval_room)
        shown = self.prompts.teachers(problems, [exposure] * len(problems), self.tokenizer, self.eval_room)
        # A hint that rounds to nothing leaves the student's prompt; here that is the one it is evaluated with.
        given = [t.ids if t.hint else self.prompts.evaluation(p, self.tokenizer) for p, t in zip(problems, shown)]
        return given, min(self.prompts.max_teacher_tokens, self.eval_room)

    def answer(
        self, problems: list[Problem], samples: int | None = None, exposure: float = 0.0, purpose: str = "evaluate"
    ) -> list[dict[str, Any]]:
        """Completions with their verdicts, one row per problem.

        The draws depend on run seed, problem and sample alone, so that two students are compared on paired draws. A
        problem whose prompt is too long is not answered: its completions are empty and count as unparsed.

        Args:
            problems: What to solve.
            samples: Completions per problem; None: `eval_samples`.
            exposure: How much of the reference solution is shown, in [0, 1]: above 0 this is what the teacher can do.
            purpose: Sets the draws apart from those made for something else.
        """
        if not problems:
            return []
        n = self.eval_samples if samples is None else samples
        prompts, limit = self.eval_prompts(problems, exposure)
        if long := [p.id for p, ids in zip(problems, prompts) if len(ids) > limit]:
            log.warning("prompts of more than %d tokens, counted as not answered: %s", limit, long)
        fit = [i for i, ids in enumerate(prompts) if len(ids) <= limit]
        asked = [problems[i] for i in fit]
        unanswered = ("", None, Verdict.UNPARSED.value, 0, True)
        drawn: list[list[Any]] = [[unanswered] * n] * len(problems)
        if fit:
            generators = row_generators(self.seed, purpose, [(p.source, p.id) for p in asked], n)
            rollouts = self.generate([prompts[i] for i in fit], n, self.eval_sampling, generators)
            completions = self.decode(rollouts)
            verdicts = self.grade(completions, asked, n)
            votes = map(self._vote, completions, verdicts)
            values = [v.value for v in verdicts]
            every = list(zip(completions, votes, values, rollouts.lengths.tolist(), rollouts.ended.tolist()))
            for at, i in enumerate(fit):
                drawn[i] = every[at * n : (at + 1) * n]
        names = ("completions", "answers", "verdicts", "lengths", "ended")
        rows: list[dict[str, Any]] = []
        for p, ids, of_problem in zip(problems, prompts, drawn):
            row = {"id": p.id, "source": p.source, "level": p.level, "question": p.question, "answer": p.answer}
            rows.append(row | {"prompt_tokens": len(ids)} | dict(zip(names, map(list, zip(*of_problem)))))
            if self.own.paths:
                rows[-1]["own"] = self.own.of(p, rows[-1]["completions"])
        return rows

    def _vote(self, completion: str, verdict: Verdict) -> str | None:
        """The final answer in the form in which equal answers are one vote; None if there is none."""
        found = None if verdict is Verdict.UNPARSED else self.verifier.extract(completion)
        return (canonical(found) or None) if found else None

    def validation_step(  # type: ignore[override]
        self, problems: list[Problem], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """Sample, grade and count; returns one row per problem."""
        rows = self.answer(problems, exposure=self.eval_exposure)
        self.evaluation.add(dataloader_idx, rows)
        return rows

    def test_step(  # type: ignore[override]
        self, problems: list[Problem], batch_idx: int, dataloader_idx: int = 0
    ) -> list[dict[str, Any]]:
        """The same on test sets."""
        return self.validation_step(problems, batch_idx, dataloader_idx)

    def predict_step(self, problems: list[Problem], batch_idx: int, dataloader_idx: int = 0) -> list[dict[str, Any]]:
        """Sample and grade; returns one row per problem."""
        return self.answer(problems, exposure=self.eval_exposure)

    def on_validation_start(self) -> None:
        """Stop the clock of the step."""
        self._evaluation_began = time.perf_counter()

    def on_validation_end(self) -> None:
        """Let the clock go on."""
        self.seconds_evaluating += time.perf_counter() - self._evaluation_began

    def on_validation_epoch_end(self) -> None:
        """Close the metrics and log them as `validation/SET/avg@n`."""
        self._close("validation")

    def on_test_epoch_end(self) -> None:
        """Close the metrics and log them as `test/SET/avg@n`."""
        self._close("test")

    def _close(self, stage: str) -> None:
        self.evaluation.close()
        if not self.trainer.sanity_checking:
            self.log_dict(self.evaluation.scalars(stage), batch_size=1, sync_dist=True)  # equal on all ranks already
