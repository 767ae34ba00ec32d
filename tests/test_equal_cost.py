"""Cells at equal cost against numbers by hand; which cell is compared with which; what families are called."""

import shutil
from math import isnan

import numpy as np
import pytest
import yaml
from fake_runs import write_run
from scipy import stats as oracle

from lit_atex import charts, runs, tables
from lit_atex.cells import baselines_of, by_cell, family_of
from lit_atex.equal_cost import at, views
from lit_atex.paired import holm
from lit_atex.report import markdown
from lit_atex.spread import gap, t_p

STEPS = 6


def curve(cell: str, seed: int, values: list[float], tokens: float = 100.0, metric: str = "s/avg@2") -> list[dict]:
    """An evaluation every three steps, each step of so many tokens and 2 s."""
    head = {"cell": cell, "seed": seed, "metric": metric}
    return [
        head | {"step": 3.0 * i, "tokens": 3 * tokens * i, "seconds": 6.0 * i, "value": value}
        for i, value in enumerate(values)
    ]


def test_a_run_is_read_between_its_evaluations():
    rows = curve("a", 0, [0.1, 0.4, 0.5])[::-1]
    assert at(rows, "step", 3) == pytest.approx(0.4)
    assert at(rows, "tokens", 450) == pytest.approx(0.45)
    assert at(rows, "seconds", 3) == pytest.approx(0.25)
    assert isnan(at(rows, "step", 7))
    assert isnan(at(rows[:1], "step", 3))


@pytest.fixture
def curves():
    """The base draws 100 tokens a step, "long" twice that, "short" half; three seeds of each."""
    rows = []
    for seed, lift in enumerate([0.0, 0.02, 0.05]):
        rows += curve("base", seed, [0.2, 0.3 + lift, 0.4])
        rows += curve("long", seed, [0.2, 0.4, 0.8 - lift], tokens=200)
        rows += curve("short", seed, [0.2, 0.3, 0.5 + 2 * lift], tokens=50)
    return rows


def of_tokens(rows: list[dict]) -> dict[str, dict]:
    return {row["cell"]: row for row in rows if row["view"] == "tokens"}


def test_a_cell_and_its_baseline_are_read_where_the_cheaper_had_ended(curves):
    found = of_tokens(views(curves, {"long": "base", "short": "base"}))
    assert {cell: row["budget"] for cell, row in found.items()} == {"base": 600, "long": 600, "short": 300}
    # "long" after 600 tokens, which are 3 steps; the base after all of its own.
    assert found["long"]["mean"] == pytest.approx(0.4)
    assert found["long"]["difference"] == pytest.approx(0.4 - 0.4, abs=1e-12)
    # "short" after all of its own 300, which are 3 steps of the base.
    ends, threes = np.array([0.5, 0.54, 0.6]), np.array([0.3, 0.32, 0.35])
    moved = ends - threes
    row = found["short"]
    assert row["difference"] == pytest.approx(moved.mean())
    t = oracle.ttest_1samp(moved, 0)
    interval = t.confidence_interval()
    assert (row["difference_low"], row["difference_high"]) == pytest.approx((interval.low, interval.high))
    assert row["p_seeds"] == pytest.approx(t.pvalue)
    known = [r["p_seeds"] for r in found.values() if not isnan(r["p_seeds"])]
    assert [r["p_holm"] for r in found.values() if not isnan(r["p_seeds"])] == holm(known)
    assert found["base"]["baseline"] is None
    assert isnan(found["base"]["difference"])


def test_without_a_baseline_all_are_read_where_the_cheapest_run_had_ended(curves):
    found = of_tokens(views(curves, {}))
    assert {row["budget"] for row in found.values()} == {300}
    assert found["long"]["mean"] == pytest.approx(0.3)
    assert found["short"]["mean"] == pytest.approx(np.mean([0.5, 0.54, 0.6]))
    assert all(isnan(row["difference"]) for row in found.values())


def test_one_cell_that_spent_little_shortens_no_other_comparison(curves):
    rows = [*curves, *(row for seed in range(3) for row in curve("stopped", seed, [0.2, 0.1], tokens=1))]
    found = of_tokens(views(rows, dict.fromkeys(("long", "short", "stopped"), "base")))
    assert found["stopped"]["budget"] == 3
    assert found["long"]["budget"] == 600


def test_a_cell_that_was_not_measured_so_early_in_all_its_seeds_has_no_view(curves):
    late = [row for row in curves if not (row["cell"] == "long" and row["seed"] == 1 and row["step"] < 6)]
    row = of_tokens(views(late, {"long": "base"}))["long"]
    assert row["seeds"] == 0
    assert all(isnan(row[name]) for name in ("mean", "seeds_low", "difference", "p_seeds"))


