"""Where problems come from: the embedded domain, reasoning-gym, JSON lines, Parquet files and Hub data sets.

It knows nothing of tokens, batches, shuffling or ranks: a source is a fixed order of problems and of broken rows.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

from lit_atex.formats import no_lines, read_otherwise
from lit_atex.hub import stream
from lit_atex.rows import DEFAULT_COLUMNS, Columns, to_problem
from lit_atex.types import BadRow, Problem

HUB = "(of the Hub: class_path lit_atex.sources.Hub, with init_args.dataset)"


class Source(ABC):
    """A deterministic stream of problems, in a fixed order, that starts over with every `iter()`.

    Nothing is opened before the first row is asked for; sources are pickled to loader workers.

    Attributes:
        name: For reports, and the beginning of the ids that rows do not bring themselves.
        finite: False if the stream never ends.
    """

    name: str = "source"
    finite: bool = True

    @abstractmethod
    def __iter__(self) -> Iterator[Problem | BadRow]:
        """A new pass from the first row."""

    def settings(self) -> dict[str, str]:
        """What makes two streams the same: compared on resuming. A file or folder may move, but keeps its name."""
        told = {k: re.sub(" at 0x[0-9a-f]+", "", repr(v)) for k, v in vars(self).items() if k not in ("path", "finite")}
        return {"class": type(self).__name__, **told}


class Embedded(Source):
    """The arithmetic domain that ships with the package: no download, a reference solution for every problem."""

    def __init__(
        self, level: int = 8, terseness: float = 0.0, size: int | None = None, split: str = "train", seed: int = 0
    ) -> None:
        """Problems number 0, 1, 2, ... of an endless sequence.

        Args:
            level: Operations per problem, >= 1.
            terseness: How often the reference merges operations, in [0, 1].
            size: Number of problems; null: endless, which only training can use.
            split: Name of the sequence: train, probe, validation or test.
            seed: Seed of the sequence, >= 0.
        """
        self.name, self.finite = "embedded", size is not None
        self.level, self.terseness, self.size, self.split, self.seed = level, terseness, size, split, seed

    def __iter__(self) -> Iterator[Problem | BadRow]:
        from lit_atex.embedded.domain import make_problem

        for index in count() if self.size is None else range(self.size):
            yield make_problem(index, self.level, self.terseness, self.split, self.seed)


class ReasoningGym(Source):
    """A data set that reasoning-gym generates (the extra `gym`); item i is drawn with seed + i."""

    def __init__(
        self,
        dataset: str,
        size: int,
        seed: int = 0,
        solution_key: str = "answer_cot",
        answer_only: bool = False,
        dataset_args: dict[str, Any] | None = None,
    ) -> None:
        """Generated problems.

        Args:
            dataset: Its name, e.g. gsm_symbolic.
            size: Number of problems, >= 1.
            seed: Seed, >= 0. Two sources whose seeds are less than `size` apart can share problems.
            solution_key: Entry of the item's metadata that holds the reference solution; gsm_symbolic has `answer_cot`.
            answer_only: Make the solution the line `#### answer`; needed where the metadata hold no solution.
            dataset_args: Further arguments of `reasoning_gym.create_dataset`, e.g. {min_terms: 3}.
        """
        self.name = self.dataset = dataset
        self.size, self.seed, self.solution_key = size, seed, solution_key
        self.answer_only, self.dataset_args = answer_only, dataset_args or {}

    def __iter__(self) -> Iterator[Problem | BadRow]:
        try:
            import reasoning_gym
        except ImportError as error:
            raise ImportError("ReasoningGym needs the extra: pip install 'lit-atex[gym]'.") from error
        try:
            items = reasoning_gym.create_dataset(self.dataset, size=self.size, seed=self.seed, **self.dataset_args)
        except (ValueError, TypeError, AssertionError) as error:
            settings = f"dataset={self.dataset!r}, size={self.size}, dataset_args={self.dataset_args}"
            raise ValueError(f"reasoning-gym refuses {settings}: {error}") from error
        columns = Columns("question", None if self.answer_only else "solution", "answer", "id", "level")
        for index in range(self.size):
            item = items[index]
            metadata = item["metadata"]
            difficulty = metadata.get("difficulty")
            row = {
                "question": item["question"],
                "solution": None if self.answer_only else self.solution(metadata),
                "answer": item["answer"],
                "id": f"{self.dataset}-{self.seed}-{index}",
                "level": f"{difficulty:g}" if isinstance(difficulty, int | float) else None,
            }
            yield to_problem(row, columns, self.name, index, self.answer_only)

    def solution(self, metadata: dict[str, Any]) -> Any:
        """The reference solution of an item.

        Raises:
            ValueError: If its metadata hold none.
        """
        if self.solution_key in metadata:
            return metadata[self.solution_key]
        raise ValueError(
            f"reasoning-gym's {self.dataset!r} has no solution in metadata[{self.solution_key!r}]; it has"
            f" {sorted(metadata)}: set `solution_key`, or `answer_only: true` to do with the answer alone."
        )


class ChainSum(ReasoningGym):
    """reasoning-gym's chain_sum (the extra `gym`), with a solution written out, an operation a line.

    Short, so that a small language model can learn them on a CPU: 2 - 5 + 3 is "2 - 5 = -3", "-3 + 3 = 0", "#### 0".
    """

    def __init__(self, size: int, seed: int = 0, terms: int = 4, digits: int = 1) -> None:
        """Generated problems.

        Args:
            size: Number of problems, >= 1.
            seed: Seed, >= 0. Two sources whose seeds are less than `size` apart can share problems.
            terms: Numbers in a problem, >= 2.
            digits: Of each number, >= 1.
        """
        range_of = {"min_terms": terms, "max_terms": terms, "min_digits": digits, "max_digits": digits}
        super().__init__("chain_sum", size, seed, dataset_args=range_of)

    def solution(self, metadata: dict[str, Any]) -> str:
        """A line for each operation, from the left, and the answer."""
        first, *rest = metadata["expression"].split()
        total, lines = int(first), []
        for sign, number in zip(rest[::2], rest[1::2], strict=True):
            before, total = total, total + int(number) * (1 if sign == "+" else -1)
            lines.append(f"{before} {sign} {number} = {total}")
        return "\n".join([*lines, f"#### {total}"])


class Table(Source):
    """Rows with named columns; what JSON lines, Parquet and the Hub share."""

    def __init__(self, name: str, columns: Columns, answer_only: bool, max_chars: int) -> None:
        self.name, self.columns, self.answer_only, self.max_chars = name, columns, answer_only, max_chars

    @abstractmethod
    def rows(self) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """Row numbers from 0, and rows."""

    def __iter__(self) -> Iterator[Problem | BadRow]:
        if self.columns.solution is None and (self.columns.answer is None or not self.answer_only):
            raise ValueError(
                f"init_args.columns.solution is null with init_args.columns.answer={self.columns.answer!r} and "
                f"init_args.answer_only={self.answer_only}: name the column of the solutions, or that of the answers "
                "and set `answer_only: true` (enough for a benchmark; it gives a teacher nothing to explain)."
            )
        for number, row in self.rows():
            if isinstance(row, BadRow):
                yield row
            else:
                yield to_problem(row, self.columns, self.name, number, self.answer_only, self.max_chars)


class File(Table):
    """A table in a local file."""

    def __init__(
        self, path: str, columns: Columns = DEFAULT_COLUMNS, answer_only: bool = False, max_chars: int = 20_000
    ) -> None:
        """The rows of a file.

        Args:
            path: The file (JsonLines: UTF-8, empty lines are ignored), or a folder with *.parquet files (Parquet).
            columns: Which column, or key, holds what.
            answer_only: Make the solution the line `#### answer`; needed where there is no solution.
            max_chars: Longest question and solution together, in characters; longer ones are counted "too long".
        """
        super().__init__(Path(path).stem, columns, answer_only, max_chars)
        self.path = path


class JsonLines(File):
    """A file with one JSON object a line; a broken line is a bad row, not the end of the stream."""

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any] | BadRow]]:
        """See `Table`; numbers are those of the lines."""
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise ValueError(f"init_args.path: there is no file {self.path!r} with one JSON object a line {HUB}.")
        with path.open("rb") as file:
            if kind := no_lines(file.peek()):
                raise ValueError(f"init_args.path: {self.path!r} is {kind}; here a line is one JSON object.")
            for number, line in enumerate(file):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                    error = "" if isinstance(row, dict) else "not an object"
                except (ValueError, RecursionError) as broken:  # RecursionError: thousands of nested brackets
                    error = str(broken)[:80]
                bad = BadRow("not JSON", f"{self.name} row {number}: {error}: {line[:80]!r}")
                yield number, (bad if error else row)


class Parquet(File):
    """A Parquet file, or a folder of them in the order of their names."""

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """See `Table`."""
        path = Path(self.path).expanduser()
        files = sorted(map(str, path.glob("*.parquet"))) if path.is_dir() else [str(path)] * path.is_file()
        if not files:
            told = read_otherwise(path) or f"is no Parquet file, nor a folder with *.parquet files {HUB}"
            raise ValueError(f"init_args.path: {self.path!r} {told}.")
        return stream(self.path, "parquet", data_files=files, split="train")


class Hub(Table):
    """A data set on the Hugging Face Hub, streamed; or a local folder laid out like one."""

    def __init__(
        self,
        dataset: str,
        name: str | None = None,
        split: str = "train",
        revision: str | None = None,
        columns: Columns = DEFAULT_COLUMNS,
        answer_only: bool = False,
        max_chars: int = 20_000,
    ) -> None:
        """The rows of one split.

        Args:
            dataset: Its id, e.g. openai/gsm8k, or a local folder.
            name: Its configuration, where it has several.
            split: Its split.
            revision: A commit or tag; null: the newest, which may change between runs.
            columns: Which column holds what.
            answer_only: Make the solution the line `#### answer`; needed where there is no solution.
            max_chars: Longest question and solution together, in characters; longer ones are counted "too long".
        """
        super().__init__(dataset.rstrip("/").rsplit("/", 1)[-1], columns, answer_only, max_chars)
        self.path, self.configuration, self.split, self.revision = dataset, name, split, revision

    def settings(self) -> dict[str, str]:
        """See `Source`. Another owner's data set is another one; a folder may move."""
        return super().settings() | ({} if Path(self.path).expanduser().is_dir() else {"dataset": repr(self.path)})

    def rows(self) -> Iterator[tuple[int, Mapping[str, Any]]]:
        """See `Table`."""
        if told := read_otherwise(Path(self.path).expanduser()):
            raise ValueError(f"init_args.dataset: {self.path!r} {told}.")
        return stream(self.path, self.path, name=self.configuration, split=self.split, revision=self.revision)
