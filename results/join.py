"""Joins the tables of reports of one grid: of what was run on several days or machines, and whose run folders are gone.

python results/join.py results/controls                  # from its own tables: report.md and the pictures anew
python results/join.py results/controls MORE --out OUT   # with the runs of MORE, which `lit-atex report` wrote
python results/join.py results/exposure --metrics level-8/avg@8 level-12/avg@8 --picture exposure --out docs

What is over seeds, and what is at equal cost, is computed of all runs. What is over problems, and pass@k, cannot be: of
a cell that is in several folders it is that of the one with most seeds. What a cell is compared with, the folders say;
where they do not, it is the cell that differs from it as a baseline does from the cells that are compared with it.
"""

import argparse
import statistics
from collections import Counter
from itertools import pairwise
from pathlib import Path

from lit_atex import charts, tables, whole
from lit_atex.equal_cost import Row, views
from lit_atex.paired import holm
from lit_atex.report import markdown
from lit_atex.runs import by_size
from lit_atex.spread import over_seeds, t_p
from lit_atex.tables import Tables

NAN = float("nan")
UNKNOWN = {"seeds": 0, "problems": 0, "difference": NAN, "seeds_low": NAN, "seeds_high": NAN}
UNKNOWN |= dict.fromkeys(("problems_low", "problems_high", "p_seeds", "p_problems", "p_holm"), NAN)
"""A row of comparisons.csv of which nothing is known but its cells."""


def join(parts: list[Tables], only: list[str] | None = None) -> Tables:
    """The tables of all runs, in the order of their axes.

    Args:
        parts: At least one.
        only: Metrics to keep; None: those that all parts have.

    Raises:
        ValueError: If a run is in two parts, or a part does not have a metric.
    """
    metrics = shared_metrics(parts, only)
    cells = in_order(list(dict.fromkeys(row["cell"] for part in parts for row in part.runs)))
    family = {row["cell"]: row["family"] for part in parts for row in part.runs}
    family = families(family) if len(parts) > 1 else family  # of one folder the report has told them apart

    def of_runs(table: str) -> list[Row]:
        rows = [row for part in parts for row in getattr(part, table) if row.get("metric", metrics[0]) in metrics]
        return sorted(rows, key=lambda row: (cells.index(row["cell"]), row["seed"]))

    def with_most_seeds(table: str, *keys: str) -> dict[tuple[str, ...], Row]:
        rows = sorted((row for part in parts for row in getattr(part, table)), key=lambda row: row["seeds"])
        return {tuple(row[key] for key in keys): row for row in rows}

    runs = [
        {key: value for key, value in row.items() if "/" not in key or key in metrics} | {"family": family[row["cell"]]}
        for row in of_runs("runs")
    ]
    for one, other in pairwise(runs):
        if (one["cell"], one["seed"]) == (other["cell"], other["seed"]):
            raise ValueError(f"{one['cell']}, seed {one['seed']}: this run is in two of the folders.")
    told, compared = with_most_seeds("cells", "metric", "cell"), with_most_seeds("comparisons", "metric", "cell")
    baselines = with_inferred({cell: row["baseline"] for (_, cell), row in compared.items()}, cells)
    keys = [(metric, cell) for metric in metrics for cell in cells]
    gaps = [
        {"cell": cell, "baseline": baselines[cell], "metric": metric} | UNKNOWN | compared.get((metric, cell), {})
        for metric, cell in keys
        if cell in baselines
    ]
    curves = of_runs("curves")
    apart = tables.of_other_problems(list(compared.values()))
    pairs = [(row, {} if (row["cell"], row["metric"]) in apart else paired(runs, row)) for row in gaps]
    return Tables(
        runs,
        [told[key] | over_all_seeds(runs, *key) for key in keys if key in told],
        corrected([row | found for row, found in pairs if found is not None]),
        views(curves, baselines, apart),
        curves,
        of_runs("traces"),
        sorted(
            (row for row in with_most_seeds("pass_at_k", "cell", "set", "when", "k").values() if is_of(row, metrics)),
            key=lambda row: (
                cells.index(row["cell"]),
                sets(metrics).index(row["set"]),
                row["when"] != "before",
                row["k"],
            ),
        ),
    )


def shared_metrics(parts: list[Tables], only: list[str] | None) -> list[str]:
    """Those that all parts have; all of `only`, if that is given."""
    known = [list(dict.fromkeys(row["metric"] for row in part.cells)) for part in parts]
    shared = [metric for metric in known[0] if all(metric in of_part for of_part in known)]
    missing = [metric for metric in only or [] if metric not in shared]
    if missing or not shared:
        told = ", ".join(shared) or "none in common"
        raise ValueError(f"the folders do not all have {', '.join(missing) or 'the same metrics'}; they have {told}.")
    return only or shared


def sets(metrics: list[str]) -> list[str]:
    """The sets that metrics are of."""
    return list(dict.fromkeys(metric.rpartition("/")[0] for metric in metrics))


def is_of(row: Row, metrics: list[str]) -> bool:
    """Whether a row of pass_at_k.csv is of a set that is reported."""
    return row["set"] in sets(metrics)


