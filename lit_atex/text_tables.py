"""Numbers as tables, and prompts as text, that people read. It knows results, not where they came from."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from math import isnan
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from lit_atex.competence import Competence
from lit_atex.evaluation import SHARES, TAUS, Result
from lit_atex.prompts import PromptStyle, TeacherPrompt
from lit_atex.stats import FEW, FEW_SEEN, paired_interval, seen
from lit_atex.types import Problem, Verdict


def read_results(rows: list[dict[str, Any]]) -> list[Result]:
    """The results of one evaluation in results.json."""
    return [Result.from_json(row) for row in rows]


def _table(*headings: str, title: str | None = None) -> Table:
    """A table without rows; its first column, and one without a heading, hold words, the others numbers."""
    table = Table(title=title, title_justify="left")
    for i, heading in enumerate(headings):
        table.add_column(heading, justify="left" if i == 0 or not heading else "right", no_wrap=True)
    return table


def _render(table: Table) -> str:
    buffer = io.StringIO()
    # Names of sets and levels are the user's: in brackets they are no markup, between colons no emoji.
    Console(file=buffer, width=200, force_terminal=False, markup=False, emoji=False).print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().rstrip().splitlines())


def interval_text(interval: tuple[float, float], sign: str = "") -> str:
    """[low, high], with signs if `sign` is "+"; "unknown" for nan."""
    low, high = interval
    return "unknown" if isnan(low) or isnan(high) else f"[{low:{sign}.3f}, {high:{sign}.3f}]"


def markdown_table(heads: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown; what would end a cell is escaped."""
    clean = [[" ".join(str(cell).split()).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *clean])


def evaluation_text(
    name: str, results: list[Result], protocol: dict[str, Any], about: dict[str, Any], prompt: str, plot: str | None
) -> str:
    """An evaluation as Markdown: a table of the sets, all metrics with both intervals, and how it was done.

    Args:
        name: "test" or "validate".
        results: One per set.
        protocol: What the numbers depend on.
        about: What else a reader must know: command, commit, date, how the weights were chosen.
        prompt: The first prompt, as the model saw it.
        plot: File of the pass@k curves beside it; None: there is none.
    """
    n = results[0].samples
    heads = [
        "set",
        "problems",
        f"avg@{n}",
        "over problems",
        "problems fixed",
        f"pass@{n}",
        f"maj@{n}",
        *SHARES,
        "length",
    ]
    rows = []
    for r in results:
        shown = (f"{r.metrics[k].value:.3f}" for k in (f"pass@{n}", f"maj@{n}", *SHARES))
        mean, length = r.average, f"{r.metrics['length'].value:.1f}"
        both = (interval_text(mean.over), interval_text(mean.fixed))
        rows.append([r.name, str(r.problems), f"{mean.value:.3f}", *both, *shown, length])
    parts = [f"# Evaluation: {name}, {n} completions a problem", markdown_table(heads, rows)]
    parts.append(
        "Intervals are 95 %. *Over problems*: what another draw of problems would give (BCa bootstrap, seed 0). "
        "*Problems fixed*: sampling noise on these problems alone. Compare two models with `lit-atex compare`, problem "
        "by problem, not by whether these intervals overlap."
    )
    few = _few_problems(results)
    parts += [few] if few else []
    parts += [f"![pass@k]({plot})"] if plot else []
    for r in results:
        lines = [[k, f"{e.value:.4f}", interval_text(e.over), interval_text(e.fixed)] for k, e in r.metrics.items()]
        parts += [f"## {r.name}", markdown_table(["metric", "value", "over problems", "problems fixed"], lines)]
    parts += ["## How", *("\n".join(f"- {k}: {v}" for k, v in given.items()) for given in (about, protocol) if given)]
    parts += ["The first prompt, as the model saw it:", "\n".join(f"    {line}" for line in prompt.split("\n"))]
    return "\n\n".join(parts) + "\n"


