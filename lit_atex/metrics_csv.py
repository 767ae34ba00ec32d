"""`metrics.csv`: what is logged, a row a step; and the other logger. It knows nothing of what the numbers mean."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from lit_atex import whole

OF_STEPS = frozenset(
    [
        *("loss", "gradient", "mismatch", "entropy", "exposure", "teacher", "data", "competence", "length"),
        *("throughput", "time", "collapse"),
    ]
)
"""The groups of what a training step logs; whatever else is in a row was measured before it."""


def tensorboard(trainer: pl.Trainer) -> Any:
    """The run's TensorBoard writer, or None."""
    return next((x.experiment for x in trainer.loggers if isinstance(x, TensorBoardLogger)), None)


def write(logger: Logger, scalars: dict[str, float], step: int) -> None:
    """Log a step's numbers, and save them.

    TensorBoard gets them as one event. As an event each, which is what its logger makes of them, 45 numbers take 5 ms
    with the flush, mostly in waiting for the thread that writes them. That thread flushes by itself now and then, and
    `StepLog` has it do so before a checkpoint.
    """
    if type(logger) is TensorBoardLogger and not logger._prefix and type(logger.experiment) is SummaryWriter:
        values = [Summary.Value(tag=name, simple_value=value) for name, value in scalars.items()]
        logger.experiment._get_file_writer().add_summary(Summary(value=values), step)
        return
    logger.log_metrics(scalars, step)
    logger.save()


class MetricsCsv(Logger):
    """`metrics.csv`, a row a step: what is logged again for a step joins its row, and rewrites the file.

    So do new columns. A killed process leaves whole rows, or at most the last one half, which is left out.
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self._path = Path(run) / "metrics.csv"
        self._fields: list[str] = []
        self._row: dict[str, Any] = {}

    @property
    def name(self) -> str:
        """Unused by Lightning for files of ours."""
        return ""

    @property
    def version(self) -> str:
        """Unused by Lightning for files of ours."""
        return ""

    @property
    @rank_zero_experiment
    def experiment(self) -> None:
        """There is no writer object."""

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add to the row of the step, which need not be the last: what is of a pass comes after its validation."""
        if not self._fields and self._path.is_file():
            self._write(self._read())
        row: dict[str, Any] = {"step": str(step or 0), **metrics}
        same = self._row.get("step") == row["step"]
        row = self._row | row if same else row
        if row == self._row:
            return
        if int(row["step"]) <= int(self._row.get("step", -1)) or row.keys() - set(self._fields):
            rows = {there["step"]: there for there in self._read()}
            rows[row["step"]] = rows.get(row["step"], {}) | row
            self._write(sorted(rows.values(), key=lambda one: int(one["step"])))
            return
        self._row = row
        with open(self._path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._fields).writerow(row)

    @rank_zero_only
    def go_on_from(self, step: int) -> None:
        """Drop the training steps from `step` on: a killed run wrote them after the checkpoint that is resumed."""
        rows = [row for row in self._read() if int(row["step"]) <= step]
        if rows and int(rows[-1]["step"]) == step:  # what was measured before that step stays true
            row = rows.pop()
            row = {k: v for k, v in row.items() if k.partition("/")[0] not in OF_STEPS}
            rows += [row] if row.keys() - {"step", "epoch"} else []
        self._write(rows)

    def _read(self) -> list[dict[str, Any]]:
        return [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(whole.lines(self._path))]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._fields = list(dict.fromkeys(["step", *self._fields, *(key for row in rows for key in row)]))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._fields)
        writer.writeheader()
        writer.writerows(rows)
        whole.write(self._path, text.getvalue(), at_once=False)  # rows that follow do not wait for the disk either
        self._row = rows[-1] if rows else {}
