"""Cells at equal cost: each beside its baseline, where both had spent as much as the run of the two that spent least.

From the learning curves alone, so that it can be made again of committed tables. It knows no run folder.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from lit_atex.paired import holm
from lit_atex.spread import UNKNOWN, Interval, over_seeds, t_interval, t_p

Row = dict[str, Any]
Curve = list[Row]

VIEWS = {"step": "optimizer steps", "tokens": "completion tokens", "seconds": "seconds of training"}
"""What runs can be made equal in."""


def views(curves: list[Row], baselines: dict[str, str]) -> list[Row]:
    """A row a view, metric and cell.

    Args:
        curves: A row a run, metric and evaluation, with `cell`, `seed`, `metric`, `value` and each of VIEWS.
        baselines: The baseline of each cell that has one. Empty: all cells are read where the run that spent least in
            all had ended.

    Returns:
        Budget in the view's unit; the cell's mean there with its interval over seeds, empty if one of its seeds was not
        measured that early; and of cells with a baseline the difference, paired by seed, with interval and p-value of
        the t test, which is raised for all comparisons of the view.
    """
    runs: dict[str, dict[str, dict[int, Curve]]] = {}
    for row in curves:
        of_metric = runs.setdefault(row["metric"], {})
        of_metric.setdefault(row["cell"], {}).setdefault(int(row["seed"]), []).append(row)
    return [
        row
        for view in VIEWS
        for row in _corrected([r for m, of in runs.items() for r in _view(view, m, of, baselines)])
    ]


def at(curve: Curve, view: str, budget: float) -> float:
    """The value when so much was spent, on the straight line between two evaluations; nan outside of what was measured.

    Args:
        curve: Rows of one run and metric.
        view: One of VIEWS.
        budget: In the view's unit.
    """
    points = sorted((row[view], row["value"]) for row in curve)
    if not points[0][0] <= budget <= points[-1][0]:
        return float("nan")
    return float(np.interp(budget, [x for x, _ in points], [y for _, y in points]))


def _view(view: str, metric: str, cells: dict[str, dict[int, Curve]], baselines: dict[str, str]) -> list[Row]:
    least = {cell: min(max(row[view] for row in curve) for curve in seeds.values()) for cell, seeds in cells.items()}
    rows = []
    for cell, seeds in cells.items():
        other = baselines.get(cell)
        against = cells.get(other, {}) if other is not None else {}
        budget = min([least[cell], *([least[other]] if other in cells else [])] if baselines else least.values())
        mine = {seed: at(curve, view, budget) for seed, curve in seeds.items()}
        theirs = {seed: at(curve, view, budget) for seed, curve in against.items()}
        whole = list(mine.values()) if all(value == value for value in mine.values()) else []  # never a part of a cell
        moved = [mine[seed] - theirs[seed] for seed in sorted(mine.keys() & theirs.keys())] if whole else []
        moved = [value for value in moved if value == value]
        rows.append(
            {
                **{"view": view, "budget": budget, "cell": cell, "metric": metric, "seeds": len(whole)},
                **{"mean": _mean(whole), **_ends("seeds", over_seeds(metric, whole))},
                **{"baseline": other, "difference": _mean(moved)},
                **_ends("difference", t_interval(moved) if moved else UNKNOWN),
                **{"p_seeds": t_p(moved), "p_holm": float("nan")},
            }
        )
    return rows


def _corrected(rows: list[Row]) -> list[Row]:
    known = [row for row in rows if row["p_seeds"] == row["p_seeds"]]
    for row, raised in zip(known, holm([row["p_seeds"] for row in known])):
        row["p_holm"] = raised
    return rows


def _mean(values: list[float]) -> float:
    return statistics.fmean(values) if values else float("nan")


def _ends(name: str, interval: Interval) -> Row:
    return {f"{name}_low": interval[0], f"{name}_high": interval[1]}
