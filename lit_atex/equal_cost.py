"""Cells at equal cost: each beside its baseline, where both had spent as much as the run of the two that spent least.

From the learning curves alone, so that it can be made again of committed tables. It knows no run folder.
"""

from __future__ import annotations

from collections.abc import Collection
from math import isnan
from typing import Any

import numpy as np

from lit_atex.paired import holm
from lit_atex.spread import ends, mean_of, over_seeds, t_p

Row = dict[str, Any]
Curve = list[Row]

VIEWS = {"step": "optimizer steps", "tokens": "completion tokens", "seconds": "seconds of training"}
"""What runs can be made equal in."""


def views(curves: list[Row], baselines: dict[str, str], apart: Collection[tuple[str, str]] = frozenset()) -> list[Row]:
    """A row a view, metric and cell.

    Args:
        curves: A row a run, metric and evaluation, with `cell`, `seed`, `metric`, `value` and each of VIEWS.
        baselines: The baseline of each cell that has one. Empty: all cells are read where the run that spent least in
            all had ended.
        apart: Cells and metrics that are not compared with their baseline, which had other problems.

    Returns:
        Budget in the view's unit, of the run that spent least; the cell's mean there with its interval over seeds
        (unknown where the evaluations nearest to it are all equal, as at the end of a run they would be);
        and of cells with a baseline the difference, paired by seed, with interval and p-value of the t test, which is
        raised for all comparisons of the view. Where there is a baseline, all this is of the seeds that both have. A
        row is empty if one of its runs was not measured that early.
    """
    runs: dict[str, dict[str, dict[int, Curve]]] = {}
    for row in curves:
        of_metric = runs.setdefault(row["metric"], {})
        of_metric.setdefault(row["cell"], {}).setdefault(int(row["seed"]), []).append(row)
    return [
        row
        for view in VIEWS
        for row in _corrected([r for m, of in runs.items() for r in _view(view, m, of, baselines, apart)])
    ]


def at(curve: Curve, view: str, budget: float) -> float:
    """The value when so much was spent, on the straight line between two evaluations; nan outside of what was measured.

    Args:
        curve: Rows of one run and metric.
        view: One of VIEWS; what it cost may be nan, where nothing was logged.
        budget: In the view's unit.
    """
    points = sorted((row[view], row["value"]) for row in curve if not isnan(row[view]))
    if len(points) < len(curve) or not points[0][0] <= budget <= points[-1][0]:
        return float("nan")
    return float(np.interp(budget, [x for x, _ in points], [y for _, y in points]))


def _nearest(curve: Curve, view: str, budget: float) -> float:
    """The value at the evaluation that is nearest."""
    return float(min(curve, key=lambda row: abs(row[view] - budget))["value"])


def _moved(mine: list[float], theirs: list[float]) -> list[float]:
    """By how much; nothing without the others."""
    return np.round(np.subtract(mine[: len(theirs)], theirs), 12).tolist()


def _spread(between: list[float], nearest: list[float]) -> list[float]:
    """What says how seeds spread: where all evaluations are equal, lines between them differ in their length alone."""
    return between if np.ptp(nearest or [0.0]) > 1e-12 else nearest


def _view(
    view: str,
    metric: str,
    cells: dict[str, dict[int, Curve]],
    baselines: dict[str, str],
    apart: Collection[tuple[str, str]],
) -> list[Row]:
    rows = []
    for cell, seeds in cells.items():
        other = baselines.get(cell)
        against = cells.get(other, {}) if other is not None and (cell, metric) not in apart else {}
        paired = sorted(seeds.keys() & against.keys())
        if paired:
            curves = [side[seed] for side in (seeds, against) for seed in paired]
        else:
            curves = list(seeds.values()) if baselines else [curve for of in cells.values() for curve in of.values()]
        budget = min((end for end in (_end(curve, view) for curve in curves) if not isnan(end)), default=float("nan"))
        sides = [[seeds[seed] for seed in paired or sorted(seeds)], [against[seed] for seed in paired]]
        mine, theirs = ([at(curve, view, budget) for curve in side] for side in sides)
        if any(map(isnan, (*mine, *theirs))):  # a part of a cell must not stand beside whole ones
            mine, theirs, sides = [], [], [[], []]
        near, their_near = ([_nearest(curve, view, budget) for curve in side] for side in sides)
        moved, near_moved = _moved(mine, theirs), _moved(near, their_near)
        spread, spread_moved = _spread(mine, near), _spread(moved, near_moved)
        rows.append(
            {
                **{"view": view, "budget": budget, "cell": cell, "metric": metric, "seeds": len(mine)},
                **{"mean": mean_of(mine), **ends("seeds", over_seeds(metric, spread))},
                **{"baseline": other if paired else None, "difference": mean_of(moved)},
                **ends("difference", over_seeds(metric, spread_moved, -1.0)),
                **{"p_seeds": t_p(spread_moved), "p_holm": float("nan")},
            }
        )
    return rows


def _end(curve: Curve, view: str) -> float:
    """What the run had spent in all; nan if that is not known."""
    return max((row[view] for row in curve), key=lambda spent: (isnan(spent), spent))


def _corrected(rows: list[Row]) -> list[Row]:
    known = [row for row in rows if not isnan(row["p_seeds"])]
    for row, raised in zip(known, holm([row["p_seeds"] for row in known])):
        row["p_holm"] = raised
    return rows
