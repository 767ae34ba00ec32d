"""Pictures of results. It knows results, not where they came from; matplotlib is imported when one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lit_atex.evaluation import Result, shown_ks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE, BAND = "#0072B2", "#56B4E9"
"""Two blues of Okabe and Ito's palette, which differ in lightness too: one hue, so nothing hangs on telling colours."""


def pass_at_k_figure(results: list[Result]) -> Figure:
    """pass@k against k, a panel for each set: the band is over problems, the dashes are with problems fixed."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    columns = min(len(results), 3)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(max(3.4 * columns + 0.4, 5.0), 2.9 * rows + 0.5), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    top = max(e.over[1] for r in results for k, e in r.metrics.items() if k.startswith("pass@"))  # from 0, on one scale
    for axis, result in zip(axes, results):
        n = result.samples
        ks = list(range(1, n + 1))
        found = [result.metrics[f"pass@{k}"] for k in ks]
        over, fixed, values = zip(*((e.over, e.fixed, e.value) for e in found))
        marks = {"marker": "o", "markersize": 3}
        if n == 1:  # an area of no width is not seen; with its problem fixed, one sample says nothing
            axis.vlines(ks, *zip(*over), color=BAND, linewidth=2, label="95 % over problems")
        else:
            axis.fill_between(ks, *zip(*over), color=BAND, alpha=0.35, linewidth=0, label="95 % over problems")
            for ends, label in zip(zip(*fixed), ("95 %, problems fixed", None)):
                axis.plot(ks, ends, color=LINE, linestyle="--", linewidth=0.9, label=label)
        axis.plot(ks, values, color=LINE, label="pass@k", **marks)
        axis.set_title(f"{result.name} ({result.problems} problems)", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(shown_ks(n), [str(k) for k in shown_ks(n)])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylim(0, min(1.02, 1.2 * top))
        axis.set_xlabel("k, samples that one may try", fontsize=9)
        axis.grid(alpha=0.25, linewidth=0.5)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    axes[0].set_ylabel("pass@k", fontsize=9)
    for axis in axes[len(results) :]:
        axis.set_visible(False)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return figure


def save_pass_at_k(results: list[Result], path: Path, tensorboard: Path, tag: str) -> None:
    """Write the figure as PNG, and as an image for TensorBoard."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from torch.utils.tensorboard import SummaryWriter

    figure = pass_at_k_figure(results)
    FigureCanvasAgg(figure)
    figure.savefig(path, dpi=150)
    with SummaryWriter(str(tensorboard)) as writer:
        writer.add_figure(tag, figure, close=False)
