"""Tables of reports, joined: as the report of all runs at once would have them."""

import importlib.util
from pathlib import Path

import pytest
from fake_runs import write_run

from lit_atex import runs, tables
from lit_atex.report import markdown

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("join", ROOT / "results/join.py")
join = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(join)
OF_PROBLEMS = {"problems", "seen", "problems_low", "problems_high", "p_problems", "p_holm"}


def made(*folders):
    """The tables of a report, as they are written and read back; without a baseline where there is none."""
    found = runs.find(list(folders))[0]
    there = any(run.settings["exposure"] == "full" for run in found)
    folder = folders[0].parent / f"tables-{len(folders)}-{folders[0].name}"
    tables.write(tables.make(found, [], {"exposure": "full"} if there else None), folder)
    return tables.read(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A grid of three exposures and two degrees of terseness, cut in two: by seeds, by terseness, or by exposure."""
    root = tmp_path_factory.mktemp("joined")
    for seed in range(4):
        for terseness in (0.0, 1.0):
            for name, exposure in (("half", 0.5), ("full", 1.0), ("less", 0.25)):
                late = {"seeds": seed >= 2, "terseness": terseness == 1.0, "exposure": exposure == 0.25}
                for kind, second in late.items():
                    for folder in (root / "all" / kind, root / kind / f"part-{int(second)}"):
                        write_run(
                            folder / f"exposure={name},terseness={terseness},seed={seed}",
                            *("Fixed", [exposure] * 4, seed),
                            **{"problems": 6, "samples": 2, "every": 2, "terseness": terseness},
                            **{"tokens": 1000 * exposure, "best": 0.5 + terseness / 2},
                        )
    return root


def assert_same(expected, got, without=frozenset()):
    for name in tables.Tables._fields:
        if name in without:
            continue
        rows, others = getattr(expected, name), getattr(got, name)
        assert [list(row) for row in rows] == [list(row) for row in others], name
        for row, other in zip(rows, others):
            for key, value in row.items():
                if key == "run" or key in without:
                    continue
                told, found = (name, row, key), "" if other[key] is None else other[key]
                if isinstance(value, float):
                    assert found == pytest.approx(value, rel=1e-5, abs=1e-9, nan_ok=True), told
                else:
                    assert found == value, told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "without"),
    [
        ("terseness", set()),
        ("exposure", OF_PROBLEMS),
        ("seeds", OF_PROBLEMS | {"pass_at_k"}),
    ],
)
def test_joined_tables_are_those_of_one_report(folders, kind, without):
    """But for what is of single answers, which tables do not have: of pairs, or of seeds, that were apart."""
    together = made(folders / "all" / kind)
    assert all(getattr(together, name) for name in tables.Tables._fields)
    parts = [made(folders / kind / f"part-{i}") for i in (0, 1)]
    assert_same(together, join.join(parts), without)
    told = join.note(parts, [])
    assert ("What is over problems" in told) == (kind == "seeds")


@pytest.mark.slow
def test_tables_joined_with_nothing_stay_as_they_are(folders):
    one = made(folders / "all/seeds")
    assert_same(one, join.join([one]))


@pytest.mark.slow
def test_tables_of_an_earlier_report_are_joined_with_new_ones(folders, tmp_path):
    old, new = (made(folders / "terseness" / f"part-{i}") for i in (0, 1))
    old = old._replace(cells=[{key: value for key, value in row.items() if key != "seen"} for row in old.cells])
    joined = join.join([old, new])
    tables.write(joined, tmp_path)
    assert len(tables.read(tmp_path).cells) == 6
    assert "## Cells" in markdown(joined, {}, [])


def test_equal_differences_stay_equal(tmp_path):
    """Of twelve answers: thirds and sixths, which six digits do not hold. A twelfth more in each seed is no spread."""
    one = made_of({"full": [4, 8, 3], "more": [5, 9, 4]}, tmp_path)
    (row,) = join.join([one]).comparisons
    (view,) = [row for row in join.join([one]).views if row["view"] == "step" and row["cell"] == "exposure=more"]
    assert (row["p_seeds"], view["p_seeds"]) == (0.25, 0.25)


def test_what_was_evaluated_on_different_problems_is_not_compared_by_joining(tmp_path):
    one = made_of({"full": [4, 8, 3], "more": [5, 9, 4]}, tmp_path)
    joined = join.join([one._replace(comparisons=[row | {"seeds": 0} for row in one.comparisons])])
    assert [row["seeds"] for row in joined.comparisons] == [0]
    assert all(row["baseline"] is None for row in joined.views)


def made_of(hits, folder):
    """Tables in which the metric of each seed is so many twelfths."""
    values = [(name, seed, n / 12) for name, of_seeds in hits.items() for seed, n in enumerate(of_seeds)]
    cells = [f"exposure={name}" for name in hits]
    cost = {"tokens": 10.0, "seconds": 1.0}
    gap = {"cell": cells[1], "baseline": cells[0], "metric": "s/avg@2", **join.UNKNOWN, "seeds": 3}
    tables.write(
        tables.Tables(
            [
                {"cell": f"exposure={name}", "family": "", "seed": seed, "s/avg@2": value}
                for name, seed, value in values
            ],
            [{"cell": cell, "metric": "s/avg@2", "seeds": 3} for cell in cells],
            [gap],
            [],
            [
                {"cell": f"exposure={name}", "seed": seed, "metric": "s/avg@2", "step": 4, **cost, "value": value}
                for name, seed, value in values
            ],
            [],
            [],
        ),
        folder,
    )
    return tables.read(folder)


@pytest.mark.slow
def test_the_most_seeds_are_kept_of_what_cannot_be_joined(folders):
    many, few = made(folders / "all/seeds"), made(folders / "seeds/part-1")
    few = few._replace(
        **{n: [r | {"seed": r["seed"] + 8} for r in getattr(few, n)] for n in ("runs", "curves", "traces")}
    )
    for parts in ([many, few], [few, many]):
        joined = join.join(parts)
        assert [row["seeds"] for row in joined.cells] == [6] * 6
        assert [row["problems_low"] for row in joined.cells] == [row["problems_low"] for row in many.cells]
        assert {row["seeds"] for row in joined.pass_at_k} == {4}


@pytest.mark.slow
def test_a_run_that_is_in_two_folders_is_refused(folders):
    with pytest.raises(ValueError, match=r"exposure=full,terseness=0\.0, seed 0: this run is in two"):
        join.join([made(folders / "terseness/part-0"), made(folders / "all/terseness")])


@pytest.mark.slow
def test_metrics_that_some_folder_lacks_are_left_out_or_refused(folders):
    whole = made(folders / "terseness/part-0")
    (metric,) = {row["metric"] for row in whole.cells}
    twice = [row | {"metric": m} for row in whole.cells for m in (metric, "level-8/pass@2")]
    wider = whole._replace(cells=twice, runs=[row | {"level-8/pass@2": 1.0} for row in whole.runs])
    other = made(folders / "terseness/part-1")
    for parts in ([wider, other], [other, wider]):
        joined = join.join(parts)
        assert {row["metric"] for row in joined.cells} == {metric}
        assert not any("level-8/pass@2" in row for row in joined.runs)
        with pytest.raises(ValueError, match=rf"do not all have level-8/pass@2; they have {metric}"):
            join.join(parts, ["level-8/pass@2"])


@pytest.mark.slow
def test_the_command_overwrites_no_tables_with_fewer(folders, monkeypatch, capsys):
    made(folders / "all/terseness")
    folder = folders / "all/tables-1-terseness"
    for words, told in (
        (["--metrics", "level-8/avg@2"], "name another folder with --out"),
        (["--metrics", "no/avg@2", "--out", str(folder)], "they have level-8/avg@2"),
        (["--picture", "none"], "there is no none; there are exposure, "),
    ):
        before = {path: path.read_bytes() for path in folder.iterdir()}
        monkeypatch.setattr("sys.argv", ["join.py", str(folder), *words])
        with pytest.raises(SystemExit):
            join.main()
        assert told in capsys.readouterr().err
        assert before == {path: path.read_bytes() for path in folder.iterdir()}


def test_the_families_of_one_folder_stay_as_they_are():
    """Of SmolLM2's arms one differs in its divergence, another in what is learned from; each is alone in its family."""
    alone = tables.read(ROOT / "results/smollm2")
    assert len({row["family"] for row in alone.runs}) == 3
    assert {r["cell"]: r["family"] for r in join.join([alone]).runs} == {r["cell"]: r["family"] for r in alone.runs}