def in_order(cells: list[str]) -> list[str]:
    """Axis by axis, values in the order in which they come, but those that differ in a number by its size."""
    split = {cell: cell.split(",") for cell in cells}
    values: list[list[str]] = [[] for _ in range(max(map(len, split.values())))]
    for parts in split.values():
        for part, known in zip(parts, values):
            known += [part] if part not in known else []
    sizes = [by_size(known) for known in values]
    return sorted(cells, key=lambda cell: [known.index(part) for part, known in zip(split[cell], sizes)])


def families(found: dict[str, str]) -> dict[str, str]:
    """By cell. One that was alone in its folder joins the family of others whose name is a part of its own."""
    count = Counter(found.values())
    names = {name: set(name.split(",")) - {""} for name in count if count[name] > 1}
    joined = {}
    for cell, name in found.items():
        others = [other for other, parts in names.items() if parts < set(cell.split(","))]
        joined[cell] = max(others, key=len) if others and count[name] == 1 else name
    return joined


def with_inferred(baselines: dict[str, str], cells: list[str]) -> dict[str, str]:
    """Baseline by cell, also of cells that were reported without theirs beside them."""
    found = dict(baselines)
    for cell, other in baselines.items():
        for one in cells:
            parts = one.split(",")
            for i, (mine, theirs) in enumerate(zip(cell.split(","), other.split(","))):
                parts[i : i + 1] = [theirs] if mine != theirs else parts[i : i + 1]
            if (goal := ",".join(parts)) in cells and goal != one:
                found.setdefault(one, goal)
    return {cell: found[cell] for cell in cells if cell in found}


def by_seed(runs: list[Row], metric: str, cell: str) -> dict[int, float]:
    """The metric at the end of each run of a cell."""
    return {run["seed"]: run[metric] for run in runs if run["cell"] == cell and run[metric] == run[metric]}


def over_all_seeds(runs: list[Row], metric: str, cell: str) -> Row:
    """What a row of cells.csv says of seeds."""
    values = list(by_seed(runs, metric, cell).values())
    mean, sd = statistics.fmean(values) if values else NAN, statistics.stdev(values) if len(values) > 1 else NAN
    low, high = over_seeds(metric, values)
    return {"seeds": len(values), "mean": mean, "sd": sd, "seeds_low": low, "seeds_high": high}


def paired(runs: list[Row], row: Row) -> Row | None:
    """What a row of comparisons.csv says of seeds; None without a seed that both have."""
    mine, theirs = (by_seed(runs, row["metric"], row[side]) for side in ("cell", "baseline"))
    moved = [round(mine[seed] - theirs[seed], 12) for seed in mine if seed in theirs]
    if not moved:
        return None
    low, high = over_seeds(row["metric"], moved, -1.0)
    told = {"seeds": len(moved), "difference": statistics.fmean(moved), "p_seeds": t_p(moved)}
    return told | {"seeds_low": low, "seeds_high": high}


def corrected(rows: list[Row]) -> list[Row]:
    """The larger of the two p-values that are known, raised for all of them."""
    known = [[row[name] for name in ("p_seeds", "p_problems") if row[name] == row[name]] for row in rows]
    raised = iter(holm([max(ps) for ps in known if ps]))
    return [row | {"p_holm": next(raised) if ps else NAN} for row, ps in zip(rows, known)]


def note(parts: list[Tables], folders: list[Path]) -> str:
    """What a reader of report.md must know of tables that were joined, and what the report.md of each said of that."""
    said = []
    for path in [folder / "report.md" for folder in folders if (folder / "report.md").is_file()]:
        paragraphs = path.read_text(encoding="utf-8").split("\n\n")
        said += [text for text in paragraphs[:3] if text[:1] == "*" != text[1:2]]
    count = Counter(cell for part in parts for cell in {row["cell"] for row in part.runs})
    if several := [cell for cell, n in count.items() if n > 1]:
        said.append(f"*What is over problems, and pass@k, is of some seeds alone in {', '.join(several)}.*")
    return "\n\n".join(said)


def main() -> None:
    """Join, write, draw."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with the tables of a report")
    parser.add_argument("--out", type=Path, help="where to write (default: the first of them)")
    parser.add_argument("--metrics", nargs="+", help="of these alone, into another folder (default: all)")
    parser.add_argument("--picture", help="draw this one, and write nothing else")
    given = parser.parse_args()
    if given.metrics and not given.out:
        parser.error("--metrics leaves tables out: name another folder with --out.")
    try:
        parts = [tables.read(folder) for folder in given.folders]
        made, out = join(parts, given.metrics), given.out or given.folders[0]
    except ValueError as error:
        parser.error(str(error))
    figures = charts.draw(made)
    if given.picture:
        if given.picture not in figures:
            parser.error(f"--picture: there is no {given.picture}; there are {', '.join(figures)}.")
        charts.save({given.picture: figures[given.picture]}, out)
        return
    heading, rest = markdown(made, {}, [f"{name}.png" for name in figures]).split("\n\n", 1)
    text = "\n\n".join(filter(None, (heading, note(parts, given.folders), rest)))
    tables.write(made, out)
    charts.save(figures, out)
    whole.write(out / "report.md", text)


if __name__ == "__main__":
    main()