def results_table(title: str, results: list[Result]) -> str:
    """One row per set: avg@n with both intervals, pass@n and maj@n, and what became of the other answers.

    Below it, of several samples: how stable they are (G-Pass@n at three shares, and its mean), and how many differ.
    """
    n = results[0].samples
    headings = ("set", "problems", f"avg@{n}", "over problems", "problems fixed", f"pass@{n}", "over problems")
    title = f"{title}: {n} completions a problem; intervals 95 %"
    table = _table(*headings, f"maj@{n}", "over problems", title=title)
    for heading in (*SHARES, "length"):
        table.add_column(heading, justify="right")
    for r in results:
        best, vote = r.metrics[f"pass@{n}"], r.metrics[f"maj@{n}"]
        table.add_row(
            r.name,
            str(r.problems),
            f"{r.average.value:.3f}",
            interval_text(r.average.over),
            interval_text(r.average.fixed),
            f"{best.value:.3f}",
            interval_text(best.over),
            f"{vote.value:.3f}",
            interval_text(vote.over),
            *(f"{r.metrics[k].value:.3f}" for k in SHARES),
            f"{r.metrics['length'].value:.1f}",
        )
    text = _render(table) + (f"\n{_stability_table(n, results)}" if n > 1 else "")
    text += f"\n{_own_table(results)}" if results[0].own else ""
    return f"{text}\n{_few_problems(results)}".rstrip()


def few_problems(sizes: Mapping[str, int], rare: Mapping[str, int]) -> str:
    """A warning about intervals over too few problems, in all or ever solved or not; empty if no set is so.

    Args:
        sizes: Problems of each set by its name.
        rare: `stats.seen` of each, if it is known; where it is 0 the interval is exact.
    """
    small = [name for name, problems in sizes.items() if problems < FEW]
    seldom = [name for name in sizes if name not in small and 0 < rare.get(name, 0) < FEW_SEEN]
    of = {f"fewer than {FEW} problems": small, f"fewer than {FEW_SEEN} problems were ever solved, or ever not": seldom}
    told = (f"{few}: intervals over problems are too narrow for {', '.join(of[few])}" for few in of if of[few])
    return "\n".join(told)


def _few_problems(results: list[Result]) -> str:
    of = {r.name: seen(list(r.per_problem.values())) for r in results}
    return few_problems({r.name: r.problems for r in results}, of)


def _stability_table(n: int, results: list[Result]) -> str:
    """How stable and how varied the answers are, each with its interval over problems."""
    names = [*(f"g-pass@{n}_{tau}" for tau in TAUS), f"mg-pass@{n}"]
    table = _table("stability", *(f"G-Pass@{n}, {tau:.0%}" for tau in TAUS), f"mG-Pass@{n}", "distinct answers")
    for r in results:
        shown = [f"{r.metrics[k].value:.3f} {interval_text(r.metrics[k].over)}" for k in names]
        table.add_row(r.name, *shown, f"{r.metrics['distinct'].value:.1f} {interval_text(r.metrics['distinct'].over)}")
    return _render(table)


def _own_table(results: list[Result]) -> str:
    """The user's own metrics."""
    table = _table("own metrics", "", "value", "over problems", "problems fixed")
    for r in results:
        for i, name in enumerate(r.own):
            e = r.metrics[name]
            shown = (f"{e.value:.3f}", interval_text(e.over), interval_text(e.fixed))
            table.add_row("" if i else r.name, name, *shown)
    return _render(table)


def before_after_table(before: list[Result], after: list[Result]) -> str:
    """avg@n, pass@n, length and the user's own before and after training; paired differences of the first two.

    Sets without a problem in common are left out; where the two differ in problems, a difference is over the common;
    where they differ in samples, pass@n is left out.
    """
    title = "before and after; difference paired by problem, 95 % interval"
    table = _table("set", "", "before", "after", "difference", "interval", title=title)
    by_name = {r.name: r for r in before}
    sizes, rare = dict[str, int](), dict[str, int]()
    for b, a in [(by_name[r.name], r) for r in after if r.name in by_name]:
        n, common = a.samples, [i for i in a.per_problem if i in b.per_problem]
        if not common:
            continue
        sizes[a.name] = len(common)
        shares = np.array([[r.per_problem[i] for i in common] for r in (b, a)])
        rare[a.name] = seen(shares.mean(0))
        average = f"avg@{n}" if b.samples == n else f"avg@{b.samples}/{n}"
        rows = [(average, b.average.value, a.average.value, shares)]
        if b.samples == n > 1:
            best = f"pass@{n}"
            rows.append((best, b.metrics[best].value, a.metrics[best].value, (shares > 0).astype(float)))
        for i, (metric, old, new, values) in enumerate(rows):
            gaps = values[1] - values[0]
            shown = (f"{old:.3f}", f"{new:.3f}", f"{gaps.mean():+.3f}", interval_text(paired_interval(gaps)))
            table.add_row("" if i else a.name, metric, *shown)
        table.add_row("", "length", *(f"{r.metrics['length'].value:.1f}" for r in (b, a)), "", "")
        for name in [name for name in a.own if name in b.metrics]:
            table.add_row("", name, *(f"{r.metrics[name].value:.3f}" for r in (b, a)), "", "")
    return f"{_render(table)}\n{few_problems(sizes, rare)}".rstrip()


