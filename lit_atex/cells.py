"""Which runs belong together: a cell is one setting in several seeds, a family are cells that differ in exposure alone.

And which cell each is compared with.
"""

from __future__ import annotations

from collections.abc import Iterable

from lit_atex.runs import Record

NAMED = 3
"""So many settings are named where families would bear one name, of values no longer than SHORT characters."""
SHORT = 24


def by_cell(runs: Iterable[Record]) -> dict[str, list[Record]]:
    """The runs of each cell, in order of their seeds."""
    found: dict[str, list[Record]] = {}
    for run in runs:
        found.setdefault(run.cell, []).append(run)
    return {cell: sorted(of_cell, key=lambda run: run.seed) for cell, of_cell in found.items()}


def family_of(runs: list[Record]) -> dict[str, str]:
    """By cell: what sets it apart from others in more than exposure; cells of one family differ in exposure alone.

    Where their names do not tell two families apart, the settings do in which they differ, or a number.
    """
    groups: dict[str, list[Record]] = {}
    settings: dict[str, dict[str, str]] = {}
    for run in runs:
        other = {key: str(value) for key, value in run.config.items() if not key.startswith("exposure.")}
        key = repr(sorted(other.items()))
        groups.setdefault(key, []).append(run)
        settings[key] = other
    names = {}
    for key, group in groups.items():
        shared = set.intersection(*(set(run.settings.items()) for run in group))
        names[key] = ",".join(f"{axis}={value}" for axis, value in group[0].settings.items() if (axis, value) in shared)
    found: dict[str, str] = {}
    for key, group in groups.items():
        twins = [settings[other] for other in names if names[other] == names[key]]
        differing = [k for k in settings[key] if len({twin.get(k) for twin in twins}) > 1]
        short = [k for k in differing if len(settings[key][k]) <= SHORT and settings[key][k].isprintable()][:NAMED]
        told = [f"{k.rpartition('.')[2]}={settings[key][k]}" for k in short]
        name = ",".join(filter(None, [names[key], *told]))
        if name in found.values():
            name += f" ({len(set(found.values())) + 1})"
        found |= {run.cell: name for run in group}
    return found


def baselines_of(cells: dict[str, list[Record]], baseline: dict[str, str] | str | None) -> dict[str, str]:
    """By cell what it is compared with: the cell of its folder that differs in these axes alone, or the one named.

    Cells that have none, as those without these axes, are left out.

    Raises:
        ValueError: If no cell has a baseline, though one was asked for.
    """
    if baseline is None:
        return {}
    found: dict[str, str] = {}
    for cell, runs in cells.items():
        if isinstance(baseline, str):
            found |= {cell: baseline} if baseline in cells else {}
        elif baseline.keys() <= runs[0].settings.keys():
            goal = runs[0].settings | baseline
            same = [name for name, of in cells.items() if of[0].settings == goal and _folder(name) == _folder(cell)]
            found |= {cell: same[0]} if same else {}
    if not found:
        told = baseline if isinstance(baseline, str) else ",".join(f"{a}={v}" for a, v in (baseline or {}).items())
        raise ValueError(f"--baseline: there is no finished {told}; there are {', '.join(cells)}.")
    return {cell: other for cell, other in found.items() if cell != other}


def _folder(cell: str) -> str:
    return cell.rpartition("/")[0]
