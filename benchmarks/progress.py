"""How well does a progress measure know what a window brought? Each of ours against many rollouts of other problems.

Trains the embedded reasoner with exposures drawn uniformly, a new one every window, and reads all measures at each
opening, the rewards' sums of differences. The truth is by rollouts of held-out problems, drawn as a window opens and
weighed as the next one does (importance sampling the other way round, hardly cut, eight times as many as a batch).

    OMP_NUM_THREADS=1 python benchmarks/progress.py --terseness 0
    OMP_NUM_THREADS=1 python benchmarks/progress.py --terseness 1
"""

import argparse
import csv
import itertools
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from lit_atex.api import load
from lit_atex.attempts import Attempts
from lit_atex.exposure import Credit, Exposure, TrainingState
from lit_atex.measures import ProbeAccuracy, ProbeMatch, ProbeNLL, ProgressMeasure, RolloutAccuracy
from lit_atex.module import SelfDistillation
from lit_atex.reweighted import ReweightedAccuracy, likelihoods
from lit_atex.sources import Embedded
from lit_atex.types import Problem, StepFeedback, Verdict, row_generators, seeded
from lit_atex.versions import versions

CUT = 10.0


class Uniform(Exposure):
    """A new exposure for each window."""

    needs_progress = True

    def __init__(self, seed: int) -> None:
        self.seed, self.ratio, self.count = seed, 0.5, 0

    def begin_window(self, state: TrainingState, progress: float | None) -> list[Credit]:
        """Draw it."""
        self.ratio, self.count = float(seeded(self.seed, "uniform", self.count).random()), self.count + 1
        return []

    def ratios(self, state: TrainingState) -> list[float]:
        """The same for all problems."""
        return [self.ratio] * len(state.problem_ids)


class Every(ProgressMeasure):
    """Reads all measures, and the truth."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        self.measures: dict[str, ProgressMeasure] = {
            "rollout accuracy": RolloutAccuracy(),
            "reweighted accuracy": ReweightedAccuracy(),
            "probe accuracy": ProbeAccuracy(),
            "probe likelihood": ProbeNLL(),
            "probe match": ProbeMatch(),
        }
        self.readings: dict[str, list[float]] = {name: [] for name in self.measures}
        self.seconds = dict.fromkeys(self.measures, 0.0)
        self.gains: list[float] = []
        self._drawn: tuple[Attempts, list[float]] | None = None

    def window_opens(self, module: SelfDistillation, batch: list[Problem]) -> None:
        """Weigh what was drawn at the last opening, draw anew, and pass it on."""
        with torch.no_grad():
            if self._drawn is not None:
                attempts, then = self._drawn
                ratios = [math.exp(min(a - b, math.log(CUT))) for a, b in zip(likelihoods(module, attempts), then)]
                correct = np.array([v is Verdict.CORRECT for v in attempts.verdicts], float)
                self.gains.append(float(np.cov(correct, ratios)[0, 1]))
            attempts = self.draw(module)
            self._drawn = attempts, likelihoods(module, attempts)
        module.attempt(batch)  # the step's, in nobody's time
        for name, measure in self.measures.items():
            began = time.process_time()
            measure.window_opens(module, batch)
            self.seconds[name] += time.process_time() - began

    def draw(self, module: SelfDistillation) -> Attempts:
        """Rollouts of the held-out problems."""
        prompts = [module.prompts.student(p, module.tokenizer) for p in self.problems]
        keys = [(len(self.gains), p.id) for p in self.problems]
        rollouts = module.generate(prompts, 1, module.sampling, row_generators(module.seed, "truth", keys, 1))
        texts = module.decode(rollouts)
        verdicts = module.grade(texts, self.problems, 1)
        return Attempts([True] * len(prompts), self.problems, prompts, rollouts, texts, verdicts, broke=False)

    def update(self, feedback: StepFeedback) -> None:
        """Pass it on."""
        for measure in self.measures.values():
            measure.update(feedback)

    def read(self, module: SelfDistillation, probe: list[Problem]) -> float | None:
        """Read all."""
        for name, measure in self.measures.items():
            began = time.process_time()
            value = measure.read(module, probe)
            self.seconds[name] += time.process_time() - began
            self.readings[name].append(math.nan if value is None else value)
        return None


def main() -> None:
    """Run, print a table, and write the readings if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--terseness", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--hold", type=int, default=2)
    parser.add_argument("--rollouts", type=int, default=512, help="by which the truth is known")
    parser.add_argument("--csv", type=Path, help="where to write the gains, a row a window")
    args = parser.parse_args()
    torch.set_num_threads(1)
    source = Embedded(level=8, split="test", size=args.rollouts)
    every = Every(list(itertools.islice(iter(source), args.rollouts)))
    keys = {"data.train.init_args.terseness": args.terseness, "seed_everything": args.seed}
    keys |= {"trainer.max_steps": args.steps, "trainer.limit_val_batches": 0, "exposure.hold": args.hold}
    keys |= {"data.probe.init_args.size": 64}
    with tempfile.TemporaryDirectory() as folder:
        run = load("base", "exposure/beta_policy", "progress/probe_accuracy", keys, run=f"{folder}/run")
        run.exposure.strategy, run.exposure.progress = Uniform(args.seed), every
        run.train()
    # A measure that is read at both borders of a window says what it brought; rollouts say so a window late.
    truth, rows = np.array(every.gains), {}
    for name, readings in every.readings.items():
        gains = np.diff(readings)
        rows[name] = gains[1 : len(truth)] if name == "rollout accuracy" else gains[: len(truth)]
    print(f"\n{versions()}\nterseness {args.terseness}, seed {args.seed}, {len(truth)} windows of {args.hold} steps;")
    print(f"what they brought: mean {truth.mean():+.4f}, SD {truth.std():.4f}\n")
    print(f"{'':22}{'correlation':>12}{'bias':>10}{'SD of error':>13}{'ms a window':>13}")
    for name, gains in rows.items():
        known = np.isfinite(gains) & (np.arange(len(gains)) < len(truth))
        r = np.corrcoef(gains[known], truth[: len(gains)][known])[0, 1]
        error = gains[known] - truth[: len(gains)][known]
        same = f"{error.mean():+10.4f}{error.std():13.4f}" if "accuracy" in name else f"{'':10}{'':13}"  # same units
        print(f"{name:22}{r:12.2f}{same}{1e3 * every.seconds[name] / len(truth):13.0f}")
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["window", "truth", *rows])
            for k, gain in enumerate(truth):
                told = [f"{gains[k]:.5f}" if k < len(gains) else "" for gains in rows.values()]
                writer.writerow([k, f"{gain:.5f}", *told])


if __name__ == "__main__":
    main()
