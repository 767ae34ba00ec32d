"""Last and best: chosen on validation, never on a test set unless that is asked for, and then it is said."""

import json
import shutil

import pytest
import torch
from test_outcomes import ROOT

from lit_atex.cli import main
from lit_atex.data import ProblemDataModule
from lit_atex.evaluation import metric_names
from lit_atex.selection import MEAN, best, check, of_test_set, origin, scores, summary
from lit_atex.sources import Embedded, Hub, JsonLines

STACK = [w for name in ("base", "tiny") for w in ("--config", str(ROOT / f"configs/{name}.yaml"))]
OFTEN = ["--trainer.val_check_interval", "2", "--trainer.max_steps", "6", "--checkpoint.every_n_train_steps", "1"]
OFTEN += ["--model.optimizer.init_args.lr", "1e-3"]  # at which the last of these steps is not the best
NAMES = metric_names(4)


def data(**sets):
    return ProblemDataModule(train=Embedded(), validation=sets)


PLAIN = data(level=Embedded(size=4, split="validation"))
BENCHMARKED = {
    "by its name": (data(aime24=JsonLines("x.jsonl")), "validation/aime24/avg@4"),
    "by its data set": (data(mine=Hub("math-ai/aime25", split="test")), "validation/mine/avg@4"),
    "the test split of GSM8K": (data(mine=Hub("openai/gsm8k", split="test")), "validation/mine/pass@2"),
    "a part of that split": (data(mine=Hub("openai/gsm8k", split="test[:100]")), "validation/mine/pass@2"),
    "any test split": (data(mine=Hub("some/set", split="test")), "validation/mine/avg@4"),
    "the embedded test split": (data(mine=Embedded(size=4, split="test")), "validation/mine/avg@4"),
    "a file that says so": (data(mine=JsonLines("copies/mine_test.jsonl")), "validation/mine/avg@4"),
    "a folder that says so": (data(mine=JsonLines("copies/MATH-500/all.jsonl")), "validation/mine/avg@4"),
    "another copy of it": (data(mine=Hub("someone/AIME_2024")), "validation/mine/avg@4"),
    "in a mean": (data(a=Embedded(size=4), math500=JsonLines("x.jsonl")), MEAN),
    "a test metric": (PLAIN, "test/level/avg@4"),
}


@pytest.mark.parametrize("case", BENCHMARKED)
def test_a_test_set_does_not_choose(case):
    module, monitor = BENCHMARKED[case]
    with pytest.raises(ValueError, match=r"on a test set.*checkpoint\.allow_test_selection"):
        check(monitor, module, NAMES, allowed=False)
    assert of_test_set(monitor, module)
    if not monitor.startswith("test/"):
        check(monitor, module, NAMES, allowed=True)


class Bare(Embedded):
    """A user's source, which says nothing of itself; Source's own default is its name."""

    def __init__(self) -> None:
        self.finite = True


def test_a_validation_set_does():
    for module, monitor in [
        (PLAIN, MEAN),
        (PLAIN, "validation/level/avg@4"),
        (PLAIN, "validation/level/g-pass@4_0.5"),
        (data(mine=Hub("openai/gsm8k", split="train[:100]")), "validation/mine/maj@4"),
        (data(claimed=JsonLines("/home/test/latest/greatest.jsonl")), "validation/claimed/maj@4"),
        (data(old=Hub("someone/AIME_1983_2023")), "validation/old/maj@4"),
        (data(bare=Bare()), "validation/bare/maj@4"),
    ]:
        check(monitor, module, NAMES, allowed=False)
        assert not of_test_set(monitor, module)


@pytest.mark.parametrize(
    "monitor", ["validation/other/avg@4", "validation/level/avg@8", "loss", "validation/level", "x"]
)
def test_what_is_not_there_cannot_be_monitored(monitor):
    with pytest.raises(ValueError, match=r"checkpoint\.monitor: .*validation/SET/METRIC.*level.*avg@4"):
        check(monitor, PLAIN, NAMES, allowed=True)


