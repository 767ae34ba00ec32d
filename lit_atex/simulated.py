"""Simulated students that drive an exposure strategy through its real calls: is a controller able to learn at all?

No model, no training: progress P rises in each window by what the exposures chosen so far bring, plus noise. What an
exposure u brings in all has range 1 over u at the start of a run (`Student.worth`), and the increment of P in a window
has independent noise of SD `noise`, so that at J = 1 the reward R_k of a decision has just this noise; at
J = 3, discount 0.9 its noise has 1.57 times that SD, and the neighbours' effects blur it besides.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from lit_atex.competence import Competence
from lit_atex.exposure import Exposure, TrainingState
from lit_atex.types import StepFeedback, Verdict, seeded

ROLLOUTS = 64
"""Per window; competence is counted from them, so it is noisy, as in a run."""


class Student(ABC):
    """What exposure does, at `time` from 0 (first window) to 1 (last)."""

    @abstractmethod
    def best(self, time: float) -> float:
        """The exposure that brings most in all."""

    @abstractmethod
    def effects(self, u: float, time: float) -> list[float]:
        """What an exposure brings: in its own window, in the next one, and so on."""

    def skill(self, time: float) -> float:
        """Share of problems solved."""
        return 0.2 + 0.6 * time

    def fall(self, level: float) -> float:
        """How far progress falls back by itself in a window."""
        return 0.0

    def read(self, level: float, noise: float) -> tuple[float, float]:
        """The level as it goes on, and as the strategy reads it; `noise` lasts: what a window brings is noisy."""
        return level + noise, level + noise

    def worth(self, u: float, time: float) -> float:
        """What an exposure brings in all."""
        return sum(self.effects(u, time))


class Peak(Student):
    """(a), (b), (e): progress is a parabola in exposure, and fades as exp(-fading * time)."""

    def __init__(self, best: float, fading: float = 0.0) -> None:
        """Set where it peaks, in [0, 1], and how it fades, >= 0."""
        self._best, self._fading = best, fading

    def best(self, time: float) -> float:
        """The same throughout."""
        return self._best

    def effects(self, u: float, time: float) -> list[float]:
        """1 at the peak, 0 at the farther end; in its own window alone."""
        reach = max(self._best, 1 - self._best)
        return [math.exp(-self._fading * time) * (1 - ((u - self._best) / reach) ** 2)]


class Moving(Student):
    """(c): the best exposure rises from 0.2 to 0.8 with skill, which competence and time tell."""

    def best(self, time: float) -> float:
        """As skill, which has the same range."""
        return self.skill(time)

    def effects(self, u: float, time: float) -> list[float]:
        """1 at the best, in its own window alone."""
        return [1 - ((u - self.best(time)) / 0.8) ** 2]


class Delayed(Student):
    """(d): a window likes exposure 0.9; the two that follow suffer from it, as 0.1 serves them."""

    NOW, LATER = 0.6, 1.0
    TOTAL = NOW + 2 * LATER

    def best(self, time: float) -> float:
        """Where the sum of three parabolas peaks."""
        return (self.NOW * 0.9 + 2 * self.LATER * 0.1) / self.TOTAL

    def effects(self, u: float, time: float) -> list[float]:
        """Scaled so that their sum has range 1 over exposure."""
        size = 1 / (self.TOTAL * (1 - self.best(time)) ** 2)
        later = -size * self.LATER * (u - 0.1) ** 2
        return [-size * self.NOW * (u - 0.9) ** 2, later, later]


class Reversible(Peak):
    """(f): each exposure has a level of its own that the student goes towards, a window late; the *reading* is noisy.

    So after a rise less is to be gained, and a reading that was too high by chance is followed by a fall: what a real
    run shows, where most of a reward is explained by the level at which its window began.
    """

    PACE = 0.1

    def effects(self, u: float, time: float) -> list[float]:
        """In the window after."""
        return [0.0, *super().effects(u, time)]

    def fall(self, level: float) -> float:
        """A share of the level."""
        return self.PACE * level

    def read(self, level: float, noise: float) -> tuple[float, float]:
        """Noise is of the reading, and gone with the next one."""
        return level, level + noise


class Settling(Student):
    """(g): accuracy goes towards a level of each exposure's own, and the reading is noisy; after results/slower.

    There the accuracy of the training rollouts came to about 0.72 and 0.95 at exposure 0.5 and 1 where references were
    spelled out, to 0.66 and 0.285 where they were terse, and began at 0.52; nothing but the sampling of 128 rollouts
    told seeds apart, an SD of 0.044 at most, which is 0.73 and 0.81 of the range that exposure has in a window here.
    A window's second step is the first that knows what its first brought. Simpler than there: the way is gone by 0.14
    in a window of two steps (fits: 0.22 and 0.13 spelled out, 0.24 terse; full exposure to terse references falls to
    0.21 in five windows and then rises), and a student begins at its worst level.
    """

    PACE = 0.14

    def __init__(self, none: float, half: float, full: float) -> None:
        """Set the levels that exposure 0, 0.5 and 1 lead to; a parabola lies through them."""
        self._none, self._bend = none, 2 * (none - 2 * half + full)
        self._slope = full - none - self._bend
        ends = (0.0, 1.0, min(max(-self._slope / (2 * self._bend), 0.0), 1.0))
        levels = [self._level(u) for u in ends]
        self._best, self._least, self._range = ends[int(np.argmax(levels))], min(levels), max(levels) - min(levels)

    def _level(self, u: float) -> float:
        return self._none + self._slope * u + self._bend * u**2

    def best(self, time: float) -> float:
        """The same throughout."""
        return self._best

    def effects(self, u: float, time: float) -> list[float]:
        """A half in the window itself, a half in the next."""
        return [(self._level(u) - self._least) / self._range / 2] * 2

    def fall(self, level: float) -> float:
        """A share of the level."""
        return self.PACE * level

    def read(self, level: float, noise: float) -> tuple[float, float]:
        """Noise is of the reading."""
        return level, level + noise


STUDENTS: dict[str, Student] = {
    "a 0.2": Peak(0.2),
    "a 0.5": Peak(0.5),
    "a 0.7": Peak(0.7),
    "b": Peak(1.0),
    "c": Moving(),
    "d": Delayed(),
    "e 0.7": Peak(0.7, fading=2.0),
    "e 1.0": Peak(1.0, fading=2.0),
    "f 0.2": Reversible(0.2),
    "f 1.0": Reversible(1.0),
    "g spelled": Settling(0.52, 0.72, 0.95),
    "g terse": Settling(0.52, 0.66, 0.285),
}


class Course(NamedTuple):
    """A simulated run.

    Attributes:
        exposures: `[windows]` what was chosen.
        best: `[windows]` what would have been best.
        regret: `[windows]` what the choice brings in all short of the best, without noise.
        progress: `[windows + 1]` the measure, as the strategy read it.
    """

    exposures: np.ndarray
    best: np.ndarray
    regret: np.ndarray
    progress: np.ndarray

    def distance(self, start: int, end: int) -> float:
        """Mean exposure minus mean best exposure, over the windows from start to end."""
        return float((self.exposures[start:end] - self.best[start:end]).mean())


def simulate(student: Student, strategy: Exposure, windows: int, noise: float, seed: int, horizon: int = 200) -> Course:
    """Run a strategy on a student, one optimizer step per window.

    Args:
        student: What exposure does.
        strategy: A fresh strategy.
        windows: Decisions to take, at most `horizon`.
        noise: SD of an increment of progress; in (f) and (g) of a reading.
        seed: Of noise and statistics; the strategy has its own.
        horizon: Decisions of the whole run, which set its time.
    """
    random = seeded(seed, "simulated")
    competence = Competence(decay=0.6)  # of five steps at the default decay, 0.9
    statistics = np.zeros(6)  # they wander, and say nothing
    coming = [0.0] * 8
    exposures, best, regret, progress = [], [], [], [0.0]
    level = 0.0
    for k in range(windows):
        time = k / max(horizon - 1, 1)
        state = TrainingState(k, horizon, 0, ["p"], [""], competence)
        strategy.begin_window(state, progress[-1])
        u = strategy.ratios(state)[0]
        exposures.append(u)
        best.append(student.best(time))
        regret.append(student.worth(best[-1], time) - student.worth(u, time))
        for later, effect in enumerate(student.effects(u, time)):
            coming[later] += effect
        level += coming.pop(0) - student.fall(level)
        level, reading = student.read(level, noise * random.standard_normal())
        progress.append(reading)
        coming.append(0.0)

        statistics = 0.8 * statistics + 0.6 * random.standard_normal(6)
        verdicts = [Verdict.CORRECT if x < student.skill(time) else Verdict.WRONG for x in random.random(ROLLOUTS)]
        loss, mismatch, own_entropy, teacher_entropy, length, cut = statistics.tolist()
        feedback = StepFeedback(
            k, ["p"], [""], [u], verdicts, loss, mismatch, own_entropy, teacher_entropy, length, cut, max_new_tokens=1
        )
        competence.update(feedback)
        strategy.update(feedback)
    strategy.finish(progress[-1])
    return Course(np.array(exposures), np.array(best), np.array(regret), np.array(progress))
