"""The outcome files of one evaluation: written as answers come, and gone on with after a kill.

outcomes/NAME.SET.jsonl         a line per problem, in the set's order: completions, answers, verdicts
outcomes/NAME.protocol.json     what the answers depend on

A batch is on disk before the next one is begun. Draws depend on seed, problem and sample alone, and a batch is answered
as a whole, so a file that was gone on with is, byte for byte, the file of an evaluation that was not disturbed: what is
not a whole batch is dropped and drawn again. With several ranks each has its own file, `NAME.SET.rankN.jsonl`, in the
order of its share of the problems. It knows no model and no metric.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_atex import whole
from lit_atex.protocol import differences

if TYPE_CHECKING:
    from lit_atex.data import ProblemDataModule

Row = dict[str, Any]


class Outcomes:
    """Files of one rank.

    Args:
        folder: Where they are.
        name: Of the evaluation: "test", "validate".
        rank: What sets this rank's files apart: "" or ".rankN".
    """

    def __init__(self, folder: Path, name: str, rank: str = "") -> None:
        self.folder, self.name, self.rank = folder, name, rank
        self.rows: dict[str, list[Row]] = {}
        """Rows that are gone on from, by set."""
        self._begun = False  # whether any row was there: also of another rank, or of a batch that is not whole

    def path(self, set_name: str) -> Path:
        """The file of a set."""
        return self.folder / f"{self.name}.{set_name}{self.rank}.jsonl"

    def find(self, data: ProblemDataModule, kind: str) -> None:
        """Read the rows that are there, in whole batches, and have the data module leave out their problems.

        Args:
            data: Has read its sets; the trainer has not asked for batches yet.
            kind: "validation" or "test".

        Raises:
            ValueError: If a file holds other problems.
        """
        names = data.test_names if kind == "test" else data.validation_names
        self._begun = any(map(whole.lines, self.folder.glob(f"{self.name}.*.jsonl")))
        for name in names:
            key, size = f"data.{kind}.{name}", data.eval_batch_size
            found, problems = _rows(self.path(name)), data.share(key)
            keep = len(found) if len(found) == len(problems) else len(found) // size * size
            rows = found[:keep]
            if [row["id"] for row in rows] != [p.id for p in problems[:keep]]:
                raise ValueError(
                    f"--resume: {self.path(name)} holds other problems than {key}, or in another order: name another "
                    "folder in --run, or set --overwrite true."
                )
            self.rows[name] = rows
            data.answered[key] = keep

    def begin(self, protocol: dict[str, Any]) -> dict[str, list[Row]]:
        """Leave nothing in the files but the rows that were found.

        Args:
            protocol: What further rows depend on.

        Returns:
            The rows by set.

        Raises:
            ValueError: If the rows that are there depend on something else; nothing is changed then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.protocol.json"
        if self._begun:
            if not path.is_file():
                raise ValueError(
                    f"--resume: {path} is not there, so nothing says how the answers beside it were made: name another "
                    "folder in --run, or set --overwrite true."
                )
            if changed := differences(whole.read_json(path), protocol):
                raise ValueError(
                    f"--resume: the evaluation in {self.folder.parent} was begun with other settings (then and now): "
                    f"{'; '.join(changed)}. Set them back, name another folder in --run, or set --overwrite true."
                )
        elif self.rank in ("", ".rank0"):
            whole.write_json(path, protocol)
        for name, of_set in self.rows.items():
            whole.write(self.path(name), "".join(map(whole.json_line, of_set)))
        found, self.rows = self.rows, {}
        return found

    def append(self, set_name: str, rows: list[Row]) -> None:
        """Add a batch, and have it on disk."""
        with open(self.path(set_name), "ab") as file:
            file.write("".join(map(whole.json_line, rows)).encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())


def clear(run: Path, name: str, resume: bool, overwrite: bool, clears: bool = True) -> None:
    """Refuse to write over an evaluation, or clear it away.

    Args:
        run: The run folder.
        name: Of the evaluation.
        resume: Whether it is gone on with.
        overwrite: Whether it is to be deleted.
        clears: Whether this process is the one that deletes: the others of a run on several devices check alone.

    Raises:
        ValueError: If there is one and neither says what to do with it, or both do.
    """
    files = sorted((run / "outcomes").glob(f"{name}.*.jsonl"))
    if resume and overwrite:
        raise ValueError("--resume goes on with what --overwrite true would delete: give one of them.")
    begun = [path.name for path in files if whole.lines(path)]
    if begun and not resume and not overwrite:
        raise ValueError(
            f"--run {run} holds an evaluation already ({begun[0]}): go on with --resume, name another folder, or "
            "set --overwrite true to delete it."
        )
    for path in files if overwrite and clears else ():
        path.unlink()


def read(run: Path, name: str) -> dict[str, list[Row]]:
    """The rows of an evaluation by set, in the order of its sets; those of all ranks together.

    Raises:
        ValueError: If there is none, a file is damaged, or a problem is there twice, or with fewer samples than others.
    """
    found: dict[str, list[Row]] = {}
    for path in sorted((run / "outcomes").glob(f"{name}.*.jsonl")):
        set_name = path.name.removeprefix(f"{name}.").removesuffix(".jsonl")
        head, _, tail = set_name.rpartition(".")
        set_name = head if tail.startswith("rank") and tail[4:].isdigit() else set_name
        found.setdefault(set_name, []).extend(_rows(path))
    if not found:
        raise ValueError(f"{run} holds no evaluation {name!r}: there is no outcomes/{name}.SET.jsonl.")
    for set_name, rows in found.items():
        twice = [id_ for id_, times in Counter(row["id"] for row in rows).items() if times > 1]
        sizes = sorted({len(row.get("verdicts", [])) for row in rows})
        if twice or len(sizes) > 1:
            what = f"{len(twice)} problems twice, such as {twice[0]!r}" if twice else f"problems with {sizes} samples"
            raise ValueError(
                f"{run}/outcomes/{name}.{set_name}.*jsonl hold {what}: they are of several evaluations. Evaluate again "
                "with --overwrite true, or in another folder."
            )
    known = whole.read_json(run / "outcomes" / f"{name}.protocol.json")
    order = [key.split(".", 2)[2] for key in known if key.startswith(("data.test.", "data.validation."))]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0]) if item[0] in order else len(order)))


def _rows(path: Path) -> list[Row]:
    """The whole lines of a file.

    Raises:
        ValueError: If one of them is no row.
    """
    rows = []
    for number, text in enumerate(whole.lines(path), 1):
        try:
            row = json.loads(text)
        except ValueError:
            row = None
        if not isinstance(row, dict) or "id" not in row:
            raise ValueError(f"{path}, line {number}: this is no outcome; the file is damaged: evaluate again.")
        rows.append(row)
    return rows