def results(**averages):
    sets = {"step_0": 0.9, **averages}
    return {
        name.replace("_", "-"): [
            {"name": "a", "average": v, "metrics": {"pass@2": {"value": 1 - v}}},
            {"name": "b", "average": v / 2, "metrics": {}},
        ]
        for name, v in sets.items()
    } | {"test": [{"name": "a", "average": 1.0}]}


def test_scores_and_best():
    found = results(step_2=0.4, step_10=0.6, step_4=0.6)
    assert scores(found, MEAN) == pytest.approx({0: 0.675, 2: 0.3, 4: 0.45, 10: 0.45})
    assert best(found, MEAN) == 4  # the earliest of equals
    assert best(found, MEAN, "min") == 2
    assert scores(found, "validation/a/pass@2") == pytest.approx({0: 0.1, 2: 0.6, 4: 0.4, 10: 0.4})
    assert best(found, "validation/a/pass@2") == 2
    assert best(results(), MEAN) is None
    assert scores(found, "validation/a/pass@4") == {}  # evaluated with fewer samples then
    assert summary(results(), MEAN, "max", False) == {}


def test_the_words():
    fair = summary(results(step_2=0.8, step_4=0.4), MEAN, "max", False)
    assert (fair["last"], fair["best"]) == (4, 2)
    assert "best on validation: step 2 (0.600, of 2 evaluations)" in fair["words"]
    assert "the best of several and so too good" in fair["words"]
    unfair = summary(results(step_2=0.8), "validation/a/avg@2".replace("avg@2", "pass@2"), "max", True)["words"]
    assert "best on a TEST SET" in unfair
    assert "its number is no test" in unfair


def test_origin(tmp_path):
    chosen = summary(results(step_2=0.8, step_4=0.4), MEAN, "max", True)
    (tmp_path / "manifest.json").write_text(json.dumps({"selection": chosen}))
    (tmp_path / "checkpoints").mkdir()
    last = origin(str(tmp_path / "student"), None)
    assert last["weights"] == f"last of {tmp_path}, step 4"
    assert "WARNING" not in last
    top = origin("embedded", str(tmp_path / "checkpoints" / "best.ckpt"))
    assert top["weights"] == f"best of {tmp_path}, step 2"
    assert "chosen on a test set" in top["WARNING"]
    (tmp_path / "manifest.json").write_text(json.dumps({"selection": summary(results(), MEAN, "max", True)}))
    assert origin(str(tmp_path / "student"), None) == {}  # it was not evaluated after a step
    assert origin("embedded", None) == {}
    assert origin(str(tmp_path / "other"), None) == {}  # a model beside a run is not its student


# In a run


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    run = tmp_path_factory.mktemp("straight")
    main(["fit", *STACK, *OFTEN, "--run", str(run)])
    return run


