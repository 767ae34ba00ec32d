"""Counts graded answers per set, and turns the counts into metrics with two intervals each. It knows no model."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from math import isnan
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lit_atex import noise
from lit_atex.metrics import curve_of, g_pass_at_k, mean_g_pass_at_k, pass_at_k
from lit_atex.ranks import of_all_ranks
from lit_atex.stats import bootstrap_intervals, fixed_problems_interval
from lit_atex.types import Verdict
from lit_atex.votes import majority_at_k

TAUS = (0.5, 0.75, 1.0)
"""The shares of G-Pass@k that are shown, as in its paper."""
SHARES = ("wrong", "unparsed", "timeout", "cut")
"""What became of the answers that are not correct; "cut" at the length limit overlaps with the others."""
PLAIN = ("length", "cut", *(v.value for v in Verdict if v is not Verdict.CORRECT))
"""What a sample has by itself, of which a problem has the mean."""

Interval = tuple[float, float]


class Estimate(NamedTuple):
    """A metric of a set.

    Attributes:
        value: Its mean over problems.
        over: 95 % interval over problems: what another draw of them would give. nan if all problems have the same
            number and the metric is no share.
        fixed: 95 % interval with these problems fixed: sampling noise alone. nan where it cannot be known: with one
            sample per problem (for distinct answers with two), or where lengths or distinct answers show no noise.
    """

    value: float
    over: Interval
    fixed: Interval


@dataclass
class Result:
    """One set's numbers.

    Attributes:
        name: Of the set.
        problems: How many there were.
        samples: Completions per problem (n).
        metrics: By name: "avg@n"; "pass@k" for all k; "maj@k", "g-pass@k_tau" and "mg-pass@k" for the k of `shown_ks`;
            "distinct" answers; "length" in tokens; the shares "wrong", "unparsed", "timeout", and "cut" at the limit;
            the user's own.
        per_problem: Share of correct completions by problem id, for paired comparisons.
        checksum: Of ids, questions and answers; None in results of an earlier version, which had none.
    """

    name: str
    problems: int
    samples: int
    metrics: dict[str, Estimate]
    per_problem: dict[str, float] = field(repr=False)
    checksum: int | None = None

    @property
    def average(self) -> Estimate:
        """avg@n: mean share of correct completions."""
        return self.metrics[f"avg@{self.samples}"]

    @property
    def own(self) -> list[str]:
        """Names of the user's own metrics."""
        return [name for name in self.metrics if name not in metric_names(self.samples)]

    def scalars(self) -> dict[str, float]:
        """What is logged."""
        n = self.samples
        names = [f"avg@{n}", *(f"pass@{k}" for k in shown_ks(n)), f"maj@{n}", f"mg-pass@{n}", "distinct", *SHARES[1:]]
        found = {name: self.metrics[name].value for name in names if name in self.metrics}
        own = {name: self.metrics[name].value for name in self.own}
        return {**found, "mean_length": self.metrics["length"].value, **own}

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data, null for nan; `average` and its interval once more, for a reader in a hurry."""
        metrics = {name: {"value": e.value, "over": e.over, "fixed": e.fixed} for name, e in self.metrics.items()}
        return without_nan(
            {"name": self.name, "problems": self.problems, "samples": self.samples, "checksum": self.checksum}
            | {"average": self.average.value, "interval": self.average.over}
            | {"metrics": metrics, "per_problem": self.per_problem}
        )

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Result:
        """The result that `to_json` wrote.

        Raises:
            ValueError: If an earlier version of lit_atex wrote it.
        """
        if "metrics" not in data:
            raise ValueError(f"the results of {data.get('name')!r} are of an earlier version: evaluate again.")
        metrics = {}
        for name, e in data["metrics"].items():
            numbers = (float("nan") if x is None else x for x in (e["value"], *e["over"], *e["fixed"]))
            value, low, high, fixed_low, fixed_high = numbers
            metrics[name] = Estimate(value, (low, high), (fixed_low, fixed_high))
        return cls(data["name"], data["problems"], data["samples"], metrics, data["per_problem"], data.get("checksum"))


def without_nan(data: Any) -> Any:
    """The same data with null for nan, which is no JSON."""
    if isinstance(data, dict):
        return {key: without_nan(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [without_nan(value) for value in data]
    return None if isinstance(data, float) and isnan(data) else data


def shown_ks(n: int) -> list[int]:
    """The k that tables and logs show: powers of two up to n, and n."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


