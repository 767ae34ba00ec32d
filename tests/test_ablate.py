"""Grids: read, checked before anything starts, carried out by whatever executor, skipped, resumed, and told of."""

import contextlib
import fcntl
import json
import shutil
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from fake_runs import write_run
from rich.console import Console

from lit_atex.ablate import ablate, carry_out, parser
from lit_atex.cli import main
from lit_atex.commands import MODULES
from lit_atex.executor import Local
from lit_atex.grid import KEYS, Run, read_grid
from lit_atex.jobs import Job, is_finished, jobs_of, table
from lit_atex.settings import changed, flat, resolve

ROOT = Path(__file__).parents[1]
GRIDS = sorted((ROOT / "configs/ablations").glob("*.yaml"))
TINY = [str(ROOT / "configs/base.yaml"), str(ROOT / "configs/tiny.yaml")]


def grid_file(folder, **keys):
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"configs": TINY, **keys}, sort_keys=False))
    return path


# Reading


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"axis": {}}, ["unknown key axis", "configs, axes, seeds, metrics, baseline"]),
        ({"configs": None}, ["configs", "a config file"]),
        ({"configs": ["nosuch.yaml"]}, ["configs", "nosuch.yaml"]),
        ({"axes": {"a": 3}}, ["axes.a", "a list of values"]),
        ({"axes": {"a": {"b": 3}}}, ["axes.a.b", "a config file, or keys"]),
        ({"axes": {"a": {"b": "nosuch"}}}, ["axes.a.b", "nosuch"]),
        ({"axes": {"model.divergence": [{"class_path": "JSD"}]}}, ["axes.model.divergence", "needs a name"]),
        ({"axes": {"data.batch_size": [4, 4]}}, ["axes.data.batch_size", "twice"]),
        ({"axes": {"a": {"b/c": {"trainer.max_steps": 1}}}}, ["axes.a", "'b/c'", "folder"]),
        ({"axes": {"seed_everything": [0, 1]}}, ["axes.seed_everything", "seeds have a list"]),
        ({"seeds": [0, 0]}, ["seeds", "different whole numbers"]),
        ({"seeds": 3}, ["seeds", "[0, 1, 2]"]),
        ({"metrics": ["avg@2"]}, ["metrics", "SET/METRIC"]),
        ({"baseline": {"a": "b"}}, ["baseline", "no a=b"]),
    ],
)
def test_a_mistake_in_a_grid_is_named_with_its_mend(tmp_path, keys, told):
    with pytest.raises(ValueError, match=r"grid\.yaml") as error:
        read_grid(grid_file(tmp_path, **keys))
    assert all(word in str(error.value) for word in told)


def test_merge_keys_are_yaml(tmp_path):
    text = "configs: configs/base.yaml\naxes: {a: {x: &x {trainer.max_steps: 1}, y: {<<: *x, data.batch_size: 2}}}\n"
    (tmp_path / "grid.yaml").write_text(text)
    words = read_grid(tmp_path / "grid.yaml").axes["a"]["y"]
    assert json.loads(words[1]) == {"trainer.max_steps": 1, "data.batch_size": 2}


def test_the_help_shows_a_grid():
    example = parser().format_help().partition("GRID.yaml:\n\n")[2].partition("\n\n")[0]
    assert tuple(yaml.safe_load(example)) == KEYS


@pytest.mark.parametrize(
    ("text", "told"),
    [
        *(("[", "is no YAML"), ("- 1", "a mapping"), ("", "a mapping"), ("axes: {é: 1}", "is no YAML")),
        ("axes:\n  a: {x: {b: 1}}\n  a: {y: {b: 2}}", "'a' is there twice"),
        ("axes:\n  a: {x: {b: 1}, x: {b: 2}}", "'x' is there twice"),
        ("configs: configs/base.yaml\naxes: {8: [1, 2], on: [1, 2]}\nseeds: [-1]", "from 0 on"),
    ],
)
def test_what_is_no_grid(tmp_path, text, told):
    (tmp_path / "grid.yaml").write_text(text, encoding="latin-1")
    with pytest.raises(ValueError, match=told):
        read_grid(tmp_path / "grid.yaml")
    with pytest.raises(ValueError, match=r"there is no grid .*nosuch\.yaml"):
        read_grid(tmp_path / "nosuch.yaml")


