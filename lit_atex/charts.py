"""The pictures of a report, from its tables alone: what is committed can be drawn again. It knows no run folder.

One hue, and lines that differ in dash and mark: nothing hangs on telling colours apart, and a grey print says the same.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from math import isfinite, isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_atex.panels import DARK, by_cell, in_rows
from lit_atex.plots import BAND, LINE
from lit_atex.spread import mean_of, t_interval
from lit_atex.tables import Row, Tables, of_other_problems

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY = "#888888"


def _groups(rows: Iterable[Row], *keys: str) -> dict[Any, list[Row]]:
    found: dict[Any, list[Row]] = {}
    for row in rows:
        found.setdefault(row[keys[0]] if len(keys) == 1 else tuple(row[key] for key in keys), []).append(row)
    return found


def _known(rows: list[Row], *names: str) -> list[Row]:
    return [row for row in rows if not any(isnan(row[name]) for name in names)]


def _spread(rows: list[Row], name: str) -> float:
    return max(row[name] for row in rows) - min(row[name] for row in rows)


def _band(axis: Axes, xs: list[float], rows: list[Row]) -> None:
    """The 95 % interval over seeds; nothing where it is unknown, as of one seed."""
    low, high = ([row[name] for row in rows] for name in ("seeds_low", "seeds_high"))
    known = [False, *map(isfinite, low), False]
    alone = [i for i in range(len(xs)) if known[i + 1] and not (known[i] or known[i + 2])]
    for i in alone:  # which an area of no width would not show
        axis.vlines(xs[i], low[i], high[i], color=BAND, linewidth=2)
    if len(alone) < sum(known):
        axis.fill_between(xs, low, high, color=BAND, alpha=0.35, linewidth=0)


def exposure(tables: Tables) -> Figure | None:
    """Each metric against exposure: fixed ones along the axis, the other strategies beside it."""
    means = {(row["cell"], row["metric"]): row for row in tables.cells}
    families = {run["cell"]: run["family"] for run in tables.runs}
    first = [row | {"family": families[row["cell"]]} for row in _known(tables.curves, "value") if row["step"] == 0]
    before = {key: mean_of([row["value"] for row in rows]) for key, rows in _groups(first, "metric", "family").items()}
    names = list(_groups(tables.cells, "metric"))
    return _against_exposure(tables, names, lambda name, cell: means[cell, name], before)


def mismatch(tables: Tables) -> Figure | None:
    """KL(teacher || student) against exposure, at the first step and as a mean over the run."""
    by_cell = _groups(tables.runs, "cell")
    column = {"mismatch at the first step, nats": "first_mismatch", "mismatch, mean of the run, nats": "mismatch"}

    def value(name: str, cell: str) -> Row:
        values = [run[column[name]] for run in by_cell[cell] if not isnan(run[column[name]])]
        low, high = t_interval(values)
        low = max(low, 0.0) if isfinite(low) else low  # no divergence is less
        return {"mean": mean_of(values), "seeds_low": low, "seeds_high": high}

    return _against_exposure(tables, list(column), value, {})


def _against_exposure(
    tables: Tables, names: list[str], value: Callable[[str, str], Row], before: dict[tuple[str, str], float]
) -> Figure | None:
    """A panel a family of cells and quantity, grey dashes where it was before training.

    What is not fixed has no place on the axis: its name stands for one. The panels of a quantity have one scale.
    """
    families = _groups(_known(tables.runs, "exposure"), "family")
    if all(len(_groups(rows, "cell")) < 2 for rows in families.values()):  # one exposure has no curve
        return None
    others = max(len({r["cell"] for r in rows if r["strategy"] != "Fixed"}) for rows in families.values())
    figure, axes = in_rows(len(names) * len(families), min(len(families), 3), 3.2 + 0.3 * others, 3.0)
    known = set()  # panels that show any number; an empty one has matplotlib's scale
    for axis, (name, (family, runs)) in zip(axes, ((n, f) for n in names for f in families.items())):
        place = {cell: mean_of([run["exposure"] for run in of_cell]) for cell, of_cell in _groups(runs, "cell").items()}
        fixed = sorted({r["cell"] for r in runs if r["strategy"] == "Fixed"}, key=place.__getitem__)
        xs, rows = [place[cell] for cell in fixed], [value(name, cell) for cell in fixed]
        _band(axis, xs, rows)
        axis.plot(xs, [row["mean"] for row in rows], color=LINE, marker="o", markersize=4)
        ticks = {x: f"{x:.2g}" for x in xs}
        for i, cell in enumerate(cell for cell in place if cell not in fixed):
            row, x = value(name, cell), 1.2 + 0.16 * i
            reach = [[row["mean"] - row["seeds_low"]], [row["seeds_high"] - row["mean"]]]
            style: dict[str, Any] = {"color": DARK, "markerfacecolor": "white", "markersize": 5, "capsize": 2}
            axis.errorbar(x, row["mean"], reach if isfinite(reach[0][0]) else None, fmt="s", linewidth=0.9, **style)
            ticks[x] = f"{_short(cell, family)} ({place[cell]:.2f})"
        if len(ticks) > len(xs):
            axis.axvline(1.1, color=GREY, linewidth=0.6)
        axis.set_xticks(list(ticks), list(ticks.values()), rotation=90, fontsize=7, parse_math=False)
        if any(isfinite(value(name, cell)["mean"]) for cell in place):
            known.add(axis)
        if (name, family) in before:
            axis.axhline(before[name, family], color=GREY, linestyle="--", linewidth=1.0)
        axis.set_title(", ".join(filter(None, (name, family))), fontsize=9, parse_math=False)
    for i in range(len(names)):
        of_name = [axis for axis in axes[i * len(families) : (i + 1) * len(families)] if axis in known]
        if not of_name:
            continue
        low, high = zip(*(axis.get_ylim() for axis in of_name))
        for axis in of_name:
            axis.set_ylim(min(low), max(high))
    about = "left: exposure held fixed; right: other strategies (mean exposure)" if others else "exposure held fixed"
    about += "; 95 % over seeds, Student's t"
    about += "; grey dashes: before training" if before else ""
    figure.suptitle(about, fontsize=8, color=DARK, wrap=True)
    figure.supxlabel("exposure", fontsize=9)
    return figure


def _short(cell: str, family: str) -> str:
    """A cell's name less what its family says already."""
    shared = set(family.split(","))
    parts = [part for part in cell.split(",") if part not in shared]
    return ",".join(part.partition("=")[2] or part for part in parts) or cell


