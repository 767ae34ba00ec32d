"""Counts graded answers per set, and turns the counts into avg@n and pass@k with intervals. It knows no model."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from lit_atex.metrics import AverageAtK, PassAtK, pass_at_k
from lit_atex.stats import bootstrap_interval, fixed_problems_interval
from lit_atex.types import Verdict


@dataclass
class Result:
    """One set's numbers.

    Attributes:
        name: Of the set.
        problems: How many there were.
        samples: Completions per problem (n).
        average: avg@n: mean share of correct completions.
        interval: Its 95 % interval over problems (bootstrap): what another draw of problems would give.
        fixed_interval: Its 95 % interval with these problems fixed: sampling noise alone.
        pass_at: pass@k by k, unbiased.
        pass_interval: The 95 % interval over problems of each pass@k.
        shares: Share of completions by verdict, and "cut" at the length limit.
        mean_length: Tokens per completion.
        per_problem: Share of correct completions by problem id, for paired comparisons.
    """

    name: str
    problems: int
    samples: int
    average: float
    interval: tuple[float, float]
    fixed_interval: tuple[float, float]
    pass_at: dict[int, float]
    pass_interval: dict[int, tuple[float, float]]
    shares: dict[str, float]
    mean_length: float
    per_problem: dict[str, float] = field(repr=False)

    def scalars(self) -> dict[str, float]:
        """What is logged."""
        return {
            f"avg@{self.samples}": self.average,
            **{f"pass@{k}": v for k, v in self.pass_at.items()},
            "unparsed": self.shares["unparsed"],
            "timeout": self.shares["timeout"],
            "cut": self.shares["cut"],
            "mean_length": self.mean_length,
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready data."""
        return asdict(self)


def pass_ks(n: int) -> list[int]:
    """The k that are shown: powers of two up to n, and n."""
    return sorted({2**i for i in range(n.bit_length()) if 2**i <= n} | {n})


class Evaluation(nn.Module):
    """The metrics of all sets of one validation or test run."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Result] = []
        """Filled by `close`, in the order of the sets."""
        self.begin([], 1)

    def begin(self, names: list[str], samples: int) -> None:
        """Make fresh metrics for these sets, with n = `samples` completions a problem."""
        self.names, self.samples = names, samples
        self.averages: Any = nn.ModuleList(AverageAtK(k=samples) for _ in names)
        self.passes: Any = nn.ModuleList(nn.ModuleList(PassAtK(k=k) for k in pass_ks(samples)) for _ in names)
        self._clear()

    def _clear(self) -> None:
        self._counts: list[Counter[str]] = [Counter() for _ in self.names]
        self._correct: list[dict[str, int]] = [{} for _ in self.names]
        for metric in [*self.averages, *(m for ms in self.passes for m in ms)]:
            metric.reset()

    def add(self, index: int, rows: list[dict[str, Any]]) -> None:
        """Count the rows of `Solver.answer` for set number `index`."""
        if not rows:
            return
        correct = torch.tensor([r["verdicts"].count(Verdict.CORRECT.value) for r in rows])
        samples = torch.tensor([len(r["verdicts"]) for r in rows])
        for metric in [self.averages[index], *self.passes[index]]:
            metric.update(correct, samples)
        for row, c in zip(rows, correct.tolist()):
            self._correct[index][row["id"]] = c
            self._counts[index].update(row["verdicts"])
            self._counts[index]["cut"] += row["ended"].count(False)
            self._counts[index]["tokens"] += sum(row["lengths"])

    def close(self) -> None:
        """Compute everything over all ranks into `results`, and begin anew."""
        self.results = []
        for i, name in enumerate(self.names):
            counts, correct = self._over_ranks(self._counts[i], self._correct[i])
            shares = {id_: c / self.samples for id_, c in correct.items()}
            solved = torch.tensor(list(correct.values()), dtype=torch.long)
            drawn = torch.full_like(solved, self.samples)
            per_problem = {k: pass_at_k(solved, drawn, k) for k in pass_ks(self.samples)}
            completions = max(len(correct) * self.samples, 1)
            self.results.append(
                Result(
                    name=name,
                    problems=len(correct),
                    samples=self.samples,
                    average=float(self.averages[i].compute()),
                    interval=bootstrap_interval(list(shares.values())),
                    fixed_interval=fixed_problems_interval(solved.numpy(), drawn.numpy()),
                    pass_at={m.k: float(m.compute()) for m in self.passes[i]},
                    pass_interval={k: bootstrap_interval(v.numpy()) for k, v in per_problem.items()},
                    shares={key: counts[key] / completions for key in [*(v.value for v in Verdict), "cut"]},
                    mean_length=counts["tokens"] / completions,
                    per_problem=shares,
                )
            )
        self._clear()

    @staticmethod
    def _over_ranks(counts: Counter[str], correct: dict[str, int]) -> tuple[Counter[str], dict[str, int]]:
        """Counts of all ranks, problems sorted by id: any number of ranks makes the same bootstrap draws."""
        if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
            return counts, dict(sorted(correct.items()))
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, (dict(counts), correct))
        total: Counter[str] = Counter()
        merged: dict[str, int] = {}
        for c, by_id in gathered:
            total.update(c)
            merged.update(by_id)
        return total, dict(sorted(merged.items()))
