"""The divergence from hidden states: against its matrix products alone, and against TRL's chunked divergence.

Runs in TRL's environment (made by trl_step.py), so that both are measured in turn in one process: forward KL, value and
all gradients, from the same random hidden states and heads. Printed are seconds, ratios per round, the memory that each
adds at its peak, and the largest relative error of value and gradients against a float64 reference on the first tokens.

    python benchmarks/fused.py                       # 2,048 tokens, 151,936 ids, hidden 256
    python benchmarks/fused.py --growth              # tokens, vocabulary and hidden size doubled, one at a time
    python benchmarks/fused.py --forms               # every divergence as it is and compiled, without TRL
"""

import argparse
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from trl_step import ROOT, trl_python

CHUNK, CHUNK_LOGITS = 512, 3 * 2**24  # as in lit_atex


def peak(function: Callable[[], Any]) -> float:
    """MiB that the resident set grows by at most while the function runs."""
    import psutil

    process, stop, most = psutil.Process(), threading.Event(), 0

    def watch() -> None:
        nonlocal most
        while not stop.is_set():
            most = max(most, process.memory_info().rss)
            time.sleep(0.002)

    before = process.memory_info().rss
    thread = threading.Thread(target=watch)
    thread.start()
    function()
    stop.set()
    thread.join()
    return (most - before) / 2**20


def case(tokens: int, vocab: int, hidden: int, device: str) -> dict[str, Callable[[], Any]]:
    """What is measured: name -> function; those of a loss return the loss and the gradients by hidden and head."""
    import torch
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    from lit_atex.divergence import ForwardKL
    from lit_atex.fused import Head, fused_divergence

    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    make = {"device": device, "dtype": dtype}
    states, other = torch.randn(tokens, hidden, **make), torch.randn(tokens, hidden, **make)
    weight = torch.randn(vocab, hidden, **make) / hidden**0.5
    teacher = weight + 0.1 * torch.randn(vocab, hidden, **make) / hidden**0.5
    ids = torch.zeros(tokens, dtype=torch.long, device=device)
    leaves = [states.requires_grad_(), weight.requires_grad_()]

    def ours() -> Any:
        loss, _ = fused_divergence(ForwardKL(), states, Head(weight), other, Head(teacher), ids, CHUNK)
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    def trl() -> Any:
        values, _ = ChunkedDivergenceFunction.apply(states, weight, None, other, teacher, None, 0.0)
        loss = values.sum()
        return loss.detach(), *torch.autograd.grad(loss, leaves)

    def exact() -> Any:
        x, w = states.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
        p, q = (other.double() @ teacher.double().T).log_softmax(-1), (x @ w.T).log_softmax(-1)
        loss = (p.exp() * (p - q)).sum()
        return loss.detach(), *torch.autograd.grad(loss, [x, w])

    return {
        "ours": ours,
        "trl": trl,
        "products": lambda: products(states.detach(), weight.detach(), other, teacher),
        "exact": exact,
    }


def measure(tokens: int, vocab: int, hidden: int, runs: int, device: str) -> dict[str, list[float]]:
    import torch

    functions = case(tokens, vocab, hidden, device)
    del functions["exact"]
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs + 1):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - began)
    return {name: values[1:] for name, values in seconds.items()}


def forms(tokens: int, vocab: int, hidden: int, runs: int, device: str) -> None:
    """Seconds of every divergence, as it is and compiled, in turn with the products alone."""
    import torch

    from lit_atex.compiled import Compiled
    from lit_atex.divergence import JSD, Clip, ForwardKL, ReverseKL, SkewKL, TopK
    from lit_atex.fused import Head, fused_divergence

    torch.manual_seed(0)
    make = {"device": device, "dtype": torch.bfloat16 if device == "cuda" else torch.float32}
    states, other = torch.randn(tokens, hidden, **make), torch.randn(tokens, hidden, **make)
    weight = torch.randn(vocab, hidden, **make) / hidden**0.5
    teacher = weight + 0.1 * torch.randn(vocab, hidden, **make) / hidden**0.5
    ids = torch.zeros(tokens, dtype=torch.long, device=device)
    leaves = [states.requires_grad_(), weight.requires_grad_()]

    def timed(divergence: Any) -> float:
        began = time.perf_counter()
        if divergence is None:
            products(states.detach(), weight.detach(), other, teacher)
        else:
            loss, _ = fused_divergence(divergence, states, Head(weight), other, Head(teacher), ids, CHUNK)
            torch.autograd.grad(loss, leaves)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    print(f"{tokens} tokens, {vocab} ids, hidden {hidden}: seconds, median of {runs} rounds; ratios per round")
    print(f"{'':<18}{'plain':>10}{'compiled':>10}{'plain / products':>26}{'compiled / plain':>26}")
    top_k = ForwardKL(top_k=TopK(100))
    clipped = (ForwardKL(clip=Clip(0.05)), JSD(clip=Clip(0.05)))
    for plain in (ForwardKL(), ReverseKL(), JSD(), SkewKL(), *clipped, top_k):
        torch._dynamo.reset()
        cases = {"plain": plain, "compiled": Compiled(of=plain), "products": None}
        rounds = [{name: timed(case) for name, case in cases.items()} for _ in range(runs + 1)][1:]
        name = type(plain).__name__ + (", clip" if plain.clip else "") + (", top_k" if plain.top_k else "")
        line = f"{name:<18}" + "".join(f"{median(s[which] for s in rounds):10.2f}" for which in ("plain", "compiled"))
        for a, b in (("plain", "products"), ("compiled", "plain")):
            ratios = [s[a] / s[b] for s in rounds]
            line += f"{median(ratios):11.2f} ({min(ratios):.2f} .. {max(ratios):.2f})"
        print(line, flush=True)


