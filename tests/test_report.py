"""Reports: what is read of run folders, what is made of several seeds, what is paired, what is drawn."""

import csv
import json
import shutil
from dataclasses import replace
from math import isnan, nan

import numpy as np
import pytest
import yaml
from fake_runs import write_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats as oracle

from lit_atex import cells, charts, runs, tables
from lit_atex.cli import main
from lit_atex.paired import holm
from lit_atex.panels import by_cell
from lit_atex.plots import BAND, LINE
from lit_atex.report import _baseline, markdown, parser
from lit_atex.spread import gap, over_seeds, t_interval, t_p
from lit_atex.stats import without_spread

METRIC = "level-8/avg@2"
STEPS = 6


# Intervals over seeds


@pytest.mark.parametrize("count", [2, 3, 4, 5, 8, 11, 30])
def test_t_interval_and_p_are_scipys(count):
    values = np.random.default_rng(count).normal(0.3, 1, count)
    error = values.std(ddof=1) / count**0.5
    expected = oracle.t.interval(0.95, count - 1, values.mean(), error)
    assert t_interval(values) == pytest.approx(expected, rel=1e-6)
    for level in (0.2, 0.5, 0.8):
        expected = oracle.t.interval(level, count - 1, values.mean(), error)
        assert t_interval(values, level) == pytest.approx(expected, rel=1e-6)
    assert t_p(values) == pytest.approx(oracle.ttest_1samp(values, 0).pvalue, abs=1e-12)


def test_one_seed_says_nothing_of_others():
    assert all(map(isnan, t_interval([0.4])))
    assert isnan(t_p([0.4]))


def test_equal_seeds_are_not_certainty():
    for values in ([0.4, 0.4], [0.1 + 0.2, 0.3, 0.3]):  # the second: equal to rounding
        assert all(map(isnan, t_interval(values)))
    assert (t_p([0.0, 0.0]), t_p([0.1] * 2), t_p([-0.1] * 8)) == (1.0, 0.5, 2 / 2**8)


def test_differences_of_twelfths_are_not_told_apart_by_rounding():
    """Two seeds, in which every problem moves by 1/12 and back: nothing happened, and p must say so."""
    names = [str(i) for i in range(30)]
    base = {seed: dict.fromkeys(names, 4 / 12) for seed in (0, 1)}
    cell = {0: dict.fromkeys(names, 5 / 12), 1: dict.fromkeys(names, 3 / 12)}
    mean = [{seed: float(np.mean(list(of.values()))) for seed, of in side.items()} for side in (cell, base)]
    assert gap(tuple(mean), (cell, base)).p_problems == 1.0
    up = {seed: dict.fromkeys(names, 7 / 12) for seed in (0, 1)}
    one = gap(({0: 7 / 12, 1: 7 / 12}, mean[1]), (up, base))
    assert one.over_problems == without_spread(0.25, 30, least=-1.0)
    assert isnan(one.over_seeds[0])


def test_shares_of_problems_are_in_double_precision(tmp_path):
    small(tmp_path / "a", "Fixed", [1.0] * STEPS, 0, samples=12)
    run = runs.find([tmp_path])[0][0]
    raw = json.loads((run.path / "results.json").read_text())["step-6"][0]["per_problem"]
    assert {round(value * 12) % 12 for value in raw.values()} - {0, 3, 6, 9}  # some that halving does not reach
    assert run.by_problem("level-8/avg@12") == {name: round(value * 12) / 12 for name, value in raw.items()}


def test_a_p_value_survives_the_correction_for_many_comparisons():
    values = {0: {str(i): 1.0 for i in range(40)}}, {0: {str(i): 0.5 + 0.01 * i for i in range(40)}}
    one = gap(({0: 1.0}, {0: 0.7}), values, comparisons=2000)
    assert one.p_problems * 2000 < 0.05


def test_t_interval_holds_its_level_with_three_seeds():
    draws = np.random.default_rng(0).normal(size=(2000, 3))
    hits = sum(low <= 0 <= high for low, high in map(t_interval, draws))
    assert 0.935 < hits / 2000 < 0.965


def test_a_gap_is_paired_by_seed_and_by_problem():
    cell = {0: {"a": 1.0, "b": 0.5, "c": 1.0}, 1: {"a": 1.0, "b": 0.5, "c": 1.0}, 2: {"a": 1.0, "b": 1.0, "c": 1.0}}
    base = {0: {"c": 0.5, "a": 1.0, "b": 0.0}, 1: {"c": 0.5, "a": 0.5, "b": 0.0}, 3: {"c": 0.0, "a": 0.0, "b": 0.0}}

    def mean(side):
        return {seed: float(np.mean(list(values.values()))) for seed, values in side.items()}

    one = gap((mean(cell), mean(base)), (cell, base))
    assert (one.seeds, one.problems) == (2, 3)  # seeds 0 and 1 are common
    moved = [2.5 / 3 - 1.5 / 3, 2.5 / 3 - 1.0 / 3]
    assert one.difference == pytest.approx(np.mean(moved))
    assert one.over_seeds == pytest.approx(t_interval(moved))
    assert one.p_problems == 0.25  # differences 0.25, 0.5, 0.5 by problem: 2 of the 8 sign patterns are as far from 0
    assert one.p == max(one.p_seeds, one.p_problems)


