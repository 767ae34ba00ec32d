"""Watches a run for collapse: what is measured, against what it was at the start, and how far it may go.

It reads what was said and how it was judged, and knows no model. Everything is a sum first: then micro-batches, ranks
and steps add up, and a mean is over all of their tokens or rollouts. The measures and the limits are ours, not the
paper's.
"""

from __future__ import annotations

import copy
import logging
import math
import re
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import lightning.pytorch as pl
import torch.distributed as dist

from lit_atex.module import SelfDistillation
from lit_atex.types import Verdict
from lit_atex.verify import canonical
from lit_atex.window import Seen

log = logging.getLogger("lit_atex")

NGRAM = 4
"""Length in tokens of what counts as repeated: tokens, so that it holds for any language, and for mathematics."""

DELIBERATION = (
    *("wait", "hm", "hmm", "hmmm", "maybe", "perhaps", "actually", "alternatively", "hold on", "on second thought"),
    *("let me check", "let me verify", "let me think", "let me see", "let me reconsider", "let me try"),
    *("let's check", "let's verify", "double check", "is that right", "not sure"),
)
"""Words of a model that thinks again, in English; whole words, whatever the case and the punctuation around them."""

Sums = dict[str, float]


class Measure(NamedTuple):
    """A quotient of two sums, and how it is compared with its value at the start: divided by it, or less it."""

    above: str
    below: str
    compared: Literal["ratio", "change"]
    factor: float = 1.0


MEASURES = {
    "entropy": Measure("entropy", "tokens", "ratio"),  # of the student's next token, nats
    "length_finished": Measure("tokens_finished", "finished", "ratio"),  # tokens, the end token included
    "length_cut": Measure("tokens_cut", "cut", "ratio"),
    "share_cut": Measure("cut", "rollouts", "change"),
    "repetition": Measure("repeated", "ngrams", "change"),  # share of 4-grams that the rollout had before
    "answer_rate": Measure("answered", "rollouts", "change"),  # a final answer was found, right or wrong
    "deliberation": Measure("deliberation", "tokens", "ratio", 100.0),  # words in 100 tokens
    "distinct_answers": Measure("distinct", "groups", "ratio"),  # final answers per problem, in 0..G; if G > 1
}
"""What is logged as `collapse/NAME`, and against the start as `collapse/NAME_ratio` or `collapse/NAME_change`."""

ADVICE = {
    "entropy": "The student is sure of every token: lower the learning rate, or show less of the solution (exposure).",
    "length_finished": "Look at samples.jsonl: does it still reason? A lower exposure keeps completions of its own.",
    "length_cut": "See model.sampling.max_new_tokens.",
    "share_cut": "It no longer ends: raise model.sampling.max_new_tokens, or lower the learning rate.",
    "repetition": "It goes round in circles: lower the learning rate, or set trainer.gradient_clip_val.",
    "answer_rate": "It gives no final answer that can be read: look at samples.jsonl, lower the learning rate.",
    "deliberation": "It no longer thinks again: show less of the solution (exposure).",
    "distinct_answers": "All samples agree, and pass@k will fall: show less of the solution (exposure).",
}
"""What to do when a measure is beyond its limit."""

ELSEWHERE = {"entropy": "entropy/student", "share_cut": "length/share_cut", "answer_rate": "competence/unparsed"}
"""Measures that the module logs itself; here they are logged against the start only."""

_WORD = re.compile("[a-z']+")
_NEEDLES = [f" {'  '.join(phrase.split())} " for phrase in DELIBERATION]


def repeated_ngrams(ids: Sequence[int], n: int = NGRAM) -> tuple[int, int]:
    """How many n-grams of a text occurred in it before, and how many it has."""
    grams = list(zip(*(ids[i:] for i in range(n))))
    return len(grams) - len(set(grams)), len(grams)


