"""Kills runs with SIGKILL, goes on with --resume, and compares with the runs that were not killed, bit for bit.

A run is killed at a random moment, or just before one of its file operations (of which it has about a hundred), and may
be killed again after it was resumed. Runs are children that are forked from a process in which everything is imported.

    python benchmarks/kill.py                # 100 kills over all strategies of configs/exposure, about 10 minutes
    python benchmarks/kill.py --kills 10 --seed 3
    python benchmarks/kill.py --every        # before each file operation of one run, one by one
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
TIMES = re.compile("time/|throughput/")
"""Columns of metrics.csv that depend on the clock."""

SMALL = [
    *("--model.sampling.max_new_tokens", "8", "--model.eval_sampling.max_new_tokens", "8", "--model.eval_samples", "1"),
    *("--sample_log.every_n_steps", "1", "--trainer.max_steps", "12", "--exposure.hold", "1"),
    *("--trainer.val_check_interval", "2", "--trainer.enable_progress_bar", "false"),
]
LEARNED = ("bandit", "beta_policy")
SOON = ["--exposure.strategy.init_args.horizon", "1"]
"""Of those: rewards that come at once, so that REINFORCE would learn too; the reward model moves the sixth decision."""
OPTIONS = {
    "accumulate": ["--trainer.accumulate_grad_batches", "2"],
    "hold": ["--exposure.hold", "2"],
    "epochs": ["--data.train.init_args.size", "12", "--trainer.max_epochs", "-1"],
    "lora": ["--config", str(ROOT / "configs/model/lora.yaml")],
    "rarely": ["--checkpoint.every_n_train_steps", "2"],
    "midway": ["--trainer.accumulate_grad_batches", "2", "--trainer.val_check_interval", "3"],
}
"""What a case may have: windows of accumulation, held decisions, passes that end, adapters, fewer checkpoints,
validation in the midst of a window."""


class Case(NamedTuple):
    """What is run."""

    strategy: str
    options: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The command line without --run."""
        files = ("base.yaml", f"exposure/{self.strategy}.yaml", "tiny.yaml")
        stack = [word for file in files for word in ("--config", str(ROOT / "configs" / file))]
        often = ["--checkpoint.every_n_train_steps", "1"]
        soon = SOON if self.strategy in LEARNED else []
        return ["fit", *stack, *SMALL, *often, *soon, *(word for name in self.options for word in OPTIONS[name])]


class Kill(NamedTuple):
    """When a run is killed: so many seconds after its start, or before its n-th file operation."""

    seconds: float | None = None
    operation: int | None = None


def strategies() -> list[str]:
    """The overlays of configs/exposure."""
    return sorted(path.stem for path in (ROOT / "configs" / "exposure").glob("*.yaml"))


def random_case(draws: random.Random) -> Case:
    """Any strategy with some of the options."""
    return Case(draws.choice(strategies()), tuple(name for name in OPTIONS if draws.random() < 0.4))


# Runs, forked from a process that has imported everything


class Runner:
    """Starts runs, and kills them."""

    def __init__(self) -> None:
        paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": paths}
        self._server = subprocess.Popen(
            [sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env=environment,
        )  # fmt: skip
        self._hear()  # it is there
        self._references: dict[Case, tuple[Path, float, int]] = {}

    def close(self) -> None:
        """End the process."""
        self._server.communicate()

    def run(self, words: list[str], run: Path, kill: Kill = Kill()) -> bool:  # noqa: B008  (a tuple, never changed)
        """Run a command line to its end or its kill.

        Returns:
            Whether it came to its end.

        Raises:
            RuntimeError: If it failed; with what it printed.
        """
        log = run.with_name(f"{run.name}.log")
        self._say({"words": [*words, "--run", str(run)], "run": str(run), "log": str(log), "kill": kill.operation})
        pid = int(self._hear())
        if kill.seconds is not None:
            time.sleep(kill.seconds)
            os.kill(pid, signal.SIGKILL)  # it may have ended, but keeps its number until it is waited for
        self._say({})
        status = int(self._hear())
        if status not in (0, -signal.SIGKILL):
            raise RuntimeError(f"{' '.join(words)}\n{log.read_text(encoding='utf-8')}")
        return status == 0

    def reference(self, case: Case, folder: Path) -> tuple[Path, float, int]:
        """The run that is not killed, with its seconds and the number of its file operations."""
        if case not in self._references:
            run, began = folder / "-".join(["straight", case.strategy, *case.options]), time.perf_counter()
            assert self.run(case.words(), run)
            if case.strategy == "beta_policy" and len(set(means(run))) == 1:
                raise RuntimeError(f"the Beta policy never moved, so {run} shows nothing of one that has learned")
            operations = int(run.with_name(f"{run.name}.log.operations").read_text(encoding="utf-8"))
            self._references[case] = run, time.perf_counter() - began, operations
        return self._references[case]

    def _say(self, message: dict[str, Any]) -> None:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(message) + "\n")
        self._server.stdin.flush()

    def _hear(self) -> str:
        assert self._server.stdout is not None
        return self._server.stdout.readline()


def serve() -> None:
    """Fork a child for each line of standard input; say its number, and at the next line its exit code."""
    import torch

    import lit_atex.cli

    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        if (pid := os.fork()) == 0:
            code = 1
            try:
                with open(job["log"], "w", encoding="utf-8") as log:
                    os.dup2(log.fileno(), 1)
                    os.dup2(log.fileno(), 2)
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                counted = count_operations(job["run"], job["kill"])
                lit_atex.cli.main(job["words"])
                Path(job["log"] + ".operations").write_text(str(len(counted)), encoding="utf-8")
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        print(pid, flush=True)
        sys.stdin.readline()
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def count_operations(run: str, kill: int | None) -> list[str]:
    """Have Python tell of each change to a file in the run folder before it is made; kill this process at the n-th.

    Returns:
        The operations so far.
    """
    counted: list[str] = []

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event not in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate"):
            return
        if not str(args[0]).startswith(run) or (event == "open" and not args[2] & (os.O_WRONLY | os.O_RDWR)):
            return
        counted.append(f"{event} {args[0]}")
        if len(counted) == kill:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)
    return counted


