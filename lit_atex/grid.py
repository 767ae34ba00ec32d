"""A grid of training runs in YAML: read, checked, and spelled out as command lines. It starts nothing.

    configs: [configs/base.yaml]               # the stack under every run: files, or keys as they stand in a file
    axes:
      exposure:                                # a name of yours with overlays by name: a file, keys, or a list of both
        full: configs/exposure/fixed.yaml
        half: {exposure.strategy.init_args.ratio: 0.5}
      data.train.init_args.terseness: [0, 1]   # or a config key with its values
    seeds: [0, 1, 2]                           # default: [0]
    metrics: [level-8/avg@8]                   # SET/METRIC of the validation sets; default: avg@n of each
    baseline: {exposure: full}                 # what the other values of these axes are compared with; may be left out

Every combination of values is run with every seed, under the name `exposure=full,terseness=0,seed=1`. A seed is that of
the run (`seed_everything`) and of its exposure strategy, if that draws. The grid is kept beside the runs as grid.json:
a later `lit-atex report` of the folder shows these metrics against this baseline too.
"""

from __future__ import annotations

import copy
import itertools
import json
import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lit_atex.evaluate import find_config
from lit_atex.evaluation import metric_names
from lit_atex.settings import resolve

log = logging.getLogger("lit_atex")

KEYS = ("configs", "axes", "seeds", "metrics", "baseline")
NAME = re.compile(r"[\w.+@-]+")
"""What the name of an axis or of a value is made of: it becomes part of a folder's name."""

Words = list[str]


@dataclass(frozen=True)
class Run:
    """One run of a grid.

    Attributes:
        name: `axis=value,...,seed=n`: its folder's name.
        settings: Value by axis.
        seed: Its `seed_everything`, and its strategy's seed.
        words: Of its command line, from "fit" on, less the folder.
        config: What the command line comes to, all keys.
    """

    name: str
    settings: dict[str, str]
    seed: int
    words: Words
    config: dict[str, Any]


@dataclass(frozen=True)
class Grid:
    """A grid file as it was read; nothing in it has been tried.

    Attributes:
        path: The file.
        stack: Words of the configs under every run.
        axes: By name of the axis and of the value, the words that set it.
        seeds: Of every combination.
        metrics: "SET/METRIC"; empty: avg@n of each validation set.
        baseline: Value by axis.
    """

    path: Path
    stack: Words
    axes: dict[str, dict[str, Words]]
    seeds: list[int]
    metrics: list[str]
    baseline: dict[str, str]

    def runs(self) -> list[Run]:
        """All runs, each cell's command line parsed, so that a wrong key is found before anything starts.

        Raises:
            ValueError: If a cell does not parse, or does not measure what is to be reported; it names the cell.
        """
        found = []
        log.info("checking %d command lines, a second each", math.prod(map(len, self.axes.values())))
        for choice in itertools.product(*(values.items() for values in self.axes.values())):
            settings = {axis: value for axis, (value, _) in zip(self.axes, choice)}
            words = [*self.stack, *(word for _, given in choice for word in given)]
            label = ",".join(f"{axis}={value}" for axis, value in settings.items())
            try:
                config = resolve(["fit", *words])
                self._check(config)
            except ValueError as error:
                where = "configs" if not label or self._stack_fails_so(error) else label
                raise ValueError(f"{self.path}, {where}: {error}") from error
            for seed in self.seeds:
                name = ",".join([*([label] if label else []), f"seed={seed}"])
                own, all_keys = ["fit", *words, f"--seed_everything={seed}"], copy.deepcopy(config)
                all_keys["seed_everything"] = seed
                draws = all_keys["exposure"]["strategy"].get("init_args") or {}
                if "seed" in draws:  # so that a run that goes on is compared with what its config.yaml says
                    own.append(f"--exposure.strategy.init_args.seed={seed}")
                    draws["seed"] = seed
                found.append(Run(name, settings, seed, own, all_keys))
        return found

    def _stack_fails_so(self, error: ValueError) -> bool:
        """Whether a mistake is one of all cells, which must not be blamed on the first."""
        try:
            resolve(["fit", *self.stack])
        except ValueError as same:
            return str(same) == str(error)
        return False

    def _check(self, config: dict[str, Any]) -> None:
        sets = list(config["data"].get("validation") or {})
        if not sets:
            raise ValueError("data.validation is empty, so the runs would measure nothing: name at least one set.")
        known = [*metric_names(config["model"]["eval_samples"]), *(config["model"].get("eval_metrics") or {})]
        for metric in self.metrics:
            name, _, measure = metric.rpartition("/")
            if name not in sets or measure not in known:
                raise ValueError(
                    f"metrics: {metric!r} is not measured; name SET/METRIC with a set of data.validation "
                    f"({', '.join(sets)}) and one of {', '.join(known)}."
                )


