"""How `--help` of a command looks: our keys with all that is said of them, Lightning's by name."""

from __future__ import annotations

import inspect
import re
import textwrap
from argparse import Action
from collections.abc import Iterable
from typing import Any

from jsonargparse import DefaultHelpFormatter
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_atex.checkpoint import Checkpoint

_DOCS = "https://lightning.ai/docs/pytorch/stable/common"
_USAGE = """--config FILE [--config FILE ...] [--KEY VALUE ...]

Later files and keys win over earlier ones; FILE may be one that ships, such as base or exposure/beta_policy.
Where a class is wanted, its name will do, and --KEY.help NAME shows its options, which are keys in turn:
--model.teacher.help Ema, then --model.teacher Ema --model.teacher.decay 0.99"""
_OF_CHECKPOINT = inspect.signature(ModelCheckpoint).parameters.keys() - inspect.signature(Checkpoint).parameters.keys()


class Help(DefaultHelpFormatter):
    """jsonargparse's, without the five hundred lines that it takes from Lightning's docstrings.

    Of classes the names are shown, not the modules; `--KEY.help` is explained once.
    """

    def add_usage(
        self, usage: str | None, actions: Iterable[Action], groups: Iterable[Any], prefix: str | None = None
    ) -> None:
        """Show how keys and files are given, not each of them."""
        actions = list(actions)
        if prefix is None and any("--config" in a.option_strings for a in actions):  # not of a class, nor for a prog
            usage, actions, groups = f"{self._prog.replace(' [options]', '')} {_USAGE}", [], []
        super().add_usage(usage, actions, groups, prefix)

    def add_arguments(self, actions: Iterable[Action]) -> None:
        """List the options of a group; those of Lightning by name, with where it explains them."""
        shown = [a for a in actions if not _explained_once(a)]
        super().add_arguments([a for a in shown if not _where(a)])
        for where in dict.fromkeys(filter(None, map(_where, shown))):
            names = ", ".join(a.dest.rpartition(".")[2] for a in shown if _where(a) == where)
            self._add_item(_filled, [f"{where}: {names}", self])

    def _expand_help(self, action: Action) -> str:
        text, known, classes = super()._expand_help(action).partition("known subclasses: ")
        return re.sub(r"<class '(\w+)'>", r"\1", text) + known + re.sub(r"\b[a-z_][\w.]*\.(?=[A-Z]\w+)", "", classes)


def _explained_once(action: Action) -> bool:
    """Whether it is the help of a class, or takes a group from a file of its own."""
    option = action.option_strings[0] if action.option_strings else ""
    return option.endswith(".help") or (action.help == "Path to a configuration file." and option != "--config")


def _where(action: Action) -> str:
    """Where Lightning explains an option; "" for ours."""
    group, _, name = action.dest.rpartition(".")
    if group == "trainer":
        return f"--trainer.NAME, as {_DOCS}/trainer.html has it"
    if group == "checkpoint" and name in _OF_CHECKPOINT:
        return "--checkpoint.NAME, as in Lightning"
    return "--NAME, as in Lightning's Trainer" if name in ("ckpt_path", "weights_only") else ""


def _filled(text: str, formatter: Help) -> str:
    indent = " " * formatter._current_indent
    return textwrap.fill(text, formatter._width, initial_indent=indent, subsequent_indent=indent + "  ") + "\n"
