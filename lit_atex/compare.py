"""`lit-atex compare A B`: what the difference between two evaluations of the same problems is worth.

It reads the outcome files and protocols of two run folders, and nothing else.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from lit_atex import outcomes, whole
from lit_atex.console import OneLine
from lit_atex.difference import Difference, Row, differences_of, p_text, paired
from lit_atex.evaluate import yes
from lit_atex.evaluation import without_nan
from lit_atex.paired import holm
from lit_atex.protocol import KINDS, differences
from lit_atex.text_tables import few_problems, interval_text, markdown_table
from lit_atex.votes import majority_at_k


def parser() -> argparse.ArgumentParser:
    """The command's options, each with the parameter of `compare` that it becomes."""
    found = OneLine(
        prog="lit-atex compare",
        description="Compare two evaluations problem by problem: difference, interval, p-value, and what these "
        "problems could show.",
    )
    found.add_argument("first", metavar="A", help="run folder of an evaluation (of evaluate, test or validate)")
    found.add_argument("second", metavar="B", help="run folder of another; differences are B minus A")
    found.add_argument(
        "--out",
        metavar="DIR",
        help="folder for comparison.md, comparison.json and changed.jsonl (default: comparison-A, in B)",
    )
    found.add_argument(
        "--force",
        nargs="?",
        const=True,
        default=False,
        type=yes,
        metavar="true",
        help="compare although the protocols differ (samples, sampling, prompts, exposure, sets), and say in what",
    )
    return found


def compare(first: str, second: str, out: str | None = None, force: bool = False) -> None:
    """Compare two evaluations problem by problem: difference, interval, p-value, and what these problems could show.

    Args:
        first: Run folder of the first evaluation (of `evaluate`, `test` or `validate`).
        second: Run folder of the second; differences are second minus first.
        out: Folder for comparison.md, comparison.json and changed.jsonl. Default: in the second, comparison-FIRST.
        force: Compare although the protocols differ (samples, sampling, prompts, sets); the table then says in what.
    """
    a, b = Path(first), Path(second)
    if a.resolve() == b.resolve():
        raise ValueError(f"{first} and {second} are one run, which does not differ from itself: name another.")
    folder = Path(out) if out else _folder(a, b)
    name = evaluation_of(a, b)
    rows = (outcomes.read(a, name), outcomes.read(b, name))
    pairs = {s: paired(rows[0][s], rows[1][s]) for s in rows[0] if s in rows[1]}
    changed_settings = protocols_differ(a, b, name) + problems_differ(*rows, pairs)
    if any(pairs.values()) and changed_settings and not force:
        raise ValueError(
            f"the evaluations differ in more than the model: {'; '.join(changed_settings)}. Evaluate again with the "
            "same settings, go on with one that was stopped (--resume), or compare all the same with --force."
        )
    found = [d for s, of_set in pairs.items() for d in differences_of(s, of_set)]
    if not found:
        raise ValueError(
            f"{a} and {b} have no problem in common: their sets are {sorted(rows[0])} and {sorted(rows[1])}."
        )
    averages = [d for d in found if d.metric.startswith("avg")]
    for one, raised in zip(averages, holm([d.p for d in averages])):
        one.p_holm = raised
    changes = [change | {"set": s} for s, of_set in pairs.items() for change in changed(of_set)]
    text = report(a, b, found, changes, changed_settings)
    folder.mkdir(parents=True, exist_ok=True)
    whole.write(folder / "comparison.md", text)
    data = {"first": str(a), "second": str(b), "evaluation": name, "protocols_differ": changed_settings}
    whole.write_json(folder / "comparison.json", data | {"differences": [without_nan(asdict(d)) for d in found]})
    whole.write(folder / "changed.jsonl", "".join(map(whole.json_line, changes)))
    print(
        f"{text.partition('## Problems')[0]}{len(changes)} problems changed; all of it: {folder}/comparison.md",
        flush=True,
    )


def _folder(first: Path, second: Path) -> Path:
    """comparison-FIRST in the second; of another one of that name, with its folder's name before it."""
    name = first.resolve().name
    path = second / f"comparison-{name}"
    known = whole.read_json(path / "comparison.json")
    if known and Path(known["first"]).resolve() != first.resolve():
        return second / f"comparison-{first.resolve().parent.name}-{name}"
    return path


def evaluation_of(a: Path, b: Path) -> str:
    """What both have, "test" before "validate".

    Raises:
        ValueError: If there is none.
    """
    found = {run: [n for n in KINDS if (run / "outcomes" / f"{n}.protocol.json").is_file()] for run in (a, b)}
    for name in ("test", "validate"):
        if all(name in names for names in found.values()):
            return name
    told = [
        f"{run} {'has ' + ' and '.join(names) if names else 'has none' if run.is_dir() else 'is no folder'}"
        for run, names in found.items()
    ]
    raise ValueError(
        f"nothing to compare: both need an evaluation by itself, as by `lit-atex evaluate RUN --run DIR` (with "
        f"--validation of the validation sets), and of the same kind; {', '.join(told)}."
    )