def kill_and_resume(runner: Runner, case: Case, kills: list[Kill], folder: Path, name: str) -> tuple[int, list[str]]:
    """Run a case, kill it again and again, let it come to its end, and compare.

    Returns:
        How many kills came before the end; what is different from the run that was not killed.
    """
    straight, _, _ = runner.reference(case, folder)
    run, done = folder / name, 0
    for kill in kills:
        if runner.run([*case.words(), "--resume"], run, kill):  # a run that has not begun begins
            break
        done += 1
    else:
        assert runner.run([*case.words(), "--resume"], run)
    return done, differences(straight, run)


# Comparing


def differences(a: Path, b: Path) -> list[str]:
    """What is not the same in two run folders, but for times and the commands."""
    found = []
    for path in ["metrics.csv", "results.json", "manifest.json", "checkpoints/last.ckpt"]:
        found += [f"{path}: {d}" for d in differing(_read(a, path), _read(b, path))]
    names = [_names(run) for run in (a, b)]
    found += [f"only in one: {name}" for name in sorted(names[0] ^ names[1])]
    for name in sorted(names[0] & names[1]):
        if name.startswith(("outcomes/", "student/", "samples", "decisions", "prompts")):
            found += [f"{name}: other bytes"] * ((a / name).read_bytes() != (b / name).read_bytes())
    return found


def means(run: Path) -> list[float]:
    """The mean of the Beta policy at each decision."""
    lines = (run / "decisions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["details"]["mean"] for line in lines]


def _names(run: Path) -> set[str]:
    """Its files, but for those of which there may be more: TensorBoard begins one whenever a run is resumed.

    And a run that was killed between its first checkpoint and last.ckpt goes on from that one, which Lightning keeps.
    """
    files = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith(("tensorboard/events", "checkpoints/epoch="))}


def _read(run: Path, name: str) -> Any:
    path = run / name
    if name.endswith(".csv"):
        with open(path, newline="", encoding="utf-8") as file:
            return [{k: v for k, v in row.items() if v and not TIMES.match(k)} for row in csv.DictReader(file)]
    if name.endswith(".ckpt"):
        import torch

        checkpoint = torch.load(path, weights_only=True)
        for name in ("val_loop.batch_progress", "scheduler_progress", "automatic_optimization.optim_progress"):
            del checkpoint["loops"]["fit_loop"][f"epoch_loop.{name}"]  # how Lightning counts within a pass, for itself
        return _without(checkpoint, str(run))
    data = json.loads(path.read_text(encoding="utf-8"))
    if name == "manifest.json":
        data = {key: data.get(key) for key in ("finished", "error", "optimizer_steps", "skipped_steps", "data")}
    return data


def _without(value: Any, run: str) -> Any:
    """The same with RUN for the path of the run."""
    if isinstance(value, dict):
        return {key: _without(v, run) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_without(v, run) for v in value]
    return value.replace(run, "RUN") if isinstance(value, str) else value


def differing(a: Any, b: Any, where: str = "") -> list[str]:
    """Where two nested values differ; tensors to the bit."""
    import torch

    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        same = a.dtype == b.dtype and torch.equal(a, b)
        return [] if same else [f"{where}: {(a - b).abs().max() if a.shape == b.shape else (a.shape, b.shape)}"]
    if isinstance(a, dict) and isinstance(b, dict):
        parts = [differing(a.get(key), b.get(key), f"{where}/{key}") for key in [*a, *(b.keys() - a.keys())]]
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        parts = [differing(x, y, f"{where}/{i}") for i, (x, y) in enumerate(zip(a, b))]
    else:
        return [] if type(a) is type(b) and (a == b or a != a) else [f"{where}: {a!r} and {b!r}"]
    return [d for part in parts for d in part]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", action="store_true")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve()
        return
    runner, draws, done, bad, cases = Runner(), random.Random(args.seed), 0, 0, 0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.every:
            case = random_case(draws)
            plan = [(case, [Kill(operation=n + 1)]) for n in range(runner.reference(case, folder)[2])]
        else:
            plan = []
        while plan or (done < args.kills and not args.every):
            if plan:
                case, kills = plan.pop(0)
            else:
                case = Case(strategies()[cases % len(strategies())], random_case(draws).options)
                kills = random_kills(draws, runner, case, folder)
            count, found = kill_and_resume(runner, case, kills, folder, f"run-{cases}")
            done, bad, cases = done + count, bad + bool(found), cases + 1
            when = ", ".join(str(kill) for kill in kills)
            print(f"{done:4d}  {case.strategy} {' '.join(case.options)}: {when}: {found or 'same'}", flush=True)
    runner.close()
    print(f"{done} kills, {bad} runs that were not the same")
    sys.exit(bad > 0)


def random_kills(draws: random.Random, runner: Runner, case: Case, folder: Path) -> list[Kill]:
    """One to three of them, by the clock or before a file operation."""
    _, seconds, operations = runner.reference(case, folder)
    moments = [Kill(draws.uniform(0, seconds)), *(Kill(operation=draws.randint(1, operations)) for _ in range(2))]
    return draws.sample(moments, draws.randint(1, 3))


if __name__ == "__main__":
    main()
