"""Measures the embedded reasoner before any distillation and writes its model card; part of `lit-atex pretrain`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from statistics import fmean
from typing import Any

from lit_atex.embedded.domain import LEVELS, OPERATIONS, make_problem
from lit_atex.models import LanguageModel, end_ids
from lit_atex.prompts import PromptStyle
from lit_atex.rollout import Sampling, TransformersEngine
from lit_atex.stats import bootstrap_interval, fixed_problems_interval
from lit_atex.types import Verdict, seeded
from lit_atex.verify import Verifier

CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
tags: [arithmetic, self-distillation]
---
# The embedded reasoner of lit_atex

A Qwen3 of {parameters:,} parameters that solves chains of single-digit arithmetic modulo 10, one operation a line. It
ships with lit_atex so that demo, tests and ablations need no download, and it is loaded like any Hugging Face folder.

Trained by `lit-atex pretrain --out DIR --steps {steps} --batch_size {batch_size} --lr {lr} --seed {seed}`
({minutes:.0f} minutes on {threads} CPU thread(s)). The texts are by authors who slip: each operation is off by one with
probability 0.1, and the author goes on from the slip. So the model has the skill (greedy) but does not sample it
reliably (temperature 1). In half of the texts the question is followed by the first lines of a correct reference, which
the author copies before going on; 15 % of the authors merge up to three operations into one line.

Prompt: the question as the user's message; with a hint, `question newline hint`.

## Without a hint, by level

{problems} problems of the split "card", {samples} completions each at temperature 1; intervals 95 %, over problems and
with the problems fixed. Levels above {longest} are longer than anything in the pre-training text.

{levels}

## As a teacher, at level 8, by terseness of the reference and exposure

Accuracy of completions sampled with the hint.

{hints}

## Style, at level 8 without a hint

{style}
"""


class _Examiner:
    def __init__(self, folder: Path, problems: int, samples: int) -> None:
        self.model, self.tokenizer = LanguageModel(str(folder)).load()
        self.style = PromptStyle("{question}", "{question}\n{hint}")
        self.engine, self.verifier = TransformersEngine(), Verifier()
        self.problems, self.samples = problems, samples

    def __call__(
        self, level: int, terseness: float = 0.0, exposure: float = 0.0, greedy: bool = False
    ) -> tuple[list[float], list[str], list[Verdict]]:
        """Share correct per problem, completions, verdicts."""
        samples = 1 if greedy else self.samples
        problems = [make_problem(i, level, terseness, "card") for i in range(self.problems)]
        rollouts = self.engine.generate(
            self.model,
            [self.style.teacher(p, exposure, self.tokenizer).ids for p in problems],
            samples,
            Sampling(temperature=0.0 if greedy else 1.0, max_new_tokens=128),
            end_ids(self.model, self.tokenizer),
            [seeded(0, "card", p.id, g) for p in problems for g in range(samples)],
        )
        texts = self.tokenizer.batch_decode(rollouts.lists(), skip_special_tokens=True)
        verdicts = self.verifier.verify(texts, [p.answer for p in problems for _ in range(samples)])
        correct = [v is Verdict.CORRECT for v in verdicts]
        shares = [sum(correct[i : i + samples]) / samples for i in range(0, len(correct), samples)]
        return shares, texts, verdicts


def write_card(folder: Path, training: dict[str, Any], problems: int = 200, samples: int = 8) -> None:
    """Measure the model in `folder` and write its README.md.

    Args:
        folder: A model that `pretrain` wrote.
        training: The fields of the card that only the training knows: steps, batch_size, lr, seed, minutes, threads.
        problems: Problems per row, >= 1.
        samples: Completions per problem, >= 2.
    """
    examine = _Examiner(folder, problems, samples)
    levels = [f"| level | greedy | avg@{samples} | over problems | problems fixed |", "|---|---|---|---|---|"]
    for level in (2, 4, 6, 8, 10, 12, 14):
        shares = examine(level)[0]
        low, high = bootstrap_interval(shares, shares=True)
        fixed = fixed_problems_interval([round(s * samples) for s in shares], [samples] * problems)
        levels.append(
            f"| {level} | {fmean(examine(level, greedy=True)[0]):.3f} | {fmean(shares):.3f} | [{low:.3f}, {high:.3f}] "
            f"| [{fixed[0]:.3f}, {fixed[1]:.3f}] |"
        )
    exposures = (0.25, 0.5, 0.75, 1.0)
    hints = ["| terseness | " + " | ".join(f"exposure {e}" for e in exposures) + " |", "|---" * 5 + "|"]
    for terseness in (0.0, 0.5, 1.0):
        cells = [f"{fmean(examine(8, terseness, e)[0]):.3f}" for e in exposures]
        hints.append(f"| {terseness} | " + " | ".join(cells) + " |")
    _, texts, verdicts = examine(8)
    counts: Counter[str] = Counter()
    for text, verdict in zip(texts, verdicts):
        lines = [sum(c in OPERATIONS for c in line) for line in text.splitlines() if "=" in line]
        kind = "merged lines" if any(n > 1 for n in lines) else "one operation a line"
        counts[kind] += 1
        counts[kind + " correct"] += verdict is Verdict.CORRECT
    style = ["| completions | share | correct |", "|---|---|---|"]
    for kind in ("one operation a line", "merged lines"):
        share, correct = counts[kind] / len(texts), counts[kind + " correct"] / max(counts[kind], 1)
        style.append(f"| {kind} | {share:.3f} | {correct:.3f} |")
    text = CARD.format(
        **training,
        parameters=sum(p.numel() for p in examine.model.parameters()),
        problems=problems,
        samples=samples,
        longest=max(LEVELS),
        levels="\n".join(levels),
        hints="\n".join(hints),
        style="\n".join(style),
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
