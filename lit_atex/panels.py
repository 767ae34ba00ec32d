"""Figures of many panels, laid out; it knows neither numbers nor tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 4
"""Side by side, at most; more would be too small to read."""


def in_rows(
    panels: int, columns: int, width: float = 2.9, height: float = 2.3, shared: bool = True
) -> tuple[Figure, list[Axes]]:
    """So many panels, row by row.

    Args:
        panels: >= 1.
        columns: In a row, at most.
        width: Of a panel, inches.
        height: Of a panel, inches.
        shared: Whether all have the same scales.
    """
    from matplotlib.figure import Figure

    columns = min(panels, columns)
    rows = -(-panels // columns)
    figure = Figure(figsize=(max(width * columns + 0.6, 5.6), height * rows + 0.7), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=shared, sharex=shared).ravel())
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for axis in axes[panels:]:
        axis.set_visible(False)
    for axis in axes[max(panels - columns, 0) : panels]:
        axis.tick_params(labelbottom=True)  # shared axes hide them where the grid has a row below that is empty
    return figure, axes[:panels]


def by_cell(cells: Iterable[str]) -> tuple[Figure, list[Axes]]:
    """A panel for each cell, under its name; a column for each value of the last axis, where these are few."""
    names = list(cells)
    split = [tuple(part.partition("=")[::2] for part in name.split(",")) for name in names]
    axes_alike = len({tuple(axis for axis, _ in parts) for parts in split}) == 1 < len(split[0])
    columns = list(dict.fromkeys(parts[-1] for parts in split))
    places = [divmod(i, COLUMNS) for i in range(len(names))]
    if axes_alike and 1 < len(columns) <= COLUMNS:
        rows = list(dict.fromkeys(parts[:-1] for parts in split))
        places = [(rows.index(parts[:-1]), columns.index(parts[-1])) for parts in split]
    width = 1 + max(column for _, column in places)
    figure, axes = in_rows(width * (1 + max(row for row, _ in places)), width)
    used = [row * width + column for row, column in places]
    for place, axis in enumerate(axes):
        axis.set_visible(place in used)
        if place in used and place + width not in used:
            axis.tick_params(labelbottom=True)
    for name, place in zip(names, used):
        axes[place].set_title(name, fontsize=8, parse_math=False)
    return figure, [axes[place] for place in used]
