"""Run folders as records: settings, results, what each step cost. It reads them and makes no table of them."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from lit_atex import whole
from lit_atex.evaluation import Result
from lit_atex.inspection import logged_steps
from lit_atex.metrics import g_pass_at_k, mean_g_pass_at_k, pass_at_k
from lit_atex.resume import read_manifest
from lit_atex.settings import flat, switched
from lit_atex.spread import mean_of
from lit_atex.text_tables import read_results

log = logging.getLogger("lit_atex")

SEED = re.compile(r"(^|,)seed=-?\d+")
NUMBER = re.compile(r"(?:(?<!\w)-)?\d+(?:\.\d+)?(?:e[+-]?\d+)?")
"""In the value of an axis; the dash of `fixed-0.5` is no minus."""


@dataclass
class Record:
    """A finished run.

    Attributes:
        path: Its folder.
        cell: Its name less the seed: runs of one cell differ in the seed alone.
        settings: Value by axis, of a name `axis=value,...`.
        seed: Its seed.
        config: All settings, by dotted key; less those of the start and the seeds.
        manifest: As `manifest.json`.
        results: By optimizer steps done at the evaluation: a result by set.
        trace: What was logged, a row a step; `step` counts the steps done, `tokens` and `seconds` are sums until then.
    """

    path: Path
    cell: str
    settings: dict[str, str]
    seed: int
    config: dict[str, Any]
    manifest: dict[str, Any]
    results: dict[int, dict[str, Result]]
    trace: list[dict[str, float]] = field(repr=False)

    @property
    def last(self) -> int:
        """Optimizer steps of the run."""
        return int(self.manifest["optimizer_steps"])

    def value(self, metric: str, step: int | None = None) -> float:
        """A metric, "SET/METRIC", after so many steps (None: the last); nan if it was not measured then."""
        name, _, measure = metric.rpartition("/")
        result = self.results.get(self.last if step is None else step, {}).get(name)
        return result.metrics[measure].value if result and measure in result.metrics else float("nan")

    def by_problem(self, metric: str) -> dict[str, float]:
        """The same of each problem after the last step; empty for a metric that is not made of counts of correct."""
        name, _, measure = metric.rpartition("/")
        result = self.results.get(self.last, {}).get(name)
        kind, _, k = measure.partition("@")
        if result is None or measure not in result.metrics or kind not in ("avg", "pass", "g-pass", "mg-pass"):
            return {}
        n = result.samples
        solved = torch.tensor([round(share * n) for share in result.per_problem.values()])
        drawn = torch.full_like(solved, n)
        if kind == "avg":
            values = solved.double() / n
        elif kind == "g-pass":
            size, _, tau = k.partition("_")
            values = g_pass_at_k(solved, drawn, int(size), float(tau))
        else:
            values = {"pass": pass_at_k, "mg-pass": mean_g_pass_at_k}[kind](solved, drawn, int(k))
        return dict(zip(result.per_problem, values.tolist()))

    def same_problems(self, other: Record, metric: str) -> bool:
        """Whether neither checksum nor ids say that the set of a metric held other problems in another run."""
        sets = [run.results.get(run.last, {}).get(metric.rpartition("/")[0]) for run in (self, other)]
        first, second = (of or Result("", 0, 0, {}, {}) for of in sets)
        if None not in (first.checksum, second.checksum):
            return first.checksum == second.checksum
        return not (first.per_problem and second.per_problem) or bool(first.per_problem.keys() & second.per_problem)

    def spent(self, step: int) -> dict[str, float]:
        """What so many steps took: `step`, `tokens`, `seconds`; between logged rows, and behind, as if evenly.

        Of a run that logged nothing, tokens and seconds are nan, but for step 0.
        """
        if step and not self.trace:
            return {"step": float(step), "tokens": float("nan"), "seconds": float("nan")}
        rows = [{"step": 0.0, "tokens": 0.0, "seconds": 0.0}, *self.trace]
        steps = [row["step"] for row in rows]
        behind = max(step / steps[-1], 1.0) if steps[-1] else 1.0
        spent = {n: behind * float(np.interp(step, steps, [row[n] for row in rows])) for n in ("tokens", "seconds")}
        return {"step": float(step), **spent}

    def mean(self, tag: str) -> float:
        """The mean of a logged number over the run; nan if it was never logged."""
        return mean_of([row[tag] for row in self.trace if tag in row])

    def first(self, tag: str) -> float:
        """A logged number at the first step; nan if it was not logged."""
        return self.trace[0].get(tag, float("nan")) if self.trace else float("nan")


def find(folders: list[Path]) -> tuple[list[Record], dict[str, str]]:
    """The runs in some folders, which are run folders or hold them.

    Returns:
        Finished runs, in the order of their axes (`_in_order`); and those that are left out, with the reason.

    Raises:
        ValueError: If there is none, or runs of one name have different settings.
    """
    named: dict[str, Path] = {}
    holding = [folder for folder in folders if not (folder / "manifest.json").is_file()]
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}.")
        # The order of a grid is that in which its runs were begun, which their names do not tell.
        for path in sorted(folder.rglob("manifest.json"), key=lambda p: (_began(p.parent), str(p))):
            name = str(path.parent.relative_to(folder)) if folder in holding else path.parent.resolve().name
            name = f"{folder.resolve().name}/{name}" if folder in holding and len(holding) > 1 else name
            if named.setdefault(name, path.parent).resolve() != path.parent.resolve():
                raise ValueError(f"{path.parent} and {named[name]} are both {name}: rename a folder, or report apart.")
    runs, out = [], {}
    for name, path in named.items():
        manifest = read_manifest(path)
        if "optimizer_steps" not in manifest or not manifest.get("finished"):
            out[name] = str(manifest.get("error", "not finished"))
        elif not (results := whole.read_json(path / "results.json")):
            out[name] = "not evaluated"
        else:
            runs.append(_record(name, path, manifest, results))
    if not runs:
        told = "; ".join(f"{name}: {reason}" for name, reason in out.items())
        raise ValueError(f"no finished run in {', '.join(map(str, folders))}{f' ({told})' if told else ''}.")
    _same_settings(runs)
    return _in_order(runs), out


def _in_order(runs: list[Record]) -> list[Record]:
    """Axis by axis, then by seed: values as they were begun, but those that differ in a number by its size.

    So that a grid begun in parts is shown whole.
    """
    values: dict[str, list[str]] = {}
    for run in runs:
        for axis, value in run.settings.items():
            values.setdefault(axis, []).append(value)
    ranks = {axis: list(dict.fromkeys(by_size(found))) for axis, found in values.items()}
    grids = list(dict.fromkeys((run.cell.rpartition("/")[0], *run.settings) for run in runs))

    def place(run: Record) -> list[int]:
        axes = [ranks[axis].index(value) for axis, value in run.settings.items()]
        return [grids.index((run.cell.rpartition("/")[0], *run.settings)), *axes, run.seed]

    return sorted(runs, key=place)


def by_size(values: list[str]) -> list[str]:
    """`fixed-1`, `up`, `fixed-0.5` to `fixed-0.5`, `fixed-1`, `up`: the text has the place of its first value."""
    words = [NUMBER.sub("#", value) for value in values]
    numbers = [[float(found) for found in NUMBER.findall(value)] for value in values]
    order = sorted(range(len(values)), key=lambda i: (words.index(words[i]), numbers[i]))
    return [values[i] for i in order]


def _began(run: Path) -> str:
    commands = read_manifest(run).get("commands") or [{}]
    return str(commands[0].get("began", ""))


def _record(name: str, path: Path, manifest: dict[str, Any], results: dict[str, Any]) -> Record:
    config = flat(yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8")))
    ignored = ("run", "seed_everything", "exposure.strategy.init_args.seed", "config")
    by_step = {int(k[5:]): _by_set(rows) for k, rows in results.items() if k.startswith("step-")}
    # What `lit-atex test --run` of the same folder has measured, if it was of the weights after the last step.
    tested = {f"test/{set_name}": result for set_name, result in _by_set(results.get("test", [])).items()}
    known = whole.read_json(path / "outcomes" / "test.protocol.json").get("weights")
    if tested and "weights" in manifest and known != manifest["weights"]:
        log.warning("%s: its test results are of other weights than its last step's, and left out", name)
        tested = {}
    by_step.setdefault(int(manifest["optimizer_steps"]), {}).update(tested)
    # A grid without axes has but seeds: its folder is the cell.
    parent, slash, last = name.rpartition("/")
    cell = (f"{parent}{slash}{SEED.sub('', last).strip(',')}").rstrip("/") or path.resolve().parent.name
    parts = [part.partition("=") for part in cell.rpartition("/")[2].split(",")]
    return Record(
        path=path,
        cell=cell,
        settings={axis: value for axis, sign, value in parts if sign},
        seed=int(manifest.get("seed") or 0),
        config={key: value for key, value in config.items() if key not in ignored},
        manifest=manifest,
        results=by_step,
        trace=_trace(path),
    )


def _by_set(rows: list[dict[str, Any]]) -> dict[str, Result]:
    return {result.name: result for result in read_results(rows)}


def _trace(run: Path) -> list[dict[str, float]]:
    """The rows of training steps, with sums of tokens and seconds.

    With `trainer.log_every_n_steps` above 1 a row stands for the steps before it.
    """
    rows = logged_steps(run)
    done = tokens = seconds = 0.0
    for row in rows:
        time, steps = row["time/step"], row["step"] + 1 - done
        tokens += steps * time * row["throughput/completion_tokens_per_s"]
        seconds += steps * time
        done += steps
        row |= {"step": done, "tokens": tokens, "seconds": seconds}
    return rows


def _same_settings(runs: list[Record]) -> None:
    """Refuse to average over runs that differ in more than the seed."""
    first: dict[str, Record] = {}
    seeds: dict[tuple[str, int], Record] = {}
    for run in runs:
        other = first.setdefault(run.cell, run)
        keys = [key for key in run.config if key in other.config and run.config[key] != other.config[key]]
        keys += switched(run.config, other.config)
        if keys:
            raise ValueError(
                f"{run.path} and {other.path} bear the name of one cell, {run.cell}, but differ in {', '.join(keys)}: "
                "rename a folder, or report on them apart."
            )
        twin = seeds.setdefault((run.cell, run.seed), run)
        if twin is not run:
            raise ValueError(f"{run.path} and {twin.path} are one cell with one seed: leave one of them out.")
