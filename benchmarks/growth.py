"""How time and memory of a step grow: completion length, hint length, batch, vocabulary, samples a problem.

A randomly initialised Qwen3 samples, is compared with its teacher and differentiated, as in training; every size in a
process of its own. One size is doubled at a time, the others stay. Printed are seconds of processor time, of one thread
unless told otherwise (the least of three), of sampling and of learning (teacher, student, divergence, backward), what
learning adds to the resident set at its peak, and the exponent of each: the slope of the logarithms, fitted over all
sizes, and that of the last doubling.

    python benchmarks/growth.py --plot docs/growth.png    # all of them, about four minutes
    python benchmarks/growth.py --only batch parts  # parts: the batch again, with part_tokens at 1,024
    python benchmarks/growth.py --only shared       # 16 rollouts of 16, 8, 4 and 2 problems: what sharing prompts saves
"""

import argparse
import json
import math
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FIRST = {"completion": 96, "hint": 96, "problems": 8, "vocab": 4096, "samples": 1, "part_tokens": 10**9}
GROWN = {
    "completion": [{"completion": 96 * 2**i} for i in range(4)],
    "hint": [{"hint": 96 * 2**i} for i in range(5)],
    "batch": [{"problems": 8 * 2**i} for i in range(4)],
    "parts": [{"problems": 8 * 2**i, "part_tokens": 1024} for i in range(4)],
    "vocab": [{"vocab": 4096 * 2**i} for i in range(6)],
    "samples": [{"samples": 2**i} for i in range(4)],
    "shared": [{"samples": 2**i, "problems": 16 // 2**i, "hint": 384} for i in range(4)],
}
QUESTION = 32


def measure(size: dict[str, int], threads: int) -> dict[str, float]:
    """Seconds and MiB at one size."""
    import torch
    from machine import DEVICE, own_clock, peak, used
    from transformers import Qwen3Config, Qwen3ForCausalLM

    from lit_atex.distil import distil
    from lit_atex.divergence import ForwardKL
    from lit_atex.rollout import Sampling, TransformersEngine
    from lit_atex.teacher import Frozen
    from lit_atex.types import row_generators, seeded

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    layer = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 32, "num_attention_heads": 4}
    config = Qwen3Config(
        **layer, vocab_size=size["vocab"], num_hidden_layers=4, num_key_value_heads=2, tie_word_embeddings=True
    )
    student, teacher = Qwen3ForCausalLM(config).to(DEVICE), Frozen()
    teacher.attach(student)
    numbers = seeded(0, "benchmark")
    prompts = numbers.integers(1, size["vocab"], (size["problems"], QUESTION)).tolist()
    hinted = [p + numbers.integers(1, size["vocab"], size["hint"]).tolist() for p in prompts]
    engine, samples = TransformersEngine(), size["samples"]

    def step(tokens: int) -> dict[str, float]:
        generators = row_generators(0, "rollout", [(0, str(i)) for i in range(len(prompts))], samples)
        began = own_clock()
        rollouts = engine.generate(student, prompts, samples, Sampling(max_new_tokens=tokens), [], generators)
        sampled = own_clock()
        loss, _ = distil(ForwardKL(), student, teacher, prompts, hinted, rollouts, samples, 512, size["part_tokens"])
        loss.backward()
        student.zero_grad()
        return {"rollout": sampled - began, "learn": own_clock() - sampled}

    step(2)
    before = used()
    steps = [step(size["completion"]) for _ in range(3)]
    return {name: min(s[name] for s in steps) for name in steps[0]} | {"MiB": (peak() - before) / 2**20}


def slope(xs: list[float], ys: list[float]) -> float:
    """Of log y over log x, by least squares."""
    us, vs = ([math.log(n) for n in ns] for ns in (xs, ys))
    u, v = sum(us) / len(us), sum(vs) / len(vs)
    return sum((a - u) * (b - v) for a, b in zip(us, vs)) / sum((a - u) ** 2 for a in us)


TITLES = {
    "completion": "completion tokens",
    "hint": "hint tokens",
    "batch": "problems in a batch",
    "parts": "problems, part_tokens 1,024",
    "vocab": "vocabulary",
    "samples": "samples a problem (G)",
    "shared": "samples (G) of 16 rollouts",
}


def plot(results: dict[str, tuple[list[int], list[dict[str, float]]]], path: Path) -> None:
    """Seconds and memory over each size, on logarithmic axes; a dotted line rises as the size does."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.5 * len(results), 4.6), layout="constrained")
    axes = figure.subplots(2, len(results), squeeze=False, sharex="col", sharey="row")
    for (name, (sizes, found)), (above, below) in zip(results.items(), axes.T):
        for key, mark in (("rollout", "s--"), ("learn", "o-")):
            above.plot(sizes, [f[key] for f in found], mark, color="#333333", ms=4, lw=1, label=key)
        below.plot(sizes, [f["MiB"] for f in found], "o-", color="#333333", ms=4, lw=1, label="learning's peak")
        for axis, first in ((above, found[0]["learn"]), (below, found[0]["MiB"])):
            line = [first * n / sizes[0] for n in sizes] if name != "shared" else [first] * len(sizes)
            axis.plot(
                sizes, line, ":", color="#888888", lw=1, label="as the size" if name != "shared" else "as at G = 1"
            )
            axis.set(xscale="log", yscale="log", xticks=sizes, xticklabels=[f"{n:,}" for n in sizes])
            axis.minorticks_off()
            axis.tick_params(labelsize=7)
            axis.grid(alpha=0.25, lw=0.5)
            axis.legend(fontsize=6, frameon=False)
        below.tick_params(axis="x", rotation=45)
        below.set_xlabel(TITLES[name], fontsize=8)
    axes[0, 0].set_ylabel("seconds of a core", fontsize=8)
    axes[1, 0].set_ylabel("MiB", fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROWN, default=list(GROWN))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="draw it too")
    parser.add_argument("--size", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.size:
        print("@" + json.dumps(measure(json.loads(args.size), args.threads)))
        return
    import torch

    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    print(f"torch {torch.__version__}, {args.threads} threads, commit {commit}; question {QUESTION}, from {FIRST}")
    results: dict[str, tuple[list[int], list[dict[str, float]]]] = {}
    for name in args.only:
        sizes, found = [FIRST | more for more in GROWN[name]], []
        print(f"\n{name:<12}{'rollout s':>11}{'learn s':>11}{'peak MiB':>11}")
        varied = next(iter(GROWN[name][0]))
        for size in sizes:
            command = [sys.executable, __file__, "--size", json.dumps(size), "--threads", str(args.threads)]
            said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
            found.append(json.loads(said.rsplit("@", 1)[1]))
            row = "".join(f"{found[-1][key]:>11.2f}" for key in ("rollout", "learn"))
            print(f"{size[varied]:<12}{row}{found[-1]['MiB']:>11.0f}", flush=True)
        for label, last in (("fitted", len(sizes)), ("last x2", 2)):
            xs = [float(size[varied]) for size in sizes[-last:]]
            slopes = "".join(f"{slope(xs, [f[key] for f in found[-last:]]):>11.2f}" for key in found[0])
            print(f"{label:<12}{slopes}")
        results[name] = ([size[varied] for size in sizes], found)
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
