"""A metric of one set in two evaluations, paired by problem: the difference and what it is worth. It reads no file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lit_atex.metrics import average_at_k, pass_at_k
from lit_atex.noise import difference_interval, difference_variances, paired_variances
from lit_atex.paired import detectable, enough, fewest, problems_needed, sign_flip_p
from lit_atex.stats import bootstrap_interval, paired_interval, seen
from lit_atex.votes import majority_at_k

Row = dict[str, Any]


@dataclass
class Difference:
    """A metric of one set in two runs.

    Attributes:
        set: Name of the set.
        metric: "avg@n", "pass@n" or "maj@n"; "avg@n/m" of runs with n and m samples, whose others are at the smaller;
            one of the user's own.
        problems: How many both have.
        seen: Of these, how many were ever solved in either run, or ever not, whichever are fewer.
        first: Mean in the first run.
        second: Mean in the second.
        difference: Second minus first, the mean over problems.
        interval: Its 95 % interval over problems (BCa bootstrap of paired differences; of equal ones exact, or nan).
        fixed: Its 95 % interval with these problems fixed: see `noise.paired_variances`; nan where it is not known.
        p: Two-sided p-value of the sign-flip permutation test.
        p_holm: The same, raised for the number of sets (avg@n only; nan for the others).
        detectable: The true difference that a test of this set finds with about 80 % power; nan: not known.
        needed: Problems of this kind that would find a difference as large as the one seen with that power.
    """

    set: str
    metric: str
    problems: int
    seen: int
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
        few, (low, high) = self.problems < enough(), self.interval
        if np.isnan(self.detectable) and self.difference == 0 and not few:
            head += f"no difference: none of these {self.problems} problems was solved more often in either run; "
            return head + f"the truth may lie in [{low:+.3f}, {high:+.3f}]."
        p = self.p if np.isnan(self.p_holm) else self.p_holm  # what the sets together allow to say
        if np.isnan(self.detectable) and not few:
            head += f"all {self.problems} problems differ by {self.difference:+.3f} (p {p_text(p)}), so nothing says "
            return head + f"what could be seen; the truth may lie in [{low:+.3f}, {high:+.3f}]."
        head += (
            f"fewer than {fewest()} problems show no difference, however large (two-sided test at 5 %). "
            if self.problems < fewest()
            else f"fewer than {enough()} problems are too few to say how large a true difference they show. "
            if few
            else f"these {self.problems} problems show a true difference of {self.detectable:.3f} in about 8 of 10 "
            "repetitions (two-sided test at 5 %), a smaller one less often. "
        )
        if p < 0.05:
            return head + seen + f"is more than chance (p {p_text(p)})."
        head += seen + f"cannot be told from none (p {p_text(p)}): "
        if low <= 0 <= high:
            head += f"the truth may lie in [{low:+.3f}, {high:+.3f}]."
        else:
            why = "not corrected for the number of sets" if self.p < 0.05 else "only approximate"
            head += f"its interval, [{low:+.3f}, {high:+.3f}], leaves out 0, but is {why}; go by p."
        if self.needed is not None and self.needed > self.problems:
            head += f" If it is real, about {self.needed:,} problems of this kind would show it."
        return head


def p_text(p: float) -> str:
    """A p-value as it is read; random permutations do not tell smaller ones apart."""
    return "< 0.0001" if p < 1e-4 else f"= {p:.4f}"


def paired(first: list[Row], second: list[Row]) -> list[tuple[Row, Row]]:
    """The rows of the problems that both have, sorted by id: the same id, question and answer."""
    by_problem = {(row["id"], row["question"], row["answer"]): row for row in second}
    keys = [(row["id"], row["question"], row["answer"]) for row in first]
    return sorted(((row, by_problem[k]) for k, row in zip(keys, first) if k in by_problem), key=lambda p: p[0]["id"])


def differences_of(name: str, pairs: list[tuple[Row, Row]]) -> list[Difference]:
    """avg@n, pass@k, maj@k and the user's own of a set; k is the number of samples, the smaller one if they differ."""
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
    trials: list[int | None] = [size * k, size, size]
    known = [row.get("own", {}).keys() for side in sides for row in side]
    for metric in [name for name in known[0] if all(name in keys for keys in known)]:
        drawn_of = [np.array([row["own"][metric] for row in side]) for side in sides]
        values[metric] = [of.mean(1) for of in drawn_of]
        variances.append(difference_variances(*drawn_of))
        trials.append(size * k if all(of.dtype == bool for of in drawn_of) else None)
    found = []
    for (metric, (one, two)), noise, tried in zip(values.items(), variances, trials):
        gap = np.round(two - one, 12)  # 7/12 - 4/12 is 3/12, which rounding to binary hides
        found.append(
            Difference(
                set=name,
                metric=metric,
                problems=size,
                seen=seen((solved[0] + solved[1]) / (drawn[0] + drawn[1])),
                first=float(one.mean()),
                second=float(two.mean()),
                difference=float(gap.mean()),
                interval=paired_interval(gap) if tried is not None else bootstrap_interval(gap),
                fixed=difference_interval(gap, noise, tried),
                p=sign_flip_p(gap),
                p_holm=float("nan"),
                detectable=detectable(gap),
                needed=problems_needed(gap, float(gap.mean())),
            )
        )
    return found
