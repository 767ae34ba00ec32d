"""Which code ran: versions of Python and of packages, and the git commit of a checkout."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

PACKAGES = ("lit-atex", "lightning", "torch", "transformers", "torchmetrics", "datasets", "jsonargparse", "peft")


def versions() -> dict[str, str]:
    """The versions of what a result depends on."""
    found = {"python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def git(*args: str) -> str | None:
    """What git says of the checkout that this file belongs to; None without one.

    An installation inside somebody's checkout (`.venv` in it) is not of that checkout: its commit says nothing here.
    """
    here = Path(__file__)
    for words in (["ls-files", "--error-unmatch", here.name], list(args)):
        try:
            command = ["git", "-C", str(here.parent), *words]
            done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
    return done.stdout.strip()
