"""Records of runs to the tables of a report: lists of rows, as they are written to CSV and read back.

It computes every number that a report shows; it draws nothing and writes nothing.
"""

from __future__ import annotations

import csv
import io
import statistics
from math import isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lit_atex import whole
from lit_atex.cells import baselines_of, by_cell, family_of
from lit_atex.equal_cost import Row, views
from lit_atex.inspection import TRACE
from lit_atex.paired import holm
from lit_atex.runs import Record
from lit_atex.spread import NOT_COMPARED, UNKNOWN, Gap, ends, gap, mean_of, over_seeds
from lit_atex.stats import bootstrap_interval, seen

TRACED = ("exposure", "competence", "correct", "mismatch", "loss", "length", "entropy", "reward")
"""What is kept of the trace, by its name in `inspection`."""
EXACT = ("runs", "curves")
"""Tables whose numbers are written in full."""
POINTS = 200
"""At most so many rows of the trace are kept of a run: each the mean of as many steps."""


class Tables(NamedTuple):
    """What a report is made of; each is a CSV file of the same name.

    Attributes:
        runs: A row a run.
        cells: A row a cell and metric: mean, SD over seeds, intervals.
        comparisons: A row a cell and metric: against the baseline; empty without one.
        views: A row a cell, metric and view: the metric, and the difference to the baseline, at equal cost.
        curves: A row a run, metric and evaluation.
        traces: A row a run and step.
        pass_at_k: A row a cell, set, time ("before", "after") and k.
    """

    runs: list[Row]
    cells: list[Row]
    comparisons: list[Row]
    views: list[Row]
    curves: list[Row]
    traces: list[Row]
    pass_at_k: list[Row]


def make(runs: list[Record], metrics: list[str], baseline: dict[str, str] | str | None) -> Tables:
    """All tables.

    Args:
        runs: At least one.
        metrics: "SET/METRIC"; empty: avg@n of each set that all runs have.
        baseline: Value by axis, or the name of a cell; None: nothing is compared.

    Raises:
        ValueError: If a metric or the baseline is not there.
    """
    metrics = metrics or common_averages(runs)
    for metric in metrics:
        if all(isnan(run.value(metric)) for run in runs):
            known = ", ".join(_examples(runs[0], metric.rpartition("/")[0]))
            raise ValueError(f"--metrics: no run has {metric!r}; there are, e.g., {known}.")
    cells = by_cell(runs)
    families = family_of(runs)
    baselines = baselines_of(cells, baseline)
    curves = [row for run in runs for metric in metrics for row in _curve(run, metric)]
    comparisons = _comparisons(cells, metrics, baselines)
    return Tables(
        [_run(run, metrics, families[run.cell]) for run in runs],
        [_cell(cell, metric, of_cell) for metric in metrics for cell, of_cell in cells.items()],
        comparisons,
        views(curves, baselines, of_other_problems(comparisons)),
        curves,
        [row for of_cell in cells.values() for row in _traces(of_cell)],
        [row for cell, of_cell in cells.items() for row in _pass_at_k(cell, of_cell, metrics)],
    )


def _examples(run: Record, set_name: str) -> list[str]:
    """The metrics of a set that a run has measured at its end; of a set that it has not, the averages of all others."""
    last = run.results.get(run.last, {})
    if set_name in last:
        return [f"{set_name}/{measure}" for measure in sorted(last[set_name].metrics)]
    return [f"{name}/{measure}" for name in sorted(last) for measure in sorted(last[name].metrics) if "avg@" in measure]


