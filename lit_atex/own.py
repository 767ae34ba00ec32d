"""Functions of the user's own, named by their dotted path; and evaluation metrics that are such functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from numbers import Real
from typing import Any

from lit_atex.types import Problem

Metric = Callable[[str, Problem], float]
"""A completion and its problem -> a number; a bool if the metric is a share."""

_NAME = re.compile(r"[A-Za-z][\w-]*")


def by_path(path: str, key: str) -> Any:
    """What a dotted path names; None if that is not a path, or nothing that can be called.

    Args:
        path: "my_hints.every_second".
        key: The config key that it stands under, for the error.

    Raises:
        ValueError: If it cannot be imported.
    """
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name) if module else None
    except (ImportError, AttributeError, SyntaxError, NameError) as error:
        raise ValueError(f"{key}: {path} could not be imported: {error}.") from error
    return found if callable(found) else None


class OwnMetrics:
    """Means over completions of what functions of the user say of each.

    Args:
        given: By name: a function, or its dotted path.
        taken: Names that are metrics already; "mean_length", under which lengths are logged, is too.

    Raises:
        ValueError: If a name is taken or no name, or a path leads to no function.
    """

    def __init__(self, given: Mapping[str, str | Metric] | None, taken: Sequence[str]) -> None:
        self._functions: dict[str, Metric] = {}
        self.paths: dict[str, str] = {}
        for name, function in (given or {}).items():
            key = f"model.eval_metrics.{name}"
            if name in (*taken, "mean_length") or not _NAME.fullmatch(name):
                known = _NAME.fullmatch(name) or name in taken
                why = "is a metric already" if known else "is no name of letters, digits, _ and -"
                raise ValueError(f"{key}: {name!r} {why}: choose another.")
            found = by_path(function, key) if isinstance(function, str) else function
            if found is None:
                raise ValueError(f"{key}: {function!r} is not the dotted path of a function, as my_metrics.mentions.")
            self._functions[name] = found
            self.paths[name] = function if isinstance(function, str) else f"{found.__module__}.{found.__qualname__}"

    def of(self, problem: Problem, completions: list[str]) -> dict[str, list[float]]:
        """The value of each metric for each completion; a problem that was not answered has empty ones.

        Raises:
            ValueError: If a function fails, or returns what is not a finite number.
        """
        return {name: [self._value(name, text, problem) for text in completions] for name in self._functions}

    def _value(self, name: str, completion: str, problem: Problem) -> float:
        where = f"model.eval_metrics.{name} ({self.paths[name]}), problem {problem.id}"
        try:
            value: Any = self._functions[name](completion, problem)
            value = value.item() if hasattr(value, "item") else value  # a number of NumPy or torch
            finite = isinstance(value, Real) and math.isfinite(value)
        except Exception as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}; the completion: {completion!r}") from error
        if not finite:
            raise ValueError(f"{where}: {value!r} is no finite number; the completion: {completion!r}")
        return value if isinstance(value, bool) else float(value)
