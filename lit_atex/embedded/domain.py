"""Chains of single-digit arithmetic modulo 10: problems, reference solutions, and the people who write about them.

It knows nothing of models, tokens or training.

A problem of level L is a chain of L operations, worked from left to right without precedence, modulo 10:

    question      3+8*7-2
    solution      3+8=1        one operation a line ...
                  1*7=7
                  7-2=5
                  ####5        ... and the answer

`terseness` decides how far the reference is beyond the student: at 0 every operation has its own line; above 0 each
line of the solution's later half merges two or three operations with that probability (`1*7-2=5`), as experts do.

The domain, the knob and the shipped model are fixed: results compare runs on them, so they are not tuned to results.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from lit_atex.types import Problem, seeded

OPERATIONS = "+-*"
SLIP_RATE = 0.1
"""Probability that an author's operation is off by one; the author goes on from the slip."""
MERGING_AUTHORS = 0.15
"""Share of authors who merge up to three operations into one line."""
HINTED_TEXTS = 0.5
"""Share of texts in which the question is followed by the first lines of the reference, which the author copies."""
TERSE_REFERENCES = 0.5
"""Share of the references in texts that merge lines; their terseness is uniform in (0, 1)."""
LEVELS = range(1, 13)
"""Chain lengths that occur in the pre-training text."""


class Chain(NamedTuple):
    """A question as numbers: `operands[i + 1]` is applied by `operations[i]` to what came before."""

    operands: list[int]
    operations: str

    @property
    def question(self) -> str:
        """The chain as text."""
        return str(self.operands[0]) + "".join(f"{op}{x}" for op, x in zip(self.operations, self.operands[1:]))


class Text(NamedTuple):
    """One pre-training text: a question, the hint below it (may be empty) and what the author wrote."""

    question: str
    hint: str
    solution: str


def apply(operation: str, a: int, b: int) -> int:
    """`a operation b` modulo 10."""
    return (a + b if operation == "+" else a - b if operation == "-" else a * b) % 10


def draw_chain(rng: np.random.Generator, level: int) -> Chain:
    """A chain of `level` >= 1 operations, uniform over operands 0-9 and operations."""
    return Chain(
        rng.integers(0, 10, level + 1).tolist(), "".join(OPERATIONS[i] for i in rng.integers(0, len(OPERATIONS), level))
    )


def group_sizes(rng: np.random.Generator, level: int, terseness: float, first_half: bool = False) -> list[int]:
    """How many operations each line holds.

    Args:
        rng: Where the choices come from.
        level: Number of operations, >= 1.
        terseness: Probability in [0, 1] that a line merges two or three operations.
        first_half: Whether lines of the first half merge too.
    """
    sizes, done = [], 0
    while done < level:
        may_merge = first_half or done >= level // 2
        size = int(rng.integers(2, 4)) if may_merge and rng.random() < terseness else 1
        sizes.append(min(size, level - done))
        done += sizes[-1]
    return sizes


def write_solution(
    chain: Chain,
    sizes: list[int],
    slips: np.random.Generator | None = None,
    copied: list[str] | None = None,
) -> list[str]:
    """The lines of a solution, the answer line last.

    Args:
        chain: What is solved.
        sizes: Operations per line; they cover the whole chain.
        slips: If given, each operation is off by one with probability `SLIP_RATE`.
        copied: Lines to begin with; they are a correct solution of the operations that they cover.
    """
    lines = list(copied or [])
    if lines and lines[-1].startswith("####"):
        return lines
    done = sum(sum(op in OPERATIONS for op in line) for line in lines)
    value = int(lines[-1][-1]) if lines else chain.operands[0]
    for size in sizes:
        text = str(value)
        for i in range(done, done + size):
            text += f"{chain.operations[i]}{chain.operands[i + 1]}"
            value = apply(chain.operations[i], value, chain.operands[i + 1])
            if slips is not None and slips.random() < SLIP_RATE:
                value = (value + int(slips.choice([-1, 1]))) % 10
        done += size
        lines.append(f"{text}={value}")
    return [*lines, f"####{value}"]


def make_problem(index: int, level: int, terseness: float = 0.0, split: str = "train", seed: int = 0) -> Problem:
    """Problem number `index` of an endless, seeded sequence; terseness changes the solution, never the question.

    Args:
        index: Position in the sequence, >= 0.
        level: Number of operations, >= 1.
        terseness: See the module docstring; in [0, 1].
        split: Name of the sequence ("train", "probe", "validation", "test"); each has questions of its own.
        seed: Seed of the sequence.

    Raises:
        ValueError: If level or terseness is out of range.
    """
    if level < 1 or not 0 <= terseness <= 1:
        raise ValueError(f"embedded domain: level={level} must be >= 1 and terseness={terseness} in [0, 1].")
    chain = draw_chain(seeded(seed, f"embedded-{split}", level, index), level)
    sizes = group_sizes(seeded(seed, f"embedded-terse-{split}", level, index), level, terseness)
    lines = write_solution(chain, sizes)
    return Problem(
        id=f"{split}-{seed}-{level}-{index}",
        question=chain.question,
        solution="\n".join(lines),
        answer=lines[-1].removeprefix("####"),
        source="embedded",
        level=str(level),
    )


def draw_text(rng: np.random.Generator, level: int) -> Text:
    """One pre-training text of an author who slips, maybe merges, and copies the hint if there is one."""
    chain = draw_chain(rng, level)
    copied: list[str] = []
    if rng.random() < HINTED_TEXTS:
        terseness = rng.random() if rng.random() < TERSE_REFERENCES else 0.0
        reference = write_solution(chain, group_sizes(rng, level, terseness))
        copied = reference[: rng.integers(1, len(reference) + 1)]
    left = level - sum(sum(op in OPERATIONS for op in line) for line in copied if not line.startswith("####"))
    merging = rng.random() < MERGING_AUTHORS
    sizes = group_sizes(rng, left, 0.7 if merging else 0.0, first_half=True) if left else []
    return Text(chain.question, "\n".join(copied), "\n".join(write_solution(chain, sizes, rng, copied)))