def traces(tables: Tables) -> Figure | None:
    """Exposure over training, a panel for each cell in which it moves: seeds thin, their mean thick."""
    moving = [
        row
        for rows in _groups(_known(tables.traces, "exposure"), "cell").values()
        if any(_spread(of_seed, "exposure") > 1e-6 for of_seed in _groups(rows, "seed").values())
        for row in rows
    ]
    return _over_training(moving, "exposure", "exposure", None, (-0.03, 1.03))


def mismatch_over_training(tables: Tables) -> Figure | None:
    """KL(teacher || student) on the completions that are learned from, over training, and the baseline's beside it."""
    return _over_training(tables.traces, "mismatch", "mismatch, nats", baseline_of(tables), None)


def length(tables: Tables) -> Figure | None:
    """Mean length of the completions that are learned from over training, and the baseline's beside it."""
    return _over_training(tables.traces, "length", "tokens of what is learned from", baseline_of(tables), None)


def entropy(tables: Tables) -> Figure | None:
    """The student's entropy over training, and the baseline's beside it."""
    return _over_training(tables.traces, "entropy", "student entropy, nats", baseline_of(tables), None)


def baseline_of(tables: Tables) -> dict[str, str]:
    """Baseline by cell."""
    return {row["cell"]: row["baseline"] for row in tables.comparisons}


def curves(tables: Tables) -> dict[str, Figure]:
    """Learning curves, a figure a metric: held-out problems, at each evaluation."""
    found = {}
    for metric, rows in _groups(tables.curves, "metric").items():
        apart = {cell for cell, of in of_other_problems(tables.comparisons) if of == metric}
        baselines = {cell: other for cell, other in baseline_of(tables).items() if cell not in apart}
        figure = _over_training(rows, "value", metric, baselines, None, mark="o")
        if figure is not None:
            found[metric] = figure
    return found


