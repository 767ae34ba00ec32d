"""Runs killed with SIGKILL and resumed are, to the bit, the runs that were not killed; `make bench` kills a hundred."""

import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))

from kill import Case, Kill, Runner, differences, kill_and_resume, means, random_case, random_kills  # noqa: E402

pytestmark = pytest.mark.slow
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.fixture(scope="module")
def runner():
    one = Runner()
    yield one
    one.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("seed", [1])
def test_a_random_case_killed_at_random(runner, folder, seed):
    draws = random.Random(seed)
    case = random_case(draws)
    kills = random_kills(draws, runner, case, folder)
    assert kill_and_resume(runner, case, kills, folder, f"random-{seed}")[1] == [], (case, kills)


def test_accumulation_held_decisions_adapters_and_passes_that_end(runner, folder):
    case = Case("random", ("accumulate", "hold", "epochs", "lora"))
    operations = runner.reference(case, folder)[2]
    kills = [Kill(operation=int(share * operations)) for share in (0.75, 0.3)]  # the second: again, after resuming
    assert kill_and_resume(runner, case, kills, folder, "all") == (2, [])


def test_a_policy_that_has_learned(runner, folder):
    case = Case("beta_policy")
    straight, _, operations = runner.reference(case, folder)
    course = means(straight)
    assert len(set(course[:5])) == 1 < len(set(course[:6]))  # of twelve: long before the first kill
    kills = [Kill(operation=int(share * operations)) for share in (0.8, 0.2)]
    assert kill_and_resume(runner, case, kills, folder, "learned") == (2, [])


def scalars(run, tag):
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    return [event.step for event in events.Scalars(tag)]


def test_the_command_itself(runner, folder):
    """As a user starts it; killed once a checkpoint is there and something of the next step too."""
    case = Case("fixed")
    straight, run = runner.reference(case, folder)[0], folder / "command"
    command = [sys.executable, "-m", "lit_atex", *case.words(), "--run", str(run)]
    with subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, cwd=folder) as process:
        while not (run / "checkpoints" / "epoch=0-step=2.ckpt").exists() and process.poll() is None:
            time.sleep(0.001)  # a step takes fifty times that; without it a core is kept from the run
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert json.loads((run / "manifest.json").read_text(encoding="utf-8"))["finished"] is False
    assert runner.run([*case.words(), "--resume"], run)
    assert differences(straight, run) == []
    assert scalars(run, "loss/divergence") == sorted(set(scalars(run, "loss/divergence")))


def test_a_full_disk(runner, folder):
    """A limit on the size of files stands for it: writing fails half way, as there."""
    case = Case("fixed")
    straight, run = runner.reference(case, folder)[0], folder / "full"
    size = (straight / "checkpoints" / "last.ckpt").stat().st_size

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # an error then, not the end of the process
        resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, size // 2))

    assert not runner.run(case.words(), run, Kill(operation=60))
    before = {path.name: torch.load(path, weights_only=True) for path in (run / "checkpoints").glob("*.ckpt")}
    assert "last.ckpt" in before
    command = [sys.executable, "-m", "lit_atex", *case.words(), "--run", str(run), "--resume"]
    done = subprocess.run(
        command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, cwd=folder, preexec_fn=limit
    )
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"lit-atex: error: the checkpoint {run}/checkpoints/")
    for words in ("could not be written", "Earlier checkpoints are intact", "--resume"):
        assert words in error
    assert {path.name for path in (run / "checkpoints").iterdir()} == set(before)  # nothing is left aside
    for name, checkpoint in before.items():
        now = torch.load(run / "checkpoints" / name, weights_only=True)
        torch.testing.assert_close(now["state_dict"], checkpoint["state_dict"], rtol=0, atol=0)
    assert runner.run([*case.words(), "--resume"], run)
    assert differences(straight, run) == []
