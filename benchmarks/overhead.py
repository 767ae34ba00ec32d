"""What control, competence and logging cost: seconds spent in them on the training thread, as a share of the steps.

Runs the real command line on the embedded reasoner with the learned Beta policy. Counted, each function without those
of the list that it calls:

- all hooks of our callbacks: control, competence, samples, collapse, run folder, progress bar, the step's log;
- what the module does for them: adding up the step's sums as Python floats, the feedback, the dictionary of scalars;
- `log_metrics` and `save` (which flushes) of metrics.csv and of TensorBoard, and the row written before a checkpoint;
- `log` and what Lightning does at each batch for what was logged by it.

What happens once a run (the prompts of the first batch, the table at the end) is spread over the steps, by default as
many as configs/base.yaml has.

Shown apart: a probe, the price of a progress measure, amortised over a window; and decoding and grading the rollouts,
without which there is no competence. Not seen: TensorBoard's writer thread, as far as nobody waits for it, and the few
microseconds in which the module joins two dictionaries. Writing checkpoints is not logging.

    python benchmarks/overhead.py
    python benchmarks/overhead.py --probe        # with probe accuracy as the progress measure
"""

import argparse
import subprocess
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.trainer.connectors.logger_connector.logger_connector import _LoggerConnector

from lit_atex import callbacks, checkpoint, cli, estimator, sample_log, step_log
from lit_atex.collapse import CollapseMonitor
from lit_atex.metrics_csv import MetricsCsv
from lit_atex.progress import StepProgress
from lit_atex.run_folder import RunFolder
from lit_atex.step_log import StepLog
from lit_atex.teacher import Teacher
from lit_atex.window import StepWindow

CONFIGS = Path(__file__).parents[1] / "configs"
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "on_train_epoch_end")
OURS = (
    *(callbacks.ExposureControl, estimator.CompetenceEstimator, sample_log.SampleLog, CollapseMonitor),
    *(RunFolder, StepProgress, StepLog),
)
TIMED: list[tuple[str, Any, str]] = [
    *((kind.__name__, kind, hook) for kind in OURS for hook in HOOKS if hook in vars(kind)),
    ("StepLog", StepLog, "add"),
    *(("the step's sums", StepWindow, name) for name in ("add", "reduce", "feedback", "scalars")),
    ("the step's sums", Teacher, "scalars"),
    *(("metrics.csv", MetricsCsv, name) for name in ("log_metrics", "save")),
    ("metrics.csv", checkpoint, "_write_metrics"),
    ("TensorBoard", step_log, "write"),  # without MetricsCsv's part
    *(("TensorBoard", cli.TensorBoardLogger, name) for name in ("log_metrics", "save")),
    *(("Lightning's log", pl.LightningModule, name) for name in ("log", "log_dict")),
    *(
        ("Lightning's log", _LoggerConnector, x)
        for x in ("on_batch_start", "on_batch_end", "update_train_step_metrics")
    ),
]
seconds: dict[str, float] = defaultdict(float)
inner = [0.0]
"""Seconds in timed functions that the running one called."""
running = False


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its own time added up while training runs."""

    def run(*args: Any, **kwargs: Any) -> Any:
        inner.append(0.0)
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            whole = time.perf_counter() - began
            seconds[name] += (whole - inner.pop()) * running
            inner[-1] += whole

    return run


class Steps(pl.Callback):
    """Measures the steps as the module's own clock does, and what is not of our list."""

    def __init__(self) -> None:
        self.total = self.grading = self.probe = 0.0

    def on_train_start(self, *args: Any) -> None:
        global running
        running = True

    def on_train_end(self, *args: Any) -> None:
        global running
        running = False

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        metrics = trainer.callback_metrics
        self.total += float(metrics["time/step"])
        self.grading += float(metrics["time/verify"])
        self.probe = float(metrics.get("time/probe_share", 0.0)) * self.total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--probe", action="store_true", help="read probe accuracy instead of rollout accuracy")
    options = parser.parse_args()

    for name, owner, function in TIMED:  # patched, since no profiler of Lightning sees them
        setattr(owner, function, timed(name, getattr(owner, function)))
    steps = Steps()
    with tempfile.TemporaryDirectory() as folder:
        stack = [CONFIGS / "base.yaml", CONFIGS / "exposure/beta_policy.yaml"]
        stack += [CONFIGS / "progress/probe_accuracy.yaml"] if options.probe else []
        words = [word for path in stack for word in ("--config", str(path))]
        words += ["--run", folder, "--data.validation", "null", "--trainer.max_steps", str(options.steps)]
        kept = cli.Cli.instantiate_trainer

        def with_steps(self: Any, **kwargs: Any) -> pl.Trainer:
            trainer = kept(self, **kwargs)
            trainer.callbacks.append(steps)  # type: ignore[attr-defined]
            return trainer

        cli.Cli.instantiate_trainer = with_steps  # type: ignore[method-assign]
        cli.main(["fit", *words])

    def show(name: str, spent: float) -> None:
        print(f"{name:24s} {spent / options.steps * 1e3:8.2f} ms a step  {spent / steps.total:8.3%}")

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=CONFIGS, capture_output=True, text=True, check=False
    ).stdout.strip()
    print(f"\n{options.steps} steps, {steps.total:.1f} s, {torch.get_num_threads()} threads, commit {commit}")
    seconds["ExposureControl"] -= steps.probe
    for name in sorted(seconds, key=lambda key: -seconds[key]):
        show(name, seconds[name])
    show("all of these", sum(seconds.values()))
    show("the probe", steps.probe)
    show("decoding and grading", steps.grading)


if __name__ == "__main__":
    main()