def test_a_gap_without_common_seeds_or_problems():
    assert gap(({0: 1.0}, {1: 0.5}), ({}, {})) is None
    one = gap(({0: 1.0, 1: 0.9}, {0: 0.5, 1: 0.6}), ({}, {}))
    assert one.problems == 0
    assert isnan(one.p_problems)
    assert one.p == one.p_seeds
    single = gap(({0: 1.0}, {0: 0.5}), ({0: {"a": 1.0}}, {0: {"a": 0.5}}))
    assert isnan(single.p_seeds)
    assert single.p == single.p_problems == 1.0


# Runs


def small(folder, strategy, exposures, seed, **options):
    write_run(folder, strategy, exposures, seed, **{"problems": 8, "samples": 2, "every": 3} | options)


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """Two fixed exposures and a random one, three seeds of each, and one run that did not finish."""
    root = tmp_path_factory.mktemp("grid")
    for seed in range(3):
        small(root / f"exposure=full,seed={seed}", "Fixed", [1.0] * STEPS, seed, tokens=500.0)
        small(root / f"exposure=best,seed={seed}", "Fixed", [0.6] * STEPS, seed, tokens=1000.0)
    draws = list(np.random.default_rng(1).random(STEPS))
    small(root / "exposure=random,seed=0", "Random", draws, 0, tokens=1000.0)
    small(root / "exposure=broken,seed=0", "Fixed", [0.0] * STEPS, 0, finished=False)
    return root


@pytest.fixture(scope="module")
def found(grid):
    return runs.find([grid])


def test_finished_runs_are_found_and_others_told(found):
    records, left_out = found
    assert left_out == {"exposure=broken,seed=0": "not finished"}
    assert list(cells.by_cell(records)) == ["exposure=best", "exposure=full", "exposure=random"]
    assert [run.seed for run in cells.by_cell(records)["exposure=full"]] == [0, 1, 2]
    assert records[0].settings == {"exposure": "best"}


def test_runs_are_in_the_order_in_which_they_were_begun(grid, tmp_path):
    for name, began in (("seed=0,a=late", "2026-01-02"), ("z", "2026-01-01")):
        shutil.copytree(grid / "exposure=full,seed=0", tmp_path / name)
        path = tmp_path / name / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"commands": [{"began": began}]}))
    assert [run.cell for run in runs.find([tmp_path])[0]] == ["z", "a=late"]


def test_a_grid_that_was_begun_in_parts_is_in_order_axis_by_axis(grid, tmp_path):
    for i, name in enumerate(["e=up,t=10.0", "e=beta,t=10.0", "e=beta,t=2.0", "e=up,t=2.0"]):
        for seed in (0, 1):
            folder = tmp_path / f"{name},seed={seed}"
            shutil.copytree(grid / f"exposure=full,seed={seed}", folder)
            manifest = json.loads((folder / "manifest.json").read_text())
            began = {"commands": [{"began": f"2026-01-0{i + 1}"}]}
            (folder / "manifest.json").write_text(json.dumps(manifest | began))
    found = [(run.cell, run.seed) for run in runs.find([tmp_path])[0]]
    ordered = ["e=up,t=2.0", "e=up,t=10.0", "e=beta,t=2.0", "e=beta,t=10.0"]
    assert found == [(cell, seed) for cell in ordered for seed in (0, 1)]


@pytest.mark.parametrize(
    ("begun", "ordered"),
    [
        (["fixed-1", "up", "fixed-0.5", "down", "fixed-0"], ["fixed-0", "fixed-0.5", "fixed-1", "up", "down"]),
        (["1e-3", "-1", "2e-4"], ["-1", "2e-4", "1e-3"]),
        (["j3-g0.9", "own", "j3-g0.5", "j2-g1"], ["j2-g1", "j3-g0.5", "j3-g0.9", "own"]),
    ],
)
def test_values_of_an_axis_go_by_their_numbers(begun, ordered):
    assert runs.by_size(begun) == ordered


def test_a_grid_of_seeds_alone_is_one_cell(grid, tmp_path):
    for seed in (1, 0):
        shutil.copytree(grid / f"exposure=full,seed={seed}", tmp_path / "mine" / f"seed={seed}")
    shutil.copytree(grid / "exposure=full,seed=2", tmp_path / "other" / "seed=2")
    found = [(run.cell, run.seed) for run in runs.find([tmp_path / "mine"])[0]]
    assert found == [("mine", 0), ("mine", 1)]
    found = [(run.cell, run.seed) for run in runs.find([tmp_path / "mine", tmp_path / "other"])[0]]
    assert found == [("mine", 0), ("mine", 1), ("other", 2)]
    assert [run.cell for run in runs.find([tmp_path / "mine/seed=1"])[0]] == ["mine"]


