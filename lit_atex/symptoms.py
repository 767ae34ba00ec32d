"""What a collapse shows in: repetition, lengths, answers, accuracy, deliberation; and that against its start or best.

It reads what was said and how it was judged, and knows no model. Everything is a sum first: then micro-batches, ranks
and steps add up, and a mean is over all of their tokens or rollouts. The measures are ours, not the paper's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from lit_atex.types import Verdict
from lit_atex.verify import canonical
from lit_atex.window import Seen

NGRAM = 4
"""Length in tokens of what counts as repeated: tokens, so that it holds for any language, and for mathematics."""

DELIBERATION = (
    *("wait", "hm", "hmm", "hmmm", "maybe", "perhaps", "actually", "alternatively", "hold on", "on second thought"),
    *("let me check", "let me verify", "let me think", "let me see", "let me reconsider", "let me try"),
    *("let's check", "let's verify", "double check", "is that right", "not sure"),
)
"""Words of a model that thinks again, in English; whole words, whatever the case and the punctuation around them."""

Sums = dict[str, float]


class Measure(NamedTuple):
    """A quotient of two sums, and how it is compared: divided by its value at the start, less it, or with its best."""

    above: str
    below: str
    compared: Literal["ratio", "change", "fall"]
    factor: float = 1.0


MEASURES = {
    "entropy": Measure("entropy", "tokens", "ratio"),  # of the student's next token, nats
    "length_finished": Measure("tokens_finished", "finished", "ratio"),  # tokens, the end token included
    "length_cut": Measure("tokens_cut", "cut", "ratio"),
    "share_cut": Measure("cut", "rollouts", "change"),
    "repetition": Measure("repeated", "ngrams", "change"),  # share of 4-grams that the rollout had before
    "answer_rate": Measure("answered", "rollouts", "change"),  # a final answer was found, right or wrong
    "accuracy": Measure("correct", "rollouts", "fall"),
    "deliberation": Measure("deliberation", "tokens", "ratio", 100.0),  # words in 100 tokens
    "distinct_answers": Measure("distinct", "groups", "ratio"),  # final answers per problem, in 0..G; if G > 1
}
"""What is logged as `collapse/NAME`, and compared as `collapse/NAME_ratio`, `NAME_change` or `NAME_fall`."""

_WORD = re.compile("[a-z']+")
_NEEDLES = [f" {'  '.join(phrase.split())} " for phrase in DELIBERATION]


def repeated_ngrams(ids: Sequence[int], n: int = NGRAM) -> tuple[int, int]:
    """How many n-grams of a text occurred in it before, and how many it has."""
    grams = max(len(ids) - n + 1, 0)
    return grams - len(set(zip(*(ids[i:] for i in range(n))))), grams


def deliberation_words(text: str) -> int:
    """How often the text thinks again, see `DELIBERATION`; at about 0.1 µs a character."""
    words = _WORD.findall(text.lower().replace("’", "'"))
    joined = f" {'  '.join(words)} "  # two spaces, so that neighbours do not share one
    return sum(joined.count(needle) for needle in _NEEDLES)


def distinct_answers(answers: Sequence[str | None]) -> int:
    """How many different final answers there are; equal ones may be spelled differently, None is not one."""
    return len({canonical(answer) for answer in set(answers) if answer is not None})


def count(seen: Seen, samples: int, extract: Callable[[str], str | None]) -> Sums:
    """What one micro-batch adds to the sums.

    Args:
        seen: The micro-batch.
        samples: Rollouts per problem (G).
        extract: Finds the final answer in a completion.

    Returns:
        All sums but "entropy".
    """
    lengths, ended = seen.rollouts.lengths.tolist(), seen.rollouts.ended.tolist()
    repeated = [repeated_ngrams(row) for row in seen.rollouts.lists()]
    sums = {
        "rollouts": len(lengths),
        "tokens": sum(lengths),
        "finished": sum(ended),
        "tokens_finished": sum(n for n, end in zip(lengths, ended) if end),
        "cut": len(lengths) - sum(ended),
        "tokens_cut": sum(n for n, end in zip(lengths, ended) if not end),
        "repeated": sum(again for again, _ in repeated),
        "ngrams": sum(all_ for _, all_ in repeated),
        "answered": sum(verdict is not Verdict.UNPARSED for verdict in seen.verdicts),
        "correct": sum(verdict is Verdict.CORRECT for verdict in seen.verdicts),
        "deliberation": sum(map(deliberation_words, seen.completions)),
    }
    if samples > 1:  # the samples of one problem stand together
        answers = [extract(text) for text in seen.completions]
        sums["distinct"] = sum(distinct_answers(answers[i : i + samples]) for i in range(0, len(answers), samples))
        sums["groups"] = len(seen.problems)
    return {name: float(value) for name, value in sums.items()}


def total(parts: Sequence[Sums]) -> Sums:
    """The sums of several micro-batches, ranks or steps."""
    return {name: sum(part.get(name, 0.0) for part in parts) for name in dict.fromkeys(k for p in parts for k in p)}


def measures(sums: Sums) -> dict[str, float]:
    """The measures by name; without those that there is nothing to say of (no rollout was cut, G is 1)."""
    return {
        name: m.factor * sums.get(m.above, 0.0) / sums[m.below] for name, m in MEASURES.items() if sums.get(m.below)
    }


def against(start: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """The measures against the start, or the best of what can fall; a ratio to nothing is left out."""
    found = {}
    for name in (name for name in now if name in start):
        if MEASURES[name].compared == "change":
            found[f"{name}_change"] = now[name] - start[name]
        elif MEASURES[name].compared == "fall":
            found[f"{name}_fall"] = start[name] - now[name]
        elif start[name]:
            found[f"{name}_ratio"] = now[name] / start[name]
    return found