@lru_cache(maxsize=8)
def metric_names(n: int) -> tuple[str, ...]:
    """The names in `Result.metrics` for n samples, without the user's own."""
    of_counts, of_votes = _kinds(n)
    return (*of_counts, *of_votes, "distinct", *PLAIN)


def _kinds(n: int) -> tuple[dict[str, tuple[Any, ...]], dict[str, tuple[Any, ...]]]:
    """Those of counts of correct samples, and those of votes: for each its shell (metric_shells.py), k, and tau."""
    ks = shown_ks(n)
    counts: dict[str, tuple[Any, ...]] = {f"avg@{n}": ("AverageAtK", n)}
    counts |= {f"pass@{k}": ("PassAtK", k) for k in range(1, n + 1)}
    counts |= {f"g-pass@{k}_{tau}": ("GPassAtK", k, tau) for k in ks for tau in TAUS if k > 1}
    counts |= {f"mg-pass@{k}": ("GPassAtK", k) for k in ks if k > 1}
    return counts, {f"maj@{k}": ("MajorityAtK", k) for k in ks}


def is_share(name: str) -> bool:
    """Whether a metric lies in [0, 1] by its name; of the user's own none is known to."""
    return "@" in name or name in SHARES


class _Set(nn.Module):
    """The metrics of one set: values stream in, and are synced over ranks when the set is closed."""

    def __init__(self, name: str, samples: int, own: Sequence[str] = ()) -> None:
        from lit_atex import metric_shells

        super().__init__()
        self.name, self.samples = name, n = name, samples
        counts, votes = _kinds(n)
        self.of_counts, self.of_votes, self.plain, self.own = list(counts), list(votes), [*PLAIN, *own], set(own)
        self.names = [*counts, *votes, "distinct", *self.plain]
        made = [getattr(metric_shells, kind)(*sizes) for kind, *sizes in (*counts.values(), *votes.values())]
        made += [metric_shells.DistinctAnswers(), *(metric_shells.MeanOverProblems() for _ in self.plain)]
        self.metrics: Any = nn.ModuleList(made)  # a list, as the names of a ModuleDict must not contain dots
        self.rows: list[dict[str, Any]] = []

    def named(self) -> dict[str, Any]:
        """The metrics by name."""
        return dict(zip(self.names, self.metrics))

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Count rows of `Solver.answer`."""
        seen = [_compact(row) for row in rows]
        self.rows += seen
        metrics = self.named()
        solved = torch.tensor([sum(row["correct"]) for row in seen])
        drawn = torch.tensor([len(row["correct"]) for row in seen])
        answers = [row["answers"] for row in seen]
        for name in self.of_counts:
            metrics[name].update(solved, drawn)
        for name in self.of_votes:
            metrics[name].update(answers, [row["correct"] for row in seen])
        metrics["distinct"].update(answers)
        for name in self.plain:
            values = [row[_row_key(name, name in self.own)] for row in seen]
            metrics[name].update(torch.tensor(values, dtype=torch.float64).mean(1))

    def clear(self) -> None:
        """Forget what was counted."""
        self.rows = []
        for metric in self.metrics:
            metric.reset()

    def result(self) -> Result:
        """All numbers, over all ranks; problems sorted by id, so that any number of ranks makes the same draws."""
        # In the order rank, update, problem: that of the metrics' values.
        rows = [row for of_rank in of_all_ranks(self.rows) for row in of_rank]
        order = sorted(range(len(rows)), key=lambda i: rows[i]["id"])
        rows = [rows[i] for i in order]
        values = {name: metric.per_problem().cpu().numpy()[order] for name, metric in self.named().items()}
        table = np.stack(list(values.values()), axis=1)
        over = bootstrap_intervals(table, shares=[self._is_share(name, rows) for name in values])
        metrics = {
            name: Estimate(float(v.mean()) if len(v) else float("nan"), interval, self._fixed(name, v, rows))
            for (name, v), interval in zip(values.items(), over)
        }
        shares = dict(zip((row["id"] for row in rows), values[f"avg@{self.samples}"].tolist()))
        checksum = zlib.crc32(repr([row["problem"] for row in rows]).encode())
        return Result(self.name, len(rows), self.samples, metrics, shares, checksum)

    def _fixed(self, name: str, values: NDArray[np.float64], rows: list[dict[str, Any]]) -> Interval:
        """The interval of a metric with its problems fixed."""
        n, kind, own = self.samples, name.partition("@")[0], name in self.own
        solved = np.array([sum(row["correct"]) for row in rows], dtype=np.int64)
        if kind == "avg" or name == "pass@1":  # the same number
            return fixed_problems_interval(solved, np.full_like(solved, n))
        if name in self.plain:
            drawn = np.array([row[_row_key(name, own)] for row in rows], dtype=float).reshape(-1, n)
            if self._is_share(name, rows):
                return fixed_problems_interval(drawn.sum(1), np.full(len(drawn), n))
            return noise.noise_interval(values, noise.sample_variances(drawn), least=-np.inf if own else 0.0)
        answers, correct = [row["answers"] for row in rows], [row["correct"] for row in rows]
        if kind == "distinct":
            return noise.noise_interval(values, noise.distinct_variances(answers))
        number, _, tau = name.partition("@")[2].partition("_")
        k = int(number)
        if kind == "maj" and k == n:
            variances = noise.vote_variances(answers, correct)
        elif kind == "maj":
            variances = noise.jackknife_variances(partial(majority_at_k, k=k), answers, correct)
        else:
            functions: dict[str, Callable[[Tensor, Tensor, int], Tensor]]
            functions = {"pass": pass_at_k, "mg-pass": mean_g_pass_at_k}
            function = functions.get(kind) or partial(g_pass_at_k, tau=float(tau))
            variances = noise.count_variances(curve_of(function, n, k), solved, n)
        return noise.noise_interval(values, variances, trials=len(values) * (n // k))

    def _is_share(self, name: str, rows: list[dict[str, Any]]) -> bool:
        """Whether a metric lies in [0, 1]: of the user's own, those of which every value is a bool."""
        key, own = _row_key(name, True), name in self.own
        return all(isinstance(value, bool) for row in rows for value in row[key]) if own else is_share(name)