def test_a_comparison_is_of_the_seeds_that_both_have(curves):
    part = [row for row in curves if not (row["cell"] == "base" and row["seed"] == 2)]
    part += curve("base", 9, [0.2, 0.1], tokens=1)  # which has no twin, and must not set the budget
    row = of_tokens(views(part, {"short": "base"}))["short"]
    assert row["seeds"] == 2
    assert row["budget"] == 300
    assert row["mean"] == pytest.approx(np.mean([0.5, 0.54]))
    assert row["difference"] == pytest.approx(np.mean([0.5 - 0.3, 0.54 - 0.32]))


def test_the_interval_of_a_difference_of_shares_ends_where_differences_do():
    rows = [*(row for seed, end in enumerate([0.1, 0.9]) for row in curve("base", seed, [0.0, end]))]
    rows += [row for seed in (0, 1) for row in curve("high", seed, [0.0, 1.0])]
    row = of_tokens(views(rows, {"high": "base"}))["high"]
    assert (row["difference_low"], row["difference_high"]) == (-1.0, 1.0)
    one = gap(({0: 1.0, 1: 1.0}, {0: 0.1, 1: 0.9}), ({}, {}), metric="s/avg@2")
    assert one.over_seeds == (-1.0, 1.0)


def test_lines_to_equal_evaluations_say_nothing_of_the_spread_over_seeds():
    """All end alike, one a hundredth later than the cheapest: the rest of its line is no difference between seeds."""
    rows = [row for seed in range(3) for row in curve("base", seed, [0.1 * seed, 0.5], tokens=100 + seed)]
    rows += [row for seed in range(3) for row in curve("high", seed, [0.2, 1.0], tokens=100 + seed)]
    row = of_tokens(views(rows, {"high": "base"}))["high"]
    assert row["mean"] == pytest.approx(1.0, abs=0.02)
    assert all(isnan(row[name]) for name in ("seeds_low", "difference_low"))
    assert row["p_seeds"] == t_p([0.5] * 3) == 0.25


def test_without_a_common_seed_nothing_is_compared(curves):
    apart = [row | {"seed": row["seed"] + 10 * (row["cell"] == "short")} for row in curves]
    row = of_tokens(views(apart, {"short": "base", "long": "base"}))["short"]
    assert (row["baseline"], row["seeds"], row["budget"]) == (None, 3, 300)
    assert isnan(row["difference"])


def test_a_baseline_that_was_not_measured_so_early_leaves_its_row_empty(curves):
    late = [row for row in curves if not (row["cell"] == "base" and row["seed"] == 1 and row["step"] < 6)]
    row = of_tokens(views(late, {"short": "base"}))[
        "short"
    ]  # the base's seed 1 begins at 600 tokens, short ends at 300
    assert row["seeds"] == 0
    assert isnan(row["difference"])


def test_what_a_run_cost_that_logged_nothing_is_not_known(curves):
    unknown = [
        row | ({"tokens": float("nan")} if row["cell"] == "long" and row["seed"] == 0 and row["step"] else {})
        for row in curves
    ]
    found = of_tokens(views(unknown, {"long": "base", "short": "base"}))
    assert isnan(found["long"]["mean"])
    assert found["short"]["difference"] == of_tokens(views(curves, {"short": "base"}))["short"]["difference"]
    assert {row["budget"] for row in of_tokens(views(unknown, {})).values()} == {300}


def test_p_values_are_raised_for_all_comparisons_of_a_view(curves):
    both = [*curves, *(row | {"metric": "s/pass@2", "value": row["value"] ** 2} for row in curves)]
    rows = [row for row in views(both, {"short": "base", "long": "base"}) if row["view"] == "tokens"]
    known = [row for row in rows if not isnan(row["p_seeds"])]
    assert {row["metric"] for row in known} == {"s/avg@2", "s/pass@2"}
    assert [row["p_holm"] for row in known] == holm([row["p_seeds"] for row in known])


@pytest.fixture
def two_folders(tmp_path):
    """Two grids in two folders, of one divergence each; and a run without axes."""
    for folder, divergence in (("one", "ForwardKL"), ("two", "JSD")):
        for name, ratio in (("full", 1.0), ("half", 0.5)):
            path = tmp_path / folder / f"exposure={name},seed=0"
            write_run(path, "Fixed", [ratio] * STEPS, 0, problems=8, samples=2, every=3)
            config = yaml.safe_load((path / "config.yaml").read_text())
            config.setdefault("model", {})["divergence"] = {"class_path": divergence}
            (path / "config.yaml").write_text(yaml.safe_dump(config))
    return tmp_path


