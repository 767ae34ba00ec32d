"""The line that a run shows while it runs: optimizer steps, the numbers that matter, time left."""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

NUMBERS = {"loss": "{:.4f}", "exposure": "{:.2f}", "mismatch": "{:.4f}", "accuracy": "{:.2f}", "tok/s": "{:.0f}"}


class StepProgress(ProgressBar):
    """A bar over optimizer steps on a terminal; plain lines now and then in a file."""

    def __init__(self, seconds_between_lines: float = 15.0) -> None:
        """Choose how often a line is printed where there is no terminal."""
        super().__init__()
        self._terminal = sys.stderr.isatty()
        self._seconds_between_lines = seconds_between_lines
        self._enabled = True
        self._bar: tqdm | None = None
        self._began, self._first_step, self._last_line = 0.0, 0, 0.0

    def disable(self) -> None:
        """Show nothing (called on ranks other than 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

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
            self._bar.n = trainer.global_step
            self._bar.set_postfix_str(text)
            return
        now = time.perf_counter()
        last = trainer.global_step == trainer.max_steps
        if self._enabled and (last or now - self._last_line >= self._seconds_between_lines):
            self._last_line = now
            print(f"{self._steps(trainer, now)}  {text}", file=sys.stderr, flush=True)

    def _steps(self, trainer: pl.Trainer, now: float) -> str:
        done = trainer.global_step - self._first_step
        if trainer.max_steps <= 0:
            return f"step {trainer.global_step}"
        left = (now - self._began) / max(done, 1) * (trainer.max_steps - trainer.global_step)
        minutes, seconds = divmod(round(left), 60)
        return f"step {trainer.global_step}/{trainer.max_steps}  {minutes}:{seconds:02d} left"

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def on_validation_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Say what takes time now."""
        if self._enabled:
            sets = ", ".join(pl_module.evaluation.names)
            print(f"evaluating {sets}: {pl_module.eval_samples} completions a problem", file=sys.stderr, flush=True)

    on_test_start = on_validation_start

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print without breaking the bar."""
        print(*args, **kwargs, flush=True)
