"""`lit-atex compare A B`: what the difference between two evaluations of the same problems is worth.

It reads the outcome files and protocols of two run folders, and nothing else.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lit_atex import outcomes, whole
from lit_atex.evaluation import without_nan
from lit_atex.metrics import average_at_k, pass_at_k
from lit_atex.noise import difference_interval, paired_variances
from lit_atex.paired import detectable, holm, problems_needed, sign_flip_p
from lit_atex.protocol import KINDS, differences
from lit_atex.stats import paired_interval
from lit_atex.text_tables import few_problems, interval_text, markdown_table
from lit_atex.votes import majority_at_k

Row = dict[str, Any]


@dataclass
class Difference:
    """A metric of one set in two runs.

    Attributes:
        set: Name of the set.
        metric: "avg@n", "pass@n" or "maj@n"; "avg@n/m" of runs with n and m samples, whose others are at the smaller.
        problems: How many both have.
        first: Mean in the first run.
        second: Mean in the second.
        difference: Second minus first, the mean over problems.
        interval: Its 95 % interval over problems (BCa bootstrap of the paired differences; exact if all are equal).
        fixed: Its 95 % interval with these problems fixed: see `noise.paired_variances`; nan where it is not known.
        p: Two-sided p-value of the sign-flip permutation test.
        p_holm: The same, raised for the number of sets (avg@n only; nan for the others).
        detectable: The true difference that a test of this set finds with a power of 80 %.
        needed: Problems of this kind that would find a difference as large as the one seen with that power.
    """

    set: str
    metric: str
    problems: int
    first: float
    second: float
    difference: float
    interval: tuple[float, float]
    fixed: tuple[float, float]
    p: float
    p_holm: float
    detectable: float
    needed: int | None

    def words(self) -> str:
        """How small a difference this set can show, and what that means for the one that was seen."""
        head, seen = f"{self.set}, {self.metric}: ", f"The difference seen, {self.difference:+.3f}, "
        low, high = self.interval
        if np.isnan(self.detectable) and self.difference == 0:
            head += f"no difference: none of these {self.problems} problems was solved more often in either run; "
            return head + f"the truth may lie in [{low:+.3f}, {high:+.3f}]."
        if np.isnan(self.detectable):
            return head + f"all {self.problems} problems differ by the same amount, so nothing says what could be seen."
        head += (
            f"these {self.problems} problems show a true difference of {self.detectable:.3f} in 8 of 10 repetitions "
            "(two-sided test at 5 %), a smaller one less often. "
        )
        p = self.p if np.isnan(self.p_holm) else self.p_holm  # what the sets together allow to say
        if p < 0.05:
            return head + seen + f"is more than chance (p {p_text(p)})."
        head += seen + f"cannot be told from none (p {p_text(p)}): the truth may lie in [{low:+.3f}, {high:+.3f}]."
        if self.needed is not None and self.needed > self.problems:
            head += f" If it is real, about {self.needed:,} problems of this kind would show it."
        return head


def p_text(p: float) -> str:
    """A p-value as it is read; random permutations do not tell smaller ones apart."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def compare(first: str, second: str, out: str | None = None, force: bool = False) -> None:
    """Compare two evaluations problem by problem: difference, interval, p-value, and what these problems could show.

    Args:
        first: Run folder of the first evaluation (of `evaluate`, `test` or `validate`).
        second: Run folder of the second; differences are second minus first.
        out: Folder for comparison.md, comparison.json and changed.jsonl. Default: in the second, comparison-FIRST.
        force: Compare although the protocols differ (samples, sampling, prompts, sets); the table then says in what.
    """
    a, b = Path(first), Path(second)
    folder = Path(out) if out else _folder(a, b)
    name = evaluation_of(a, b)
    rows = (outcomes.read(a, name), outcomes.read(b, name))
    pairs = {s: paired(rows[0][s], rows[1][s]) for s in rows[0] if s in rows[1]}
    changed_settings = protocols_differ(a, b, name) + problems_differ(*rows, pairs)
    if any(pairs.values()) and changed_settings and not force:
        raise ValueError(
            f"the evaluations differ in more than the model: {'; '.join(changed_settings)}. Evaluate again with the "
            "same settings, go on with one that was stopped (--resume), or compare all the same with --force true."
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
    whole.write(
        folder / "comparison.json", json.dumps(data | {"differences": [plain(d) for d in found]}, indent=2) + "\n"
    )
    whole.write(folder / "changed.jsonl", "".join(map(outcomes.line, changes)))
    print(
        f"{text.partition('## Problems')[0]}{len(changes)} problems changed; all of it: {folder}/comparison.md",
        flush=True,
    )


def _folder(first: Path, second: Path) -> Path:
    """comparison-FIRST in the second; of another one of that name, with its folder's name before it."""
    name = first.resolve().name
    path = second / f"comparison-{name}"
    known = path / "comparison.json"
    if known.is_file() and Path(json.loads(known.read_text(encoding="utf-8"))["first"]).resolve() != first.resolve():
        return second / f"comparison-{first.resolve().parent.name}-{name}"
    return path


def evaluation_of(a: Path, b: Path) -> str:
    """What both have, "test" before "validate".

    Raises:
        ValueError: If there is none.
    """
    for name in ("test", "validate"):
        if all((run / "outcomes" / f"{name}.protocol.json").is_file() for run in (a, b)):
            return name
    told = []
    for run in (a, b):
        known = [n for n in KINDS if (run / "outcomes" / f"{n}.protocol.json").is_file()]
        told.append(
            f"{run} {'has ' + ' and '.join(known) if known else 'has none' if run.is_dir() else 'is no folder'}"
        )
    raise ValueError(
        f"nothing to compare: both need an evaluation by itself, as by `lit-atex evaluate RUN --run DIR` (with "
        f"--validation of the validation sets), and of the same kind; {', '.join(told)}."
    )


def protocols_differ(a: Path, b: Path, name: str) -> list[str]:
    """In what, other than the model; one line a key."""
    given = ((run / "outcomes" / f"{name}.protocol.json").read_text(encoding="utf-8") for run in (a, b))
    then, now = map(json.loads, given)
    return differences(then, now, compared=True)


def problems_differ(first: dict[str, list[Row]], second: dict[str, list[Row]], pairs: dict[str, Any]) -> list[str]:
    """Sets of which one run has problems that the other lacks: it was stopped, cut otherwise, or had other problems."""
    counts = {s: (len(first.get(s, [])), len(second.get(s, [])), len(pairs.get(s, []))) for s in {**first, **second}}
    return [f"{s}: {a} and {b} problems, {both} in common" for s, (a, b, both) in counts.items() if not a == b == both]


def paired(first: list[Row], second: list[Row]) -> list[tuple[Row, Row]]:
    """The rows of the problems that both have, sorted by id: the same id, question and answer."""
    by_problem = {(row["id"], row["question"], row["answer"]): row for row in second}
    keys = [(row["id"], row["question"], row["answer"]) for row in first]
    return sorted(((row, by_problem[k]) for k, row in zip(keys, first) if k in by_problem), key=lambda p: p[0]["id"])


def differences_of(name: str, pairs: list[tuple[Row, Row]]) -> list[Difference]:
    """avg@n, pass@k and maj@k of a set; k is the number of samples, of the smaller run if they differ."""
    if not pairs:
        return []
    sides = [list(side) for side in zip(*pairs)]
    n = [len(side[0]["verdicts"]) for side in sides]
    correct = [[[v == "correct" for v in row["verdicts"]] for row in side] for side in sides]
    answers = [[row["answers"] for row in side] for side in sides]
    solved = [torch.tensor([sum(row) for row in side]) for side in correct]
    drawn = [torch.tensor([len(row) for row in side]) for side in correct]
    k, size = min(n), len(pairs)
    values = {
        f"avg@{k}" if n[0] == n[1] else f"avg@{n[0]}/{n[1]}": [average_at_k(*of).numpy() for of in zip(solved, drawn)],
        f"pass@{k}": [pass_at_k(*of, k).numpy() for of in zip(solved, drawn)],
        f"maj@{k}": [np.array(majority_at_k(*of, k)) for of in zip(answers, correct)],
    }
    variances = paired_variances(answers, correct, n)
    found = []
    for (metric, (one, two)), noise, trials in zip(values.items(), variances, (size * k, size, size)):
        gap = np.round(two - one, 12)  # 7/12 - 4/12 is 3/12, which rounding to binary hides
        found.append(
            Difference(
                set=name,
                metric=metric,
                problems=size,
                first=float(one.mean()),
                second=float(two.mean()),
                difference=float(gap.mean()),
                interval=paired_interval(gap),
                fixed=difference_interval(gap, noise, trials),
                p=sign_flip_p(gap),
                p_holm=float("nan"),
                detectable=detectable(gap),
                needed=problems_needed(gap, float(gap.mean())),
            )
        )
    return found


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
        "avg@n pairs the samples by their draw, pass@n and maj@n add the noise of both runs as if it were independent."
    )
    few = few_problems({d.set: d.problems for d in found})
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


def plain(difference: Difference) -> dict[str, Any]:
    """As JSON-ready data; what is not known is null."""
    return without_nan(asdict(difference))
