"""Numbers as tables that people read. It knows results, not where they came from."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_atex.competence import Competence
from lit_atex.evaluation import Result
from lit_atex.stats import bootstrap_interval
from lit_atex.types import Verdict


def read_results(rows: list[dict[str, Any]]) -> list[Result]:
    """The results of one evaluation in results.json, whose keys are text."""
    counts = ("pass_at", "pass_interval")
    return [Result(**row | {name: {int(k): v for k, v in row[name].items()} for name in counts}) for row in rows]


def _render(table: Table) -> str:
    buffer = io.StringIO()
    Console(file=buffer, width=200, force_terminal=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.3f}, {interval[1]:.3f}]"


def results_table(title: str, results: list[Result]) -> str:
    """One row per set: avg@n with both intervals, pass@n, and what became of the other answers."""
    n = results[0].samples
    last = max(results[0].pass_at)
    table = Table(title=f"{title}: {n} completions a problem; intervals 95 %", title_justify="left")
    for heading in ("set", "problems", f"avg@{n}", "over problems", "problems fixed", f"pass@{last}", "over problems "):
        table.add_column(heading, justify="left" if heading == "set" else "right", no_wrap=True)
    for heading in ("wrong", "unparsed", "timeout", "cut", "length"):
        table.add_column(heading, justify="right")
    for r in results:
        table.add_row(
            r.name,
            str(r.problems),
            f"{r.average:.3f}",
            _interval(r.interval),
            _interval(r.fixed_interval),
            f"{r.pass_at[last]:.3f}",
            _interval(r.pass_interval[last]),
            *(f"{r.shares[k]:.3f}" for k in ("wrong", "unparsed", "timeout", "cut")),
            f"{r.mean_length:.1f}",
        )
    return _render(table)


def before_after_table(before: list[Result], after: list[Result]) -> str:
    """avg@n and pass@n before and after training, with the paired difference and its interval over problems.

    Sets without a problem in common are left out; where the two differ in problems, the difference is over the common.
    """
    n = after[0].samples
    last = max(after[0].pass_at)
    table = Table(title="before and after; difference paired by problem, 95 % interval", title_justify="left")
    table.add_column("set")
    for heading in (
        f"avg@{n} before",
        "after",
        "difference",
        "interval",
        f"pass@{last} before",
        "after ",
        "length",
        "",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    by_name = {r.name: r for r in before}
    for b, a in [(by_name[r.name], r) for r in after if r.name in by_name]:
        difference = np.array([a.per_problem[i] - b.per_problem[i] for i in a.per_problem if i in b.per_problem])
        if not len(difference):
            continue
        table.add_row(
            a.name,
            f"{b.average:.3f}",
            f"{a.average:.3f}",
            f"{difference.mean():+.3f}",
            _interval(bootstrap_interval(difference)),
            f"{b.pass_at[last]:.3f}" if last in b.pass_at else "",
            f"{a.pass_at[last]:.3f}",
            f"{b.mean_length:.1f}",
            f"→ {a.mean_length:.1f}",
        )
    return _render(table)


def competence_table(title: str, competence: Competence) -> str:
    """One row per level: problems and rollouts since the start, running success, and what became of the others."""
    table = Table(title=f"{title}: running success on training problems; intervals 95 %", title_justify="left")
    table.add_column("level")
    for heading in ("problems", "rollouts", "success", "interval", "wrong", "unparsed", "timeout"):
        table.add_column(heading, justify="right", no_wrap=True)
    levels = competence.levels()
    rows = {level or "(none)": level for level in sorted(levels, key=_by_number)}
    for name, level in {**rows, **({"all": None} if len(levels) != 1 else {})}.items():
        tally, shares = competence.tally(level), competence.shares(level)
        table.add_row(
            name,
            str(tally.problems),
            str(tally.rollouts),
            f"{competence.mean(level):.3f}",
            _interval(competence.interval(level)),
            *(f"{shares[v]:.3f}" for v in (Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT)),
        )
    return _render(table)


def _by_number(label: str) -> list[tuple[int, str]]:
    """Sorts "Level 10" after "Level 9"."""
    return [(int(part), "") if part.isdigit() else (0, part) for part in re.split(r"(\d+)", label)]