class _Unique(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML keeps the second without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        plain = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        keys = [self.construct_object(key, deep=True) for key in plain]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"{twice[0]!r} is there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def read_grid(path: str | Path) -> Grid:
    """Read a grid by its path, or by its name among those that ship: "exposure".

    Raises:
        ValueError: If it is not there, is no YAML, or says something that a grid has no use for; it names the key.
    """
    shipped = re.fullmatch(r"(?:ablations/)?([\w-]+)|configs/ablations/([\w-]+)\.yaml", str(path))
    if not (path := Path(path)).is_file():
        if shipped is None:
            raise ValueError(f"there is no grid {path}: give a YAML file, or the name of one in configs/ablations/.")
        path = find_config(shipped[1] or shipped[2], "ablations")
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), _Unique)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path}: a grid is a mapping with the keys {', '.join(KEYS)}.")
    if unknown := [str(key) for key in given if key not in KEYS]:
        raise ValueError(f"{path}: unknown key {', '.join(unknown)}; a grid has the keys {', '.join(KEYS)}.")
    stack = _overlay(f"{path}: configs", given.get("configs"))
    axes = _axes(path, given.get("axes") or {})
    seeds = given.get("seeds", [0])
    whole = isinstance(seeds, list) and all(type(s) is int and 0 <= s < 2**32 for s in seeds)
    if not whole or not seeds or len({*seeds}) < len(seeds):
        raise ValueError(f"{path}: seeds: a list of different whole numbers from 0 on, e.g. [0, 1, 2]; got {seeds!r}.")
    metrics = given.get("metrics") or []
    if not isinstance(metrics, list) or not all(isinstance(m, str) and "/" in m for m in metrics):
        raise ValueError(f"{path}: metrics: a list of SET/METRIC, e.g. [level-8/avg@8]; got {metrics!r}.")
    baseline = given.get("baseline") or {}
    if not isinstance(baseline, dict):
        raise ValueError(f"{path}: baseline: a value by axis, e.g. {{exposure: full}}; got {baseline!r}.")
    baseline = {str(axis): _text(value) for axis, value in baseline.items()}
    for axis, value in baseline.items():
        if value not in axes.get(axis, {}):
            known = ", ".join(f"{a}={v}" for a, values in axes.items() for v in values)
            raise ValueError(f"{path}: baseline: there is no {axis}={value}; there are {known}.")
    return Grid(path, stack, axes, seeds, metrics, baseline)


def _axes(path: Path, given: Any) -> dict[str, dict[str, Words]]:
    """The words that set each value of each axis.

    Raises:
        ValueError: If an axis is neither a key with values nor a name with overlays, or a name is no name.
    """
    if not isinstance(given, dict):
        raise ValueError(f"{path}: axes: a mapping of axes; got {given!r}.")
    given = {_text(axis): values for axis, values in given.items()}
    keys = [axis for axis, values in given.items() if isinstance(values, list)]
    short = [key.rpartition(".")[2] for key in keys]
    axes: dict[str, dict[str, Words]] = {}
    for axis, values in given.items():
        where = f"{path}: axes.{axis}"
        if not isinstance(values, list | dict) or not values:
            raise ValueError(f"{where}: a list of values for the config key of that name, or overlays by name.")
        if isinstance(values, list):
            last = axis.rpartition(".")[2]
            name = last if short.count(last) == 1 and last not in given else axis
            found = {_value(where, value): [f"--{axis}={_text(value)}"] for value in values}
        else:
            name = axis
            found = {_text(value): _overlay(f"{where}.{value}", overlay) for value, overlay in values.items()}
        if name in ("seed", "seed_everything", "run"):
            raise ValueError(f"{where}: seeds have a list of their own, and folders their names: call it otherwise.")
        if len(found) < len(values):
            raise ValueError(f"{where}: the same value twice: {values}.")
        for part in (name, *found):
            if not NAME.fullmatch(part):
                raise ValueError(f"{where}: {part!r} becomes part of a folder's name: letters, digits and . + @ - _")
        axes[name] = found
    return axes


def _value(where: str, value: Any) -> str:
    if isinstance(value, dict | list):
        raise ValueError(f"{where}: {value!r} needs a name to call its run by: write the values as NAME: {{KEY: ...}}.")
    return _text(value)


def _text(value: Any) -> str:
    """A value as on the command line."""
    return value if isinstance(value, str) else json.dumps(value)


def _overlay(where: str, given: Any) -> Words:
    """The words that stack a file, keys, or a list of both.

    Raises:
        ValueError: If it is something else, or a file is not there.
    """
    words: Words = []
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, dict):
            words += ["--config", json.dumps(one, ensure_ascii=False)]
        elif isinstance(one, str):
            try:
                # "configs/base.yaml" is meant wherever one stands: beside the package, if there is none here.
                words += ["--config", str(find_config(one))]
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
        else:
            raise ValueError(f"{where}: a config file, or keys with their values, or a list of both; got {one!r}.")
    return words


def try_out(runs: list[Run]) -> None:
    """Make each strategy, and look for each model, before the first run starts; Hub names are not looked up.

    Raises:
        ValueError: If a strategy refuses its settings, or a folder or a package is not there; it names the run.
    """
    from jsonargparse import ArgumentParser  # here, as these bring torch with them

    from lit_atex.exposure import Exposure
    from lit_atex.models import LanguageModel

    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--strategy", type=Exposure)
    own = f"{LanguageModel.__module__}.{LanguageModel.__name__}"
    by_settings = {json.dumps([_strategy(run), _student(run)], sort_keys=True): run for run in reversed(runs)}
    for run in reversed(by_settings.values()):
        try:
            parser.instantiate(parser.parse_object({"strategy": _strategy(run)}))
            if _student(run)["class_path"] == own:
                LanguageModel(**_student(run)["init_args"] | {"lora": None}).check()
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error


def _strategy(run: Run) -> dict[str, Any]:
    return dict(run.config["exposure"]["strategy"])


def _student(run: Run) -> dict[str, Any]:
    return dict(run.config["model"]["student"])