def products(states: Any, weight: Any, other: Any, teacher: Any) -> None:
    """The four products of a divergence from hidden states, chunk by chunk."""
    import torch

    rows = min(CHUNK, CHUNK_LOGITS // len(weight))
    logits, by_head = weight.new_empty(rows, len(weight)), torch.zeros_like(weight)
    for part, theirs in zip(states.split(rows), other.split(rows)):
        out = logits[: len(part)]
        torch.mm(theirs, teacher.T, out=out)
        torch.mm(part, weight.T, out=out)
        out @ weight
        by_head.addmm_(out.T, part)


def run(args: argparse.Namespace) -> None:
    import torch

    torch.set_num_threads(args.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    git = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    print(f"torch {torch.__version__}, {device}, {args.threads} threads, commit {commit}")
    if args.forms:
        forms(args.tokens, 151_936, 256, args.runs, device)
        return
    if args.growth:
        print(f"{'tokens':>8}{'vocab':>9}{'hidden':>8}{'seconds':>9}{'exponent':>10}{'peak MiB':>10}")
        first = (512, 32_768, 128)
        for which in (None, 0, 1, 2):
            for factor in (1,) if which is None else (2, 4):
                sizes = tuple(n * factor if i == which else n for i, n in enumerate(first))
                seconds = median(measure(*sizes, args.runs, device)["ours"])
                if which is None:
                    base = seconds
                grown = (
                    "" if which is None else f"{torch.tensor(seconds / base).log2() / torch.tensor(factor).log2():.2f}"
                )
                memory = peak(case(*sizes, device)["ours"])
                print(f"{sizes[0]:>8}{sizes[1]:>9}{sizes[2]:>8}{seconds:>9.2f}{grown:>10}{memory:>10.0f}", flush=True)
        return
    sizes = (args.tokens, 151_936, 256)
    seconds = measure(*sizes, args.runs, device)
    print(f"{sizes[0]} tokens, {sizes[1]} ids, hidden {sizes[2]}: seconds, median of {args.runs} rounds")
    for name, values in seconds.items():
        line = f"{name:<10}{median(values):8.2f}  ({min(values):.2f} .. {max(values):.2f})"
        if name != "products":
            line += f"   {peak(case(*sizes, device)[name]):6.0f} MiB"
        print(line)
    for name in ("products", "trl"):
        ratios = [a / b for a, b in zip(seconds["ours"], seconds[name])]
        print(f"ours / {name:<9}{median(ratios):6.2f}  ({min(ratios):.2f} .. {max(ratios):.2f})")
    few = case(64, 151_936, 256, device)
    exact = few["exact"]()
    for name in ("ours", "trl"):
        errors = [float((a.double() - b).norm() / b.norm()) for a, b in zip(few[name](), exact)]
        print(f"{name}: relative error of value {errors[0]:.1e}, by hidden {errors[1]:.1e}, by head {errors[2]:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--runs", type=int, default=3, help="rounds that are measured, after one that is not")
    parser.add_argument("--growth", action="store_true")
    parser.add_argument("--forms", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inside or args.forms:
        run(args)
        return
    env = os.environ | {"PYTHONPATH": str(ROOT), "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [str(trl_python()), str(Path(__file__).resolve()), *sys.argv[1:], "--inside"]
    sys.exit(subprocess.run(command, env=env, check=False).returncode)


if __name__ == "__main__":
    main()
