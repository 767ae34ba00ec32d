"""What a user sees beside the results: which notes of libraries are kept off the screen, which errors are messages."""

from __future__ import annotations

import argparse
import difflib
import errno
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any, NoReturn

log = logging.getLogger("lit_atex")


class OneLine(argparse.ArgumentParser):
    """A parser whose errors are one line; with its usage, if it was given one. Options are written out."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and leave with code 2."""
        usage = f"; {self.usage % {'prog': self.prog}}" if self.usage else ""
        self.exit(2, f"lit-atex: error: {' '.join(message.split())}{usage} (see `{self.prog} --help`)\n")


def quiet() -> None:
    """Keep notes of the libraries that a user can do nothing about off the screen; their warnings stay."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else a note at every fork of a data worker
    os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # on how Lightning calls it
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    log.setLevel(logging.INFO)
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("lightning", "huggingface_hub"):  # they print by themselves, and each line would come twice
        logging.getLogger(name).propagate = False
    ignored = (
        "isinstance.treespec, LeafSpec",
        "does not have many workers",
        "exists and is not empty",
        "is_gradient_checkpointing",  # transformers, on PEFT
        "LightningCLI.s args parameter",  # `evaluate` gives it others than those of the process
    )
    for message in ignored:
        warnings.filterwarnings("ignore", message=f".*{message}")


def is_mistake(error: Exception) -> bool:
    """Whether the message alone helps: a check of ours raised it, or Lightning refused a setting.

    Or the disk is full. Anything else, a ValueError from inside a library too, may be a bug, and keeps its traceback.
    """
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # loaded, if it raised anything
    refused = lightning is not None and isinstance(error, lightning.MisconfigurationException)
    if refused or getattr(error, "errno", 0) in (errno.ENOSPC, errno.EDQUOT):
        return True
    last = traceback.extract_tb(error.__traceback__)[-1]
    return Path(last.filename).is_relative_to(Path(__file__).parent) and (last.line or "").startswith("raise ")


def with_known_classes(message: str) -> str:
    """The message of jsonargparse; if a class is mistyped, with the names that there are."""
    from lit_atex.divergence import Divergence
    from lit_atex.exposure import Exposure
    from lit_atex.learners import Learner
    from lit_atex.measures import ProgressMeasure
    from lit_atex.rollout import RolloutEngine
    from lit_atex.sources import Source
    from lit_atex.teacher import Teacher
    from lit_atex.verify import Verifier
    from lit_atex.weighting import Weighting

    message = re.sub(r"- Expected a path but .+? either not accessible or invalid -? ?", "", message)
    bases: dict[str, type] = {"strategy": Exposure, "progress": ProgressMeasure, "learner": Learner, "teacher": Teacher}
    bases |= {"divergence": Divergence, "engine": RolloutEngine, "verifier": Verifier, "weighting": Weighting}
    bases |= dict.fromkeys(("train", "validation", "test", "probe"), Source)
    keys = re.findall(r'Parser key "([\w.-]+)"', message)
    base = bases.get(keys[-1].rsplit(".", 1)[-1]) if keys else None
    path = r"class_path '(\S+)': (?:No module|module .* has no)|Import path (\S+) does not correspond to a subclass"
    wrong = re.search(rf"dot import path string: (\S+)|{path}", message)
    if base is None or wrong is None:
        return message
    names = sorted(_concrete(base))
    near = difflib.get_close_matches((wrong[1] or wrong[2] or wrong[3]).rpartition(".")[2], names, 1)
    known = (
        f"{f'Is it {near[0]}? ' if near else ''}Known: {', '.join(names)}; or the dotted path of a class of your own, "
    )
    known += f"a subclass of {base.__module__}.{base.__name__}"
    if not wrong[1]:  # a path: what could not be imported may be another module than the one that is named
        return f"{message}. {known}"
    return f'Parser key "{keys[-1]}": there is no {base.__name__} of the name {wrong[1]}. {known}'


def with_near_key(message: str, keys: list[str]) -> str:
    """The message of argparse or jsonargparse; if it is about a key that is not there, with the key that is nearest."""
    wrong = re.search(r"unrecognized arguments: --([\w.-]+)|does not accept option '([\w.-]+)'", message)
    inside = re.search(r"class_path '([\w.]+)\.(\w+)': Option '([\w.-]+)' is not accepted", message)
    takes = ""
    if inside and (found := getattr(sys.modules.get(inside[1]), inside[2], None)):
        keys, name = list(inspect.signature(found).parameters), inside[3]
        takes = f". {inside[2]} takes {', '.join(keys) or 'none'}"
    elif wrong:
        name = wrong[1] or wrong[2]
    else:
        return message
    near = [key for key in keys if key.startswith(name)] or difflib.get_close_matches(name, keys, 1)
    return f"{message}. Is it {near[0]}?" if near else message + takes


def _concrete(base: type) -> set[str]:
    """Names of the classes of this package that can be made."""
    found = {base.__name__} if not inspect.isabstract(base) and base.__module__.startswith("lit_atex.") else set()
    below: list[type] = base.__subclasses__()
    for derived in below:
        found |= _concrete(derived)
    return found
