"""How well can the best exposure of the simulated students of results/controllers.md be known after 150 decisions?

A least-squares fit is told what no controller is: that worth is a parabola of range 1 in exposure (for `c`: one whose
peak moves linearly in time), and that nothing else moves the rewards. Unknown is only where the peak lies (at the start
and at the end). It sees 150 exposures, spread evenly, and then names the peak of the last 50 decisions: the one that
fits best. Printed is how far off it is on the mean. It knows no strategy.

    python benchmarks/limits.py
"""

from collections.abc import Callable

import numpy as np

DECISIONS, SEEN, RUNS = 200, 150, 1000
TIME = np.arange(DECISIONS) / (DECISIONS - 1)
GRID = np.linspace(0, 1, 51)


def peak(u: np.ndarray, best: np.ndarray | float) -> np.ndarray:
    """Worth as in `lit_atex.simulated.Peak`."""
    return 1 - ((u - best) / np.maximum(best, 1 - np.asarray(best))) ** 2


def moving(u: np.ndarray, best: np.ndarray | float) -> np.ndarray:
    """Worth as in `lit_atex.simulated.Moving`."""
    return 1 - ((u - best) / 0.8) ** 2


def off(worth: Callable, true: np.ndarray, paths: np.ndarray, noise: float) -> np.ndarray:
    """`[runs]` distance of the believed from the true peak, over the last decisions.

    Args:
        worth: Of an exposure, given where the peak is.
        true: `[decisions]` where it is.
        paths: `[hypotheses decisions]` where it may be.
        noise: SD of a reward.
    """
    random = np.random.default_rng(0)
    found = []
    for _ in range(RUNS):
        u = random.random(SEEN)
        rewards = worth(u, true[:SEEN]) + noise * random.standard_normal(SEEN)
        misfit = ((rewards - worth(u, paths[:, :SEEN])) ** 2).sum(1)
        found.append(abs(paths[misfit.argmin(), SEEN:].mean() - true[SEEN:].mean()))
    return np.array(found)


def main() -> None:
    still = np.repeat(GRID[:, None], DECISIONS, 1)
    starts, ends = (x.ravel()[:, None] for x in np.meshgrid(GRID[::2], GRID[::2]))
    students = {f"a {best}": (peak, np.full(DECISIONS, best), still) for best in (0.2, 0.5, 0.7)}
    students |= {"b": (peak, np.full(DECISIONS, 1.0), still)}
    students |= {"c": (moving, 0.2 + 0.6 * TIME, starts * (1 - TIME) + ends * TIME)}
    print(f"mean |off| over {RUNS} runs, ± 1.96 SE\n")
    print("| | noise | off |\n|---|---|---|")
    for name, (worth, true, paths) in students.items():
        for noise in (0.1, 0.3, 1.0):
            found = off(worth, true, paths, noise)
            print(f"| {name} | {noise} | {found.mean():.3f} ± {1.96 * found.std() / RUNS**0.5:.3f} |", flush=True)


if __name__ == "__main__":
    main()