def outcome_of_run(results: dict[str, list[dict[str, Any]]], last: str, selection: dict[str, Any]) -> str:
    """What training has changed: the table of before and after, for the last step and for the best if that is another.

    Args:
        results: By evaluation, as in results.json.
        last: Name of the last evaluation.
        selection: As `selection.summary`.
    """
    text = ""
    for name in dict.fromkeys([last, f"step-{selection.get('best', last[5:])}"]):
        if "step-0" in results and name in results and name != "step-0":
            text += before_after_table(*(read_results(results[key]) for key in ("step-0", name)))
            text += f"\nafter: {'last' if name == last else 'best'}, {name}\n" if "best" in selection else "\n"
    return text + (selection["words"] + "\n" if selection else "")


def competence_table(title: str, competence: Competence) -> str:
    """One row per level: problems and rollouts since the start, estimated success, and what became of the others.

    The estimate has a prior, which counts until there are rollouts enough; the shares are of rollouts alone.
    """
    table = Table(title=f"{title}: running success on training problems; intervals 95 %", title_justify="left")
    table.add_column("level")
    for heading in ("problems", "rollouts", "estimate", "interval", "wrong", "unparsed", "timeout"):
        table.add_column(heading, justify="right", no_wrap=True)
    levels = competence.levels()
    rows: list[tuple[str, str | None]] = [(level or "(none)", level) for level in sorted(levels, key=_by_number)]
    for name, level in [*rows, *([("all", None)] if len(levels) != 1 else [])]:
        tally, shares = competence.tally(level), competence.shares(level)
        table.add_row(
            name,
            str(tally.problems),
            str(tally.rollouts),
            f"{competence.mean(level=level):.3f}",
            interval_text(competence.interval(level=level)),
            *(f"{shares[v]:.3f}" for v in (Verdict.WRONG, Verdict.UNPARSED, Verdict.TIMEOUT)),
        )
    return _render(table)


def _by_number(label: str) -> list[tuple[int, str]]:
    """Sorts "Level 10" after "Level 9"."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", label)]


def with_bars(tokens: Sequence[str], values: Sequence[float]) -> list[tuple[str, str]]:
    """The lines of a completion, each with the bars that stand under its tokens."""
    lines, bars = [""], [""]
    for token, value in zip(tokens, values):
        level = " ▁▂▃▄▅▆▇█"[min(int(max(value, 0.0) ** 0.5 * 6), 8)]  # square root: small values stay visible
        for character in token.replace("\n", "↵\n"):
            if character == "\n":
                lines.append("")
                bars.append("")
            else:
                lines[-1] += character
                bars[-1] += level
    return list(zip(lines, bars))


def prompts_text(
    style: PromptStyle, tokenizer: Any, hinted: bool, problem: Problem, ratio: float, teacher: TeacherPrompt
) -> str:
    """The prompts of a problem as the models see them, each with the thinking flag that made it.

    Args:
        style: What makes them.
        tokenizer: What decodes them.
        hinted: Whether the student is trained after the teacher's prompt.
        problem: The problem.
        ratio: What was to be shown to the teacher.
        teacher: What came of it.
    """
    student = f"student, thinking {style.student_thinking}", style.student(problem, tokenizer)
    if hinted:
        student = f"student, thinking {style.teacher_thinking}, as the teacher", teacher.ids
    prompts = {
        student[0]: student[1],
        f"teacher, thinking {style.teacher_thinking}, exposure {ratio:.3f}": teacher.ids,
        f"evaluation, thinking {style.eval_thinking}": style.evaluation(problem, tokenizer),
    }
    return "\n".join(
        f"===== {problem.id} · {role} · {len(ids)} tokens\n{tokenizer.decode(ids)}" for role, ids in prompts.items()
    )