def test_a_seed_before_the_axes_leaves_the_folder_in_the_cells_name(grid, tmp_path):
    for folder in ("one", "two"):
        shutil.copytree(grid / "exposure=full,seed=0", tmp_path / folder / "seed=0,t=1")
    found = [run.cell for run in runs.find([tmp_path / "one", tmp_path / "two"])[0]]
    assert found == ["one/t=1", "two/t=1"]


def test_a_baseline_is_read_as_axes_before_it_is_a_cells_name(found):
    more = [replace(run, settings={"exposure": "full", "t": "1"}, cell="exposure=full,t=1") for run in found[0][:1]]
    assert _baseline("exposure=full", [*found[0], *more]) == {"exposure": "full"}
    named = [replace(run, cell=f"one/{run.cell}") for run in found[0]]
    assert _baseline("one/exposure=full", named) == "one/exposure=full"


def test_one_run_folder_is_a_report_of_its_own(grid):
    records, _ = runs.find([grid / "exposure=full,seed=1"])
    assert [(run.cell, run.seed) for run in records] == [("exposure=full", 1)]
    records, _ = runs.find([grid / "exposure=full,seed=1", grid / "exposure=best,seed=1"])
    assert [run.cell for run in records] == ["exposure=full", "exposure=best"]


def test_folders_that_hold_runs_set_their_cells_apart(grid, tmp_path):
    shutil.copytree(grid / "exposure=full,seed=0", tmp_path / "exposure=full,seed=0")
    found = {run.cell for run in runs.find([grid, tmp_path])[0]}
    assert f"{grid.name}/exposure=full" in found
    assert f"{tmp_path.name}/exposure=full" in found


def test_of_two_runs_of_one_name_none_is_lost(grid, tmp_path):
    for part in ("old", "new"):
        shutil.copytree(grid / "exposure=full,seed=0", tmp_path / part / "grid" / "exposure=full,seed=0")
    found = [tmp_path / part / "grid" for part in ("old", "new")]
    for folders in (found, [folder / "exposure=full,seed=0" for folder in found]):
        with pytest.raises(ValueError, match=r"are both (grid/)?exposure=full,seed=0: rename"):
            runs.find(folders)
    assert len(runs.find([found[0], found[0]])[0]) == 1  # the same twice is one


def test_a_run_without_results_is_left_out(grid, tmp_path):
    for seed in (0, 1):
        shutil.copytree(grid / f"exposure=full,seed={seed}", tmp_path / f"exposure=full,seed={seed}")
    (tmp_path / "exposure=full,seed=1" / "results.json").unlink()
    records, left_out = runs.find([tmp_path])
    assert [run.seed for run in records] == [0]
    assert left_out == {"exposure=full,seed=1": "not evaluated"}


def test_full_fine_tuning_and_adapters_are_not_one_cell(grid, tmp_path):
    for seed, lora in ((0, None), (1, {"r": 8})):
        folder = tmp_path / f"full,seed={seed}"
        shutil.copytree(grid / f"exposure=full,seed={seed}", folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"lora": lora}))
    with pytest.raises(ValueError, match="one cell, full, but differ in lora"):
        runs.find([tmp_path])


def test_no_finished_run(grid, tmp_path):
    with pytest.raises(ValueError, match="no finished run"):
        runs.find([tmp_path])
    with pytest.raises(ValueError, match=r"no finished run .*broken,seed=0: not finished"):
        runs.find([grid / "exposure=broken,seed=0"])
    with pytest.raises(ValueError, match="no folder"):
        runs.find([tmp_path / "nosuch"])


def test_runs_that_differ_in_more_than_the_seed_are_not_averaged(grid, tmp_path):
    for seed in (0, 1):
        shutil.copytree(grid / f"exposure=full,seed={seed}", tmp_path / f"full,seed={seed}")
    path = tmp_path / "full,seed=1/config.yaml"
    config = yaml.safe_load(path.read_text())
    config["exposure"]["strategy"]["init_args"]["ratio"] = 0.9
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match=r"one cell, full, but differ in exposure\.strategy\.init_args\.ratio"):
        runs.find([tmp_path])


def test_one_seed_twice_is_not_two_seeds(grid, tmp_path):
    for name in ("full,seed=0", "full,seed=1"):
        shutil.copytree(grid / "exposure=full,seed=0", tmp_path / name)
    with pytest.raises(ValueError, match="one cell with one seed"):
        runs.find([tmp_path])


