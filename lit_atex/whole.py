"""Files that are whole or not there, whatever ends the process: written aside, on disk, then renamed.

It knows nothing of what they say.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

ASIDE = ".aside"
"""Ending of what is not whole yet."""


def write(path: Path, data: str | bytes | Callable[[BinaryIO], None], at_once: bool = True) -> None:
    """Replace a file.

    Args:
        path: The file.
        data: What it is to hold, or a function that writes it.
        at_once: Wait until the disk has the new name too. If not, a power cut may leave the file as it was, whole too.

    Raises:
        OSError: If the disk is full, say; the file is as it was, and nothing is left aside.
    """
    aside = _aside(path)
    try:
        with open(aside, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data.encode("utf-8") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException as error:
        aside.unlink(missing_ok=True)
        # torch.save makes an error of its own of one that a file raised.
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise OSError(cause.errno, cause.strerror, str(path)) from error
    if at_once:
        _sync(path.parent)


def write_json(path: Path, data: Any) -> None:
    """Replace a file by one that holds these data, to be read by people too."""
    write(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty without the file."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


@contextmanager
def folder(path: Path) -> Iterator[Path]:
    """Replace a folder by the one that is filled aside.

    Yields:
        The folder to fill.
    """
    aside, old = _aside(path), _aside(path.with_name(path.name + "-old"))
    sweep(path.parent)
    aside.mkdir(parents=True)
    try:
        yield aside
    except BaseException:
        shutil.rmtree(aside)
        raise
    for file in [*aside.rglob("*"), aside]:
        _sync(file)
    if path.exists():
        os.replace(path, old)  # a folder cannot be renamed over another
    os.replace(aside, path)
    _sync(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def remove(path: Path) -> None:
    """Delete a file or a folder, which is all there until it is gone; of a link to a folder, the files right in it."""
    if path.is_symlink() and path.is_dir():  # folders in there may be others'
        for file in [file for file in path.iterdir() if not file.is_dir()]:
            file.unlink()
    elif path.is_dir():
        aside = _aside(path)
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        shutil.rmtree(aside)
    else:
        path.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what a killed process left aside in a folder and the folders in it."""
    for pattern in (f"*{ASIDE}", f"*/*{ASIDE}"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file that is appended to, without a last one that a killed process left half; [] without it."""
    if not path.is_file():
        return []
    data = path.read_bytes()
    # Not str.splitlines, which also cuts at characters that JSON leaves in its strings.
    return [line + "\n" for line in data[: data.rfind(b"\n") + 1].decode("utf-8").split("\n")[:-1]]


def json_line(row: dict[str, Any]) -> str:
    """A row as a line of a file of JSON lines."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def json_lines(path: Path) -> list[dict[str, Any]]:
    """The rows in `lines` of a file of JSON lines."""
    return [json.loads(line) for line in lines(path)]


def _aside(path: Path) -> Path:
    return path.with_name(path.name + ASIDE)


def _sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
