"""A run in the terminal: what ran, its numbers over the steps, its samples token by token.

It reads the run folder only. What a model said is shown, never obeyed: control characters and the terminal's own codes
come out as visible text.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lit_atex import whole
from lit_atex.text_tables import before_after_table, read_results, results_table, with_bars

TRACE = {
    "exposure": "exposure/ratio",
    "competence": "competence/running",
    "correct": "competence/correct",
    "mismatch": "mismatch/forward_kl",
    "loss": "loss/divergence",
    "length": "length/mean",
    "entropy": "entropy/student",
    "reward": "exposure/reward",
    "progress": "exposure/progress",
    "share cut": "length/share_cut",
    "repetition": "collapse/repetition",
}
"""The rows of the trace, by column of metrics.csv."""

NUMBERS = tuple(TRACE)[:8]
"""Those that fit into 80 columns side by side."""

UNITS = "competence: running success; mismatch, loss and entropy: nats; length: tokens"

SCALE = {
    0.01: "",
    0.1: "black on #ffeda0",
    1.0: "black on #feb24c",
    3.0: "#ffffff on #e31a1c",
    math.inf: "#ffffff on #800026",
}
"""Colour of a token whose divergence in nats is below the number: the stronger, the more the teacher disagrees."""

WIDTH = 28  # of a sparkline: the trace fits into 80 columns


def safe(text: object) -> str:
    r"""The text with what a terminal would obey (control, format and separator characters) spelled out; \n stays."""
    obeyed = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "".join(ascii(c)[1:-1] if c != "\n" and unicodedata.category(c) in obeyed else c for c in str(text))


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The course of the values between their least and greatest; each mark is the mean of its share of them."""
    cells = min(width, len(values))
    means = []
    for i in range(cells):
        part = values[i * len(values) // cells : (i + 1) * len(values) // cells]
        means.append(sum(part) / len(part))
    low, high = min(means, default=0.0), max(means, default=0.0)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (m - low) / (high - low)) if high > low else 3] for m in means)


def inspect(run: str, samples: int = 3, step: int | None = None, every: int | None = None) -> None:
    """Show a run: what ran, its trace, its results, and samples with the tokens coloured by divergence.

    Args:
        run: The run folder.
        samples: How many samples to show, the latest; 0: none.
        step: Show the samples of this optimizer step.
        every: Show the numbers of each so many steps as a table too; of those that were logged, the next.
    """
    show(Path(run), Console(highlight=False), samples, step, every)