def deliberation_words(text: str) -> int:
    """How often the text thinks again, see `DELIBERATION`; at about 0.1 µs a character."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    joined = f" {'  '.join(words)} "  # two spaces, so that neighbours do not share one
    return sum(joined.count(needle) for needle in _NEEDLES)


def distinct_answers(answers: Sequence[str | None]) -> int:
    """How many different final answers there are; equal ones may be spelled differently, None is not one."""
    return len({canonical(answer) for answer in set(answers) if answer is not None})


def count(seen: Seen, samples: int, extract: Callable[[str], str | None]) -> Sums:
    """What one micro-batch adds to the sums.

    Args:
        seen: The micro-batch.
        samples: Rollouts per problem (G).
        extract: Finds the final answer in a completion.

    Returns:
        All sums but "entropy".
    """
    lengths, ended = seen.rollouts.lengths.tolist(), seen.rollouts.ended.tolist()
    rows = [ids[:length] for ids, length in zip(seen.rollouts.ids.tolist(), lengths)]
    repeated = [repeated_ngrams(row) for row in rows]
    sums = {
        "rollouts": len(rows),
        "tokens": sum(lengths),
        "finished": sum(ended),
        "tokens_finished": sum(n for n, end in zip(lengths, ended) if end),
        "cut": len(rows) - sum(ended),
        "tokens_cut": sum(n for n, end in zip(lengths, ended) if not end),
        "repeated": sum(again for again, _ in repeated),
        "ngrams": sum(all_ for _, all_ in repeated),
        "answered": sum(verdict is not Verdict.UNPARSED for verdict in seen.verdicts),
        "deliberation": sum(map(deliberation_words, seen.completions)),
    }
    if samples > 1:  # the samples of one problem stand together
        answers = [extract(text) for text in seen.completions]
        sums["distinct"] = sum(distinct_answers(answers[i : i + samples]) for i in range(0, len(answers), samples))
        sums["groups"] = len(seen.problems)
    return {name: float(value) for name, value in sums.items()}


def total(parts: Sequence[Sums]) -> Sums:
    """The sums of several micro-batches, ranks or steps."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(k for p in parts for k in p)}


