"""Draws the README's picture from run folders: accuracy over training, by exposure, for two kinds of reference.

for t in 0.0 1.0; do for e in 0.0 0.5 1.0; do
lit-atex fit --config configs/base.yaml --run runs/figure/terseness-$t/exposure-$e \
        --data.train.init_args.terseness $t --exposure.strategy.init_args.ratio $e --model.optimizer.init_args.lr 1e-3
done; done
python benchmarks/figure.py runs/figure docs/demo.png
"""

import argparse
import csv
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

STYLE = {"0.0": ("#999999", ":"), "0.5": ("#0072B2", "--"), "1.0": ("#D55E00", "-")}  # safe for colour-blind readers
TITLES = {"0.0": "reference spells every operation out", "1.0": "second half of the reference is terse"}


def running(values: list[float], window: int = 5) -> list[float]:
    return [
        sum(values[max(0, i - window + 1) : i + 1]) / len(values[max(0, i - window + 1) : i + 1])
        for i in range(len(values))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for axis, (terseness, title) in zip(axes, TITLES.items()):
        for exposure, (colour, line) in STYLE.items():
            run = args.runs / f"terseness-{terseness}" / f"exposure-{exposure}"
            with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
                rows = [r for r in csv.DictReader(file) if r["competence/correct"]]
            steps = [int(r["step"]) + 1 for r in rows]
            accuracy = running([float(r["competence/correct"]) for r in rows])
            axis.plot(steps, accuracy, color=colour, linestyle=line, label=f"exposure {float(exposure):g}")
            results = json.loads((run / "results.json").read_text(encoding="utf-8"))
            for name, marks in (("step-0", "o"), (f"step-{steps[-1]}", "s")):
                level = next(r for r in results[name] if r["name"] == "level-8")
                low, high = level["interval"]
                error = [[level["average"] - low], [high - level["average"]]]
                axis.errorbar(int(name[5:]), level["average"], error, color=colour, marker=marks, capsize=3)
        axis.set_title(title)
        axis.set_xlabel("optimizer step")
        axis.set_ylim(0, 1)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("share correct, level 8")
    axes[0].legend(loc="lower right")
    figure.suptitle(
        "lines: training rollouts, mean of 5 steps · marks: avg@8 on 100 held-out problems with 95 % interval",
        fontsize=9,
    )
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