def common_averages(runs: list[Record]) -> list[str]:
    """avg@n of each set that all runs have measured at their end.

    Raises:
        ValueError: If there is none, or of other n in each.
    """
    sets = [{name: r.samples for name, r in run.results.get(run.last, {}).items()} for run in runs]
    found = [f"{name}/avg@{n}" for name, n in sets[0].items() if all(of_run.get(name) == n for of_run in sets)]
    both = [name for name in sets[0] if all(name in of_run for of_run in sets)]
    if both and not found:
        told = "; ".join(f"{n}: {', '.join(map(str, sorted({of_run[n] for of_run in sets})))}" for n in both)
        raise ValueError(
            f"--metrics: the runs have sets in common, but of different numbers of samples ({told}): name what to "
            f"report, e.g. {both[0]}/pass@1, which is avg@n of any n."
        )
    if not found:
        raise ValueError("the runs have no set in common: name what to report in --metrics SET/METRIC ...")
    return found


def _run(run: Record, metrics: list[str], family: str) -> Row:
    spent, strategy = run.spent(run.last), str(run.config.get("exposure.strategy.class_path", ""))
    return {
        **{"run": str(run.path), "cell": run.cell, "family": family, "seed": run.seed},
        **{"strategy": strategy.rpartition(".")[2], "steps": run.last},
        **{"tokens": spent["tokens"], "seconds": spent["seconds"], "exposure": run.mean(TRACE["exposure"])},
        **{"first_mismatch": run.first(TRACE["mismatch"]), "mismatch": run.mean(TRACE["mismatch"])},
        **{metric: run.value(metric) for metric in metrics},
        **{"stopped": run.manifest.get("stopped", ""), "began": (run.manifest.get("commands") or [{}])[0].get("began")},
        **{"commit": run.manifest.get("git_commit"), "uncommitted_changes": run.manifest.get("git_dirty")},
    }


def _cell(cell: str, metric: str, runs: list[Record]) -> Row:
    measured = [run for run in runs if not isnan(run.value(metric))]
    values, problems = [run.value(metric) for run in measured], [run.by_problem(metric) for run in measured]
    common = sorted(set.intersection(*(set(p) for p in problems))) if measured else []
    means = np.array([np.mean([p[i] for p in problems]) for i in common])
    return {
        **{"cell": cell, "metric": metric, "seeds": len(values)},
        "mean": mean_of(values),
        "sd": statistics.stdev(values) if len(values) > 1 else float("nan"),
        **ends("seeds", over_seeds(metric, values)),
        **{"problems": len(common), "seen": seen(means)},
        **ends("problems", bootstrap_interval(means, shares=True) if common else UNKNOWN),
    }


def _comparisons(cells: dict[str, list[Record]], metrics: list[str], baselines: dict[str, str]) -> list[Row]:
    """Each cell against its baseline; p-values raised over all of them. Without a seed: of other problems."""
    found: list[tuple[Row, Gap]] = []
    count = len(metrics) * len(baselines)
    for metric in metrics:
        for cell, against in baselines.items():
            mine, theirs = cells[cell], cells[against]
            values = (_by_seed(mine, metric), _by_seed(theirs, metric))
            problems = (_problems(mine, metric), _problems(theirs, metric))
            one = gap(values, problems, count, metric)
            if not all(a.same_problems(b, metric) for a in mine for b in theirs):
                one = one and NOT_COMPARED
            if one is not None:
                found.append(({"cell": cell, "baseline": against, "metric": metric}, one))
    known = [one for _, one in found if not isnan(one.p)]
    for one, raised in zip(known, holm([one.p for one in known])):
        one.p_holm = raised
    return [
        {
            **row,
            **{"seeds": one.seeds, "problems": one.problems, "difference": one.difference},
            **ends("seeds", one.over_seeds),
            **ends("problems", one.over_problems),
            **{"p_seeds": one.p_seeds, "p_problems": one.p_problems, "p_holm": one.p_holm},
        }
        for row, one in found
    ]


def of_other_problems(comparisons: list[Row]) -> set[tuple[str, str]]:
    """Cells and metrics of which no comparison is given, since the baseline was evaluated on other problems."""
    return {(row["cell"], row["metric"]) for row in comparisons if not row["seeds"]}


def _problems(runs: list[Record], metric: str) -> dict[int, dict[str, float]]:
    return {run.seed: run.by_problem(metric) for run in runs}


