"""What the exchangeable parts of a run are: a checkpoint notes it, and a run that goes on must have the same.

From Python a part may have been exchanged, which no config shows. It knows none of them.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any


class Parts:
    """The parts by name, as they were when training began: one may keep count in its attributes."""

    def __init__(self) -> None:
        self._noted: dict[str, tuple[object, dict[str, Any]]] = {}

    def note(self, **parts: object) -> None:
        """Note what they are; one that was noted before stays as it was noted."""
        for name, part in parts.items():
            if name not in self._noted or self._noted[name][0] is not part:
                self._noted[name] = part, described(name, part)

    def told(self) -> dict[str, Any]:
        """What is noted, by part and by attribute ("teacher", "teacher.decay"): plain data."""
        return {key: value for _, noted in self._noted.values() for key, value in noted.items()}

    def check(self, then: dict[str, Any]) -> None:
        """Compare with what another run noted; what an earlier version did not note is not compared.

        Raises:
            ValueError: If they differ; names the part.
        """
        then = {"weighting": "None"} | then  # at first there was none
        for key, value in self.told().items():
            if key in then and value != (had := then[key]):
                self._noted = {}  # as they will be when that is mended
                raise ValueError(f"model.{key} is {value}, and the run had {had}: set it back, or begin a new run.")


def described(name: str, part: object) -> dict[str, Any]:
    """A part's class, or all of a dataclass; and those public attributes that are numbers, strings, bools or None."""
    kind = type(part).__name__ if name == "teacher" else repr(part).partition(" at 0x")[0]
    told = {f.name for f in fields(part)} if is_dataclass(part) and not isinstance(part, type) else set()
    plain = {k: v for k, v in getattr(part, "__dict__", {}).items() if type(v) in (int, float, str, bool, type(None))}
    return {name: kind} | {f"{name}.{k}": v for k, v in plain.items() if k not in told and not k.startswith("_")}
