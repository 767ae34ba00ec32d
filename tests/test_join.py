"""Tables of reports, joined: as the report of all runs at once would have them."""

import importlib.util
from pathlib import Path

import pytest
from fake_runs import write_run

from lit_atex import runs, tables

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("join", ROOT / "results/join.py")
join = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(join)
OF_PROBLEMS = {"problems", "problems_low", "problems_high", "p_problems", "p_holm"}


def made(*folders):
    """The tables of a report, as they are written and read back."""
    folder = folders[0].parent / f"tables-{len(folders)}-{folders[0].name}"
    tables.write(tables.make(runs.find(list(folders))[0], [], {"exposure": "full"}), folder)
    return tables.read(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A grid of two exposures and two degrees of terseness, run in two halves: the seeds, or the degrees."""
    root = tmp_path_factory.mktemp("joined")
    halves = {"seeds": ("seed", 0, 2), "cells": ("terseness", 0.0, 1.0)}
    for seed in range(4):
        for terseness in (0.0, 1.0):
            for name, exposure in (("half", 0.5), ("full", 1.0)):
                for kind, (_, _, middle) in halves.items():
                    late = (seed if kind == "seeds" else terseness) >= middle
                    for folder in (root / "all" / kind, root / kind / f"part-{int(late)}"):
                        write_run(
                            folder / f"exposure={name},terseness={terseness},seed={seed}",
                            *("Fixed", [exposure] * 4, seed),
                            **{"problems": 8, "samples": 2, "every": 2, "terseness": terseness},
                            **{"tokens": 1000 * exposure, "best": 0.5 + terseness / 2},
                        )
    return root


@pytest.mark.parametrize("kind", ["seeds", "cells"])
def test_joined_tables_are_those_of_one_report(folders, kind):
    together = made(folders / "all" / kind)
    joined = join.join([made(folders / kind / f"part-{i}") for i in (0, 1)])
    for name in tables.Tables._fields:
        if name == "pass_at_k" and kind == "seeds":
            continue  # of single answers, which tables do not have
        expected, got = getattr(together, name), getattr(joined, name)
        assert len(expected) == len(got) > 0, name
        for row, other in zip(expected, got):
            for key, value in row.items():
                if key == "run" or (key in OF_PROBLEMS and kind == "seeds"):
                    continue
                told = (name, row, key)
                if isinstance(value, float):
                    assert other[key] == pytest.approx(value, rel=2e-4, abs=2e-6, nan_ok=True), told
                else:
                    assert ("" if other[key] is None else other[key]) == value, told


def test_tables_joined_with_nothing_stay_as_they_are(folders):
    one = made(folders / "all/cells")
    again = join.join([one])
    assert again.runs == one.runs
    assert again.traces == one.traces
    assert [row["cell"] for row in again.comparisons] == [row["cell"] for row in one.comparisons]


def test_a_run_that_is_in_two_folders_is_refused(folders):
    with pytest.raises(ValueError, match=r"exposure=full,terseness=0\.0, seed 0: this run is in two"):
        join.join([made(folders / "cells/part-0"), made(folders / "all/cells")])


def test_of_some_metrics_alone(folders):
    one = made(folders / "all/cells")
    (metric,) = {row["metric"] for row in one.cells}
    assert join.only(one, [metric]).cells == one.cells
    assert not any(join.only(one, ["another/avg@2"])[1:5])
