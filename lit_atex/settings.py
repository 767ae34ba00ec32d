"""What a command line comes to, key by key, and in what two runs differ. It starts nothing."""

from __future__ import annotations

import hashlib
import io
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import yaml


def resolve(words: list[str]) -> dict[str, Any]:
    """What a command line comes to: every key with its value, parsed by the parser that the run itself has.

    Raises:
        ValueError: If it does not parse, with the parser's message.
    """
    from lit_atex.cli import Cli  # here, as the command line's own imports come first

    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            Cli([*words, "--print_config"])
        except SystemExit as end:
            if end.code:
                text = " ".join(err.getvalue().split()) or str(end.code)
                raise ValueError(text.removeprefix("lit-atex: error: ")) from end
    config: dict[str, Any] = yaml.safe_load(out.getvalue())
    return config


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The same settings by dotted key; an empty mapping is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def brief(value: Any) -> str:
    """A setting for a checkpoint: of one as long as a source's own problems, the beginning and a digest."""
    text = str(value)
    if len(text) <= 200:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{text[:100]}... ({len(text)} characters, SHA-256 {digest[:16]})"


OF_THE_START = ("run", "resume", "overwrite", "ckpt_path", "weights_only", "config", "checkpoint.dirpath")
"""Keys that say how a run was started, not what it is."""


def changed(then: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """In what two configurations differ, a line a key.

    A key that only one of them has does not count, as another version of the code has other keys; but the held-out
    sets, which bear names of the user's.
    """
    a, b = ({k: v for k, v in flat(c).items() if k not in OF_THE_START} for c in (then, now))
    keys = [k for k in {**a, **b} if (k in a and k in b) or k.startswith(("data.validation.", "data.test."))]
    told = [f"{k} was {a.get(k, 'absent')}, is {b.get(k, 'absent')}" for k in keys if a.get(k) != b.get(k)]
    return [
        *told,
        *(f"{k} was {'null' if k in a else 'set'}, is {'null' if k in b else 'set'}" for k in switched(a, b)),
    ]


def switched(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """The keys that are null in one of two flat configurations and a mapping in the other, such as `lora`."""
    pairs = ((a, b), (b, a))
    return [k for x, y in pairs for k, v in x.items() if v is None and any(other.startswith(f"{k}.") for other in y)]