def protocols_differ(a: Path, b: Path, name: str) -> list[str]:
    """In what, other than the model; one line a key."""
    then, now = (whole.read_json(run / "outcomes" / f"{name}.protocol.json") for run in (a, b))
    return differences(then, now, compared=True)


def problems_differ(first: dict[str, list[Row]], second: dict[str, list[Row]], pairs: dict[str, Any]) -> list[str]:
    """Sets of which one run has problems that the other lacks: it was stopped, cut otherwise, or had other problems."""
    counts = {s: (len(first.get(s, [])), len(second.get(s, [])), len(pairs.get(s, []))) for s in {**first, **second}}
    return [f"{s}: {a} and {b} problems, {both} in common" for s, (a, b, both) in counts.items() if not a == b == both]


def changed(pairs: list[tuple[Row, Row]]) -> list[Row]:
    """The problems whose vote was right in one run and not in the other, the won ones first, with both answers."""
    found = []
    for pair in pairs:
        correct = [[v == "correct" for v in row["verdicts"]] for row in pair]
        votes = [majority_at_k([r["answers"]], [c], len(c))[0] for r, c in zip(pair, correct)]
        if votes[0] == votes[1]:
            continue
        shares = [f"{sum(c)}/{len(c)}" for c in correct]
        answers = [majority_answer(row["answers"]) for row in pair]
        row = pair[0]
        found.append(
            {
                **{"id": row["id"], "change": "won" if votes[1] > votes[0] else "lost"},
                **{"question": row["question"], "reference": row["answer"]},
                **{"first_answer": answers[0], "second_answer": answers[1]},
                **{"first_correct": shares[0], "second_correct": shares[1], "by": votes[1] - votes[0]},
            }
        )
    return sorted(found, key=lambda change: (-change["by"], change["id"]))


def majority_answer(answers: list[str | None]) -> str:
    """The answers with most votes, and how many of all they have."""
    votes = Counter(a for a in answers if a is not None)
    most = max(votes.values(), default=0)
    return " or ".join(sorted(a for a in votes if votes[a] == most)) + f" ({most}/{len(answers)})" if votes else "none"


def report(a: Path, b: Path, found: list[Difference], changes: list[Row], settings: list[str]) -> str:
    """The comparison as Markdown."""
    rows = [
        [
            *(d.set, d.metric, str(d.problems), f"{d.first:.3f}", f"{d.second:.3f}", f"{d.difference:+.3f}"),
            *(interval_text(d.interval, "+"), interval_text(d.fixed, "+")),
            *(p_text(d.p).removeprefix("= "), "" if np.isnan(d.p_holm) else p_text(d.p_holm).removeprefix("= ")),
            "" if np.isnan(d.detectable) else f"{d.detectable:.3f}",
        ]
        for d in found
    ]
    heads = [
        "set",
        "metric",
        "problems",
        "A",
        "B",
        "B - A",
        "over problems",
        "problems fixed",
        "p",
        "p (Holm)",
        "80 % power",
    ]
    parts = [f"# {b} against {a}\n\nA: `{a}`, B: `{b}`; paired by problem; intervals 95 %."]
    if settings:
        parts.append("**The protocols differ, so this is no like-for-like comparison:** " + "; ".join(settings))
    parts.append(markdown_table(heads, rows))
    parts.append(
        "*Over problems*: what other problems would give. *Problems fixed*: sampling noise on these alone: "
        "avg@n pairs the samples by their draw, pass@n and maj@n add the noise of both runs as if it were independent. "
        "No interval is corrected for several sets, as p (Holm) is."
    )
    few = few_problems({d.set: d.problems for d in found}, {d.set: d.seen for d in found})
    parts += [few] if few else []
    parts.append("\n".join(f"- {d.words()}" for d in found if d.metric.startswith("avg")))
    heads = ["set", "problem", "change", "reference", "A's vote", "B's vote", "A correct", "B correct"]
    cells = [[c["set"], c["id"], c["change"], c["reference"], c["first_answer"], c["second_answer"], c["first_correct"],
              c["second_correct"]] for c in changes]  # fmt: skip
    count = Counter(c["change"] for c in changes)
    parts.append(
        f"## Problems whose verdict changed: {count['won']} won, {count['lost']} lost (by the vote of all samples)"
    )
    parts.append(markdown_table(heads, cells) if changes else "None.")
    return "\n\n".join(parts) + "\n"
