"""Time and peak memory of a training step by phase: rollout, teacher, student (with the divergence), backward, rest.

Runs the real LightningModule through the real Trainer on a configuration of configs/, so it measures what users run.
Peak memory is the resident set (on a GPU its tensors), sampled every 2 ms, per phase; the first step is a warm-up and
left out.

    python benchmarks/step.py                                              # embedded reasoner, 64 rollouts
    python benchmarks/step.py --config configs/model/smollm2.yaml --config configs/data/gsm_symbolic.yaml --steps 3
"""

import argparse
import subprocess
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
import transformers
from machine import used, wait

from lit_atex.cli import Cli
from lit_atex.console import quiet

PHASES = ("rollout", "teacher", "student", "backward", "verify")


class Meter(pl.Callback):
    """Reads the module's own clock of the phases, and samples memory from a thread."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.peak: dict[str, int] = defaultdict(int)
        self.tokens: list[int] = []
        self._stop = threading.Event()

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        pl_module.clock.wait = wait

        def watch() -> None:
            while not self._stop.is_set():
                phase = pl_module.clock.phase or "rest"
                self.peak[phase] = max(self.peak[phase], used())
                time.sleep(0.002)

        self._thread = threading.Thread(target=watch, daemon=True)
        self._thread.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any) -> None:
        metrics = trainer.callback_metrics
        for phase in (*PHASES, "step"):
            self.seconds[phase].append(float(metrics[f"time/{phase}"]))
        self.tokens.append(int(pl_module.seen.rollouts.lengths.sum()))

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._stop.set()
        self._thread.join()


class Measured(Cli):
    """The command line with the meter in it, and nothing after the last step."""

    def instantiate_trainer(self, **kwargs: Any) -> pl.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        self.meter = Meter()
        trainer.callbacks.insert(0, self.meter)
        return trainer

    def after_fit(self) -> None:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", action="append", default=[], help="overlays on configs/base.yaml")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args, more = parser.parse_known_args()
    torch.set_num_threads(args.threads)
    root = Path(__file__).parent.parent
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        overlays = [word for c in [str(root / "configs/base.yaml"), *args.config] for word in ("--config", c)]
        limits = ["--trainer.max_steps", str(args.steps), "--trainer.num_sanity_val_steps", "0"]
        words = ["fit", *overlays, *limits, "--trainer.limit_val_batches", "0", "--run", f"{folder}/run", *more]
        meter = Measured(words).meter
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    ).stdout.strip()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads, commit {commit}"
    )
    print(
        f"{' + '.join(args.config) or 'configs/base.yaml'}: {args.steps - 1} steps after one warm-up, "
        f"median {median(meter.tokens[1:]):.0f} completion tokens"
    )
    print(f"{'phase':<10}{'seconds (median, min..max)':>34}{'share':>8}{'peak MiB':>10}")
    total = median(meter.seconds["step"][1:])
    for phase in (*PHASES, "step"):
        values = meter.seconds[phase][1:]
        peak = max(meter.peak.values()) if phase == "step" else meter.peak[phase]
        spread = f"{median(values):.3f} ({min(values):.3f}..{max(values):.3f})"
        print(f"{phase:<10}{spread:>34}{median(values) / total:>8.2f}{peak / 2**20:>10.0f}")


if __name__ == "__main__":
    main()