def test_a_baseline_is_that_of_the_same_folder(two_folders):
    shutil.copytree(two_folders / "one/exposure=full,seed=0", two_folders / "two/plain")
    records, _ = runs.find([two_folders / "one", two_folders / "two"])
    cells = by_cell(records)
    assert baselines_of(cells, {"exposure": "full"}) == {
        "one/exposure=half": "one/exposure=full",
        "two/exposure=half": "two/exposure=full",
    }  # and the run without axes has none


def test_a_cell_without_a_baseline_in_its_folder_is_said_not_to_be_compared(two_folders):
    shutil.rmtree(two_folders / "two/exposure=full,seed=0")
    records, _ = runs.find([two_folders / "one", two_folders / "two"])
    assert baselines_of(by_cell(records), {"exposure": "full"}) == {"one/exposure=half": "one/exposure=full"}
    text = markdown(tables.make(records, [], {"exposure": "full"}), {}, [])
    assert "Not compared, for want of a baseline with a seed in common: two/exposure=half." in text


def test_families_of_one_name_are_told_apart_by_their_settings(two_folders):
    records, _ = runs.find([two_folders / "one", two_folders / "two"])
    families = family_of(records)
    assert families["one/exposure=half"] == families["one/exposure=full"] == "class_path=ForwardKL"
    assert families["two/exposure=half"] == families["two/exposure=full"] == "class_path=JSD"


def test_a_long_setting_is_no_name_and_a_dollar_no_formula(two_folders):
    """Prompts with LaTeX are settings too."""
    for folder, prompt in (
        ("one", r"Solve. $\boxed{}$"),
        ("two", r"Give $\boxed{}$, and reason step by step, please."),
    ):
        for path in (two_folders / folder).glob("*/config.yaml"):
            config = yaml.safe_load(path.read_text())
            config["model"] = {"prompts": {"student": prompt}}
            path.write_text(yaml.safe_dump(config))
    records, _ = runs.find([two_folders / "one", two_folders / "two"])
    families = family_of(records)
    assert families["one/exposure=half"] == r"student=Solve. $\boxed{}$"
    assert families["two/exposure=half"] == ""
    assert charts.save({"exposure": charts.exposure(tables.make(records, [], None))}, two_folders)[0].is_file()


def test_families_that_no_short_setting_tells_apart_have_numbers(two_folders):
    for folder, prompt in (("one", "a" * 30), ("two", "b" * 30)):
        for path in (two_folders / folder).glob("*/config.yaml"):
            path.write_text(yaml.safe_dump({"model": {"prompts": {"student": prompt}}}))
    records, _ = runs.find([two_folders / "one", two_folders / "two"])
    families = family_of(records)
    assert (families["one/exposure=full"], families["two/exposure=full"]) == ("", " (2)")


def test_the_report_says_what_holds_at_equal_tokens(two_folders):
    shutil.rmtree(two_folders / "one/exposure=full,seed=0")
    shutil.rmtree(two_folders / "one/exposure=half,seed=0")
    options = {"problems": 8, "samples": 2, "every": 3}
    for seed in range(3):
        write_run(two_folders / f"one/exposure=full,seed={seed}", "Fixed", [1.0] * STEPS, seed, tokens=500.0, **options)
        write_run(
            two_folders / f"one/exposure=half,seed={seed}", "Fixed", [0.6] * STEPS, seed, tokens=1000.0, **options
        )
    records, _ = runs.find([two_folders / "one"])
    made = tables.make(records, [], {"exposure": "full"})
    text = markdown(made, {}, [])
    section = text.partition("## At equal cost")[2].partition("## Runs")[0]
    assert "All runs took 6 optimizer steps: at equal ones, the tables above hold." in section
    heads = ["cell", "metric", "completion tokens", "seeds", "mean", "over seeds", "baseline", "difference"]
    heads += ["over seeds", "p (Holm)"]
    assert f"| {' | '.join(heads)} |" in section
    row = of_tokens(made.views)["exposure=half"]
    assert row["budget"] == 3000
    shown = ["exposure=half", "level-8/avg@2", "3,000", "3", f"{row['mean']:.3f}"]
    shown += [f"[{row['seeds_low']:.3f}, {row['seeds_high']:.3f}]", "exposure=full", f"{row['difference']:+.3f}"]
    shown += [f"[{row['difference_low']:+.3f}, {row['difference_high']:+.3f}]", f"{row['p_holm']:.4f}"]
    assert f"| {' | '.join(shown)} |" in section
    assert "Not compared" not in text
