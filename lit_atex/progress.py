"""The line that a run shows while it runs: optimizer steps, the numbers that matter, time left."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

NUMBERS = {"loss": "{:.4f}", "exposure": "{:.2f}", "mismatch": "{:.4f}", "accuracy": "{:.2f}", "tok/s": "{:.0f}"}


class StepProgress(ProgressBar):
    """A bar over optimizer steps, or evaluation batches, on a terminal; plain lines now and then in a file."""

    def __init__(self, seconds_between_lines: float = 15.0) -> None:
        """Choose how often a line is printed where there is no terminal."""
        super().__init__()
        self._terminal = sys.stderr.isatty()
        self._seconds_between_lines = seconds_between_lines
        self._enabled = True
        self._bar: tqdm | None = None
        self._eval_bar: tqdm | None = None
        self._began, self._first_step, self._last_line = 0.0, 0, 0.0
        self._evaluation_began = 0.0
        self._batches, self._batches_done, self._answered = 0, 0, 0

    def disable(self) -> None:
        """Show nothing (called on ranks other than 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print to standard output; the bars step aside."""
        with tqdm.external_write_mode():
            print(*args, **kwargs, flush=True)

    # Training

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock; a resumed run counts from where it was."""
        self._began, self._first_step, self._last_line = time.perf_counter(), trainer.global_step, 0.0
        if self._enabled and self._terminal:
            total = trainer.max_steps if trainer.max_steps > 0 else None
            self._bar = tqdm(total=total, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the optimizer step that was just done."""
        metrics = trainer.progress_bar_metrics
        text = "  ".join(f"{k} {form.format(metrics[k])}" for k, form in NUMBERS.items() if k in metrics)
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(trainer.global_step - self._bar.n)
            return
        now = time.perf_counter()
        last = trainer.global_step == trainer.max_steps
        if self._enabled and (last or now - self._last_line >= self._seconds_between_lines):
            self._last_line = now
            print(f"{self._steps(trainer, now)}  {text}", file=sys.stderr, flush=True)

    def _steps(self, trainer: pl.Trainer, now: float) -> str:
        if trainer.max_steps <= 0:
            return f"step {trainer.global_step}"
        done = trainer.global_step - self._first_step
        if done < 1:
            return f"step {trainer.global_step}/{trainer.max_steps}"
        seconds = (now - self._began) / done
        left = timedelta(seconds=round(seconds * (trainer.max_steps - trainer.global_step)))
        return f"step {trainer.global_step}/{trainer.max_steps}  {left} left"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Close the bars, so that the error stands on a line of its own."""
        for bar in (self._eval_bar, self._bar):
            if bar is not None:
                bar.close()
        self._bar = self._eval_bar = None

    # Evaluation

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what takes time now."""
        batches = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
        self._start_evaluation(pl_module, batches)

    def on_test_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what takes time now."""
        self._start_evaluation(pl_module, trainer.num_test_batches)

    def on_predict_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what takes time now."""
        self._start_evaluation(pl_module, trainer.num_predict_batches)

    def _start_evaluation(self, pl_module: Any, batches: list[int | float]) -> None:
        self._batches, self._batches_done, self._answered = int(sum(batches)), 0, 0
        self._last_line = self._evaluation_began = time.perf_counter()
        if not self._enabled:
            return
        sets = ", ".join(pl_module.evaluation.names)
        text = f"evaluating {sets}: {pl_module.eval_samples} completions a problem"
        if self._terminal:
            self._eval_bar = tqdm(total=self._batches, desc=text, unit="batch", dynamic_ncols=True, leave=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def on_validation_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Show how far it is; a batch that an earlier evaluation has answered comes empty and takes no time."""
        self._batches_done += 1
        self._answered += bool(batch)
        if self._eval_bar is not None:
            self._eval_bar.initial += not batch
            self._eval_bar.update()
            return
        now = time.perf_counter()
        if self._enabled and self._answered and now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            seconds = (now - self._evaluation_began) / self._answered * (self._batches - self._batches_done)
            left = timedelta(seconds=round(seconds))
            print(f"evaluated {self._batches_done}/{self._batches} batches  {left} left", file=sys.stderr, flush=True)

    on_test_batch_end = on_validation_batch_end
    on_predict_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar. The time that is left to train is told by training alone."""
        self._began += time.perf_counter() - self._evaluation_began
        if self._eval_bar is not None:
            self._eval_bar.close()
            self._eval_bar = None

    on_test_end = on_validation_end
    on_predict_end = on_validation_end