def over_ranks(sums: Sums) -> Sums:
    """The sums of all ranks, the same on each of them."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return sums
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, sums)
    return total(gathered)


def measures(sums: Sums) -> dict[str, float]:
    """The measures by name; without those that there is nothing to say of (no rollout was cut, G is 1)."""
    return {
        name: m.factor * sums.get(m.above, 0.0) / sums[m.below] for name, m in MEASURES.items() if sums.get(m.below)
    }


def against(start: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """The measures against the start, as `NAME_ratio` or `NAME_change`; a ratio to nothing is left out."""
    found = {}
    for name in (name for name in now if name in start):
        if MEASURES[name].compared == "change":
            found[f"{name}_change"] = now[name] - start[name]
        elif start[name]:
            found[f"{name}_ratio"] = now[name] / start[name]
    return found


class CollapseMonitor(pl.Callback):
    """Logs what a collapse shows in, against the start of the run; warns, and can stop the run, beyond limits."""

    def __init__(
        self,
        min_entropy_ratio: float | None = 0.02,
        min_length_finished_ratio: float | None = 0.5,
        max_length_finished_ratio: float | None = 2.0,
        max_share_cut_change: float | None = 0.3,
        max_repetition_change: float | None = 0.2,
        min_answer_rate_change: float | None = -0.3,
        min_deliberation_ratio: float | None = None,
        min_distinct_answers_ratio: float | None = None,
        window: int = 5,
        stop_after: int | None = None,
    ) -> None:
        """Set the limits. Each bounds the number logged as `collapse/` and the rest of its name; None: no limit.

        Args:
            min_entropy_ratio: Least student entropy, as a share of that at the start. Low by intent: where a problem
                has one short solution, a student that learns it well may end at a twentieth.
            min_length_finished_ratio: Least length of the rollouts that ended by themselves, as a share.
            max_length_finished_ratio: Greatest length of them, as a multiple.
            max_share_cut_change: Greatest rise of the share of rollouts cut at the limit.
            max_repetition_change: Greatest rise of the share of repeated 4-grams of tokens.
            min_answer_rate_change: Deepest fall of the share of rollouts with a final answer, negative.
            min_deliberation_ratio: Least deliberation words in 100 tokens, as a share.
            min_distinct_answers_ratio: Least distinct answers per problem, as a share.
            window: Optimizer steps, >= 1. The start is the mean over the first so many, and what is compared with it
                the mean over the last so many: one noisy step does no harm.
            stop_after: Stop the run after so many optimizer steps in a row beyond one limit, >= 1; None: only warn.

        Raises:
            ValueError: If a number is below 1 that must not be.
        """
        self.limits: dict[str, float | None] = {
            "min_entropy_ratio": min_entropy_ratio,
            "min_length_finished_ratio": min_length_finished_ratio,
            "max_length_finished_ratio": max_length_finished_ratio,
            "max_share_cut_change": max_share_cut_change,
            "max_repetition_change": max_repetition_change,
            "min_answer_rate_change": min_answer_rate_change,
            "min_deliberation_ratio": min_deliberation_ratio,
            "min_distinct_answers_ratio": min_distinct_answers_ratio,
        }
        if window < 1 or (stop_after is not None and stop_after < 1):
            raise ValueError(f"collapse.window and collapse.stop_after must be at least 1, got {window}, {stop_after}.")
        self.window, self.stop_after = window, stop_after
        self.start: dict[str, float] | None = None
        """The measures at the start, once there are `window` steps."""
        self.stopped: str | None = None
        """Why the run was stopped."""
        self._recent: deque[Sums] = deque(maxlen=window)
        self._beyond: dict[str, int] = {}  # steps in a row, by limit
        self._logged: dict[str, float] = {}
        self._parts: list[Sums] = []
        self._step = -1

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, batch: Any, batch_idx: int
    ) -> None:
        """With a new optimizer step, forget the micro-batches of the last: a skipped one left them here."""
        if trainer.global_step != self._step:
            self._step, self._parts = trainer.global_step, []

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: pl.Trainer, pl_module: SelfDistillation, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the micro-batch; after the last of an optimizer step, log and judge."""
        if pl_module.seen is not None:
            self._parts.append(count(pl_module.seen, pl_module.samples, pl_module.verifier.extract))
        if pl_module.feedback is None:
            return
        sums = over_ranks(total(self._parts))
        sums["entropy"] = pl_module.feedback.student_entropy * sums.get("tokens", 0.0)  # a mean over all ranks already
        values = self.add(pl_module.feedback.step, sums)
        self._logged = dict.fromkeys([*self._logged, *values], math.nan)
        values = self._logged | values  # of what is left out, Lightning would log the last value again
        pl_module.log_dict({f"collapse/{name}": value for name, value in values.items()}, batch_size=1)
        if self.stopped and not trainer.should_stop:
            trainer.should_stop = True
            log.warning("%s", self.stopped)

    def add(self, step: int, sums: Sums) -> dict[str, float]:
        """Take in an optimizer step.

        Args:
            step: Which, from 0.
            sums: Of the whole step; the same on every rank, so that every rank decides the same.

        Returns:
            What is logged: the measures of the step, and those of the window against the start.
        """
        self._recent.append(sums)
        now = measures(total(self._recent))
        if self.start is None and len(self._recent) == self.window:
            self.start = now
        compared = against(self.start or {}, now)
        for limit, bound in self.limits.items():
            side, _, name = limit.partition("_")
            value = compared.get(name)
            good = bound is None or value is None or (value >= bound if side == "min" else value <= bound)
            self._beyond[limit] = 0 if good else self._beyond.get(limit, 0) + 1
            if self._beyond[limit] == 1:
                log.warning("step %d: %s", step, self._say(limit, now, compared))
            if self.stopped is None and self.stop_after and self._beyond[limit] >= self.stop_after:
                self.stopped = f"stopped by collapse.stop_after at step {step}: {self._say(limit, now, compared)}"
        return {name: value for name, value in measures(sums).items() if name not in ELSEWHERE} | compared

    def _say(self, limit: str, now: dict[str, float], compared: dict[str, float]) -> str:
        assert self.start is not None
        side, _, name = limit.partition("_")
        measure, _, kind = name.rpartition("_")
        form = "{:.3g} times" if kind == "ratio" else "{:+.3g} against"
        return (
            f"{measure.replace('_', ' ')} {now[measure]:.3g} is {form.format(compared[name])} its value at the start, "
            f"{self.start[measure]:.3g}: {'below' if side == 'min' else 'above'} collapse.{limit} "
            f"{self.limits[limit]:g}. {ADVICE[measure]}"
        )

    def state_dict(self) -> dict[str, Any]:
        """The start, the last steps, how long each limit has been passed, and what has been logged."""
        state = {
            "start": self.start,
            "recent": list(self._recent),
            "beyond": self._beyond,
            "logged": list(self._logged),
        }
        return copy.deepcopy(state)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put them back."""
        self.start, self._beyond = state_dict["start"], dict(state_dict["beyond"])
        self._logged = dict.fromkeys(state_dict["logged"], math.nan)
        self._recent = deque(state_dict["recent"], maxlen=self.window)
