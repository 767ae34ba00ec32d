"""A run from Python: all that a command line makes, to look at, exchange and train, without a command line.

For notebooks and scripts. Whoever wants the parts alone makes them from their classes, as any Lightning module.
"""

from __future__ import annotations

import json
from os import PathLike
from typing import Any

from lit_atex.callbacks import ExposureControl
from lit_atex.cli import Cli
from lit_atex.console import quiet
from lit_atex.evaluate import find_config

Name = str | PathLike[str]


class Run(Cli):
    """A training run that has been made and not begun.

    Attributes:
        model: The `SelfDistillation` module; its weights are read when the trainer starts.
        datamodule: The `ProblemDataModule`, with its sets: `validation` and `test`, by name.
        trainer: Lightning's trainer, with the callbacks of the configuration.
        exposure: That of them which decides how much the teacher sees, by its `strategy`.
        run_folder: Where it writes.
    """

    _begun = False

    @property
    def exposure(self) -> ExposureControl:
        """The callback that asks the strategy and sets `model.exposure`, at each step."""
        callbacks: list[Any] = self.trainer.callbacks  # type: ignore[attr-defined]
        return next(one for one in callbacks if isinstance(one, ExposureControl))

    def _run_subcommand(self, subcommand: str) -> None:
        """Made, not run."""

    def train(self) -> None:
        """Train, evaluate the last step, and mark the run as finished, as `lit-atex fit` does.

        Raises:
            RuntimeError: If it was called before, whether or not it came to its end.
            ValueError: If an exposure was set that the strategy would replace.
        """
        if self._begun:
            raise RuntimeError(
                f"this run has been trained: load(..., run={str(self.run_folder)!r}, resume=True) goes on with it, "
                'at its end with a higher {"trainer.max_steps": ...}.'
            )
        if self.model.exposure != 1.0:
            raise ValueError(
                f"run.model.exposure = {self.model.exposure} would be replaced by the strategy's at each step: set "
                f"run.exposure.strategy, to a Fixed (lit_atex.exposure) for one."
            )
        self._begun = True
        super()._run_subcommand("fit")


def load(*stack: Name | dict[str, Any], run: Name | None = None, **options: bool) -> Run:
    """The run that `lit-atex fit --config ... --config ...` would start.

    Args:
        stack: Configs by name ("base", "exposure/bandit") or file, and keys with their values, each over those before.
            A text stays as it is where the key takes one, but for "null"; elsewhere it is read as on the command line.
        run: The run folder; None: runs/<date>-<names>.
        options: `resume=True`, `overwrite=True`, as on the command line.

    Raises:
        SystemExit: If something in it is wrong, with the message of the command line.
        ValueError: The same, where it takes the parts to find out; or a value is an object.
    """
    quiet()
    words = ["fit"]
    for one in stack:
        for key, value in one.items() if isinstance(one, dict) else [("", one)]:
            text = str(value) if isinstance(value, str | PathLike) else None
            if "." in key:
                words.append(f"--{key}={_json(key, value) if text is None else text}")
            else:
                words += ["--config", _json(key, {key: value}) if key else str(find_config(str(value)))]
    words += ["--run", str(run)] if run else []
    words += [f"--{name}={json.dumps(value)}" for name, value in options.items()]
    return Run(words)


def _json(key: str, value: Any) -> str:
    """A value as YAML has it, which JSON is."""

    def plain(part: object) -> str:
        if isinstance(part, PathLike):
            return str(part)
        raise ValueError(
            f"{key}: an object ({type(part).__name__}) is no value of a config: give its class_path and init_args. "
            "Between load and `run.train()` these can be set: teacher, divergence, weighting and prompts of run.model, "
            "run.exposure.strategy, and run.datamodule.validation and .test."
        )

    return json.dumps(value, default=plain)
