"""A source as a stream of batches, the same for any number of ranks and workers; broken rows are counted on the way.

It knows nothing of Lightning, tokens, or where training stands.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from itertools import count, islice

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from lit_atex.console import is_mistake
from lit_atex.rows import checked
from lit_atex.sources import Source, Table
from lit_atex.types import BadRow, Problem, seeded

log = logging.getLogger("lit_atex")

_ROWS_BEFORE_JUDGEMENT = 50
_HELD_OUT_IN_A_ROW = 10_000
"""So many held-out questions in a row mean that training has none left: an endless source would never say so."""
_EXAMPLES = 3
_LOOK = 1000
"""Rows among which the first that can be trained on is looked for before training."""
_IDS = 10_000
"""Problems of a pass whose ids are compared."""


def same(question: str) -> str:
    """What makes two questions the same: the text without case and spacing."""
    return " ".join(question.split()).casefold()


def check_names(sets: Mapping[str, Iterable[str]]) -> None:
    """Refuse a name of a held-out set that no file can have: it becomes part of the names of files and metrics.

    Raises:
        ValueError: If there is one.
    """
    for kind, name in ((kind, name) for kind, names in sets.items() for name in names):
        if not re.fullmatch(r"[\w+@=-][\w.+@= -]*", name) or re.search(r"\.rank\d+$", name):
            raise ValueError(
                f"data.{kind}: {name!r} becomes part of the names of files: letters, digits and . + @ = - _ only."
            )


def check_ids(key: str, source: Source, problems: list[Problem]) -> int:
    """Refuse a held-out set, from that source, in which two problems have one id.

    Returns:
        How many problems have the question of one before them.

    Raises:
        ValueError: If there are two of one id.
    """
    if twice := [id_ for id_, times in Counter(problem.id for problem in problems).items() if times > 1]:
        raise ValueError(f"{key}: the id {twice[0]!r} occurs twice: {_new_ids(source, key)}.")
    return len(problems) - len({same(problem.question) for problem in problems})


def _new_ids(source: Source, key: str) -> str:
    mend = f"set {key}.init_args.columns.id to null, or " if isinstance(source, Table) else ""
    return f"{mend}give each problem its own"


@dataclass
class Tally:
    """Counts of one pass over one source.

    Attributes:
        problems: Rows that became problems and are used.
        held_out: Training problems that were skipped since an evaluation set or the probe has their question.
        bad: Broken rows by reason.
        examples: The first details by reason.
    """

    problems: int = 0
    held_out: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """All rows that were read."""
        return self.problems + self.held_out + self.bad.total()

    def describe(self) -> str:
        """The rows that gave no problem, for a reader."""
        lines = [f"{self.bad.total()} of {self.rows} rows are broken" if self.rows else "It is empty: no row was read"]
        if self.held_out:
            lines[0] += f", {self.held_out} are held out for evaluation"
        for reason, number in self.bad.most_common():
            lines += [f"  {reason}: {number}", *(f"    {detail[:300]}" for detail in self.examples[reason])]
        return "\n".join(lines)

    def counts(self) -> dict[str, int]:
        """Plain numbers for a report."""
        return {"rows": self.rows, "problems": self.problems, "held out": self.held_out, **self.bad}


def read(
    source: Source,
    tally: Tally,
    key: str,
    max_bad_share: float,
    held_out: frozenset[str] = frozenset(),
    rows: int | None = None,
) -> Iterator[Problem]:
    """The problems of one pass, in the source's order; the rest is counted in `tally`.

    Args:
        source: What to read.
        tally: Counts; filled as the stream goes.
        key: Config key of the source, for errors.
        max_bad_share: Largest share of broken rows, in [0, 1]; looked at from row 50 on and at the end.
        held_out: Questions, in the form of `same`, to skip.
        rows: Read only the first so many.

    Raises:
        ValueError: If the share of broken rows is larger, there is nothing but held-out questions, or two questions
            have one id (looked at in the first 10,000 problems).
    """
    in_a_row = 0
    known: dict[str, int] = {}

    def judge() -> None:
        if tally.bad.total() > max_bad_share * tally.rows:
            said = f", or what is said of them ({key}.init_args.columns, {key}.init_args.max_chars)"
            raise ValueError(
                f"{key}: {tally.describe()}\nThat is more than data.max_bad_share={max_bad_share}: mend the rows"
                f"{said if isinstance(source, Table) else ''}; or leave these rows out: raise data.max_bad_share."
            )

    for row in islice(named(source, key), rows):
        if isinstance(row, BadRow):
            tally.bad[row.reason] += 1
            examples = tally.examples.setdefault(row.reason, [])
            if len(examples) < _EXAMPLES:
                examples.append(row.detail)
        elif held_out and same(row.question) in held_out:
            tally.held_out += 1
            in_a_row += 1
            if in_a_row == _HELD_OUT_IN_A_ROW:
                raise ValueError(
                    f"{key}: {in_a_row} questions in a row are held out for evaluation; use fewer held-out problems"
                    " (data.validation, data.test, data.probe) or a source with more questions."
                )
        else:
            tally.problems += 1
            in_a_row = 0
            question = zlib.crc32(row.question.encode("utf-8", "surrogatepass"))
            if len(known) < _IDS and known.setdefault(row.id, question) != question:
                raise ValueError(
                    f"{key}: the id {row.id!r} is that of two questions, which would be counted as one problem: "
                    f"{_new_ids(source, key)}."
                )
            yield row
        if tally.rows >= _ROWS_BEFORE_JUDGEMENT:
            judge()
    judge()


def named(source: Source, key: str) -> Iterator[Problem | BadRow]:
    """The source's rows, a problem that lacks something as a broken one; its errors say which of the sets it is.

    What they say of its own keys (init_args.path) is joined to the key.

    Raises:
        ValueError: If the source fails, or gives what is neither a problem nor a broken row.
    """
    kind, number = type(source).__name__, 0
    try:
        for row in source:
            if not isinstance(row, Problem | BadRow):
                raise ValueError(f"a row of {kind} is a {type(row).__name__}, not a Problem or BadRow (types.py).")
            yield checked(row, f"{kind} row {number}") if isinstance(row, Problem) else row
            number += 1
    except Exception as error:
        where = "" if is_mistake(error) else f"{kind} row {number}: {type(error).__name__}: "
        joint = "." if str(error).startswith("init_args.") else ": "
        raise ValueError(f"{key}{joint}{where}{error}") from error


def look_at(source: Source, key: str, max_bad_share: float, held_out: frozenset[str]) -> None:
    """Read to the first problem to train on, before a first evaluation; of a user's class twice, as each pass begins.

    Raises:
        ValueError: If the source fails, has no problem that is not held out (looked at in the first 1,000 rows), or
            would not begin anew.
    """

    def begin() -> tuple[Problem | None, Tally]:
        tally = Tally()
        return next(read(source, tally, key, max_bad_share, held_out, _LOOK), None), tally

    (first, tally), name = begin(), type(source).__name__
    if first is None and tally.rows < _LOOK:
        raise ValueError(f"{key} has no problem. {tally.describe()}")
    if type(source).__module__.startswith("lit_atex."):
        return
    if iter(source) is iter(source):
        raise ValueError(
            f"{key}: {name}.__iter__ returns the same iterator each time, so a second pass would lack what the first "
            "has read: let it make a new one, as a method with `yield` does."
        )
    again, tally = begin()
    if again is None and tally.rows == 0:
        raise ValueError(
            f"{key}: a second pass over {name} is empty: its __iter__ must begin at the first row each time, and not "
            "go on with a generator or file that it keeps."
        )
    if again != first:
        told = "%s: %s begins with another problem each time: a resumed run would see others than one that was not "
        told += "stopped. Let its order be fixed, and begin at the first row each time; data.shuffle_buffer shuffles."
        log.warning(told, key, name)


def shuffle(problems: Iterable[Problem], buffer_size: int, rng: np.random.Generator) -> Iterator[Problem]:
    """The same problems, each drawn uniformly from the next `buffer_size` ones; 0 or 1 keeps the order."""
    if buffer_size < 2:
        yield from problems
        return
    buffer: list[Problem] = []
    for problem in problems:
        if len(buffer) < buffer_size:
            buffer.append(problem)
        else:
            i = rng.integers(buffer_size)
            yield buffer[i]
            buffer[i] = problem
    yield from (buffer[i] for i in rng.permutation(len(buffer)))


@dataclass(eq=False)
class TrainStream(IterableDataset[tuple[list[Problem] | None, Tally]]):
    """One rank's batches of one pass over the training source, with the counts so far; the last item has no batch.

    Every worker of every rank runs the whole stream, which is text and cheap, and keeps its share: of each
    super-batch of `batch_size * world_size` problems, rank r keeps `[r::world_size]`; of the super-batches, worker w
    keeps every `workers`-th. So the order of the problems does not depend on ranks or workers, and all ranks have the
    same number of batches; those of the last super-batch may be short, or empty.
    """

    source: Source
    held_out: frozenset[str]
    batch_size: int
    shuffle_buffer: int
    max_bad_share: float
    seed: int
    epoch: int = 0
    skip: int = 0
    world_size: int = 1
    rank: int = 0

    def __iter__(self) -> Iterator[tuple[list[Problem] | None, Tally]]:
        worker = get_worker_info()
        worker_id, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        tally = Tally()
        problems = read(self.source, tally, "data.train", self.max_bad_share, self.held_out)
        shuffled = shuffle(problems, self.shuffle_buffer, seeded(self.seed, "shuffle", self.epoch))
        for index in count():
            super_batch = list(islice(shuffled, self.batch_size * self.world_size))
            if not super_batch:
                break
            # the first batch that is wanted is worker 0's: a loader asks its workers in turn, from worker 0 on
            if index >= self.skip and (index - self.skip) % workers == worker_id:
                yield super_batch[self.rank :: self.world_size], deepcopy(tally)
        yield None, deepcopy(tally)  # copies: a worker's queue pickles later, in a thread


@dataclass(eq=False)
class EvalBatches:
    """One rank's share of a held-out set: every problem on one rank only, as many batches on each (some may be empty).

    A plain iterable, so that Lightning neither pads it to equal shares nor repeats problems.
    """

    problems: list[Problem]
    batch_size: int
    world_size: int = 1
    rank: int = 0
    answered: int = 0
    """The first so many of the share come in empty batches: an evaluation that goes on has them already."""

    def __len__(self) -> int:
        return -(-len(self.problems) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[Problem]]:
        share = self.problems[self.rank :: self.world_size]
        for i in range(len(self)):
            done = i * self.batch_size < self.answered
            yield [] if done else share[i * self.batch_size : (i + 1) * self.batch_size]