def load(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_a_run_keeps_the_best_and_reports_both(straight, tmp_path, capsys):
    found = load(straight / "results.json")
    chosen = load(straight / "manifest.json")["selection"]
    averages = {step: found[f"step-{step}"][0]["average"] for step in (2, 4, 6)}
    assert chosen["best"] == max(averages, key=averages.get) != chosen["last"] == 6
    kept = torch.load(straight / "checkpoints" / "best.ckpt", weights_only=True)
    assert kept["global_step"] == chosen["best"]
    assert "optimizer_states" not in kept
    main(["fit", *STACK, *OFTEN, "--run", str(straight), "--resume"])  # nothing left to do but to say it again
    out = capsys.readouterr().out
    assert "after: last, step-6" in out
    assert f"after: best, step-{chosen['best']}" in out
    assert chosen["words"] in out


@pytest.mark.slow
def test_the_best_survives_a_kill(straight, tmp_path):
    """Killed after the evaluation of step 2 was written and before best.ckpt was; then gone on with."""
    run = tmp_path / "run"
    main(["fit", *STACK, *OFTEN, "--run", str(run), "--trainer.max_steps", "3"])
    manifest = load(run / "manifest.json") | {"finished": False}
    (run / "manifest.json").write_text(json.dumps(manifest))
    early = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert early["global_step"] == 3
    assert torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["global_step"] == 2
    main(["fit", *STACK, *OFTEN, "--run", str(run), "--resume"])
    assert load(run / "results.json")["step-6"] == load(straight / "results.json")["step-6"]
    ours, theirs = (
        torch.load(r / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"] for r in (run, straight)
    )
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.slow
def test_the_best_of_steps_that_are_taken_again_is_dropped(straight, tmp_path):
    """Killed after it was kept, resumed from before it; on a GPU the steps are not the same again."""
    run = tmp_path / "run"
    main(["fit", *STACK, *OFTEN, "--run", str(run), "--trainer.max_steps", "3"])
    (run / "manifest.json").write_text(json.dumps(load(run / "manifest.json") | {"finished": False}))
    best_path, last = run / "checkpoints" / "best.ckpt", run / "checkpoints" / "last.ckpt"
    kept = torch.load(best_path, weights_only=True)
    assert kept["global_step"] == 2
    torch.save(kept | {"global_step": 4}, best_path)
    none = ["--checkpoint.monitor", "null", "--data.validation", "null"]
    main(["fit", *STACK, *OFTEN, *none, "--run", str(run), "--resume"])
    assert not best_path.exists()
    torch.save(kept, best_path)
    main(["fit", *STACK, *OFTEN, *none, "--run", str(run), "--resume", "--trainer.max_steps", "7"])
    assert best_path.exists()
    assert torch.load(last, weights_only=True)["global_step"] == 7


@pytest.mark.slow
def test_the_best_is_no_checkpoint_to_go_on_from(straight, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(straight, run)
    for path in (run / "checkpoints").iterdir():
        if path.name != "best.ckpt":
            path.unlink()
    from lit_atex.resume import find_checkpoint

    assert find_checkpoint(run, "last") is None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--checkpoint.monitor", "test/level-4/avg@2"], "on a test set"),
        (["--checkpoint.monitor", "validation/level-4/avg@3"], "validation/SET/METRIC"),
        (["--checkpoint.mode", "most"], "checkpoint.mode"),
        (["--checkpoint.save_top_k", "3"], "checkpoint.save_top_k must be 1"),
    ],
)
def test_the_command_refuses(tmp_path, words, told):
    with pytest.raises(SystemExit) as end:
        main(["fit", *STACK, *words, "--run", str(tmp_path)])
    assert told in end.value.code


@pytest.mark.slow
def test_a_test_set_chooses_if_it_is_allowed_and_every_table_says_so(tmp_path, capsys):
    level = '{"class_path": "lit_atex.sources.Embedded", "init_args": {"level": 4, "split": "validation", "size": 4}}'
    sets = ["--data.validation", f'{{"aime24": {level}}}', "--checkpoint.monitor", "validation/aime24/avg@2"]
    run = str(tmp_path / "run")
    with pytest.raises(SystemExit, match="allow_test_selection"):
        main(["fit", *STACK, *OFTEN, *sets, "--run", run])
    main(["fit", *STACK, *OFTEN, *sets, "--checkpoint.allow_test_selection", "true", "--run", run])
    assert "best on a TEST SET" in capsys.readouterr().out
    assert load(tmp_path / "run" / "manifest.json")["selection"]["on_test"] is True
    main(["evaluate", run, "--checkpoint", "best", "--run", str(tmp_path / "best"), "--limit", "2"])
    text = (tmp_path / "best" / "evaluation.md").read_text(encoding="utf-8")
    assert "best on a TEST SET" in text


def test_the_words_say_if_no_training_was_better():
    found = summary(results(step_0=0.9, step_2=0.8, step_4=0.4), MEAN, "max", False)
    assert found["words"].endswith(". The untouched model had 0.675.")
    assert "untouched" not in summary(results(step_0=0.1, step_2=0.8), MEAN, "max", False)["words"]