def _by_seed(runs: list[Record], metric: str) -> dict[int, float]:
    return {run.seed: run.value(metric) for run in runs if not isnan(run.value(metric))}


def _curve(run: Record, metric: str) -> list[Row]:
    known = [step for step in sorted(run.results) if not isnan(run.value(metric, step))]
    head = {"cell": run.cell, "seed": run.seed, "metric": metric}
    return [head | run.spent(step) | {"value": run.value(metric, step)} for step in known]


def _traces(runs: list[Record]) -> list[Row]:
    """The traces of a cell, in parts that begin and end at the same steps in all seeds.

    A seed lacks the steps that were skipped, and those after its end, where its last part ends too.
    """
    every = sorted({one["step"] for run in runs for one in run.trace})
    size = max(1, -(-len(every) // POINTS))
    ends = {step: every[min(i // size * size + size, len(every)) - 1] for i, step in enumerate(every)}
    rows = []
    for run in runs:
        parts: dict[float, list[dict[str, float]]] = {}
        for one in run.trace:
            parts.setdefault(ends[one["step"]], []).append(one)
        for end, part in parts.items():
            step = min(end, run.trace[-1]["step"])
            row: Row = {"cell": run.cell, "seed": run.seed, "step": step, "tokens": part[-1]["tokens"]}
            for name in TRACED:
                values = [one[TRACE[name]] for one in part if TRACE[name] in one]
                row[name] = mean_of(values)
            rows.append(row)
    return rows


def _pass_at_k(cell: str, runs: list[Record], metrics: list[str]) -> list[Row]:
    rows = []
    for name in dict.fromkeys(metric.rpartition("/")[0] for metric in metrics):
        for when in ("before", "after"):
            steps = [0 if when == "before" else run.last for run in runs]
            samples = [run.results.get(step, {}).get(name) for run, step in zip(runs, steps)]
            most = min((r.samples for r in samples if r), default=0)
            for k in range(1, most + 1):
                values = [run.value(f"{name}/pass@{k}", step) for run, step in zip(runs, steps)]
                values = [value for value in values if not isnan(value)]
                row: Row = {"cell": cell, "set": name, "when": when, "k": k, "seeds": len(values)}
                rows.append(row | {"mean": mean_of(values)} | ends("seeds", over_seeds(f"{name}/pass@{k}", values)))
    return rows


def write(tables: Tables, folder: Path) -> None:
    """Each table as a CSV file; what is not known is empty.

    What other tables are made of stays exact, so that differences of the same size are that when they are read back.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables._asdict().items():
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: _cell_text(value, name in EXACT) for key, value in row.items()})
        whole.write(folder / f"{name}.csv", text.getvalue())


def _cell_text(value: Any, exact: bool) -> str:
    if value is None or (isinstance(value, float) and isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) and not exact else str(value)


def read(folder: Path) -> Tables:
    """The tables of a report that was written; numbers as numbers, what is empty as nan.

    Raises:
        ValueError: If there is none.
    """
    if missing := [name for name in Tables._fields if not (folder / f"{name}.csv").is_file()]:
        raise ValueError(f"{folder} holds no report of lit-atex: it lacks {', '.join(f'{n}.csv' for n in missing)}.")
    return Tables(*(_read(folder / f"{name}.csv") for name in Tables._fields))


TEXTS = frozenset(
    {"run", "cell", "family", "strategy", "metric", "baseline", "view", "set", "when", "stopped", "began", "commit",
     "uncommitted_changes"}
)  # fmt: skip
"""Columns that are never numbers, even where they look like one."""


def _read(path: Path) -> list[Row]:
    rows = csv.DictReader(path.read_text(encoding="utf-8").splitlines())
    return [{key: value if key in TEXTS else _number(value) for key, value in row.items()} for row in rows]


def _number(text: str) -> Any:
    try:
        return int(text) if text.removeprefix("-").isdigit() else float(text or "nan")
    except ValueError:
        return text
