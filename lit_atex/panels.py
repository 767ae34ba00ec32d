"""Figures of many panels, laid out; it knows neither numbers nor tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DARK = "#333333"
COLUMNS = 4
"""Side by side, at most; more would be too small to read."""
WIDTH, HEIGHT = 2.8, 1.9
"""Of a panel of `by_cell`, inches."""
LEFT, RIGHT, TOP, BOTTOM, ACROSS, DOWN = 0.75, 0.15, 0.55, 0.55, 0.15, 0.45
"""Around and between them, inches. Fixed, so that a figure is drawn in half the time that a layout takes to find."""


def in_rows(panels: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """So many panels of scales of their own, row by row.

    Args:
        panels: >= 1.
        columns: In a row, at most.
        width: Of a panel, inches.
        height: Of a panel, inches.
    """
    columns = min(panels, columns)
    rows = -(-panels // columns)
    size = (max(width * columns + 0.6, 5.6), height * rows + 0.7)
    figure, axes = _figure(rows, columns, size, False, layout="constrained")
    for axis in axes[panels:]:
        axis.set_visible(False)
    return figure, axes[:panels]


def by_cell(cells: Iterable[str], along: str, upward: str, caption: str) -> tuple[Figure, list[Axes]]:
    """A panel for each cell, under its name; a column for each value of the last axis, where these are few.

    Args:
        cells: Names, `axis=value,axis=value`.
        along: What the horizontal axis of all is.
        upward: What the vertical one is.
        caption: Above all.
    """
    names = list(cells)
    split = [tuple(part.partition("=")[::2] for part in name.split(",")) for name in names]
    axes_alike = len({tuple(axis for axis, _ in parts) for parts in split}) == 1 < len(split[0])
    last = list(dict.fromkeys(parts[-1] for parts in split))
    places = [divmod(i, COLUMNS) for i in range(len(names))]
    if axes_alike and 1 < len(last) <= COLUMNS:
        first = list(dict.fromkeys(parts[:-1] for parts in split))
        places = [(first.index(parts[:-1]), last.index(parts[-1])) for parts in split]
    rows, columns = (1 + max(place) for place in zip(*places))
    wide = max(LEFT + columns * (WIDTH + ACROSS) - ACROSS + RIGHT, 5.6)
    high = TOP + rows * (HEIGHT + DOWN) - DOWN + BOTTOM
    figure, axes = _figure(rows, columns, (wide, high), True)
    sides = {"left": LEFT / wide, "right": 1 - RIGHT / wide, "top": 1 - TOP / high, "bottom": BOTTOM / high}
    figure.subplots_adjust(**sides, wspace=ACROSS / WIDTH, hspace=DOWN / HEIGHT)
    used = [row * columns + column for row, column in places]
    for place, axis in enumerate(axes):
        axis.set_visible(place in used)
        if place + columns not in used:  # shared axes hide numbers where there is a place beside, even an empty one
            axis.tick_params(labelbottom=True)
        if place - 1 not in used:
            axis.tick_params(labelleft=True)
    for name, place in zip(names, used):
        axes[place].set_title(name, fontsize=8, parse_math=False)
    figure.supxlabel(along, fontsize=9, y=0.1 / high)
    figure.supylabel(upward, fontsize=9, x=0.1 / wide)
    figure.suptitle(caption, fontsize=8, color=DARK, y=1 - 0.1 / high, parse_math=False, wrap=True)
    return figure, [axes[place] for place in used]


def _figure(
    rows: int, columns: int, size: tuple[float, float], shared: bool, **options: Any
) -> tuple[Figure, list[Axes]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, **options)
    axes = list(figure.subplots(rows, columns, squeeze=False, sharey=shared, sharex=shared).ravel())
    for axis in axes:
        axis.grid(alpha=0.25, linewidth=0.5)
        axis.tick_params(labelsize=8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    return figure, axes
