"""Rollouts for people to read, in the run folder and in TensorBoard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_atex import whole
from lit_atex.metrics_csv import tensorboard
from lit_atex.module import SelfDistillation
from lit_atex.text_tables import with_bars
from lit_atex.window import Seen


class SampleLog(pl.Callback):
    """Writes rollouts for people to read: `samples.jsonl` in the run folder, and text in TensorBoard."""

    def __init__(self, every_n_steps: int = 10, samples: int = 2) -> None:
        """Choose how much.

        Args:
            every_n_steps: Optimizer steps between two looks, >= 1; the first step is always shown.
            samples: Rollouts per look, >= 1.

        Raises:
            ValueError: If a number is below 1.
        """
        if every_n_steps < 1 or samples < 1:
            raise ValueError("sample_log.every_n_steps and sample_log.samples must be at least 1.")
        self.every_n_steps, self.samples = every_n_steps, samples
        self._written = -1

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the first rollouts of the micro-batch that closed the step."""
        step = trainer.global_step - 1
        if pl_module.feedback is None or step % self.every_n_steps or step == self._written or not pl_module.seen:
            return
        self._written = step
        if not trainer.is_global_zero:
            return
        rows = [describe(pl_module, pl_module.seen, r) for r in range(min(self.samples, len(pl_module.seen.verdicts)))]
        with open(Path(trainer.default_root_dir) / "samples.jsonl", "a", encoding="utf-8") as file:
            file.writelines(whole.json_line({"step": step, **row}) for row in rows)
        if (writer := tensorboard(trainer)) is not None:
            for i, row in enumerate(rows):
                writer.add_text(f"samples/{i}", as_markdown(row), step)


def describe(module: SelfDistillation, seen: Seen, rollout: int) -> dict[str, Any]:
    """One rollout as JSON-ready data, with the loss of each token in nats."""
    place = rollout // module.samples
    problem = seen.problems[place]
    start = int(seen.rollouts.lengths[:rollout].sum())
    ids = seen.rollouts.lists()[rollout]
    return {
        "id": problem.id,
        "question": problem.question,
        "hint": seen.teacher_prompts[place].hint,
        "exposure": seen.exposures[place],
        "completion": seen.completions[rollout],
        "answer": problem.answer,
        "verdict": seen.verdicts[rollout].value,
        "tokens": [module.tokenizer.decode([i]) for i in ids],
        "divergence": [round(v, 4) for v in seen.values[start : start + len(ids)].tolist()],
    }


def as_markdown(row: dict[str, Any]) -> str:
    """A sample as TensorBoard shows it; under each line of the completion, bars for the loss of its tokens."""
    pairs = with_bars(row["tokens"], row["divergence"])
    shown = "\n".join(f"    {text}" for pair in pairs for text in pair if text.strip())
    return (
        f"**{row['verdict']}** · exposure {row['exposure']:.2f} · reference answer `{row['answer']}` · {row['id']}\n\n"
        f"question\n\n{_quote(row['question'])}\n\nhint\n\n{_quote(row['hint'])}\n\n"
        f"completion, bars: divergence per token\n\n{shown}\n"
    )


def _quote(text: str) -> str:
    """A Markdown block that is shown as it stands."""
    return "\n".join(f"    {line}" for line in text.splitlines()) or "    (nothing)"