def _compact(row: dict[str, Any]) -> dict[str, Any]:
    """What is counted of a row: per sample, without texts."""
    verdicts = row["verdicts"]
    by_verdict = {v.value: [found == v.value for found in verdicts] for v in Verdict}
    return {
        **by_verdict,
        **{"id": row["id"], "answers": row["answers"], "length": row["lengths"]},
        "problem": zlib.crc32(repr([row[key] for key in ("id", "question", "answer")]).encode()),
        "cut": [not ended for ended in row["ended"]],
        **{_row_key(name, True): values for name, values in row.get("own", {}).items()},
    }


def _row_key(name: str, own: bool) -> str:
    """Where a metric's values are in a compact row; the user's own apart from ours."""
    return f"own/{name}" if own else name


class Evaluation(nn.Module):
    """The metrics of all sets of one validation or test run."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Result] = []
        """Filled by `close`, in the order of the sets."""
        self.begin([], 1)

    def begin(self, names: list[str], samples: int, own: Sequence[str] = ()) -> None:
        """Make fresh metrics for these sets, with n = `samples` completions a problem; `own`: names of the user's."""
        self.names, self.samples = names, samples
        self.sets: Any = nn.ModuleList(_Set(name, samples, own) for name in names)

    def add(self, index: int, rows: list[dict[str, Any]]) -> None:
        """Count the rows of `Solver.answer` for set number `index`.

        Raises:
            ValueError: If a problem has another number of samples than the others.
        """
        if rows:
            self.sets[index].add(rows)

    def scalars(self, stage: str) -> dict[str, float]:
        """What is logged of `results`: `STAGE/SET/METRIC`, and `STAGE/mean`, avg@n averaged over the sets."""
        found = {f"{stage}/{r.name}/{name}": value for r in self.results for name, value in r.scalars().items()}
        return found | ({f"{stage}/mean": float(np.mean([r.average.value for r in self.results]))} if found else {})

    def close(self) -> None:
        """Compute everything over all ranks into `results`, and begin anew."""
        self.results = [one.result() for one in self.sets]
        for one in self.sets:
            one.clear()
