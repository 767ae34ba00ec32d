"""Tokens per second of TransformersEngine against transformers' own `generate`; it says nothing about quality.

Both sample from the same randomly initialised Qwen3, in alternating runs in one process, so that a slow minute of the
machine hits both. Printed are the tokens per second of each (median, min..max) and their ratio per pair of runs, also
by CPU time, which (with one thread) other work on the machine disturbs less. Only tokens up to and including the end
token count.

    python benchmarks/rollout.py --threads 1             # 64 ragged rows, 32 ids, with an end token
    python benchmarks/rollout.py --shape wide            # 4 rows x 64 tokens, 151,936 ids, no end token
    python benchmarks/rollout.py --samples 8             # 8 prompts x 8 samples: the prompt is read once
    python benchmarks/rollout.py --top-k 20 --top-p 0.95
"""

import argparse
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from transformers import Qwen3Config, Qwen3ForCausalLM

from lit_atex.rollout import Sampling, TransformersEngine
from lit_atex.types import seeded

# name: (sizes of the model, rows, longest prompt, max_new_tokens, end id or None)
SHAPES: dict[str, tuple[dict[str, Any], int, int, int, int | None]] = {
    "small": ({"vocab_size": 32, "hidden_size": 96, "intermediate_size": 256}, 64, 48, 128, 1),
    "wide": ({"vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 768}, 4, 48, 64, None),
}


def show(name: str, values: list[float], unit: str) -> None:
    print(f"{name:<24} {median(values):10.2f} {unit}  ({min(values):.2f} .. {max(values):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--samples", type=int, default=1, help="completions per prompt; the number of rows stays")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs that are measured, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes, rows, longest, limit, end = SHAPES[args.shape]
    heads: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(**sizes, **heads, head_dim=sizes["hidden_size"] // 4, tie_word_embeddings=True)
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, end, 0
    model = Qwen3ForCausalLM(config).eval()

    numbers = seeded(0, "benchmark")
    problems = rows // args.samples
    prompts = [numbers.integers(2, 32, int(n)).tolist() for n in numbers.integers(longest // 4, longest + 1, problems)]
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    sampling = Sampling(top_k=args.top_k, top_p=args.top_p, max_new_tokens=limit)

    def ours(run: int) -> int:
        streams = [seeded(run, "rollout", p, s) for p in range(problems) for s in range(args.samples)]
        ends = [] if end is None else [end]
        found = TransformersEngine().generate(model, prompts, args.samples, sampling, ends, streams)
        return int(found.lengths.sum())

    def theirs(run: int) -> int:
        torch.manual_seed(run)
        found = model.generate(
            ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=args.top_k,
            top_p=args.top_p,
            max_new_tokens=limit,
            num_return_sequences=args.samples,
        )[:, width:]
        # The end token counts, what follows it does not.
        return found.numel() if end is None else int(((found == end).cumsum(1) - (found == end).long() == 0).sum())

    def rates(function: Callable[[int], int], run: int) -> tuple[float, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        tokens = function(run)
        return tokens / (time.perf_counter() - wall), tokens / (time.process_time() - cpu)

    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    print(
        f"torch {torch.__version__}, transformers {transformers.__version__}, {args.threads} threads, commit {commit}"
    )
    print(f"{args.shape}: {sizes}, {problems} prompts x {args.samples} samples, at most {limit} tokens, end id {end}")
    pairs = [(rates(ours, run), rates(theirs, run)) for run in range(args.runs + 1)][1:]
    show("TransformersEngine", [a[0] for a, _ in pairs], "tokens/s")
    show("generate", [b[0] for _, b in pairs], "tokens/s")
    show("ratio", [a[0] / b[0] for a, b in pairs], "x")
    show("ratio by CPU time", [a[1] / b[1] for a, b in pairs], "x")


if __name__ == "__main__":
    main()
