"""Which of a run's evaluations is the best, by what, and whether that is a fair choice. It knows results and names.

The choice is made on validation sets. Choosing by a benchmark reports the luckiest of several draws as if it were one;
it takes `checkpoint.allow_test_selection`, and then every table says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_atex import whole

if TYPE_CHECKING:
    from lit_atex.data import ProblemDataModule
    from lit_atex.sources import Source

MEAN = "validation/mean"
"""avg@n, averaged over the validation sets."""
BENCHMARKS = re.compile(r"(?<![a-z])(aime[-_ ]?(20)?2[4-9]|aimo-validation-aime|hmmt|math[-_ ]?500)")
"""Sets that are there to be reported on, by what they, their data sets and their files are called."""


def of_test_set(monitor: str, data: ProblemDataModule) -> bool:
    """Whether a monitor is of a test set: "test/...", or one that stands among the validation sets.

    That is known of a benchmark, of a split whose name begins with "test", and of a file with the word in its name. A
    copy under a name that says nothing is not known; that it shares questions with `data.test` is an error anyway.
    """
    kind, _, rest = monitor.partition("/")
    names = list(data.validation_names) if monitor == MEAN else [rest.rpartition("/")[0]]
    sources = {name: data.validation[name] for name in names if name in data.validation}
    return kind == "test" or any(_is_test(name, source) for name, source in sources.items())


def _is_test(name: str, source: Source) -> bool:
    called = [name, source.name, str(getattr(source, "path", ""))]  # a data set's id, a file or a folder
    split = str(getattr(source, "split", ""))
    said = split.casefold().startswith("test") or "test" in re.split(r"[^a-z]+", source.name.casefold())
    return said or any(BENCHMARKS.search(text.casefold()) for text in called)


def check(monitor: str, data: ProblemDataModule, metrics: list[str], allowed: bool) -> None:
    """Refuse a choice that is not one.

    Args:
        monitor: "validation/mean", or "validation/SET/METRIC".
        data: Knows the sets.
        metrics: Names of the metrics that a set has.
        allowed: Whether a test set may choose.

    Raises:
        ValueError: If the monitor is of a test set and that is not allowed, or there is no such set or metric.
    """
    if of_test_set(monitor, data) and not allowed:
        raise ValueError(
            f"checkpoint.monitor: {monitor} would choose the weights on a test set, whose number is then no test: name "
            "a validation set (validation/SET/avg@n), or set checkpoint.allow_test_selection true; tables then say so."
        )
    kind, _, rest = monitor.partition("/")
    name, _, metric = rest.rpartition("/")
    if monitor != MEAN and (kind != "validation" or name not in data.validation_names or metric not in metrics):
        raise ValueError(
            f"checkpoint.monitor: {monitor}: name {MEAN}, or validation/SET/METRIC with a set of data.validation "
            f"({', '.join(data.validation_names)}) and one of the metrics {', '.join(metrics)}."
        )


def scores(results: dict[str, list[dict[str, Any]]], monitor: str) -> dict[int, float]:
    """What the monitor was after each number of optimizer steps at which a run was evaluated, step 0 among them."""
    found = {}
    name, _, metric = monitor.partition("/")[2].rpartition("/")
    for evaluation, sets in results.items():
        if evaluation.startswith("step-") and sets:
            step = int(evaluation.removeprefix("step-"))
            by_name = {one["name"]: one for one in sets}
            if monitor == MEAN:
                found[step] = sum(one["average"] for one in sets) / len(sets)
            elif metric in by_name.get(name, {}).get("metrics", {}):  # other eval_samples have other metrics
                found[step] = by_name[name]["metrics"][metric]["value"]
    return found


def best(results: dict[str, list[dict[str, Any]]], monitor: str, mode: str = "max") -> int | None:
    """The step with the best score, the earliest of equals; step 0 is no choice. None if there is no other."""
    found, sign = scores(results, monitor), 1 if mode == "max" else -1
    return max(sorted(found.keys() - {0}), key=lambda step: sign * found[step], default=None)


def summary(results: dict[str, list[dict[str, Any]]], monitor: str, mode: str, on_test: bool) -> dict[str, Any]:
    """Last and best of a run, as the manifest keeps them: their steps, and `words` for a reader; empty without any."""
    found, top = scores(results, monitor), best(results, monitor, mode)
    if top is None:
        return {}
    start, last = found.pop(0, None), max(found)
    text = f"last: step {last} ({monitor} {found[last]:.3f}); best on {'a TEST SET' if on_test else 'validation'}: "
    text += f"step {top} ({found[top]:.3f}, of {len(found)} evaluation{'s' if len(found) > 1 else ''})"
    if on_test:
        text += ". The best was chosen on a test set (checkpoint.allow_test_selection): its number is no test."
    elif top != last:
        text += ", the best of several and so too good: what it is worth, other problems tell (lit-atex evaluate)."
    if start is not None and (start > found[top] if mode == "max" else start < found[top]):
        text += f"{'' if text.endswith('.') else '.'} The untouched model had {start:.3f}."
    return {"monitor": monitor, "mode": mode, "on_test": on_test, "last": last, "best": top, "words": text}


def origin(student: str, checkpoint: str | None) -> dict[str, Any]:
    """What a run folder says of weights that come from it; empty for others.

    Args:
        student: Name or folder of the model.
        checkpoint: The checkpoint that was loaded over it, if any.
    """
    if not checkpoint and Path(student).name != "student":  # as a run writes it
        return {}
    folder = Path(checkpoint).parent.parent if checkpoint else Path(student).parent
    chosen = whole.read_json(folder / "manifest.json").get("selection")
    if not chosen or not isinstance(chosen, dict):  # empty: it was not evaluated after a step
        return {}
    which = "best" if checkpoint and Path(checkpoint).name == "best.ckpt" else "last"
    found: dict[str, Any] = {"weights": f"{which} of {folder}, step {chosen[which]}", "run": chosen["words"]}
    if which == "best" and chosen["on_test"]:
        found["WARNING"] = "the weights were chosen on a test set (checkpoint.allow_test_selection)"
    return found
