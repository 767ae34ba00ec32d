"""The embedded domain: solutions are true, terseness changes nothing else, authors err as said; tokenizer and texts."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import islice
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from lit_atex.embedded import MODEL_DIR
from lit_atex.embedded.domain import (
    HINTED_TEXTS,
    LEVELS,
    MERGING_AUTHORS,
    SLIP_RATE,
    Text,
    draw_chain,
    draw_text,
    group_sizes,
    make_problem,
)
from lit_atex.embedded.pretrain import Pretraining, Texts, build_model, build_tokenizer, pretrain
from lit_atex.types import Problem

INDEX, LEVEL, TERSENESS = st.integers(0, 10**6), st.integers(1, 14), st.floats(0, 1)
TOKENIZER = build_tokenizer()


def value(expression: str) -> int:
    """From left to right without precedence, modulo 10: Python's own arithmetic on an expression full of brackets."""
    first, *rest = re.findall(r"^\d+|[-+*]\d", expression)
    assert first + "".join(rest) == expression
    for part in rest:
        first = f"({first}{part})"
    return eval(first) % 10


def check_solution(question: str, lines: list[str]) -> list[int]:
    """Every line is true and goes on from the one before, all operations occur in order. Returns operations a line."""
    *work, last = lines
    now, used, sizes = question[0], "", []
    for line in work:
        left, right = line.split("=")
        assert left[0] == now
        assert value(left) == int(right)
        assert re.fullmatch(r"\d", right)
        now, used = right, used + left[1:]
        sizes.append(len(left) // 2)
    assert question[0] + used == question
    assert last == f"####{now}"
    assert int(now) == value(question)
    return sizes


def test_the_oracle() -> None:
    assert value("3+8*7-2") == 5  # the docstring's own example; 57 with precedence
    assert value("0-6") == 4
    assert check_solution("3+8*7-2", ["3+8=1", "1*7-2=5", "####5"]) == [1, 2]
    for bad in (["3+8=1", "####1"], ["3+8=2", "2*7-2=2", "####2"], ["3+8=1", "2*7-2=2", "####2"]):
        with pytest.raises(AssertionError):
            check_solution("3+8*7-2", bad)


# Problems


@given(INDEX, LEVEL, TERSENESS, st.sampled_from(["train", "test"]), st.integers(0, 5))
def test_solutions_are_right(index: int, level: int, terseness: float, split: str, seed: int) -> None:
    problem = make_problem(index, level, terseness, split, seed)
    assert re.fullmatch(rf"\d([-+*]\d){{{level}}}", problem.question)
    sizes = check_solution(problem.question, problem.solution.split("\n"))
    assert sum(sizes) == level
    assert max(sizes) <= 3
    assert problem.answer == str(value(problem.question))
    assert problem.level == str(level)
    assert problem.source == "embedded"
    # Lines of the first half hold one operation each.
    starts = np.cumsum([0, *sizes[:-1]])
    assert all(size == 1 for start, size in zip(starts, sizes) if start < level // 2)
    plain = make_problem(index, level, 0.0, split, seed)
    assert plain == make_problem(index, level, split=split, seed=seed)
    assert plain._replace(solution="") == problem._replace(solution="")  # question, answer, id, all the rest
    assert check_solution(plain.question, plain.solution.split("\n")) == [1] * level


def test_terseness_is_the_share_of_merged_lines() -> None:
    for terseness in (0.0, 0.3, 1.0):
        merged = []
        for index in range(300):
            sizes = check_solution(
                *(lambda p: (p.question, p.solution.split("\n")))(make_problem(index, 12, terseness))
            )
            starts = np.cumsum([0, *sizes[:-1]])
            # The last line may have been cut to the one operation that was left.
            merged += [size > 1 for start, size in zip(starts, sizes) if 6 <= start < 11]
        assert np.mean(merged) == pytest.approx(terseness, abs=0.04)


def test_two_and_three_operations_merge_equally_often() -> None:
    rng = np.random.default_rng(0)
    sizes = [s for _ in range(100) for s in group_sizes(rng, 40, 1.0)[:-1] if s > 1]
    assert set(sizes) == {2, 3}
    assert np.mean(sizes) == pytest.approx(2.5, abs=0.1)
    assert min(group_sizes(rng, 40, 1.0, first_half=True)[:-1]) == 2


def test_problems_by_value() -> None:
    """The domain is fixed: results compare runs on it, so these never change."""
    assert make_problem(0, 4) == Problem(
        "train-0-4-0", "1*7*2*8*6", "1*7=7\n7*2=4\n4*8=2\n2*6=2\n####2", "2", "embedded", "4"
    )
    assert make_problem(7, 8, terseness=0.5, split="test", seed=3) == Problem(
        "test-3-8-7",
        "8+1-8+7-5*9*9-9-0",
        "8+1=9\n9-8=1\n1+7=8\n8-5=3\n3*9=7\n7*9-9=4\n4-0=4\n####4",
        "4",
        "embedded",
        "8",
    )


@pytest.mark.slow
def test_problems_are_the_same_in_another_process() -> None:
    code = "from lit_atex.embedded.domain import make_problem; print(make_problem(5, 9, 0.7, 'probe', 2))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(make_problem(5, 9, 0.7, "probe", 2))


def test_sequences_are_apart() -> None:
    def questions(**choice: object) -> set[str]:
        return {make_problem(i, 8, **choice).question for i in range(200)}

    splits = [questions(split=s) for s in ("train", "probe", "validation", "test")] + [questions(seed=1)]
    assert all(len(qs) == 200 for qs in splits)
    assert len(set.union(*splits)) == 5 * 200
    ids = {make_problem(i, level, split=s).id for i in range(9) for level in (1, 2, 11) for s in ("train", "test")}
    assert len(ids) == 9 * 3 * 2


def test_chains_are_uniform() -> None:
    rng = np.random.default_rng(1)
    chains = [draw_chain(rng, 9) for _ in range(400)]
    operands = np.bincount([x for c in chains for x in c.operands], minlength=10) / 4000
    assert operands == pytest.approx(np.full(10, 0.1), abs=0.025)
    operations = "".join(c.operations for c in chains)
    assert [operations.count(op) / len(operations) for op in "+-*"] == pytest.approx([1 / 3] * 3, abs=0.04)


@pytest.mark.parametrize("bad", [{"level": 0}, {"level": -1}, {"terseness": -0.1}, {"terseness": 1.1}])
def test_out_of_range(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"{next(iter(bad))}={next(iter(bad.values()))} (must be >= 1|in \[0, 1\])"):
        make_problem(0, **{"level": 3, **bad})


# Texts of authors


@pytest.fixture(scope="module")
def texts() -> list[Text]:
    rng = np.random.default_rng(5)
    return [draw_text(rng, level) for level in rng.choice(LEVELS, 4000).tolist()]


def author_lines(text: Text) -> list[str]:
    """The lines that the author did not copy."""
    copied = text.hint.split("\n") if text.hint else []
    return text.solution.split("\n")[len(copied) :]


def test_an_author_copies_the_hint_to_the_letter(texts: list[Text]) -> None:
    hinted = [t for t in texts if t.hint]
    assert len(hinted) / len(texts) == pytest.approx(HINTED_TEXTS, abs=0.03)
    whole = 0
    for text in hinted:
        lines, copied = text.solution.split("\n"), text.hint.split("\n")
        assert lines[: len(copied)] == copied
        # What is copied is right: it is the beginning of a solution.
        now, used = text.question[0], ""
        for line in [c for c in copied if not c.startswith("####")]:
            left, right = line.split("=")
            assert left[0] == now
            assert value(left) == int(right)
            now, used = right, used + left[1:]
        assert text.question[1:].startswith(used)
        if copied[-1].startswith("####"):
            whole += 1
            check_solution(text.question, lines)
            assert text.solution == text.hint
    assert 0.05 < whole / len(hinted) < 0.5


def test_an_author_uses_every_operation_and_goes_on_from_a_slip(texts: list[Text]) -> None:
    for text in texts:
        *work, last = text.solution.split("\n")
        now, used = text.question[0], ""
        for line in work:
            left, right = line.split("=")
            assert left[0] == now
            now, used = right, used + left[1:]
        assert text.question[0] + used == text.question
        assert last == f"####{now}"


def test_authors_slip_by_one_at_the_rate_that_is_said(texts: list[Text]) -> None:
    slips = []
    for text in texts:
        for line in author_lines(text)[:-1]:
            left, right = line.split("=")
            if len(left) == 3:  # one operation
                slips.append((int(right) - value(left)) % 10)
    assert set(slips) == {0, 1, 9}
    assert np.mean(np.array(slips) != 0) == pytest.approx(SLIP_RATE, abs=0.01)  # about 20,000 lines: error 0.002
    assert slips.count(1) / slips.count(9) == pytest.approx(1, abs=0.15)


def test_some_authors_merge(texts: list[Text]) -> None:
    long = [t for t in texts if not t.hint and len(t.question) >= 13]  # six operations: 0.7 merge almost surely
    merging = [any(len(line.split("=")[0]) > 3 for line in t.solution.split("\n")[:-1]) for t in long]
    assert np.mean(merging) == pytest.approx(MERGING_AUTHORS, abs=0.04)


# Tokenizer


@given(INDEX, LEVEL, TERSENESS)
def test_the_tokenizer_gives_back_every_text_of_the_domain(index: int, level: int, terseness: float) -> None:
    problem = make_problem(index, level, terseness)
    for text in (problem.question, problem.solution, f"{problem.question}\n{problem.solution}"):
        ids = TOKENIZER(text)["input_ids"]
        assert TOKENIZER.decode(ids) == text
        assert len(ids) == len(text.replace("####", "#"))
        assert TOKENIZER.unk_token_id not in ids


def test_marks_and_unknown_characters() -> None:
    names = TOKENIZER.convert_ids_to_tokens
    assert names(TOKENIZER("a1 é🙂#")["input_ids"]) == ["<|unk|>", "1", *["<|unk|>"] * 4]
    assert names(TOKENIZER("####5<|end|>")["input_ids"]) == ["####", "5", "<|end|>"]
    assert names(TOKENIZER("<|user|>1\n<|assistant|>")["input_ids"]) == ["<|user|>", "1", "\n", "<|assistant|>"]
    assert TOKENIZER.eos_token == "<|end|>"
    assert TOKENIZER.pad_token_id != TOKENIZER.eos_token_id
    assert TOKENIZER.decode(TOKENIZER("1+1<|end|>")["input_ids"], skip_special_tokens=True) == "1+1"
    assert len(TOKENIZER) == len(set(TOKENIZER.get_vocab().values())) == max(TOKENIZER.get_vocab().values()) + 1


def test_the_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("3+8*7-2\n3+8=1", "a<|end|>", "####5"):
        assert loaded(text)["input_ids"] == TOKENIZER(text)["input_ids"]
        assert loaded.decode(loaded(text)["input_ids"]) == TOKENIZER.decode(TOKENIZER(text)["input_ids"])
    messages = [{"role": "user", "content": "1+1"}]
    for tokenizer in (TOKENIZER, loaded):
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert rendered == "<|user|>1+1<|end|><|assistant|>"


# Pre-training


def test_only_what_the_author_wrote_is_learned_and_the_end_with_it() -> None:
    texts = [Text("3+8", "", "3+8=1\n####1"), Text("3+8*7-2", "3+8=1", "3+8=1\n1*7=7\n7-2=5\n####5"), Text("1", "", "")]
    ids, labels = Texts(TOKENIZER, 2, 0).collate(texts)
    assert ids.shape == labels.shape
    for text, row, learned in zip(texts, ids, labels):
        kept = learned != -100
        assert TOKENIZER.decode(row[kept]) == f"{text.solution}<|end|>"
        assert torch.equal(row[kept], learned[kept])
        user = f"{text.question}\n{text.hint}" if text.hint else text.question
        whole = f"<|user|>{user}<|end|><|assistant|>{text.solution}<|end|>"
        length = len(TOKENIZER(whole)["input_ids"])
        assert TOKENIZER.decode(row[:length]) == whole
        assert (row[length:] == TOKENIZER.pad_token_id).all()
        assert not kept[length:].any()
        assert kept[:length].int().diff().clamp(min=0).sum() == 1  # one run, to the end
    assert max(len(TOKENIZER(f"<|user|>{t.question}")["input_ids"]) for t in texts) < ids.shape[1]


def test_batches_are_set_by_their_seed() -> None:
    first, again, other = (list(islice(Texts(TOKENIZER, 4, seed, pool=2), 3)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))
    assert not all(a.shape == b.shape and torch.equal(a, b) for (a, _), (b, _) in zip(first, other))
    assert all(len(ids) == 4 for ids, _ in first)


def test_the_shipped_model_has_this_tokenizer() -> None:
    from transformers import AutoTokenizer

    shipped = AutoTokenizer.from_pretrained(MODEL_DIR)
    assert shipped.get_vocab() == TOKENIZER.get_vocab()
    assert shipped.chat_template == TOKENIZER.chat_template
    assert (shipped.eos_token, shipped.pad_token, shipped.padding_side) == ("<|end|>", "<|pad|>", "left")


@pytest.mark.slow
def test_pretraining_learns() -> None:
    ids, labels = next(iter(Texts(TOKENIZER, 32, 1)))

    @torch.no_grad()
    def loss() -> float:
        """Cross-entropy of what authors wrote, one text at a time and without padding."""
        total, count = 0.0, 0
        for row, learned in zip(ids, labels):
            written = (learned != -100).nonzero()[:, 0].tolist()
            scores = model(input_ids=row[None, : written[-1] + 1]).logits[0].log_softmax(-1)
            total -= sum(float(scores[at - 1, row[at]]) for at in written)
            count += len(written)
        return total / count

    def fit(lr: float, steps: int, batches: object) -> float:
        quiet = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
        trainer = pl.Trainer(max_steps=steps, accelerator="cpu", enable_progress_bar=False, **quiet)
        trainer.fit(Pretraining(model, lr, steps), DataLoader(batches, batch_size=None))
        return float(trainer.callback_metrics["loss"])

    model = build_model(TOKENIZER, seed=0)
    assert 0.3e6 < sum(p.numel() for p in model.parameters()) < 0.5e6
    before = loss()
    assert before == pytest.approx(np.log(len(TOKENIZER)), rel=0.1)  # knows nothing yet
    assert fit(0.0, 1, [(ids, labels)]) == pytest.approx(before, rel=1e-4)
    fit(3e-3, 20, Texts(TOKENIZER, 16, 0))
    assert loss() < before - 0.5


def test_a_folder_that_holds_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"--out .* already holds a model; name another folder or delete it"):
        pretrain(tmp_path, steps=1)
