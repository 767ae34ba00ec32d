"""How long a command takes before it does anything, and what it imports meanwhile.

Each is run as users run it, in a fresh process, in turn, several times. The first step of `fit` is that of the embedded
reasoner without evaluation before it: until its loss is known, and until the optimizer has stepped. The list names what
--help should not need, with the seconds that each import takes.

    python benchmarks/startup.py
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
SUSPECTS = (
    *("torch", "lightning", "transformers", "torchmetrics", "tensorboard", "jsonargparse", "peft"),
    *("datasets", "matplotlib", "math_verify", "sympy", "pandas", "scipy", "reasoning_gym"),
)
# What fit says as the loss of the first step is there, and as the step has been taken.
FIT = """
from lit_atex.cli import Cli, SelfDistillation
def before(module, loss): print("loss", flush=True)
def after(module, *_): print("step", flush=True)
SelfDistillation.on_before_backward = before
SelfDistillation.on_train_batch_end = after
import sys
from lit_atex.cli import main
main(sys.argv[1:])
"""


def seconds(command: list[str], *until: str) -> list[float]:
    """From the start until the command prints each of these lines, or without any until it ends."""
    began, took, seen = time.perf_counter(), [], ""
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT) as process:
        assert process.stdout is not None
        for line in process.stdout:
            seen += line
            if len(took) < len(until) and line.strip() == until[len(took)]:
                took.append(time.perf_counter() - began)
                if len(took) == len(until):
                    process.kill()
    if len(took) < len(until) or (not until and process.returncode):
        raise RuntimeError(seen[-2000:])
    return took or [time.perf_counter() - began]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=5, help="of each, after one that is not measured")
    args = parser.parse_args()
    python, cli = [sys.executable, "-c"], [sys.executable, "-m", "lit_atex"]
    with tempfile.TemporaryDirectory() as folder:
        limits = ["--trainer.num_sanity_val_steps", "0", "--overwrite", "true", "--run", f"{folder}/run"]
        fit = [*python, FIT, "fit", "--config", "configs/base.yaml", *limits]
        cases: dict[str, tuple[list[str], tuple[str, ...]]] = {
            "import torch": ([*python, "import torch"], ()),
            "import lightning.pytorch": ([*python, "import lightning.pytorch"], ()),
            "lit-atex --help": ([*cli, "--help"], ()),
            "lit-atex fit --help": ([*cli, "fit", "--help"], ()),
            "fit: first loss, step": (fit, ("loss", "step")),
        }
        found: dict[str, list[list[float]]] = {name: [] for name in cases}
        for _ in range(args.runs + 1):
            for name, (command, until) in cases.items():
                found[name].append(seconds(command, *until))
    git = ["git", "describe", "--always", "--dirty"]
    print(f"commit {subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()}")
    for name, runs in found.items():
        for values in zip(*runs[1:]):
            print(f"{name:<26}{median(values):6.2f} s  ({min(values):.2f} .. {max(values):.2f})")
    loud = [sys.executable, "-X", "importtime", *cli[1:], "--help"]
    lines = subprocess.run(loud, cwd=ROOT, capture_output=True, text=True, check=True).stderr.splitlines()
    known = (re.match(r"import time:\s+\d+ \|\s+(\d+) \| +(\S+)$", line) for line in lines)
    spent = {match[2]: int(match[1]) / 1e6 for match in known if match}
    print("--help imports: " + ", ".join(f"{name} {spent[name]:.2f} s" for name in SUSPECTS if name in spent))
    print("and not: " + ", ".join(name for name in SUSPECTS if name not in spent))


if __name__ == "__main__":
    main()