def test_a_test_of_other_weights_than_the_last_steps_is_left_out(grid, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(next(grid.iterdir()), run)
    results, manifest = (json.loads((run / f"{name}.json").read_text()) for name in ("results", "manifest"))
    last = f"step-{manifest['optimizer_steps']}"
    (run / "results.json").write_text(json.dumps(results | {"test": results[last]}))
    assert "test/level-8" in runs.find([run])[0][0].results[manifest["optimizer_steps"]]  # before this was noted
    (run / "manifest.json").write_text(json.dumps(manifest | {"weights": 1}))
    (run / "outcomes").mkdir(exist_ok=True)
    for weights, there in ((1, True), (2, False)):
        (run / "outcomes" / "test.protocol.json").write_text(json.dumps({"weights": weights}))
        record = runs.find([run])[0][0]
        assert ("test/level-8" in record.results[record.last]) == there
        assert ("of other weights" in caplog.text) != there


def test_cost_is_summed_up(found):
    run = found[0][0]
    assert run.spent(STEPS) == pytest.approx({"step": 6.0, "tokens": 6 * 1000.0, "seconds": 6.0})
    assert run.spent(0) == {"step": 0.0, "tokens": 0.0, "seconds": 0.0}


def test_tokens_are_those_that_were_drawn(tmp_path):
    small(tmp_path / "a", "Fixed", [1.0] * STEPS, 0, tokens=100.0)
    path = tmp_path / "a/metrics.csv"
    rows = list(csv.DictReader(path.read_text().splitlines()))
    kept = [row for row in rows if int(row["step"]) % 2]  # as with trainer.log_every_n_steps: 2
    for row in kept:
        row["time/step"], row["throughput/completion_tokens_per_s"] = "2.0", "100"
        row["validation/level-8/avg@4"] = ""
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(kept)
    run = runs.find([tmp_path])[0][0]
    assert run.spent(STEPS) == {"step": 6.0, "tokens": 6 * 200.0, "seconds": 12.0}
    assert run.spent(3)["tokens"] == 600.0


def test_values_of_runs_and_of_problems(found):
    run = found[0][0]
    raw = json.loads((run.path / "results.json").read_text())["step-6"][0]
    assert run.value(METRIC) == raw["average"]
    assert run.by_problem(METRIC) == pytest.approx(raw["per_problem"])
    assert np.mean(list(run.by_problem("level-8/pass@2").values())) == pytest.approx(run.value("level-8/pass@2"))
    assert np.mean(list(run.by_problem("level-8/g-pass@2_1.0").values())) == pytest.approx(
        run.value("level-8/g-pass@2_1.0")
    )
    assert run.by_problem("level-8/length") == {}
    assert isnan(run.value("level-8/nosuch"))
    assert isnan(run.value(METRIC, 1))


def test_cost_goes_on_behind_the_last_row_that_was_logged(grid):
    run = runs.find([grid])[0][0]
    part = replace(run, trace=run.trace[:4])
    assert part.spent(STEPS) == pytest.approx(run.spent(STEPS))
    unknown = replace(run, trace=[])
    assert unknown.spent(0) == {"step": 0.0, "tokens": 0.0, "seconds": 0.0}
    assert isnan(unknown.spent(STEPS)["tokens"])
    assert isnan(unknown.spent(STEPS)["seconds"])


# Tables


@pytest.fixture(scope="module")
def made(found):
    return tables.make(found[0], [], {"exposure": "full"})


def test_a_row_a_run(made):
    assert len(made.runs) == 7
    assert {row["strategy"] for row in made.runs} == {"Fixed", "Random"}
    assert all(METRIC in row for row in made.runs)
    row = next(row for row in made.runs if row["cell"] == "exposure=best")
    assert row["exposure"] == pytest.approx(0.6)
    assert row["first_mismatch"] == pytest.approx(0.18)
    assert row["commit"] == "abc"


def test_a_cell_is_the_mean_over_its_seeds(found, made):
    row = next(row for row in made.cells if row["cell"] == "exposure=best")
    values = [run.value(METRIC) for run in found[0] if run.cell == "exposure=best"]
    assert len(set(values)) > 1
    assert (row["seeds"], row["problems"]) == (3, 8)
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["sd"] == pytest.approx(np.std(values, ddof=1))
    assert (row["seeds_low"], row["seeds_high"]) == over_seeds(METRIC, values)
    assert row["problems_low"] <= row["mean"] <= row["problems_high"]
    single = next(row for row in made.cells if row["cell"] == "exposure=random")
    assert single["seeds"] == 1
    assert isnan(single["seeds_low"])


def test_comparisons_are_corrected_together(made):
    assert [(row["cell"], row["baseline"]) for row in made.comparisons] == [
        ("exposure=best", "exposure=full"), ("exposure=random", "exposure=full")]  # fmt: skip
    worst = [np.nanmax([row["p_seeds"], row["p_problems"]]) for row in made.comparisons]
    assert [row["p_holm"] for row in made.comparisons] == holm(worst)
    assert [row["seeds"] for row in made.comparisons] == [3, 1]


def test_cells_that_were_evaluated_on_different_problems_are_not_compared(tmp_path):
    """Ids are the same, questions are not; of an earlier version, ids alone are known."""
    for seed in range(2):
        for name, question in (("a", "1 + 1?"), ("b", "Who?"), ("same", "1 + 1?")):
            small(tmp_path / f"set={name},seed={seed}", "Fixed", [0.5] * STEPS, seed, question=question)
    found = tables.make(runs.find([tmp_path])[0], [], {"set": "a"})
    assert {row["cell"]: (row["seeds"], row["problems"]) for row in found.comparisons} == {
        "set=b": (0, 0), "set=same": (2, 8)}  # fmt: skip
    assert {row["cell"]: row["baseline"] for row in found.views} == {"set=a": None, "set=b": None, "set=same": "set=a"}
    text = markdown(found, {}, [])
    assert f"Not compared, since the two were evaluated on different problems: set=b and set=a in {METRIC}." in text
    assert "| set=b | set=a |" not in text
    for path in tmp_path.glob("*/results.json"):
        results = json.loads(path.read_text())
        for result in (of for sets in results.values() for of in sets):
            del result["checksum"]
            if "set=same" in str(path):
                result["per_problem"] = {f"other-{id_}": share for id_, share in result["per_problem"].items()}
        path.write_text(json.dumps(results))
    found = tables.make(runs.find([tmp_path])[0], [], {"set": "a"})
    assert {row["cell"]: row["seeds"] for row in found.comparisons} == {"set=b": 2, "set=same": 0}


@pytest.mark.parametrize(("metric", "ends"), [("s/avg@8", (0.0, 1.0)), ("s/distinct", (-5.85, 6.85))])
def test_the_interval_of_a_share_ends_where_shares_do(metric, ends):
    assert over_seeds(metric, [0.0, 1.0]) == pytest.approx(ends, abs=0.01)


def test_no_interval_of_pass_at_k_ends_above_one(tmp_path):
    for seed in range(2):
        small(tmp_path / f"a=b,seed={seed}", "Fixed", [0.5] * STEPS, seed)
    found = tables.make(runs.find([tmp_path])[0], [], None).pass_at_k
    assert any(row["seeds_high"] == 1.0 for row in found)
    assert all(row["seeds_high"] <= 1.0 for row in found if not isnan(row["seeds_high"]))


def test_the_trace_keeps_means_of_its_parts(tmp_path):
    small(tmp_path / "a", "Random", [i / 999 for i in range(0, 1000, 4)], 0, every=250)
    rows = tables.make(runs.find([tmp_path])[0], [], None).traces
    assert [row["step"] for row in rows] == [2.0 * i for i in range(1, 126)]
    assert np.mean([row["exposure"] for row in rows]) == pytest.approx(0.5, abs=0.01)


def test_seeds_that_ended_early_share_their_parts_of_the_trace(found):
    run = found[0][0]
    long = [run.trace[0] | {"step": float(i + 1)} for i in range(431)]
    both = [replace(run, trace=long), replace(run, seed=9, trace=long[:400])]
    steps = [{row["step"] for row in tables._traces(both) if row["seed"] == seed} for seed in (run.seed, 9)]
    assert len(steps[0] & steps[1]) == 400 // 3


def test_a_skipped_step_leaves_the_parts_of_the_trace_where_they_are(found):
    run = found[0][0]
    long = [run.trace[0] | {"step": float(i + 1)} for i in range(400)]
    both = [replace(run, trace=long), replace(run, seed=9, trace=[*long[:100], *long[101:]])]
    steps = [[row["step"] for row in tables._traces(both) if row["seed"] == seed] for seed in (run.seed, 9)]
    assert steps[0] == steps[1] == [2.0 * i for i in range(1, 201)]


def test_what_is_not_there_is_named(found):
    with pytest.raises(ValueError, match=r"no run has 'level-8/avg@9'.*level-8/avg@2"):
        tables.make(found[0], ["level-8/avg@9"], None)
    with pytest.raises(ValueError, match=r"no run has 'level-9/avg@2'; there are, e.g., level-8/avg@2"):
        tables.make(found[0], ["level-9/avg@2"], None)
    with pytest.raises(ValueError, match=r"no finished exposure=half; there are exposure=best"):
        tables.make(found[0], [], {"exposure": "half"})
    assert tables.make(found[0], [], "exposure=best").comparisons[0]["baseline"] == "exposure=best"


def test_runs_of_one_set_but_different_samples_are_told_so(tmp_path):
    for samples in (2, 4):
        small(tmp_path / f"n={samples}", "Fixed", [1.0] * STEPS, 0, samples=samples)
    records = runs.find([tmp_path])[0]
    with pytest.raises(ValueError, match=r"different numbers of samples \(level-8: 2, 4\).* level-8/pass@1"):
        tables.make(records, [], None)
    assert [row["problems"] for row in tables.make(records, ["level-8/pass@1"], {"n": "2"}).comparisons] == [8]
    apart = records[0].results[records[0].last]
    apart["level-9"] = apart.pop("level-8")
    with pytest.raises(ValueError, match="no set in common"):
        tables.make(records, [], None)


def test_a_family_differs_in_exposure_alone(tmp_path):
    for terseness in (0.0, 1.0):
        for name, ratio in (("full", 1.0), ("half", 0.5)):
            folder = tmp_path / f"exposure={name},terseness={terseness:g},seed=0"
            small(folder, "Fixed", [ratio] * STEPS, 0, terseness=terseness)
    records, _ = runs.find([tmp_path])
    families = cells.family_of(records)
    assert families == {run.cell: f"terseness={run.settings['terseness']}" for run in records}
    pairs = {row["cell"]: row["baseline"] for row in tables.make(records, [], {"exposure": "full"}).comparisons}
    assert pairs == {f"exposure=half,terseness={t}": f"exposure=full,terseness={t}" for t in "01"}


def test_tables_come_back_as_they_were_written(made, tmp_path):
    tables.write(made, tmp_path)
    back = tables.read(tmp_path)
    for name, rows in made._asdict().items():
        read = getattr(back, name)
        assert [list(row) for row in read] == [list(row) for row in rows]
        for one, other in zip(rows, read):
            for key, value in one.items():
                if isinstance(value, int | float) and not isinstance(value, bool):
                    assert other[key] == pytest.approx(value, rel=1e-5, nan_ok=True), (name, key)
                else:
                    assert other[key] == ("" if value is None else str(value)), (name, key)
    with pytest.raises(ValueError, match=r"lacks runs\.csv"):
        tables.read(tmp_path / "nosuch")


# Pictures


def test_pictures_are_drawn_from_committed_tables(made, tmp_path):
    tables.write(made, tmp_path)
    figures = charts.draw(tables.read(tmp_path))
    assert set(figures) == {"exposure", "mismatch", "traces", "curves-level-8-avg-at-2", "pass_at_k-level-8",
                            "length", "entropy", "mismatch-over-training"}  # fmt: skip
    (path,) = charts.save({"exposure": figures["exposure"]}, tmp_path)
    assert path.read_bytes().startswith(b"\x89PNG")
    axis = figures["exposure"].axes[0]
    assert list(axis.lines[0].get_xdata()) == pytest.approx([0.6, 1.0])
    means = {row["cell"]: row["mean"] for row in made.cells}
    assert list(axis.lines[0].get_ydata()) == pytest.approx([means["exposure=best"], means["exposure=full"]], rel=1e-5)
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels[:2] == ["0.6", "1"]
    assert labels[2].startswith("random (")
    before = [row["value"] for row in made.curves if row["step"] == 0]
    assert list(axis.lines[-1].get_ydata()) == pytest.approx([np.mean(before)] * 2, rel=1e-5)
    panels = {name: [axis.get_title() for axis in figures[name].axes if axis.get_visible()] for name in figures}
    assert panels["length"] == panels["mismatch-over-training"] == ["exposure=best", "exposure=full", "exposure=random"]
    assert panels["traces"] == ["exposure=random"]  # those of the others are flat


def test_a_caption_is_not_cut_at_the_edge(made):
    for figure in (charts.exposure(made), charts.curves(made._replace(curves=made.curves[:3]))[METRIC]):
        assert len(figure.axes) == 1
        figure.suptitle(f"{figure.get_suptitle()}; and yet more that has to be told of it, in a figure of one panel")
        FigureCanvasAgg(figure).draw()
        extent = figure._suptitle.get_window_extent()
        assert 0 <= extent.x0 < extent.x1 <= figure.bbox.x1


def test_the_panels_of_one_quantity_have_one_scale(made):
    apart = {"family": "t=1", "level-8/avg@2": 0.0}
    rows = [row | apart | {"cell": f"{row['cell']},t=1"} for row in made.runs]
    lower = [row | {"cell": f"{row['cell']},t=1", "mean": 0.01 * row["mean"]} for row in made.cells]
    both = made._replace(runs=[*made.runs, *rows], cells=[*made.cells, *lower])
    limits = [axis.get_ylim() for axis in charts.exposure(both).axes]
    assert len(limits) == 2
    assert limits[0] == limits[1]
    assert limits[0][0] < 0.01 < made.cells[0]["mean"] < limits[0][1]


def test_a_panel_without_numbers_does_not_widen_the_others(made):
    rows = [row | {"family": "t=1", "cell": f"{row['cell']},t=1"} for row in made.runs]
    unknown = dict.fromkeys(("mean", "seeds_low", "seeds_high"), nan)
    empty = [row | unknown | {"cell": f"{row['cell']},t=1"} for row in made.cells]
    high = [row | {name: 0.9 + 0.01 * row[name] for name in unknown} for row in made.cells]
    both = made._replace(runs=[*made.runs, *rows], cells=[*high, *empty], curves=[])
    low, top = charts.exposure(both).axes[0].get_ylim()
    assert (low, top) == (pytest.approx(0.905, abs=0.01), pytest.approx(0.905, abs=0.01))


def test_the_mean_line_ends_with_the_first_seed_that_ends(made):
    rows = [row for row in made.curves if row["cell"] == "exposure=full"]
    rows = [row for row in rows if not (row["seed"] == 1 and row["step"] == STEPS)]
    line = charts.curves(made._replace(curves=rows))[METRIC].axes[0].lines[3]
    assert list(line.get_xdata()) == [0, 3]


def test_the_interval_of_a_single_point_is_seen(made):
    """An area of no width is not: it needs a line."""
    runs = [run | {"family": "t=1" if run["cell"] == "exposure=full" else ""} for run in made.runs]
    cells = [row | {"mean": 0.5, "seeds_low": 0.4, "seeds_high": 0.6} for row in made.cells]
    axes = charts.exposure(made._replace(runs=runs, cells=cells)).axes
    panel = next(axis for axis in axes if METRIC in axis.get_title() and "t=1" in axis.get_title())
    (interval,) = panel.collections
    assert sorted(interval.get_paths()[0].vertices[:, 1]) == [0.4, 0.6]
    assert interval.get_linewidths()[0] > 0


def test_no_band_of_a_divergence_is_below_zero(made):
    wide = [row | {"mismatch": 0.001 if row["seed"] else 1.0} for row in made.runs]
    figure = charts.mismatch(made._replace(runs=wide))
    bands = [path.vertices[:, 1] for axis in figure.axes for c in axis.collections for path in c.get_paths()]
    assert min(float(np.nanmin(y)) for y in bands if len(y)) >= 0


def test_a_panel_holds_its_seeds_their_mean_and_the_baseline(made):
    axis = charts.curves(made)[METRIC].axes[0]
    seeds, mean, baseline = axis.lines[:3], axis.lines[3], axis.lines[4]
    values = np.array([line.get_ydata() for line in seeds])
    assert list(mean.get_ydata()) == pytest.approx(values.mean(0))
    assert baseline.get_linestyle() == "--"
    assert list(mean.get_xdata()) == [0, 3, 6]


def luminance(colour):
    return sum(weight * int(colour[i : i + 2], 16) for weight, i in ((0.299, 1), (0.587, 3), (0.114, 5))) / 255


def test_what_must_be_told_apart_differs_in_grey_too():
    assert luminance(BAND) - luminance(LINE) > 0.2
    assert luminance(charts.GREY) - luminance(charts.DARK) > 0.2


def test_nothing_is_drawn_of_one_exposure_or_of_nothing(tmp_path):
    small(tmp_path / "a", "Fixed", [1.0] * STEPS, 0)
    figures = charts.draw(tables.make(runs.find([tmp_path])[0], [], None))
    assert "exposure" not in figures
    assert "traces" not in figures  # a flat line
    assert "length" in figures


def test_a_trace_that_is_flat_but_for_rounding_is_not_drawn(made):
    flat = [row | {"exposure": 0.11 + 1e-17 * row["step"] + 0.1 * row["seed"]} for row in made.traces]
    assert charts.traces(made._replace(traces=flat)) is None
    moving = [row | {"exposure": 0.11 + 1e-3 * row["step"]} for row in made.traces]
    assert charts.traces(made._replace(traces=moving)) is not None


def test_single_points_are_no_learning_curve(made):
    last = [row for row in made.curves if row["step"] == STEPS]
    assert charts.curves(made._replace(curves=last)) == {}


def test_the_caption_speaks_of_a_start_only_where_one_was_measured(made):
    after = [row for row in made.pass_at_k if row["when"] == "after"]
    for rows, there in ((made.pass_at_k, True), (after, False)):
        (figure,) = charts.pass_at_k(made._replace(pass_at_k=rows)).values()
        assert ("before training" in figure.get_suptitle()) == there


def test_the_values_of_the_last_axis_are_columns():
    cells = ["e=0,t=0", "e=1,t=0", "e=1,t=2", "e=0.5,t=2"]
    figure, panels = by_cell(cells, "x", "y", "caption")
    spots = {axis.get_title(): axis.get_subplotspec() for axis in panels}
    places = [(spots[cell].rowspan.start, spots[cell].colspan.start) for cell in cells]
    assert places == [(0, 0), (1, 0), (1, 1), (2, 1)]
    labelled = [axis.xaxis.get_tick_params()["labelbottom"] for axis in panels]
    assert labelled == [False, True, False, True]
    assert [axis.yaxis.get_tick_params()["labelleft"] for axis in panels] == [True, True, False, True]
    assert sum(axis.get_visible() for axis in figure.axes) == 4
    for many in ([f"t={i}" for i in range(6)], [f"e=0,t={i}" for i in range(6)], ["e=0,t=1", *"abcde"]):
        _, panels = by_cell(many, "x", "y", "caption")  # nothing that few columns would show: row by row
        spots = [axis.get_subplotspec() for axis in panels]
        assert [(s.rowspan.start, s.colspan.start) for s in spots] == [divmod(i, 4) for i in range(6)]


# The report


@pytest.mark.slow
def test_a_report_is_written_from_folders_alone(grid, tmp_path, capsys):
    main(["report", str(grid), "--baseline", "exposure=full", "--out", str(tmp_path)])
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert text.startswith("# 7 runs of 3 cells\n")
    assert "Left out: `exposure=broken,seed=0` (not finished)." in text
    for said in (
        "Student's t interval",
        "BCa bootstrap",
        "Holm, 1979",
        "straight line between",
        "(problems) nothing of other seeds",
    ):
        assert said in text
    assert "all 2 comparisons" in text
    for name in ("runs", "cells", "comparisons", "views", "curves", "traces", "pass_at_k"):
        assert (tmp_path / f"{name}.csv").is_file()
    pictures = [line[line.index("(") + 1 : -1] for line in text.splitlines() if line.startswith("![")]
    assert len(pictures) == 8
    assert all((tmp_path / name).is_file() for name in pictures)
    printed = capsys.readouterr().out
    assert "| exposure=best | exposure=full |" in printed
    assert f"{tmp_path}/report.md" in printed


@pytest.mark.slow
def test_the_report_goes_beside_the_runs_and_is_no_run(grid, tmp_path):
    shutil.copytree(grid / "exposure=full,seed=0", tmp_path / "full,seed=0")
    for _ in range(2):
        main(["report", str(tmp_path), "--metrics", METRIC, "level-8/pass@2"])
    text = (tmp_path / "report/report.md").read_text(encoding="utf-8")
    assert text.startswith("# 1 run of 1 cell\n")
    assert "Against the baseline" not in text
    assert "level-8/pass@2" in text


@pytest.mark.parametrize(
    ("problems", "seen", "told"),
    [
        *[((10, 10), (5, 5), ""), ((10, 9), (5, 5), "10 problems"), ((0, 10), (0, 5), "")],
        *[((10, 10), (5, 4), "5 problems were ever solved, or ever not"), ((10, 10), (4, 0), "5 problems were ever")],
    ],
)
def test_intervals_over_few_problems_are_warned_of_once(made, problems, seen, told):
    rows = [row | {"problems": all_, "seen": rare} for row, all_, rare in zip(made.cells, problems, seen)]
    text = markdown(made._replace(cells=rows), {}, [])
    assert text.count("intervals over problems are too narrow for level-8\n") == bool(told)
    assert f"fewer than {told}" in text or not told
    assert ("means of level-8 do not compare" in text) == (problems == (10, 9))


@pytest.mark.parametrize(("names", "told"), [(("full-0", "full-1"), True), (("full,seed=0", "best,seed=0"), False),
                                             (("full",), False), (("full,seed=0", "full,seed=1"), False)])  # fmt: skip
def test_how_seeds_are_named_is_said_where_none_are(grid, tmp_path, names, told):
    for seed, name in enumerate(names):
        shutil.copytree(grid / f"exposure=full,seed={seed}", tmp_path / name)
    text = markdown(tables.make(runs.find([tmp_path])[0], [], None), {}, [])
    assert ("Every cell has one run. Runs are seeds of one cell if their folders" in text) == told


@pytest.mark.parametrize(("given", "told"), [(None, True), ("full", False)])
def test_a_report_without_a_baseline_says_how_to_name_one(grid, tmp_path, given, told):
    for cell in ("full", "best"):
        shutil.copytree(grid / f"exposure={cell},seed=0", tmp_path / f"{cell},seed=0")
    text = markdown(tables.make(runs.find([tmp_path])[0], [], given), {}, [])
    assert ("name what they are to: `--baseline " in text) == told


def test_the_help_says_how_seeds_are_named():
    assert "`full,seed=0`" in " ".join(parser().format_help().split())


@pytest.mark.parametrize(("unknown", "mark"), [("", ""), ("p_problems", " (seeds)"), ("p_seeds", " (problems)")])
def test_a_p_value_of_one_kind_of_chance_says_of_which(made, unknown, mark):
    row = (
        made.comparisons[0]
        | {"p_seeds": 0.01, "p_problems": 0.02, "p_holm": 0.04}
        | ({unknown: nan} if unknown else {})
    )
    text = markdown(made._replace(comparisons=[row]), {}, [])
    assert f"| 0.0400{mark} |" in text
    assert ("is of the other alone" in text) == bool(mark)


def test_several_commits_are_told(made):
    other = made._replace(runs=[row | {"commit": str(i)} for i, row in enumerate(made.runs)])
    assert "several commits" in markdown(other, {}, [])
    assert "several commits" not in markdown(made, {}, [])


def test_mistakes(grid, tmp_path, capsys):
    with pytest.raises(SystemExit, match="nosuch"):
        main(["report", str(tmp_path / "nosuch")])
    with pytest.raises(SystemExit):
        main(["report", "--metrics", METRIC, str(grid)])
    assert "are required: FOLDER; lit-atex report FOLDER ... [--metrics" in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"'full' is no cell; name axis=value, or one of exposure=best"):
        main(["report", str(grid), "--baseline", "full"])
    assert vars(parser().parse_args(["a", "b"])) == {
        "folders": ["a", "b"],
        "metrics": [],
        "baseline": None,
        "out": None,
    }


def test_nan_is_empty_in_a_csv(tmp_path):
    rows = [{"cell": "a", "metric": "m", "mean": nan, "sd": 0.5}]
    tables.write(tables.Tables(rows, *[[]] * 6), tmp_path)
    assert (tmp_path / "runs.csv").read_text() == "cell,metric,mean,sd\na,m,,0.5\n"
