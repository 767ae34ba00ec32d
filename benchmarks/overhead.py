"""What control, competence and logging cost: seconds in our callbacks and in the loggers, as a share of the steps.

Runs the real command line on the embedded reasoner with the learned Beta policy, and times every hook of every callback
of ours and every call that logs. A probe is shown apart: the price of a progress measure, amortised over a window.

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

from lit_atex import callbacks, cli, estimator
from lit_atex.collapse import CollapseMonitor
from lit_atex.metrics_csv import MetricsCsv

CONFIGS = Path(__file__).parents[1] / "configs"
HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step", "on_train_epoch_end")
seconds: dict[str, float] = defaultdict(float)
calls: dict[str, int] = defaultdict(int)
depth = 0


def timed(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with the time spent in its outermost calls added up."""

    def run(*args: Any, **kwargs: Any) -> Any:
        global depth
        depth += 1
        began = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            depth -= 1
            if not depth:
                seconds[name] += time.perf_counter() - began
                calls[name] += 1

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--probe", action="store_true", help="read probe accuracy instead of rollout accuracy")
    options = parser.parse_args()

    ours = (callbacks.ExposureControl, estimator.CompetenceEstimator, callbacks.SampleLog, CollapseMonitor)
    for kind in ours:
        for hook in HOOKS:
            if hook in vars(kind):
                setattr(kind, hook, timed(kind.__name__, getattr(kind, hook)))
    # What writes the numbers: our CSV and TensorBoard, once a step. Patched, since no profiler of Lightning sees them.
    MetricsCsv.log_metrics = timed("metrics.csv", MetricsCsv.log_metrics)  # type: ignore[method-assign]
    board = cli.TensorBoardLogger
    board.log_metrics = timed("TensorBoard", board.log_metrics)  # type: ignore[method-assign]
    pl.LightningModule.log_dict = timed("log_dict of the step", pl.LightningModule.log_dict)  # type: ignore[method-assign]

    step_seconds: list[float] = []
    probe_seconds: list[float] = []

    class Steps(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
            step_seconds.append(float(trainer.callback_metrics["time/step"]))
            share = trainer.callback_metrics.get("time/probe_share")
            probe_seconds.append(float(share) if share is not None else 0.0)

    with tempfile.TemporaryDirectory() as folder:
        stack = [CONFIGS / "base.yaml", CONFIGS / "exposure/beta_policy.yaml"]
        stack += [CONFIGS / "progress/probe_accuracy.yaml"] if options.probe else []
        words = [word for path in stack for word in ("--config", str(path))]
        words += ["--run", folder, "--data.validation", "null", "--trainer.max_steps", str(options.steps)]
        kept = cli.Cli.instantiate_trainer

        def with_steps(self: Any, **kwargs: Any) -> pl.Trainer:
            trainer = kept(self, **kwargs)
            trainer.callbacks.append(Steps())  # type: ignore[attr-defined]
            return trainer

        cli.Cli.instantiate_trainer = with_steps  # type: ignore[method-assign]
        cli.main(["fit", *words])

    total = sum(step_seconds)
    probe = probe_seconds[-1] * total
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    print(f"\n{options.steps} steps, {total:.1f} s, {torch.get_num_threads()} threads, commit {commit}")
    for name in sorted(seconds, key=lambda key: -seconds[key]):
        own = seconds[name] - (probe if name == "ExposureControl" else 0.0)
        print(f"{name:24s} {own / options.steps * 1e3:8.2f} ms a step  {own / total:8.3%}")
    own_total = sum(seconds.values()) - probe
    print(f"{'all of these':24s} {own_total / options.steps * 1e3:8.2f} ms a step  {own_total / total:8.3%}")
    print(f"{'the probe':24s} {probe / options.steps * 1e3:8.2f} ms a step  {probe / total:8.3%}")


if __name__ == "__main__":
    main()
