"""Joins the tables of reports of one grid: of what was run on several days or machines, and whose run folders are gone.

python results/join.py results/controls                  # from its own tables: report.md and the pictures anew
python results/join.py results/controls MORE --out OUT   # with the runs of MORE, which `lit-atex report` wrote
python results/join.py results/exposure --metrics level-8/avg@8 level-12/avg@8 --picture exposure --out docs

What is over seeds, and what is at equal cost, is computed of all runs. What is over problems, and pass@k, cannot be: of
a cell that is in several folders it is that of the last. What a cell is compared with, the folders say.
"""

import argparse
import statistics
from itertools import pairwise
from pathlib import Path

from lit_atex import charts, tables, whole
from lit_atex.equal_cost import Row, views
from lit_atex.paired import holm
from lit_atex.runs import by_size
from lit_atex.spread import over_seeds, t_interval, t_p
from lit_atex.summary import markdown
from lit_atex.tables import Tables


def join(parts: list[Tables]) -> Tables:
    """The tables of all runs, in the order of their axes.

    Raises:
        ValueError: If a run is in two of them.
    """
    cells = in_order(list(dict.fromkeys(row["cell"] for part in parts for row in part.runs)))

    def of_runs(table: str) -> list[Row]:
        rows = [row for part in parts for row in getattr(part, table)]
        return sorted(rows, key=lambda row: (cells.index(row["cell"]), row["seed"]))

    runs, curves = of_runs("runs"), of_runs("curves")
    for one, other in pairwise(runs):
        if (one["cell"], one["seed"]) == (other["cell"], other["seed"]):
            raise ValueError(f"{one['cell']}, seed {one['seed']}: this run is in two of the folders.")
    last = {(row["metric"], row["cell"]): row for part in parts for row in part.cells}
    pairs = {(row["metric"], row["cell"]): row for part in parts for row in part.comparisons}
    shares = {(row["cell"], row["set"], row["when"], row["k"]): row for part in parts for row in part.pass_at_k}
    keys = [(metric, cell) for metric in dict.fromkeys(metric for metric, _ in last) for cell in cells]
    return Tables(
        runs,
        [last[key] | over_all_seeds(runs, *key) for key in keys if key in last],
        corrected([pairs[key] | paired(runs, pairs[key]) for key in keys if key in pairs]),
        views(curves, {row["cell"]: row["baseline"] for row in pairs.values()}),
        curves,
        of_runs("traces"),
        sorted(shares.values(), key=lambda row: cells.index(row["cell"])),
    )


def in_order(cells: list[str]) -> list[str]:
    """Axis by axis, values in the order in which they come, but those that differ in a number by its size."""
    split = {cell: cell.split(",") for cell in cells}
    values: list[list[str]] = [[] for _ in range(max(map(len, split.values())))]
    for parts in split.values():
        for part, known in zip(parts, values):
            known += [part] if part not in known else []
    sizes = [by_size(known) for known in values]
    return sorted(cells, key=lambda cell: [known.index(part) for part, known in zip(split[cell], sizes)])


def by_seed(runs: list[Row], metric: str, cell: str) -> dict[int, float]:
    """The metric at the end of each run of a cell."""
    return {run["seed"]: run[metric] for run in runs if run["cell"] == cell and run[metric] == run[metric]}


def over_all_seeds(runs: list[Row], metric: str, cell: str) -> Row:
    """What a row of cells.csv says of seeds."""
    values = list(by_seed(runs, metric, cell).values())
    mean, sd = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else float("nan")
    low, high = over_seeds(metric, values)
    return {"seeds": len(values), "mean": mean, "sd": sd, "seeds_low": low, "seeds_high": high}


def paired(runs: list[Row], row: Row) -> Row:
    """What a row of comparisons.csv says of seeds."""
    mine, theirs = (by_seed(runs, row["metric"], row[side]) for side in ("cell", "baseline"))
    moved = [round(mine[seed] - theirs[seed], 12) for seed in mine if seed in theirs]
    low, high = t_interval(moved)
    told = {"seeds": len(moved), "difference": statistics.fmean(moved), "p_seeds": t_p(moved)}
    return told | {"seeds_low": low, "seeds_high": high}


def corrected(rows: list[Row]) -> list[Row]:
    """The larger of the two p-values that are known, raised for all of them."""
    known = [[row[name] for name in ("p_seeds", "p_problems") if row[name] == row[name]] for row in rows]
    raised = iter(holm([max(ps) for ps in known if ps]))
    return [row | {"p_holm": next(raised) if ps else float("nan")} for row, ps in zip(rows, known)]


def only(made: Tables, metrics: list[str]) -> Tables:
    """The same of these metrics alone."""
    return made._replace(**{
        name: [row for row in getattr(made, name) if row["metric"] in metrics]
        for name in ("cells", "comparisons", "views", "curves")
    })  # fmt: skip


def main() -> None:
    """Join, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with the tables of a report")
    parser.add_argument("--out", type=Path, help="where to write (default: the first of them)")
    parser.add_argument("--metrics", nargs="+", default=[], help="of these alone (default: all)")
    parser.add_argument("--note", default="", help="what a reader of report.md must know")
    parser.add_argument("--picture", help="draw this one, and write nothing else")
    given = parser.parse_args()
    made, out = join([tables.read(folder) for folder in given.folders]), given.out or given.folders[0]
    made = only(made, given.metrics) if given.metrics else made
    figures = charts.draw(made)
    if given.picture:
        charts.save({given.picture: figures[given.picture]}, out)
        return
    tables.write(made, out)
    heading, rest = markdown(made, {}, [path.name for path in charts.save(figures, out)]).split("\n\n", 1)
    whole.write(out / "report.md", "\n\n".join(filter(None, (heading, given.note, rest))))


if __name__ == "__main__":
    main()
