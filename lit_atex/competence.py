"""Running success of the student, per problem, per level and overall, with forgetting; knows no model, no strategy.

Three Beta-Bernoulli estimates: over all, of each level, and of each problem, whose prior is its level's:

- A *level* forgets with time: each optimizer step multiplies its counts by `decay`, so it says how the student is now.
- A *problem* forgets with visits: between two of them lies a whole pass over the data, so counted in steps nothing
  would be left. Its prior is its level's mean, worth `prior_weight` rollouts; a new problem is estimated at just that.
- At most `max_problems` problems are kept. The least recently seen one makes room: its counts are added to the
  *settled* counts of its level, which forget nothing. Their mean is the mean of the level's prior, which weighs two
  rollouts however many have settled: they say how the student was, the running counts say how it is. So a level that
  is no longer seen returns to what it was worth in the long run; to 1/2 if nothing has settled (a uniform prior).

The estimate over all has a uniform prior. Time per step is that of the batch and of the levels, whatever is kept. The
prior from the level, forgetting by visits and the settled counts are ours; the paper is silent on them.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field
from typing import Any
from weakref import WeakSet

from lit_atex.stats import beta_interval
from lit_atex.types import StepFeedback, Verdict

PRIOR = 2.0
"""Rollouts that the prior of a level, and of all, is worth: the uniform prior is Beta(1, 1)."""


@dataclass
class Tally:
    """What is counted of a level, or of everything.

    Attributes:
        running: Verdicts that forget with each optimizer step, by `Verdict.value`.
        settled: Successes and failures of the problems that are no longer kept.
        problems: Problems met; one that made room and comes back is met again.
        rollouts: Rollouts counted.
    """

    running: dict[str, float] = field(default_factory=lambda: {v.value: 0.0 for v in Verdict})
    settled: list[float] = field(default_factory=lambda: [0.0, 0.0])
    problems: int = 0
    rollouts: int = 0

    def posterior(self) -> tuple[float, float]:
        """The two parameters of the Beta distribution."""
        successes = self.running[Verdict.CORRECT.value]
        failures = sum(n for verdict, n in self.running.items() if verdict != Verdict.CORRECT.value)
        prior = (self.settled[0] + 1) / (sum(self.settled) + 2)
        return PRIOR * prior + successes, PRIOR * (1 - prior) + failures


Counts = tuple[str, float, float]
"""Of a problem: level, successes, failures."""


class AsItWas(Mapping[str, Counts]):
    """The counts of all problems at one moment, while they go on changing: it keeps those alone that have changed.

    A copy of 100,000 problems would take tens of milliseconds in each window. Its order is that of their ids.
    """

    def __init__(self, now: Mapping[str, Counts]) -> None:
        self._now, self._was = now, dict[str, Counts | None]()

    __hash__ = object.__hash__  # told apart by identity in a WeakSet

    def keep(self, problem: str) -> None:
        """The problem is about to change."""
        self._was.setdefault(problem, self._now.get(problem))

    def __getitem__(self, problem: str) -> Counts:
        found = self._was.get(problem) if problem in self._was else self._now.get(problem)
        if found is None:
            raise KeyError(problem)
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(problem for problem in {*self._was, *self._now} if problem in self))

    def __len__(self) -> int:
        return sum(1 for _ in self)


MAX_LEVELS = 100
"""Labels that are told apart, each with a number in every logged row; those that come later are one level, OTHERS."""
OTHERS = "(others)"


class Competence:
    """Beta-Bernoulli counts that forget."""

    def __init__(
        self, decay: float = 0.9, visit_decay: float = 0.7, prior_weight: float = 2.0, max_problems: int = 100_000
    ) -> None:
        """Set the memory.

        Args:
            decay: Share of the counts of a level, and of all, that is kept at each optimizer step, in (0, 1]; 0.9
                remembers about ten steps.
            visit_decay: Share of a problem's counts that is kept when it is seen again, in (0, 1]; 0.7 remembers about
                three visits.
            prior_weight: Rollouts that a level's mean is worth in the estimate of a problem, > 0.
            max_problems: Problems that are kept, >= 1; 100,000 take some 30 MB, and 5 MB in a checkpoint.

        Raises:
            ValueError: If an argument is out of range.
        """
        for name, value in {"decay": decay, "visit_decay": visit_decay}.items():
            if not 0 < value <= 1:
                raise ValueError(f"competence.{name} must lie in (0, 1], got {value}.")
        if not 0 < prior_weight < float("inf"):
            raise ValueError(f"competence.prior_weight must be positive and finite, got {prior_weight}.")
        if max_problems < 1:
            raise ValueError(f"competence.max_problems must be at least 1, got {max_problems}.")
        self.decay, self.visit_decay, self.prior_weight = decay, visit_decay, prior_weight
        self.max_problems = max_problems
        self._all = Tally()
        self._levels: dict[str, Tally] = {}
        self._problems: OrderedDict[str, Counts] = OrderedDict()  # the least recently seen comes first
        self._views: WeakSet[AsItWas] = WeakSet()

    def update(self, feedback: StepFeedback) -> None:
        """Count one optimizer step's verdicts."""
        for tally in (self._all, *self._levels.values()):
            tally.running = {verdict: n * self.decay for verdict, n in tally.running.items()}
        samples = len(feedback.verdicts) // max(len(feedback.problem_ids), 1)
        every = [verdict.value for verdict in feedback.verdicts]  # looked up once: it is slow for an enum's member
        counted: dict[str, list[str]] = {}
        for i, (problem, label) in enumerate(zip(feedback.problem_ids, feedback.levels)):
            level = self._level(label)
            verdicts = every[i * samples : (i + 1) * samples]
            counted.setdefault(level, []).extend(verdicts)
            tallies = (self._all, self._levels.setdefault(level, Tally()))
            for tally in tallies:
                tally.rollouts += samples
            if problem in self._problems and self._problems[problem][0] != level:
                self._settle(problem)  # its source has graded it anew
            if problem not in self._problems:
                for tally in tallies:
                    tally.problems += 1
            correct = verdicts.count(Verdict.CORRECT.value)
            self._keep(problem)
            _, successes, failures = self._problems.pop(problem, (level, 0.0, 0.0))
            successes, failures = self.visit_decay * successes, self.visit_decay * failures
            self._problems[problem] = (level, successes + correct, failures + samples - correct)
            if len(self._problems) > self.max_problems:
                self._settle(next(iter(self._problems)))
        for level, verdicts in counted.items():
            for tally in (self._all, self._levels[level]):
                for verdict, n in Counter(verdicts).items():
                    tally.running[verdict] += n

    def _level(self, label: str) -> str:
        return label if label in self._levels or len(self._levels) < MAX_LEVELS else OTHERS

    def _settle(self, problem: str) -> None:
        """Keep a problem no longer; its level keeps its counts."""
        self._keep(problem)
        level, successes, failures = self._problems.pop(problem)
        settled = self._levels[level].settled
        self._levels[level].settled = [settled[0] + successes, settled[1] + failures]

    def _keep(self, problem: str) -> None:
        for view in self._views:
            view.keep(problem)

    def posterior(self, *, level: str | None = None, problem: str | None = None) -> tuple[float, float]:
        """The two parameters of the Beta distribution of a success rate.

        Args:
            level: A level label, or None for all; of a problem that is kept, its own.
            problem: The id of a problem of that level, kept or not, or None for the level as a whole.
        """
        if level is None and problem is not None and problem in self._problems:
            level = self._problems[problem][0]
        prior = self.tally(level).posterior()
        return prior if problem is None else self._of_problem(problem, prior)

    def _of_problem(self, problem: str, prior: tuple[float, float]) -> tuple[float, float]:
        weight = self.prior_weight / sum(prior)
        _, successes, failures = self._problems.get(problem, ("", 0.0, 0.0))
        return weight * prior[0] + successes, weight * prior[1] + failures

    def mean(self, *, level: str | None = None, problem: str | None = None) -> float:
        """Posterior mean success, in (0, 1); 0.5 with no data. The arguments are those of `posterior`."""
        a, b = self.posterior(level=level, problem=problem)
        return a / (a + b)

    def means(self) -> list[float]:
        """Posterior mean success of each problem that is kept, in the order of `problems`."""
        priors = {level: tally.posterior() for level, tally in self._levels.items()}
        found = (self._of_problem(problem, priors[level]) for level, problem in self.problems())
        return [a / (a + b) for a, b in found]

    def interval(
        self, *, level: str | None = None, problem: str | None = None, share: float = 0.95
    ) -> tuple[float, float]:
        """Equal-tailed posterior interval. It takes the student's rate as constant over what is remembered.

        Args:
            level: As in `posterior`.
            problem: As in `posterior`.
            share: Probability inside the interval, in (0, 1).
        """
        return beta_interval(*self.posterior(level=level, problem=problem), share)

    def levels(self) -> list[str]:
        """The labels seen so far."""
        return list(self._levels)

    def tally(self, level: str | None = None) -> Tally:
        """What was counted of a level, or of all. To be read only."""
        return self._all if level is None else self._levels.get(self._level(level), Tally())

    def shares(self, level: str | None = None) -> dict[Verdict, float]:
        """Running share of each verdict, of a level or of all, without a prior; all 0 with no data."""
        running = self.tally(level).running
        total = sum(running.values())
        return {v: running[v.value] / total if total else 0.0 for v in Verdict}

    def problems(self) -> Iterator[tuple[str, str]]:
        """Level and id of each problem that is kept, the least recently seen first; if `frozen`, in order of ids."""
        return ((level, problem) for problem, (level, _, _) in self._problems.items())

    def frozen(self) -> Competence:
        """As it is now, to be read while this one goes on counting. It cannot count itself."""
        one = Competence(self.decay, self.visit_decay, self.prior_weight, self.max_problems)
        one._all, one._levels = deepcopy(self._all), deepcopy(self._levels)
        view = AsItWas(self._problems)
        self._views.add(view)
        one._problems = view  # type: ignore[assignment]  # read like a dictionary, never written
        return one

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copy, which take no WeakSet: the frozen ones that are copied too hold still with the copy."""
        return self.__dict__ | {"_views": list(self._views)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """See `__getstate__`."""
        self.__dict__ = state | {"_views": WeakSet(state["_views"])}

    def state_dict(self) -> dict[str, Any]:
        """Everything counted, as plain data; the order of the problems is part of it."""
        return {
            "all": asdict(self._all),
            "levels": {level: asdict(tally) for level, tally in self._levels.items()},
            "problems": dict(self._problems),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts. If `max_problems` is lower now, the least recently seen problems settle."""
        self._all = Tally(**state["all"])
        self._levels = {level: Tally(**tally) for level, tally in state["levels"].items()}
        self._problems = OrderedDict((problem, tuple(counts)) for problem, counts in state["problems"].items())
        while len(self._problems) > self.max_problems:
            self._settle(next(iter(self._problems)))
