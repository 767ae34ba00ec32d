"""Every exposure strategy on every simulated student: distance from the best exposure, and regret.

Writes results/controllers.csv (one line per student, noise and strategy) and prints it as a table. Intervals are 95 %
over seeds (1.96 standard errors). Seeds 5000 and up: the controllers were chosen on others.

    OMP_NUM_THREADS=1 nice -n 10 python benchmarks/controllers.py --seeds 20
"""

import argparse
import csv
import subprocess
import time
from datetime import date
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from lit_atex.bandit import Bandit
from lit_atex.beta_policy import BetaPolicy
from lit_atex.exposure import Exposure, Fixed, Random
from lit_atex.learners import Reinforce, Surrogate
from lit_atex.simulated import STUDENTS, simulate

WINDOWS = 200
FIRST_SEED = 5000
NOISES = (0.3, 1.0, 0.1)
"""In this order, so that a run cut short has the middle one."""


def strategy(name: str, student: str, seed: int, margin: float) -> Exposure:
    """One increment is the whole reward, but for (d), (f), (g) and where the name says J=3."""
    later = student[0] in "dfg" or "J=3" in name
    reward = {"horizon": 3, "discount": 0.9} if later else {"horizon": 1, "discount": 1.0}
    if "J=1" in name:
        reward = {"horizon": 1, "discount": 0.0}
    if name == "Random":
        return Random(seed=seed)
    if name == "Fixed 1":
        return Fixed(1.0)
    if name == "Bandit":
        return Bandit(**reward, seed=seed)
    learner = Reinforce() if name == "Reinforce" else Surrogate()
    return BetaPolicy(learner, **reward, statistics=[] if "no state" in name else None, margin=margin, seed=seed)


def names(student: str) -> list[str]:
    more = {"a 0.7": ["Surrogate, J=3"], "c": ["Surrogate, no state"], "d": ["Surrogate, J=1"]}.get(student, [])
    return ["Random", "Fixed 1", "Bandit", "Reinforce", "Surrogate", *more]


def run(job: tuple[str, float, str, int, float, int]) -> tuple[float, float, float]:
    student, noise, name, seed, margin, windows = job
    torch.set_num_threads(1)
    course = simulate(STUDENTS[student], strategy(name, student, seed, margin), windows, noise, seed, windows)
    return course.distance(windows - windows // 4, windows), course.distance(30, 40), float(course.regret.sum())


def interval(values: np.ndarray) -> tuple[float, float]:
    return float(values.mean()), float(1.96 * values.std(ddof=1) / len(values) ** 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--noises", type=float, nargs="+", default=NOISES)
    parser.add_argument("--only", default="", help="strategies whose name begins so")
    parser.add_argument("--students", default="abcdefg", help="their letters, in the order in which they are run")
    parser.add_argument("--margin", type=float, default=0.0, help="how far a Beta policy reaches beyond the ends")
    parser.add_argument("--windows", type=int, default=WINDOWS, help="off_200 is of the last quarter, off_40 of 31-40")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "results" / "controllers.csv")
    options = parser.parse_args()
    began = time.perf_counter()
    students = [student for letter in options.students for student in STUDENTS if student[0] == letter]
    cells = [
        (s, n, name) for n in options.noises for s in students for name in names(s) if name.startswith(options.only)
    ]
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    jobs = [(*cell, seed, options.margin, options.windows) for cell in cells for seed in seeds]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    head = [
        "student",
        "noise",
        "strategy",
        "off_200",
        "off_200_ci",
        "bias_200",
        "off_40",
        "off_40_ci",
        "regret",
        "regret_ci",
    ]
    print("|", " | ".join(head), "|\n" + "|---" * len(head) + "|")
    with (
        get_context("spawn").Pool(options.processes) as pool,
        options.out.open("w", newline="", encoding="utf-8") as file,
    ):
        out = csv.writer(file)
        out.writerow([*head, "seeds", "commit", "date"])
        results = pool.imap(run, jobs, chunksize=5)
        for cell in cells:
            found = np.array([next(results) for _ in range(options.seeds)])
            late, early = interval(abs(found[:, 0])), interval(abs(found[:, 1]))
            numbers = [*late, float(found[:, 0].mean()), *early, *interval(found[:, 2])]
            row = [*cell, *(f"{x:.3f}" if i < 5 else f"{x:.1f}" for i, x in enumerate(numbers))]
            out.writerow([*row, options.seeds, commit, date.today()])
            file.flush()
            print("|", " | ".join(map(str, row)), "|", flush=True)
    print(f"{time.perf_counter() - began:.0f} s, commit {commit}, {date.today()}")


if __name__ == "__main__":
    main()
