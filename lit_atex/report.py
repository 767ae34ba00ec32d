"""`lit-atex report FOLDER ...`: what came of many runs, in tables and pictures. It reads run folders only.

Written into FOLDER/report: report.md to read, every table as CSV (`tables.py`), every picture as PNG (`charts.py`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from math import isnan
from pathlib import Path

from lit_atex import charts, runs, tables, whole
from lit_atex.console import OneLine
from lit_atex.difference import p_text
from lit_atex.equal_cost import VIEWS
from lit_atex.tables import Row, Tables
from lit_atex.text_tables import few_problems, interval_text, markdown_table

GRID = "grid.json"
"""In a folder of runs: the grid that they are of, as `lit-atex ablate` leaves it."""
SEEDS = "Runs are seeds of one cell if their folders have one name but for the seed: `full,seed=0`, `full,seed=1`."


def report(
    folders: Sequence[str], metrics: Sequence[str] = (), baseline: str | None = None, out: str | None = None
) -> None:
    """Report on runs.

    Args:
        folders: Run folders, or folders that hold them.
        metrics: "SET/METRIC" of the validation sets ("test/SET/METRIC" of test sets); empty: those of the folder's
            grid, or avg@n of each set.
        baseline: "axis=value" (or several with commas): every cell is compared with the one that differs in this alone.
            Or the name of a cell, which all are compared with. None: that of the folder's grid, if it is there.
        out: Where to write; None: the first folder's `report`.

    Raises:
        ValueError: If there is no finished run, no such metric or baseline.
    """
    found, left_out = runs.find([Path(folder) for folder in folders])
    grid = whole.read_json(Path(folders[0]) / GRID) if len(folders) == 1 else {}
    metrics, against = list(metrics or grid.get("metrics", [])), _baseline(baseline, found) or grid.get("baseline")
    try:
        made = tables.make(found, metrics, against or None)
    except ValueError as error:  # the runs of the grid's baseline may have failed, and nobody asked for it now
        if baseline or not against:
            raise
        made = tables.make(found, metrics, None)
        print(f"no comparison: {error}", flush=True)
    folder = Path(out) if out else Path(folders[0]) / "report"
    tables.write(made, folder)
    files = charts.save(charts.draw(made), folder)
    text = markdown(made, left_out, [path.name for path in files])
    whole.write(folder / "report.md", text)
    print(f"{text.partition('## Runs')[0].rstrip()}\n\nall of it, tables and figures: {folder}/report.md", flush=True)


def _baseline(given: str | None, found: list[runs.Record]) -> dict[str, str] | str | None:
    """Values by axis, or a cell's name.

    Raises:
        ValueError: If it is neither.
    """
    if given is None:
        return None
    parts = [part.partition("=") for part in given.split(",")]
    axes = {axis for run in found for axis in run.settings}
    if all(sign and axis in axes for axis, sign, _ in parts):
        return {axis: value for axis, _, value in parts}
    if any(run.cell == given for run in found):
        return given
    cells = ", ".join(dict.fromkeys(run.cell for run in found))
    raise ValueError(f"--baseline: {given!r} is no cell; name axis=value, or one of {cells}.")


def markdown(made: Tables, left_out: dict[str, str], pictures: list[str]) -> str:
    """The report to read."""
    cells = {row["cell"] for row in made.runs}
    parts = [f"# {_count(len(made.runs), 'run')} of {_count(len(cells), 'cell')}"]
    if left_out:
        parts.append("Left out: " + "; ".join(f"`{name}` ({reason})" for name, reason in left_out.items()) + ".")
    if len({row["commit"] for row in made.runs}) > 1:
        parts.append("**The runs are of several commits** (`runs.csv` says which).")
    parts += ["## Cells", *_cells(made.cells)]
    if len(made.runs) == len(cells) > 1 and not any("seed=" in Path(row["run"]).name for row in made.runs):
        parts.append(f"Every cell has one run. {SEEDS}")
    if made.comparisons:
        parts += ["## Against the baseline", *_comparisons(made.comparisons)]
        compared = {row[name] for row in made.comparisons for name in ("cell", "baseline")}
        if left := [cell for cell in dict.fromkeys(row["cell"] for row in made.runs) if cell not in compared]:
            parts.append(f"Not compared, for want of a baseline with a seed in common: {', '.join(left)}.")
    elif len(cells) > 1:
        example = made.runs[0]["cell"]
        parts.append(
            f"For differences with p-values name what they are to: `--baseline {example}`; in a grid, `baseline`."
        )
    parts += ["## At equal cost", *_views(made)]
    parts += ["## Runs", _runs(made.runs)]
    parts += ["## Pictures", *(f"![{name.removesuffix('.png')}]({name})" for name in pictures)]
    return "\n\n".join(parts) + "\n"


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _cells(rows: list[Row]) -> list[str]:
    heads = ["cell", "metric", "seeds", "mean", "SD", "over seeds", "over problems"]
    body = [
        [
            *(row["cell"], row["metric"], str(row["seeds"]), _number(row["mean"]), _number(row["sd"])),
            *(interval_text(_ends(row, "seeds")), interval_text(_ends(row, "problems"))),
        ]
        for row in rows
    ]
    note = (
        "Intervals are 95 %. *Over seeds*: what other seeds would give on these problems (Student's t interval; with "
        "few seeds it is wide, with one unknown); SD is between seeds. *Over problems*: what another draw of problems "
        "would give with these seeds (BCa bootstrap of the means over seeds). Every run is measured after its last "
        "step; no checkpoint is chosen."
    )

    def least(name: str) -> dict[str, int]:  # of each set; of none there is nothing to say, nor of an older table's
        known = sorted((row for row in rows if row.get(name, 0) > 0), key=lambda row: -row[name])
        return {row["metric"].rpartition("/")[0]: row[name] for row in known}

    few = few_problems(least("problems"), least("seen"))
    counted = {(row["metric"].rpartition("/")[0], row["problems"]) for row in rows if row["problems"]}
    sizes = Counter(name for name, _ in counted)
    mixed = ", ".join(sorted(name for name, count in sizes.items() if count > 1))
    apart = f"Not all cells were evaluated on the same problems: means of {mixed} do not compare."
    return [markdown_table(heads, body), note, *([apart] if mixed else []), *([few] if few else [])]


def _comparisons(rows: list[Row]) -> list[str]:
    apart = [f"{row['cell']} and {row['baseline']} in {row['metric']}" for row in rows if not row["seeds"]]
    rows = [row for row in rows if row["seeds"]]
    heads = ["cell", "baseline", "metric", "seeds", "difference", "over seeds", "over problems", "p, seeds",
             "p, problems", "p (Holm)"]  # fmt: skip
    body = [
        [
            *(row["cell"], row["baseline"], row["metric"], str(row["seeds"]), f"{row['difference']:+.3f}"),
            *(interval_text(_ends(row, name), "+") for name in ("seeds", "problems")),
            *(_p(row["p_seeds"]), _p(row["p_problems"]), f"{_p(row['p_holm'])}{_p_alone(row)}"),
        ]
        for row in rows
    ]
    count = sum(not isnan(row["p_holm"]) for row in rows)
    note = (
        "Paired: the same seed and the same problem on both sides. *p, seeds*: t test over seeds; *p, problems*: "
        "sign-flip permutation over problems, seeds averaged. *p (Holm)*: the larger of the two, so that a difference "
        f"must hold against both kinds of chance, raised for all {count} comparisons of this table (Holm, 1979)."
    )
    if any(map(_p_alone, rows)):
        note += (
            " **Where one of the two is unknown it is of the other alone, which is named beside it**: (seeds) says "
            "nothing of other problems, (problems) nothing of other seeds."
        )
    told = [f"Not compared, since the two were evaluated on different problems: {'; '.join(apart)}."] if apart else []
    return [*([markdown_table(heads, body), note] if rows else []), *told]


def _p_alone(row: Row) -> str:
    """Of what p (Holm) is, where it is not of both."""
    seeds, problems = (not isnan(row[name]) for name in ("p_seeds", "p_problems"))
    return "" if seeds == problems else " (seeds)" if seeds else " (problems)"


def _views(made: Tables) -> list[str]:
    compared = any(row["baseline"] for row in made.views)
    spent: dict[str, set[float]] = {"step": {row["steps"] for row in made.runs}}
    spent |= {view: {row[view] for row in made.runs} for view in ("tokens", "seconds")}
    parts = [_about_views(compared)]
    for view, unit in VIEWS.items():
        if len(spent[view]) > 1:
            parts += _view([row for row in made.views if row["view"] == view], unit, compared)
        elif not all(map(isnan, spent[view])):  # something was logged
            parts.append(f"All runs took {_amount(spent[view].pop())} {unit}: at equal ones, the tables above hold.")
    return parts


def _about_views(compared: bool) -> str:
    where = "Each run is read where it had spent as much as the run that spent least in all"
    if compared:
        where = (
            "Each cell and its baseline are read where both had spent as much as the run of the two that spent least "
            "in all"
        )
    note = (
        f"{where}, on the straight line between the evaluations before and after: evaluate often "
        "(`trainer.val_check_interval`), or the line is long. Tokens are those of the completions that are learned "
        "from: the student's own, or the references in their place. Seconds are of training, with probes and without "
        "evaluations, as the clock of the machine showed them: on a shared machine they say little. Intervals: over "
        "seeds, as above."
    )
    if compared:
        note += (
            " Where there is a baseline all is of the seeds that both have; p: the paired t test over these, raised "
            "for all comparisons of the view (Holm)."
        )
    return note


def _view(rows: list[Row], unit: str, compared: bool) -> list[str]:
    """The table of one view; and how many rows it lacks, whose runs were not measured around that point."""
    heads = ["cell", "metric", unit, "seeds", "mean", "over seeds"]
    heads += ["baseline", "difference", "over seeds", "p (Holm)"] if compared else []
    body = []
    for row in [row for row in rows if row["seeds"]]:
        cells = [row["cell"], row["metric"], _amount(row["budget"]), str(row["seeds"]), _number(row["mean"])]
        cells.append(interval_text(_ends(row, "seeds")))
        if compared and not isnan(row["difference"]):
            interval = interval_text(_ends(row, "difference"), "+")
            cells += [row["baseline"], f"{row['difference']:+.3f}", interval, _p(row["p_holm"])]
        body.append([*cells, *[""] * (len(heads) - len(cells))])
    parts = [markdown_table(heads, body)] if body else []
    if left_out := len(rows) - len(body):
        count = _count(left_out, "row")
        parts.append(f"Equal {unit}: {count} left out, of runs without evaluations on both sides of that point.")
    return parts


def _amount(value: float) -> str:
    return "" if isnan(value) else f"{value:,.0f}"


def _runs(rows: list[Row]) -> str:
    metrics = [key for key in rows[0] if "/" in key]
    heads = ["cell", "seed", "steps", "tokens", "minutes", "exposure", "mismatch, first step", "mismatch", *metrics,
             "stopped"]  # fmt: skip
    body = [
        [
            *(row["cell"], str(row["seed"]), str(row["steps"]), _amount(row["tokens"])),
            "" if isnan(row["seconds"]) else f"{row['seconds'] / 60:.1f}",
            *(_number(row[name]) for name in ("exposure", "first_mismatch", "mismatch", *metrics)),
            str(row["stopped"]),
        ]
        for row in rows
    ]
    return markdown_table(heads, body)


def _ends(row: Row, name: str) -> tuple[float, float]:
    return row[f"{name}_low"], row[f"{name}_high"]


def _number(value: float) -> str:
    return "" if isnan(value) else f"{value:.3f}"


def _p(value: float) -> str:
    return "" if isnan(value) else p_text(value).removeprefix("= ")


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    one = OneLine(
        "lit-atex report",
        usage="%(prog)s FOLDER ... [--metrics SET/METRIC ...] [--baseline AXIS=VALUE] [--out DIR]",
        description=f"Tables and pictures of many runs, from their folders. {SEEDS}",
    )
    one.add_argument("folders", nargs="+", metavar="FOLDER", help="run folders, or folders that hold them")
    of_grid = "default: what the folder's grid names, if `lit-atex ablate` left one"
    one.add_argument("--metrics", nargs="+", default=[], metavar="SET/METRIC", help=f"{of_grid}; or avg@n of each set")
    told = f"what others are compared with, or a cell's name ({of_grid})"
    one.add_argument("--baseline", metavar="AXIS=VALUE", help=told)
    one.add_argument("--out", metavar="DIR", help="where to write (default: FOLDER/report)")
    return one
