"""The command line: which command is meant, and what is said of a mistake. Each command is loaded when it is asked for.

It knows their names and nothing of what they do, and imports nothing that takes time.
"""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from importlib import import_module

OVERVIEW = """\
usage: lit-atex COMMAND ...

On-policy self-distillation of language models with partial, controlled teacher exposure.

with a configuration, --config configs/base.yaml first and any number of overlays after it:
  fit                 train, and evaluate before and after
  validate, test      evaluate on the configuration's validation or test sets
  predict             write completions of the test sets

without one:
  evaluate MODEL      evaluate any model: a run, a folder, a Hub name, an adapter, `embedded`
  compare A B         what the difference between two evaluations is worth
  ablate GRID.yaml    run a grid of configurations and seeds
  report FOLDER ...   tables and pictures of many runs, with intervals over seeds
  inspect RUN         show a run in the terminal
  pretrain --out DIR  train the embedded reasoner anew

Each has its own --help. A first run, about a minute:
  lit-atex fit --config configs/base.yaml --config configs/tiny.yaml
Options of a class: lit-atex fit --model.divergence.help ForwardKL
--config takes a file of yours, or one that ships: base, tiny, exposure/beta_policy
"""

MODULES = {
    "pretrain": "lit_atex.embedded.pretrain",
    "inspect": "lit_atex.inspection",
    "compare": "lit_atex.compare",
    "ablate": "lit_atex.ablate",
    "report": "lit_atex.report",
}
"""Each has a function with the command's name, whose signature and docstring are the command's options and help. One
that takes words in another way than jsonargparse reads them (FOLDER ..., --dry-run) has a `parser` besides."""


TRAINER = ("fit", "validate", "test", "predict")
"""LightningCLI's, in cli.py, which makes `evaluate` one of these."""


def run(words: list[str]) -> None:
    """Run the command whose name is the first word."""
    from jsonargparse import ArgumentParser, auto_cli

    from lit_atex.console import OneLine

    class Parser(OneLine, ArgumentParser):
        """Of a function's own arguments."""

    name = words[0]
    module = import_module(MODULES[name])
    command = getattr(module, name)
    if hasattr(module, "parser"):
        command(**vars(module.parser().parse_args(words[1:])))
        return
    auto_cli(command, args=words[1:], prog=f"lit-atex {name}", as_positional=name != "pretrain", parser_class=Parser)


def main(args: list[str] | None = None) -> None:
    """Run the command line.

    Args:
        args: Arguments without the program's name; None: those of the process.
    """
    words = sys.argv[1:] if args is None else args
    if words[:1] in ([], ["-h"], ["--help"]):
        print(OVERVIEW, end="")
        raise SystemExit(0)
    if words[0] == "--version":
        from importlib.metadata import version

        print(f"lit-atex {version('lit-atex')}")
        raise SystemExit(0)
    known = [*MODULES, *TRAINER, "evaluate"]
    if not words[0].startswith("-") and words[0] not in known:
        near = [f" Is it {name}?" for name in get_close_matches(words[0], known, 1)]
        told = f"lit-atex: error: there is no command {words[0]!r}.{''.join(near)} (see `lit-atex --help`)"
        print(told, file=sys.stderr)
        raise SystemExit(2)
    # Before torch is loaded: threads that wait sleep. If they spin, a tiny model is 7 % faster on an idle machine, and
    # a step takes ten times as long or worse on one with other work (docs/speed.md).
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")  # what Apple's GPUs lack is done by the CPU
    from lit_atex.console import is_mistake, quiet

    quiet()
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # so that a class_path may name a file of yours beside the configs
    try:
        if words[0] in MODULES:
            run(words)
        else:
            from lit_atex.cli import start

            start(args)
    except Exception as error:
        if not is_mistake(error):
            raise
        raise SystemExit(f"lit-atex: error: {error}") from error