def show(run: Path, console: Console, samples: int = 3, step: int | None = None, every: int | None = None) -> None:
    """Print the run on a console.

    Raises:
        ValueError: If the folder holds no run, there is no such sample, or a number is out of range.
    """
    if samples < 0 or (every is not None and every < 1):
        raise ValueError(f"--samples must be at least 0 and --every at least 1, got {samples} and {every}.")
    manifest = _json(run / "manifest.json")
    if not isinstance(manifest, dict) or "commands" not in manifest:
        raise ValueError(f"{run} is no run folder of lit-atex: it has no manifest.json with the commands that ran.")
    rows = logged_steps(run)
    rollouts = whole.json_lines(run / "samples.jsonl")
    steps = sorted({row["step"] for row in rollouts})
    if step is not None and step not in steps:
        raise ValueError(
            f"--step {step}: there are samples of the steps {', '.join(map(str, steps)) or '(none)'} only."
        )

    _header(console, run, manifest, rows)
    _trace(console, run, rows)
    if every is not None:
        buckets = [int(row["step"]) // every for row in rows]
        _numbers(console, [row for i, row in enumerate(rows) if i == 0 or buckets[i] != buckets[i - 1]])
    _results(console, _json(run / "results.json") or {})
    chosen = [row for row in rollouts if step in (None, row["step"])]
    shown = chosen[len(chosen) - min(samples, len(chosen)) :]
    if shown:
        _legend(console)
    for i, row in enumerate(shown, 1):
        _sample(console, row, f"sample {i} of {len(shown)}")
    if len(shown) < len(rollouts):
        known = ", ".join(map(str, steps[:8])) + (f", ... {steps[-1]}" if len(steps) > 8 else "")
        console.print(Text(f"{len(shown)} of {len(rollouts)} samples; more: --samples N, --step K (there are {known})"))


def decided(run: Path) -> str:
    """What a strategy decided over a run and what that earned, in few lines; empty if it took no decisions."""
    decisions = whole.json_lines(run / "decisions.jsonl")
    if not decisions:
        return ""
    steps = f"steps {decisions[0]['decided_at']} to {decisions[-1]['decided_at']}"
    lines = [f"exposure: {len(decisions)} decisions, {steps}, a window each"]
    for name, values in {
        "decided": [d["ratio"] for d in decisions],
        "policy's mean": [d["details"]["mean"] for d in decisions if "mean" in d["details"]],
        "earned": [d["reward"] for d in decisions if d["reward"] is not None],
    }.items():
        if values:
            thirds = [values[i * len(values) // 3 : (i + 1) * len(values) // 3] or values for i in range(3)]
            means = "  ".join(f"{sum(third) / len(third):+.2f}"[name != "earned" :] for third in thirds)
            lines.append(f"  {name:<14}{sparkline(values):<{WIDTH}}  thirds of the run: {means}")
    return "\n".join(lines)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error


def logged_steps(run: Path) -> list[dict[str, float]]:
    """The rows of metrics.csv that are of training steps: numbers only, and what is not there left out."""
    every = csv.DictReader(whole.lines(run / "metrics.csv"))
    rows = [{k: float(v) for k, v in row.items() if k and v} for row in every]
    return [row for row in rows if "loss/divergence" in row]


def _header(console: Console, run: Path, manifest: dict[str, Any], rows: list[dict[str, float]]) -> None:
    commands = manifest["commands"]
    if manifest.get("stopped"):
        state = manifest["stopped"]
    elif manifest.get("finished"):
        state = "finished"
    elif "error" in manifest:
        state = f"failed: {manifest['error']}".removesuffix(": ")
    elif "finished" in manifest:
        state = "not finished: it runs, or was killed"
    else:
        state = "evaluated; not trained in this folder"
    steps = f"{manifest.get('optimizer_steps', int(rows[-1]['step']) + 1 if rows else 0)} optimizer steps"
    if manifest.get("skipped_steps"):
        steps += f", {manifest['skipped_steps']} of them skipped"
    commit = f"{(manifest.get('git_commit') or 'unknown')[:7]}{', with changes' if manifest.get('git_dirty') else ''}"
    known = {
        "run": str(run),
        "state": state,
        "command": shlex.join(map(str, commands[-1].get("command", []))),
        "began": f"{commands[0].get('began', '?')}{f', {len(commands)} commands' if len(commands) > 1 else ''}",
        "ended": manifest.get("ended", "-"),
        "steps": f"{steps}; seed {manifest.get('seed')}, {manifest.get('world_size')} process(es)",
        "commit": commit,
    }
    grid = Table.grid(padding=(0, 2))
    for name, value in known.items():
        grid.add_row(Text(name, "bold"), Text(safe(value)))
    console.print(grid)


def _trace(console: Console, run: Path, rows: list[dict[str, float]]) -> None:
    series = {name: [row[tag] for row in rows if tag in row] for name, tag in TRACE.items()}
    decisions = whole.json_lines(run / "decisions.jsonl")
    for name, key in {"decided": "ratio", "earned": "reward"}.items():
        series[name] = [float(d[key]) for d in decisions if d.get(key) is not None]
    span = f"steps {rows[0]['step']:.0f} to {rows[-1]['step']:.0f}" if rows else ""
    table = _table()
    table.add_column("", no_wrap=True)
    table.add_column(span, no_wrap=True)
    for heading in ("first", "last", "min", "max"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, values in series.items():
        if finite := [v for v in values if math.isfinite(v)]:
            figures = (finite[0], finite[-1], min(finite), max(finite))
            table.add_row(name, sparkline(finite), *(f"{v:.3g}" for v in figures))
    if table.rows:
        console.print(table)
        console.print(Text(UNITS, "dim"), soft_wrap=True)
    else:
        console.print(Text("no training step has been logged"))


def _numbers(console: Console, rows: list[dict[str, float]]) -> None:
    tags = {name: TRACE[name] for name in NUMBERS if any(TRACE[name] in row for row in rows)}
    table = _table()
    for heading in ("step", *tags):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(f"{row['step']:.0f}", *(f"{row[tag]:.3g}" if tag in row else "" for tag in tags.values()))
    console.print(table)


def _table() -> Table:
    """With little air, for 80 columns."""
    return Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))


def _results(console: Console, results: dict[str, Any]) -> None:
    trained = sorted((name for name in results if name.startswith("step-")), key=lambda n: int(n.removeprefix("step-")))
    if len(trained) > 1:
        before, after = (read_results(results[name]) for name in (trained[0], trained[-1]))
        _plain(console, f"{trained[0]} and {trained[-1]}: {before_after_table(before, after)}")
    for name in [n for n in results if n not in trained or len(trained) == 1]:
        _plain(console, results_table(name, read_results(results[name])))


def _legend(console: Console) -> None:
    legend = Text("divergence per token, nats: ")
    if _colours(console):
        for limit, style in SCALE.items():
            legend.append(f" < {limit:g} " if limit < math.inf else " more ", style)
    else:
        legend.append("bars under the tokens, from none (below 0.03) to █ (above 1.7)")
    console.print(legend, soft_wrap=True)


def _sample(console: Console, row: dict[str, Any], title: str) -> None:
    verdict = str(row["verdict"])
    head = Text(f"── {title} · step {row['step']} · ")
    head.append(safe(verdict), "bold green" if verdict == "correct" else "bold red")
    head.append(safe(f" · exposure {row['exposure']:.2f} · reference answer {row['answer']} · {row['id']}"))
    console.print()
    console.print(head, soft_wrap=True)
    for name in ("question", "hint"):
        console.print(Text(name, "bold"))
        console.print(Text(safe(row[name]) or "(nothing)", "dim"), soft_wrap=True)
    console.print(Text("completion", "bold"))
    tokens, values = [safe(t) for t in row["tokens"]], row["divergence"]
    if not _colours(console):
        for line, bars in with_bars(tokens, values):
            _plain(console, line)
            if bars.strip():
                _plain(console, bars)
        return
    text = Text()
    for token, value in zip(tokens, values):
        style = next((s for limit, s in SCALE.items() if value < limit), SCALE[math.inf])
        text.append(token.replace("\n", "↵"), style)
        text.append("\n" * token.count("\n"))
    console.print(text, soft_wrap=True)


def _colours(console: Console) -> bool:
    return console.is_terminal and console.color_system is not None and not console.no_color


def _plain(console: Console, text: str) -> None:
    """Text as it stands: no markup, no wrapping."""
    console.print(Text(safe(text)), soft_wrap=True)
