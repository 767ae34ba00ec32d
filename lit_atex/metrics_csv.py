"""`metrics.csv`: what Lightning logs, a row a step; it knows nothing of what the numbers mean."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities import rank_zero_only


class MetricsCsv(Logger):
    """`metrics.csv`, a row a step: what is logged again for a step joins its row. New columns rewrite the file."""

    def __init__(self, run: str) -> None:
        super().__init__()
        self._path = Path(run) / "metrics.csv"
        self._fields: list[str] = []
        self._row: dict[str, Any] = {}
        self._row_start = 0

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
        """Add to the row of the step."""
        if not self._fields and self._path.is_file():
            self._write(self._read())
        row = {"step": str(step or 0), **metrics}
        same = self._row.get("step") == row["step"]
        row = self._row | row if same else row
        if row.keys() - set(self._fields):
            rows = self._read() if self._path.is_file() else []
            self._write([*(rows[:-1] if same else rows), row])
            return
        with open(self._path, "r+", newline="", encoding="utf-8") as file:
            self._row, self._row_start = row, file.seek(self._row_start) if same else file.seek(0, os.SEEK_END)
            file.truncate()
            csv.DictWriter(file, self._fields).writerow(row)

    @rank_zero_only
    def go_on_from(self, step: int) -> None:
        """Drop the training steps from `step` on: a killed run wrote them after the checkpoint that is resumed."""
        rows = [row for row in self._read() if int(row["step"]) <= step] if self._path.is_file() else []
        if rows and int(rows[-1]["step"]) == step:  # what was measured before that step stays true
            rows[-1] = {k: v for k, v in rows[-1].items() if k == "step" or k.startswith("validation/")}
        self._write(rows)

    def _read(self) -> list[dict[str, Any]]:
        with open(self._path, newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if k and v} for row in csv.DictReader(file)]

    def _write(self, rows: list[dict[str, Any]]) -> None:
        self._fields = list(dict.fromkeys(["step", *self._fields, *(key for row in rows for key in row)]))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        aside = self._path.with_suffix(".tmp")
        with open(aside, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._fields)
            writer.writeheader()
            for row in rows:
                self._row, self._row_start = row, file.tell()
                writer.writerow(row)
        os.replace(aside, self._path)