def test_every_combination_is_a_run_named_by_its_values(tmp_path):
    path = grid_file(
        tmp_path,
        axes={
            "exposure": {"half": {"exposure.strategy.init_args.ratio": 0.5}, "random": "exposure/random"},
            "data.batch_size": [2],
        },
        seeds=[0, 7],
        metrics=["level-4/avg@2"],
        baseline={"exposure": "half"},
    )
    runs = read_grid(path).runs()
    names = [run.name for run in runs]
    assert names == [f"exposure={e},batch_size=2,seed={s}" for e in ("half", "random") for s in (0, 7)]
    half, random = runs[0], runs[3]
    assert half.settings == {"exposure": "half", "batch_size": "2"}
    assert half.config["exposure"]["strategy"]["init_args"]["ratio"] == 0.5
    assert half.config["data"]["batch_size"] == 2
    # What is promised of a run is what its own command line comes to, seeds included.
    assert resolve(random.words) == random.config
    assert random.seed == random.config["seed_everything"] == random.config["exposure"]["strategy"]["init_args"]["seed"]
    assert random.seed == 7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"axes": {"a": {"b": {"model.nosuch": 1}}}}, ["a=b", "nosuch"]),
        ({"axes": {"exposure.strategy.init_args.nosuch": [1]}}, ["nosuch=1", "nosuch"]),
        ({"axes": {"data.batch_size": ["many"]}}, ["batch_size=many", "data.batch_size"]),
        ({"metrics": ["level-4/avg@3"]}, ["'level-4/avg@3'", "avg@2"]),
        ({"metrics": ["level-9/avg@2"]}, ["'level-9/avg@2'", "level-4"]),
        ({"configs": [*TINY, {"data.validation": None}]}, ["data.validation is empty"]),
        ({"configs": [*TINY, {"trainer.max_stepz": 1}]}, ["grid.yaml, configs: ", "max_stepz"]),
    ],
)
def test_a_wrong_key_is_found_before_the_first_run_starts(tmp_path, keys, told):
    class Never:
        def start(self, command, folder, threads):
            raise AssertionError("a run was started")

    good = {"axes": {"first": {"good": {"trainer.max_steps": 1}}}}
    keys["axes"] = good["axes"] | keys.get("axes", {})
    with pytest.raises(ValueError, match=r"grid\.yaml") as error:
        ablate(str(grid_file(tmp_path, **keys)), out=str(tmp_path / "out"), executor=Never())
    assert all(word in str(error.value) for word in told)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_a_grid_that_ships_is_read_wherever_one_stands(path, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    grid = read_grid(path)
    assert len(grid.seeds) >= 3
    assert grid.metrics
    assert grid.baseline
    assert path.read_text(encoding="utf-8").startswith("# ")
    assert f"lit-atex ablate configs/ablations/{path.name}" in path.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("path", GRIDS, ids=lambda p: p.stem)
def test_every_cell_of_a_grid_that_ships_parses(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    grid = read_grid(path)
    firsts = {axis: dict([next(iter(values.items()))]) for axis, values in grid.axes.items()}
    common = replace(grid, axes=firsts).runs()
    set_by: list[set[str]] = []
    for axis, values in grid.axes.items():  # one at a time, and what they have in common once: each takes long to parse
        others = {name: words for name, words in values.items() if name not in firsts[axis]}
        runs = [*common, *replace(grid, axes={**firsts, axis: others}).runs()]
        assert len({run.name for run in runs}) == len(runs) == len(grid.seeds) * len(values)
        resolved = [json.dumps(run.config, sort_keys=True) for run in runs]
        assert len(set(resolved)) == len(runs)  # no two cells are the same run under two names
        of_seed = [flat(run.config) for run in runs if run.seed == grid.seeds[0]]
        keys = {key for config in of_seed for key in config}
        set_by.append({key for key in keys if len({json.dumps(config.get(key)) for config in of_seed}) > 1})
    assert len(set().union(*set_by)) == sum(map(len, set_by))  # nor where axes meet: none sets what another does


def test_the_grids_cover_what_the_method_leaves_open():
    names = {path.stem for path in GRIDS}
    parts = {"hold", "reward", "state", "progress", "controller", "margin", "gains", "entropy"}
    others = {"hint", "divergence", "reverse", "longer", "controls", "smollm2", "teacher", "greedy", "verdicts"}
    assert names == {"exposure", "slower"} | others | parts
    grid = yaml.safe_load((ROOT / "configs/ablations/exposure.yaml").read_text(encoding="utf-8"))
    assert list(grid["axes"]["exposure"]) == [
        "fixed-0", "fixed-0.25", "fixed-0.5", "fixed-0.75", "fixed-1",
        "up", "down", "random", "competence", "mismatch", "bandit", "beta"]  # fmt: skip


def test_settings_that_differ_are_named_and_new_keys_are_not():
    then = {"run": "a", "model": {"samples": 1}, "data": {"validation": {"a": {"size": 1}}}}
    now = {"run": "b", "model": {"samples": 2, "new": 3}, "data": {"validation": {"a": {"size": 1}, "b": {"size": 1}}}}
    assert changed(then, now) == ["model.samples was 1, is 2", "data.validation.b.size was absent, is 1"]
    assert changed({"lora": None}, {"lora": {"r": 8}}) == ["lora was null, is set"]
    assert changed({"lora": {"r": 8}}, {"lora": None}) == ["lora was set, is null"]
    assert changed({"lora": None}, {"lora": None, "new": {"r": 8}}) == []


# Carrying out, with an executor whose runs take so many looks


def run_named(name, seed=0):
    return Run(name, {}, seed, ["fit", "--name", name], {"trainer": {"max_steps": 6}, "model": {"samples": 1}})


def finish(folder, steps=6):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"finished": True, "optimizer_steps": steps}))
    (folder / "results.json").write_text(json.dumps({f"step-{steps}": []}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": {"samples": 1}}))


class Scripted:
    """Runs that succeed, or fail if their name says so; remembers what was started, and how many went on at once."""

    def __init__(self):
        self.started, self.going, self.most, self.ended = [], 0, 0, []

    def start(self, command, folder, threads):
        self.started.append((command, threads))
        if "unstartable" in folder.name:
            raise OSError("no such machine")
        self.going += 1
        self.most = max(self.most, self.going)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "log.txt").write_text("".join(f"line {i}\n" for i in range(40)))
        return Going(self, folder)


class Going:
    def __init__(self, executor, folder):
        self.executor, self.folder, self.looks = executor, folder, 0

    def poll(self):
        self.looks += 1
        if "interrupt" in self.folder.name and not self.executor.ended:
            if self.looks == 1:
                raise KeyboardInterrupt
            return None
        if self.looks < 2 and not self.executor.ended:
            return None
        if self.looks == 2:
            self.executor.going -= 1
            stopped = self.executor.ended and "in time" not in self.folder.name
            if "fails" not in self.folder.name and not stopped:
                finish(self.folder)
        return 1 if "fails" in self.folder.name else 0

    def terminate(self):
        self.executor.ended.append(self.folder.name)


def carried(tmp_path, names, at_once=1):
    jobs, executor = jobs_of([run_named(name) for name in names], tmp_path), Scripted()
    console = Console(record=True, width=200, force_terminal=False)
    carry_out(jobs, executor, at_once, 3, console)
    return jobs, executor, console.export_text()


def test_a_failed_run_stops_no_other(tmp_path):
    jobs, executor, text = carried(tmp_path, ["a", "fails", "unstartable", "b"])
    assert [job.state for job in jobs] == ["done", "failed", "failed", "done"]
    assert executor.most == 1
    assert [threads for _, threads in executor.started] == [3] * 4
    assert "[2/4] fails: failed" in text
    assert "exit code 1" in text
    assert "no such machine" in text
    assert jobs[1].tail().splitlines() == [f"line {i}" for i in range(25, 40)]


def test_so_many_run_at_once(tmp_path):
    jobs, executor, _ = carried(tmp_path, list("abcde"), at_once=2)
    assert executor.most == 2
    assert {job.state for job in jobs} == {"done"}


def test_what_is_finished_is_skipped_and_what_broke_goes_on(tmp_path):
    finish(tmp_path / "a")
    (tmp_path / "b/checkpoints").mkdir(parents=True)
    (tmp_path / "b/checkpoints/last.ckpt").write_text("")
    (tmp_path / "b/manifest.json").write_text(json.dumps({"finished": False}))
    jobs = jobs_of([run_named(name) for name in "abc"], tmp_path)
    assert [(job.state, job.note) for job in jobs] == [("finished", ""), ("waiting", "goes on"), ("waiting", "anew")]
    jobs, executor, _ = carried(tmp_path, list("abc"))
    assert [command for command, _ in executor.started] == [
        ["fit", "--name", name, "--run", str(tmp_path / name), "--resume"] for name in "bc"
    ]
    assert all(is_finished(job.folder) for job in jobs)


def test_a_run_is_finished_when_its_last_step_is_evaluated(tmp_path):
    finish(tmp_path)
    assert is_finished(tmp_path)
    (tmp_path / "results.json").write_text(json.dumps({"step-5": []}))
    assert not is_finished(tmp_path)
    assert not is_finished(tmp_path / "nosuch")


def test_a_folder_with_another_run_in_it_is_refused(tmp_path):
    finish(tmp_path / "a")
    (tmp_path / "a/config.yaml").write_text(yaml.safe_dump({"model": {"samples": 2}}))
    with pytest.raises(ValueError, match=r"model\.samples was 2, is 1.*--out"):
        jobs_of([run_named("a")], tmp_path)
    # But one that never got to a checkpoint begins anew, whatever its settings were.
    (tmp_path / "a/manifest.json").write_text(json.dumps({"finished": False, "error": "x"}))
    assert jobs_of([run_named("a")], tmp_path)[0].note == "anew"


def test_an_interruption_ends_the_runs_and_leaves_them_to_the_next_time(tmp_path):
    jobs, executor = jobs_of([run_named(name) for name in ("interrupt", "b")], tmp_path), Scripted()
    console = Console(record=True, width=200)
    with pytest.raises(KeyboardInterrupt):
        carry_out(jobs, executor, 1, 1, console)
    assert executor.ended == ["interrupt"]
    assert [job.state for job in jobs] == ["stopped", "waiting"]
    assert "goes on the next time" in console.export_text()


def test_whatever_ends_it_leaves_no_run_behind(tmp_path, monkeypatch):
    jobs, executor = jobs_of([run_named(name) for name in "ab"], tmp_path), Scripted()

    def closed(job):
        raise BrokenPipeError

    monkeypatch.setattr("lit_atex.ablate.display", lambda *_: contextlib.nullcontext(closed))
    with pytest.raises(BrokenPipeError):
        carry_out(jobs, executor, 1, 1, Console())
    assert executor.ended == ["a"]


def test_a_run_that_ends_while_it_is_being_stopped_is_done(tmp_path):
    jobs, executor = jobs_of([run_named("interrupt, in time")], tmp_path), Scripted()
    console = Console(record=True, width=200)
    with pytest.raises(KeyboardInterrupt):
        carry_out(jobs, executor, 1, 1, console)
    assert executor.ended == ["interrupt, in time"]
    assert [job.state for job in jobs] == ["done"]
    assert "next time" not in console.export_text()


def test_in_a_terminal_a_table_lives(tmp_path):
    jobs = jobs_of([run_named(name) for name in ("a", "fails")], tmp_path)
    console = Console(record=True, width=100, force_terminal=True)
    carry_out(jobs, Scripted(), 2, 1, console)
    text = console.export_text()
    assert "2 runs: 1 done, 1 failed" in text
    assert "exit code 1" in text


def test_the_table_shows_the_steps_that_are_done(tmp_path):
    job = Job(run_named("a"), tmp_path / "a", "running")
    assert job.steps() == 0
    job.folder.mkdir()
    metrics = job.folder / "metrics.csv"
    head = "step,validation/a,loss/skipped_steps\n"
    metrics.write_text(f"{head}0,1,0\n1,,0\n2,")  # the last row is not whole yet
    assert job.steps() == 2
    metrics.write_text(f"{head}0,1,0\n1,,0\n2,1,\n")  # a validation after two steps
    assert job.steps() == 2
    metrics.write_text(head + "".join(f"{i},{'1' * 50},0\n" for i in range(1000)))
    assert job.steps() == 1000
    console = Console(record=True, width=100)
    console.print(table([job]))
    assert "6/6" in console.export_text()  # never more than there are


def test_of_many_runs_the_table_shows_those_that_go_on(tmp_path):
    jobs = [Job(run_named(f"run-{i}"), tmp_path / str(i), "waiting") for i in range(30)]
    jobs[3].state, jobs[4].state, jobs[5].state = "running", "failed", "done"
    console = Console(record=True, width=100)
    console.print(table(jobs))
    text = console.export_text()
    assert "30 runs: 27 waiting, 1 running, 1 failed, 1 done" in text
    assert [f"run-{i} " in text for i in range(3, 7)] == [True, True, False, False]


# Processes


def test_a_process_gets_its_threads_and_leaves_its_log(tmp_path):
    code = "import os, sys; print(os.environ['OMP_NUM_THREADS'], sys.argv[1:]); print('oh', file=sys.stderr)"
    executor = Local([sys.executable, "-c", code])
    for _ in range(2):
        assert executor.start(["fit", "x"], tmp_path / "run", threads=3).wait(60) == 0
    text = (tmp_path / "run/log.txt").read_text()
    assert text.count("3 ['fit', 'x']") == 2  # the second attempt is added
    assert text.count("oh") == 2


def test_a_run_that_still_goes_on_is_not_started_again(tmp_path):
    executor = Local([sys.executable, "-c", "import time; time.sleep(60)"])
    going = executor.start([], tmp_path, threads=1)
    try:
        with pytest.raises(ValueError, match="goes on already"):
            executor.start([], tmp_path, threads=1)
    finally:
        going.terminate()
        going.wait(60)
    with open(tmp_path / "log.txt", "ab") as log:  # its end has freed the folder
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_options():
    given = vars(parser().parse_args(["g.yaml", "--jobs", "2", "--dry-run"]))
    none = dict.fromkeys(("out", "threads", "ray", "gpus"))
    assert given == {"grid": "g.yaml", "jobs": 2, "dry_run": True, **none}
    with pytest.raises(ValueError, match="--jobs"):
        ablate("g.yaml", jobs=0)
    with pytest.raises(ValueError, match="--gpus is for --ray"):
        ablate("g.yaml", gpus=1.0)


# The whole of it


class Faked(Scripted):
    """Makes up the folders of its runs, but of those that fail."""

    def __init__(self, fails=()):
        super().__init__()
        self.fails = fails

    def start(self, command, folder, threads):
        handle = super().start(command, folder, threads)
        if folder.name in self.fails:
            handle.poll = lambda: 1
        else:
            shutil.rmtree(folder)
            write_run(folder, "Fixed", [1.0] * 6, 0, problems=8, samples=2, every=3)
            handle.poll = lambda: 0
        return handle


@pytest.mark.slow
@pytest.mark.parametrize("metrics", [[], ["level-4/avg@2"]])
def test_a_report_that_cannot_be_made_does_not_hide_what_failed(tmp_path, metrics, capsys):
    """The baseline's run has failed: no comparison, but a report; of metrics that no run has, not even that."""
    path = grid_file(tmp_path, axes={"exposure.hold": [1, 2]}, metrics=metrics, baseline={"hold": 2})
    with pytest.raises(SystemExit) as end:
        ablate(str(path), str(tmp_path / "out"), executor=Faked(["hold=2,seed=0"]))
    assert end.value.code == 1
    said = capsys.readouterr().out
    assert ("no comparison: --baseline: there is no finished hold=2" in said) != bool(metrics)
    assert ("no report: --metrics: no run has 'level-4/avg@2'" in said) == bool(metrics)
    assert (tmp_path / "out/report/report.md").exists() != bool(metrics)
    assert "hold=2,seed=0 failed" in said
    assert "1 of 2 runs failed" in said


def test_a_later_report_is_of_what_the_grid_asked_for_unless_told_otherwise(tmp_path):
    level_8 = {"level-8": {"class_path": "lit_atex.sources.Embedded", "init_args": {"size": 8}}}
    asked = {"metrics": ["level-8/pass@2"], "baseline": {"hold": 2}}
    stack = [*TINY, {"data": {"validation": level_8}}]
    path = grid_file(tmp_path, configs=stack, axes={"exposure.hold": [1, 2]}, **asked)
    out = tmp_path / "out"
    ablate(str(path), str(out), executor=Faked())
    path.unlink()
    report = out / "report/report.md"
    of_the_grid = report.read_text()
    assert "| hold=1 | hold=2 | level-8/pass@2 |" in of_the_grid
    main(["report", str(out)])
    assert report.read_text() == of_the_grid
    main(["report", str(out), "--metrics", "level-8/avg@2"])
    assert "| hold=1 | hold=2 | level-8/avg@2 |" in report.read_text()
    main(["report", str(out), "--baseline", "hold=1"])
    assert "| hold=2 | hold=1 | level-8/pass@2 |" in report.read_text()
    main(["report", str(out / "hold=1,seed=0"), str(out / "hold=2,seed=0"), "--out", str(out / "report")])
    assert "Against the baseline" not in report.read_text()  # a folder of runs has a grid, runs have none


def test_a_dry_run_says_what_would_be_run_and_starts_nothing(tmp_path, capsys):
    path = grid_file(tmp_path, axes={"exposure.hold": [1, 2]})
    out = tmp_path / "out"
    main(["ablate", str(path), "--out", str(out), "--dry-run"])
    lines = capsys.readouterr().out.splitlines()
    told = [line for line in lines if line.startswith("#")]
    assert told == ["# hold=1,seed=0: waiting, anew", "# hold=2,seed=0: waiting, anew", "# 2 runs: 2 waiting"]
    assert lines[1].startswith("lit-atex fit --config ")
    assert lines[1].endswith(f"--exposure.hold=1 --seed_everything=0 --run {out}/hold=1,seed=0 --resume")
    assert not out.exists()


def test_a_grid_that_ships_goes_by_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("exposure", "ablations/exposure", "configs/ablations/exposure.yaml"):
        assert read_grid(name).path.samefile(ROOT / "configs/ablations/exposure.yaml")
    with pytest.raises(ValueError, match=r"no grid 'nosuch': .* controller, controls"):
        read_grid("nosuch")
    for missing in ("exposure.yaml", "configs/exposure.yaml", "my/exposure", "/exposure"):
        with pytest.raises(ValueError, match=f"there is no grid {missing}"):
            read_grid(missing)


@pytest.mark.slow
def test_a_model_that_is_not_there_is_found_before_the_first_run_starts(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    keys = {"model.student": {"class_path": "lit_atex.models.LanguageModel", "init_args": {"name": "./no/model"}}}
    path = grid_file(tmp_path, axes={"student": {"embedded": {"trainer.max_steps": 1}, "mine": keys}})
    with pytest.raises(SystemExit, match=r"student=mine,seed=0: model\.student\.init_args\.name='\./no/model'"):
        main(["ablate", str(path)])
    with pytest.raises(SystemExit) as end:
        main(["ablate", str(path), "--dry-run"])
    assert end.value.code == 1
    told = capsys.readouterr().out
    assert "# 2 runs: 2 waiting\n# would not start: student=mine,seed=0: model.student" in told
    assert not (tmp_path / "runs").exists()


def test_a_strategy_that_refuses_its_settings_is_found_before_the_first_run_starts(tmp_path):
    wrong = {"exposure.strategy": {"class_path": "Fixed", "init_args": {"ratio": 2.0}}}
    path = grid_file(tmp_path, axes={"exposure": {"random": "exposure/random", "wrong": wrong}})
    with pytest.raises(SystemExit, match=r"exposure=wrong,seed=0: exposure\.strategy\.init_args\.ratio .* got 2\.0"):
        main(["ablate", str(path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_grid_of_two_runs_one_of_which_was_killed_and_one_that_fails(tmp_path, capfd):
    changes = {"trainer.max_steps": 4, "trainer.val_check_interval": 2, "checkpoint.every_n_train_steps": 1}
    path = grid_file(
        tmp_path,
        configs=[*TINY, changes],
        axes={
            "exposure": {
                "full": {"exposure.strategy": {"class_path": "Fixed", "init_args": {"ratio": 1.0}}},
                "random": "exposure/random",
                "broken": {"data.max_bad_share": 2.0},
            }
        },
        metrics=["level-4/avg@2"],
        baseline={"exposure": "full"},
    )
    out = tmp_path / "out"
    killed = jobs_of(read_grid(path).runs(), out)[1]
    process = Local().start(killed.command(), killed.folder, 1)
    try:
        while process.poll() is None and not (killed.folder / "checkpoints/last.ckpt").is_file():
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_finished(killed.folder)

    with pytest.raises(SystemExit) as end:
        main(["ablate", str(path), "--out", str(out), "--jobs", "2", "--threads", "1"])
    assert end.value.code == 1
    text = capfd.readouterr().out
    assert "exposure=random,seed=0: running (goes on)" in text
    for name in ("full", "random"):
        assert f"exposure={name},seed=0: done" in text
        assert is_finished(out / f"exposure={name},seed=0")
    assert len(json.loads((killed.folder / "manifest.json").read_text())["commands"]) == 2
    # The one that failed: at the end, with the end of its log, and in the report.
    last = text[text.index("exposure=broken,seed=0 failed: exit code 1") :]
    assert "data.max_bad_share=2.0 must be in [0, 1]" in last
    assert "1 of 3 runs failed" in last
    written = (out / "report/report.md").read_text(encoding="utf-8")
    assert "| exposure=random | exposure=full | level-4/avg@2 | 1 |" in written
    assert (out / "report/exposure.png").is_file()

    main(["ablate", str(path), "--out", str(out), "--dry-run"])
    text = capfd.readouterr().out
    assert "exposure=full,seed=0: finished" in text
    assert "exposure=random,seed=0: finished" in text
    assert "exposure=broken,seed=0: waiting, anew" in text


def test_the_commands_are_known():
    assert MODULES["ablate"] == "lit_atex.ablate"
    assert MODULES["report"] == "lit_atex.report"