def _over_training(
    rows: list[Row], name: str, label: str, baselines: dict[str, str] | None, limits: Any, mark: str = ""
) -> Figure | None:
    """A panel a cell, the steps along; a cell's baseline is the grey dashed line."""
    cells = _groups(_known(rows, name), "cell")
    if all(len(_groups(of_cell, "step")) < 2 for of_cell in cells.values()):  # nothing, or single points: no course
        return None
    others = set((baselines or {}).values())
    told = f"; grey dashes: the baseline{f', {others.pop()}' if len(others) == 1 else ''}" if others else ""
    caption = f"thin: one seed; thick: mean over seeds{told}"
    figure, panels = by_cell(cells, "optimizer steps", label, caption)
    for (cell, of_cell), axis in zip(cells.items(), panels):
        for of_seed in _groups(of_cell, "seed").values():
            steps, values = [r["step"] for r in of_seed], [r[name] for r in of_seed]
            axis.plot(steps, values, color=BAND, linewidth=0.8, marker=mark, markersize=3)
        axis.plot(*_mean_line(of_cell, name), color=LINE, linewidth=1.6, marker=mark, markersize=3, label="mean")
        other = (baselines or {}).get(cell)
        if other in cells:
            axis.plot(*_mean_line(cells[other], name), "--", color=GREY, linewidth=1.2, label="baseline")
        if limits:
            axis.set_ylim(*limits)
    return figure


def _mean_line(rows: list[Row], name: str) -> tuple[list[float], list[float]]:
    """Where all seeds have a value: a mean over fewer of them would jump as if something had happened."""
    seeds = len({row["seed"] for row in rows})
    by_step = sorted((step, at_step) for step, at_step in _groups(rows, "step").items() if len(at_step) == seeds)
    return [step for step, _ in by_step], [mean_of([r[name] for r in at_step]) for _, at_step in by_step]


def pass_at_k(tables: Tables) -> dict[str, Figure]:
    """pass@k, a figure a set and a panel a cell: before training in grey dashes, after it with its band over seeds."""
    from matplotlib.ticker import NullLocator

    from lit_atex.evaluation import shown_ks

    found = {}
    for name, of_set in _groups(tables.pass_at_k, "set").items():
        cells = _groups(of_set, "cell")
        caption = "line: after training, with 95 % over seeds (Student's t)"
        caption = f"grey dashes: before training; {caption}" if any(r["when"] == "before" for r in of_set) else caption
        figure, axes = by_cell(cells, "k, samples that one may try", f"pass@k on {name}", caption)
        for rows, axis in zip(cells.values(), axes):
            for when, of_time in _groups(rows, "when").items():
                ks = [row["k"] for row in of_time]
                style: dict[str, Any] = {"color": GREY, "linestyle": "--", "marker": "s"}
                if when == "after":
                    _band(axis, ks, of_time)
                    style = {"color": LINE, "linestyle": "-", "marker": "o"}
                axis.plot(ks, [row["mean"] for row in of_time], markersize=3, label=when, **style)
            axis.set_xscale("log", base=2)
            shown = shown_ks(int(max(row["k"] for row in rows)))
            axis.set_xticks(shown, [str(k) for k in shown])
            axis.xaxis.set_minor_locator(NullLocator())
        axes[0].set_ylim(0, 1.02)
        found[name] = figure
    return found


def draw(tables: Tables) -> dict[str, Figure]:
    """All figures that the tables have numbers for, by file name without ending."""
    found: dict[str, Figure | None] = {"exposure": exposure(tables), "mismatch": mismatch(tables)}
    found |= {"traces": traces(tables), "mismatch-over-training": mismatch_over_training(tables)}
    found |= {f"curves-{_file(metric)}": figure for metric, figure in curves(tables).items()}
    found |= {f"pass_at_k-{_file(name)}": figure for name, figure in pass_at_k(tables).items()}
    found |= {"length": length(tables), "entropy": entropy(tables)}
    return {name: figure for name, figure in found.items() if figure is not None}


def _file(name: str) -> str:
    return name.replace("/", "-").replace("@", "-at-")


def png(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the bytes of a PNG file, with a palette: a third of the size, for pictures that are kept in git."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    FigureCanvasAgg(figure)
    buffer, small = io.BytesIO(), io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    colours = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
    colours.save(small, "PNG", optimize=True)
    return small.getvalue()


def save(figures: dict[str, Figure], folder: Path) -> list[Path]:
    """Write them as PNG.

    Returns:
        The files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        (folder / f"{name}.png").write_bytes(png(figure))
    return [folder / f"{name}.png" for name in figures]
