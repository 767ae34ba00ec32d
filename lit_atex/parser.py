"""How the command line and configs are parsed: what another class begins with, and errors of one line."""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml
from jsonargparse import Namespace, _typehints
from lightning.pytorch.cli import LightningArgumentParser

from lit_atex.console import with_known_classes, with_near_key
from lit_atex.help_text import Help


def discard_init_args(parser: Any, before: Any, now: Any) -> None:
    """Have another class begin with its own defaults: the `init_args` so far were meant for the class they stand by."""
    if before and "init_args" in before and before["class_path"] != now["class_path"]:
        before["init_args"] = Namespace()


# jsonargparse would keep those whose names the new class happens to have, and has no setting for it
_typehints.discard_init_args_on_class_path_change = discard_init_args


_read = _typehints.parse_value_or_config
_OF_CLASS = {"class_path", "init_args", "dict_kwargs"}


def read(value: Any, *args: Any, **kwargs: Any) -> Any:
    """Read a value as YAML; but leave a mapping or list for an argument of a class to that class, which has its type.

    A class with its arguments, or those alone, is a mapping all the same: `--data.validation.mine '{class_path: ...}'`.
    What YAML makes nothing of, a text such as "### Problem: {question}" that would be a comment, stays too.
    """
    found, path = _read(value, *args, **kwargs)
    nested = isinstance(value, _typehints.NestedArg)
    text, made = (value.val, found.val) if nested else (value, found)
    commented = made is None and isinstance(text, str) and text.lstrip().startswith("#")
    kept = commented or (nested and isinstance(text, str) and isinstance(made, dict | list))
    if nested and isinstance(made, dict) and (value.key.split(".")[-1] in _OF_CLASS or made.keys() <= _OF_CLASS):
        kept = False
    return (value if kept else found), path


# jsonargparse would make a mapping of "Solve: {question}" for good, before it sees that the argument is a text
_typehints.parse_value_or_config = read


# jsonargparse reads 3e-4 as a number, where YAML 1.1 has a text: a text, a folder's name, is saved with quotes
_NUMBER = re.compile(r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9_]+)[eE][-+]?[0-9]+$")
yaml.SafeDumper.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))


class Parser(LightningArgumentParser):
    """Lightning's, with an error of one line: the usage of a hundred lines would push it off the screen.

    A key is written out: `--trainer.max_step` is a slip of the hand, and would not be found in a YAML either.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """As Lightning's, without abbreviations, and with a help that can be read."""
        super().__init__(*args, **{"allow_abbrev": False, "formatter_class": Help, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave with code 2."""
        if not self.exit_on_error:  # one of the parsers inside the parser: its caller reports
            super().error(message, ex)
        line = with_known_classes(" ".join(part.strip() for part in message.splitlines() if part.strip()))
        if "arguments are required" in line and "class_path" not in line:  # those of a class are its own
            line += ". Begin with a complete configuration: --config configs/base.yaml"
        parser = getattr(ex, "subcommand_parser", self)
        names = [name[2:] for name in parser._option_string_actions if name.startswith("--")]
        unwanted = (".help", "data.seed", "model.seed")  # the two follow seed_everything
        line = with_near_key(line, [name for name in names if not name.endswith(unwanted)])
        prog = parser.prog.replace(" [options]", "")
        self.exit(2, f"lit-atex: error: {line} (see `{prog} --help`)\n")
