"""Whether test problems are among the training problems: overlap of 13 words in a row, reported before training.

A held-out problem counts as contaminated if 13 consecutive words of its question stand in the question or solution of a
training problem. Words are compared without case and punctuation. What stands in more than 10 training problems is a
template or a common phrase and does not count (both numbers: GPT-3, Brown et al., arXiv:2005.14165, appendix C). A
shorter question is matched as a whole, by the stream itself, which never trains on a held-out question (`left_out`). Of
Chinese and Japanese, which have no spaces, it is twice as many signs.

The held-out sets are indexed, and training problems stream past: the memory is that of the sets. An endless source, or
a long one, is read as far as `scan` says, from its beginning; the report says how far.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lit_atex import whole
from lit_atex.stream import Tally, read, same
from lit_atex.types import Problem

log = logging.getLogger("lit_atex")

_ALONE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Chinese and Japanese: each sign is a word
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+")
_SIGN = re.compile(rf"[{_ALONE}]")
_LETTER = re.compile(r"[^\W\d_]")
_EXAMPLES = 5


def words(text: str) -> list[str]:
    """The words and numbers of a text, without case and punctuation."""
    return _WORD.findall(text.casefold())


class Overlap:
    """An index of held-out questions, past which training problems stream.

    Args:
        sets: Held-out problems by key.
        n: Words in a row, >= 1.
        common: What stands in more training problems than this is a phrase that everybody uses, >= 1.
    """

    def __init__(self, sets: dict[str, list[Problem]], n: int = 13, common: int = 10) -> None:
        self.sets, self.n, self.common = sets, n, common
        self._held_out = {same(p.question): key for key, problems in sets.items() for p in problems}
        self._left_out: dict[str, str] = {}  # those of them that were among the training problems
        self._where: dict[str, set[tuple[str, int]]] = {}  # words in a row -> set and place of problems that have them
        self._long = dict.fromkeys(sets, 0)
        self._lengths: set[int] = set()
        for key, problems in sets.items():
            for i, problem in enumerate(problems):
                # Numbers alone are no text: without their signs, equal ones stand in different problems.
                text = words(problem.question)
                signs = sum(_SIGN.fullmatch(word) is not None for word in text)
                length = self.n if 2 * signs <= len(text) else 2 * self.n  # about two signs a word
                grams = [" ".join(text[j : j + length]) for j in range(len(text) - length + 1)]
                grams = [gram for gram in grams if _LETTER.search(gram)]
                self._lengths |= {length} if grams else set()
                self._long[key] += bool(grams)
                for gram in grams:
                    self._where.setdefault(gram, set()).add((key, i))
        self._first = {gram.partition(" ")[0] for gram in self._where}
        # The same -> ids of the training problems that have them, one more than `common` at most.
        self._seen: dict[str, list[str]] = {}
        self.read = self.left_out = 0

    def __bool__(self) -> bool:
        """Whether any question is long enough to be looked for."""
        return bool(self._where)

    def add(self, problem: Problem) -> None:
        """Look at a training problem; one whose question is held out is never trained on, and does not count."""
        if (question := same(problem.question)) in self._held_out:
            self.left_out += 1
            self._left_out[question] = self._held_out[question]
            return
        self.read += 1
        text, found = words(f"{problem.question}\n{problem.solution}"), set()
        for i in [i for i, word in enumerate(text) if word in self._first]:
            windows = {" ".join(text[i : i + length]) for length in self._lengths if i + length <= len(text)}
            found |= windows & self._where.keys()
        for gram in found:
            if len(ids := self._seen.setdefault(gram, [])) <= self.common:
                ids.append(problem.id)

    def report(self) -> dict[str, dict[str, Any]]:
        """Per set: problems, how many are long enough, contaminated, left out of training as a whole; and examples."""
        hits: dict[str, dict[int, tuple[str, str]]] = {key: {} for key in self.sets}
        for gram, ids in sorted(self._seen.items()):  # any order of the training problems gives the same examples
            if len(ids) <= self.common:
                for key, i in self._where[gram]:
                    hits[key].setdefault(i, (gram, ids[0]))
        return {
            key: {
                **{"problems": len(problems), "long_enough": self._long[key], "contaminated": len(hits[key])},
                "left_out": list(self._left_out.values()).count(key),
                "share": len(hits[key]) / max(len(problems), 1),
                "examples": [
                    {"id": problems[i].id, "question": problems[i].question[:300], "in_training": id_, "words": gram}
                    for i, (gram, id_) in sorted(hits[key].items())[:_EXAMPLES]
                ],
            }
            for key, problems in self.sets.items()
        }


class ContaminationCheck(pl.Callback):
    """Looks for test and validation problems among the training problems before training; contamination.json."""

    def __init__(self, limit: float | None = 0.05, scan: int = 20_000, n: int = 13, common: int = 10) -> None:
        """Choose what is looked for.

        Args:
            limit: Largest share of a set's problems, in [0, 1], that may be contaminated; above, training is refused.
                Below, a warning names them. null: no limit.
            scan: Training rows that are looked at, from the beginning of the source; 0: no check. 20,000 word
                problems take some 2 seconds, as many long solutions a minute.
            n: Words in a row that make an overlap, >= 1.
            common: What stands in more training problems than this is a template, >= 1.

        Raises:
            ValueError: If a number is out of range.
        """
        if limit is not None and not 0 <= limit <= 1:
            raise ValueError(f"contamination.limit={limit} must be in [0, 1], or null.")
        for name, value, least in (("scan", scan, 0), ("n", n, 1), ("common", common, 1)):
            if value < least:
                raise ValueError(f"contamination.{name}={value} must be at least {least}.")
        self.limit, self.scan, self.n, self.common = limit, scan, n, common

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check, and write the report.

        Raises:
            ValueError: If a set is contaminated beyond the limit; names it, with examples.
        """
        data: Any = getattr(trainer, "datamodule", None)
        if stage != "fit" or not self.scan or data is None:
            return
        kinds = {"validation": data.validation_names, "test": data.test_names}
        sets = {f"{kind}.{name}": data.held_out(f"data.{kind}.{name}") for kind in kinds for name in kinds[kind]}
        overlap, tally = Overlap(sets, self.n, self.common), Tally()
        for problem in read(data.train, tally, "data.train", data.max_bad_share, rows=self.scan) if overlap else ():
            overlap.add(problem)
        found = overlap.report()
        if trainer.is_global_zero:
            Path(trainer.default_root_dir).mkdir(parents=True, exist_ok=True)
            settings = {"n": self.n, "common": self.common, "limit": self.limit}
            counts = {
                "training_problems": overlap.read,
                "left_out": overlap.left_out,
                "there_may_be_more": tally.rows == self.scan or not overlap,
            }
            path = Path(trainer.default_root_dir) / "contamination.json"
            whole.write_json(path, {**settings, **counts, "sets": found})
        bad = {key: one for key, one in found.items() if one["contaminated"]}
        text = "; ".join(
            f"data.{key}: {one['contaminated']} of {one['problems']} problems ({one['share']:.1%}), such as "
            f"{one['examples'][0]['id']} in training problem {one['examples'][0]['in_training']}: "
            f"{one['examples'][0]['words']!r}"
            for key, one in bad.items()
        )
        if self.limit is not None and any(one["share"] > self.limit for one in bad.values()):
            raise ValueError(
                f"data.train holds {self.n} words in a row of test problems, beyond contamination.limit={self.limit}: "
                f"{text}. Take them out of data.train, or raise the limit; all are in contamination.json."
            )
        if bad:
            log.warning("held-out problems overlap with data.train in %d words in a row: %s", self.n, text)
