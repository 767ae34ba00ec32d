"""Student and teacher prompts as token ids, built by one object from one frame.

It knows templates and the tokenizer; it knows nothing of models, or of how the exposure was chosen. Ids are made once,
from text, and are never decoded and encoded again.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lit_atex import chat
from lit_atex.reveal import KINDS, MARK, Material, borrow, joined, kind_of, material
from lit_atex.steps import keep_whole, step_borders
from lit_atex.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lit_atex")

STUDENT_TEMPLATE = "Problem: {question}\n\nPlease reason step by step, and put your final answer within \\boxed{}."
TEACHER_TEMPLATE = (
    "Problem: {question}\n\nHere is a part of a reference solution to this problem:\n{hint}\n\n"
    "Understand it, then solve the problem from the beginning in your own words. "
    "Please reason step by step, and put your final answer within \\boxed{}."
)


MAX_UNKNOWN = 0.1
"""Share of unknown tokens in a prompt above which it is refused: the model would be trained on noise."""


class TeacherPrompt(NamedTuple):
    """What the teacher sees.

    Attributes:
        ids: Token ids of the whole prompt.
        hint: What is shown of a solution; empty: the prompt is the student's.
        truncated: Whether steps of the hint were left out because the prompt was too long.
    """

    ids: list[int]
    hint: str
    truncated: bool


class PromptStyle:
    """How a problem, and a part of its solution, become a prompt."""

    def __init__(
        self,
        student: str | None = None,
        teacher: str | None = None,
        system: str | None = None,
        student_thinking: bool | None = None,
        teacher_thinking: bool | None = None,
        eval_thinking: bool | None = None,
        hint: str = "prefix",
        mark: str = MARK,
        unit: Literal["step", "token"] = "step",
        hide_answer: bool = False,
        max_prompt_tokens: int = 2048,
        max_teacher_tokens: int = 4096,
    ) -> None:
        """Check the templates.

        Args:
            student: User message of the student (and of evaluation); holds `{question}`. None: one for chat models.
            teacher: User message of the teacher; holds `{question}` and `{hint}`; None: one for chat models. With an
                empty hint it is not used: the teacher then sees the student's prompt.
            system: System message of both; None: none is given, and the chat template may insert its own.
            student_thinking: The chat template's `enable_thinking` for rollouts; None: the template's own default.
            teacher_thinking: The same for the teacher's prompt.
            eval_thinking: The same for validation, test and predict.
            hint: What a hint shows of the solution: its first steps (prefix), its last (suffix), some here and there
                (scattered), its first steps and the others without their numbers (masked), the step with the answer
                (answer_only), nothing (none), the first steps of another problem of the batch (other), or what a
                function of your own makes of them: its dotted path, "my_hints.every_second" (`reveal.py`).
            mark: What stands for a gap of a scattered hint and for a number of a masked one; known to the tokenizer.
            unit: Hints are cut at borders of steps or of tokens.
            hide_answer: Never show the step that holds the answer, even at exposure 1: the last one, or from the first
                one on that tells it (a box, ####, "the answer is").
            max_prompt_tokens: A problem whose student prompt is longer is skipped and counted.
            max_teacher_tokens: A teacher prompt that would be longer loses the hint's last steps (a suffix its first),
                and is counted.

        Raises:
            ValueError: If a template lacks a field, the teacher's limit is below the student's, or a hint of this kind
                is not cut at tokens.
        """
        student = STUDENT_TEMPLATE if student is None else student
        teacher = TEACHER_TEMPLATE if teacher is None else teacher
        if "{question}" not in student:
            raise ValueError("model.prompts.student must contain {question}.")
        if "{question}" not in teacher or "{hint}" not in teacher:
            raise ValueError("model.prompts.teacher must contain {question} and {hint}.")
        if max_teacher_tokens < max_prompt_tokens:
            raise ValueError(
                f"model.prompts.max_teacher_tokens ({max_teacher_tokens}) must not be below max_prompt_tokens "
                f"({max_prompt_tokens}): the teacher sees at least what the student sees."
            )
        if unit == "token" and hint in ("masked", "answer_only"):
            raise ValueError(
                f"model.prompts.unit: token does not go with hint: {hint}; set model.prompts.unit to step."
            )
        self.student_template, self.teacher_template, self.system = student, teacher, system
        self.student_thinking, self.teacher_thinking = student_thinking, teacher_thinking
        self.eval_thinking = eval_thinking
        self.hint, self.mark, self.unit, self.hide_answer = hint, mark, unit, hide_answer
        self.max_prompt_tokens, self.max_teacher_tokens = max_prompt_tokens, max_teacher_tokens
        if "." not in hint:
            self.check()

    def check(self) -> None:
        """Look whether there is such a hint: a function of the user's own may be gone where none is shown.

        Raises:
            ValueError: If not.
        """
        kind_of(self.hint)

    def student(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the prompt that rollouts continue."""
        return self._encode(self.render(problem, "", self.student_thinking, tokenizer), tokenizer)

    @staticmethod
    def solution(problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the reference solution as a completion, without an end token."""
        return tokenizer(problem.solution, add_special_tokens=False)["input_ids"]

    def evaluation(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the prompt for validation, test and predict."""
        return self._encode(self.render(problem, "", self.eval_thinking, tokenizer), tokenizer)

    def teacher(
        self, problem: Problem, ratio: float, tokenizer: PreTrainedTokenizerBase, room: int | None = None
    ) -> TeacherPrompt:
        """The prompt of one problem that has no batch; see `teachers`."""
        return self.teachers([problem], [ratio], tokenizer, room)[0]

    def teachers(
        self,
        problems: Sequence[Problem],
        ratios: Sequence[float],
        tokenizer: PreTrainedTokenizerBase,
        room: int | None = None,
    ) -> list[TeacherPrompt]:
        """The prompts of a batch, each with what its ratio in [0, 1] shows.

        With nothing to show it is the student's prompt, id for id. A prompt above `max_teacher_tokens`, or above `room`
        tokens if that is less, loses pieces at the hint's end (a suffix at its start), never the frame or the question.
        """
        borders = [self._borders(p.solution, tokenizer) for p in problems]
        given = [material(p.solution, b, self.hide_answer, self.mark) for p, b in zip(problems, borders)]
        if self.hint == "other" or self.hint not in KINDS:
            given = borrow(problems, given)
            alone = [p.id for p, m in zip(problems, given) if not m.other]
            if alone and self.hint == "other":
                log.warning("model.prompts.hint: other: no other problem in the batch; nothing to show for: %s", alone)
        limit = self.max_teacher_tokens if room is None else min(self.max_teacher_tokens, room)
        parts = [self._parts(*one) for one in zip(problems, given, ratios)]
        return [self._fitting(p, shown, tokenizer, limit) for p, shown in zip(problems, parts)]

    def _parts(self, problem: Problem, given: Material, ratio: float) -> list[str]:
        """What the hint shows.

        Raises:
            ValueError: If a function of the user's fails, or returns no list of texts.
        """
        kind = kind_of(self.hint)
        if self.hint in KINDS:
            return kind(given, ratio)
        where = f"model.prompts.hint: {self.hint}, problem {problem.id}, exposure {ratio}"
        try:
            parts: object = kind(given, ratio)
        except Exception as error:
            raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
        if isinstance(parts, list) and all(isinstance(part, str) for part in parts):
            return parts
        raise ValueError(f"{where}: it must return a list of str, the parts that are shown; it returned {parts!r:.200}")

    def _fitting(
        self, problem: Problem, parts: list[str], tokenizer: PreTrainedTokenizerBase, limit: int
    ) -> TeacherPrompt:
        """The prompt with as many parts of the hint as fit into `limit` tokens."""
        hint = wanted = joined(parts)
        ids = self._teacher_ids(problem, hint, tokenizer)
        if len(ids) > limit:
            low, high = 0, max(len(parts) - 1, 0)  # the prompt with `low` parts fits, the one with `high` + 1 does not
            while low < high:
                middle = (low + high + 1) // 2
                fits = len(self._teacher_ids(problem, self._keep(parts, middle), tokenizer)) <= limit
                low, high = (middle, high) if fits else (low, middle - 1)
            hint = self._keep(parts, low)
            ids = self._teacher_ids(problem, hint, tokenizer)
        return TeacherPrompt(ids, hint, truncated=hint != wanted)

    def _keep(self, parts: list[str], count: int) -> str:
        return joined(parts[len(parts) - count :] if self.hint == "suffix" else parts[:count])

    def render(self, problem: Problem, hint: str, thinking: bool | None, tokenizer: PreTrainedTokenizerBase) -> str:
        """The whole prompt as text, the role marks of the chat template included."""
        template = self.teacher_template if hint else self.student_template
        fields = {"question": problem.question, "hint": hint}
        # One pass, so that braces in a question are never taken for a field.
        content = re.sub(r"\{(question|hint)\}", lambda m: fields[m.group(1)], template)
        if tokenizer.chat_template is None:
            return f"{self.system}\n\n{content}\n\n" if self.system else f"{content}\n\n"
        messages = [{"role": "system", "content": self.system}] if self.system else []
        messages.append({"role": "user", "content": content})
        flags: dict[str, Any] = {} if thinking is None else {"enable_thinking": thinking}
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **flags)
        assert isinstance(text, str)
        return text

    def doubts(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> list[str]:
        """What of the chat template looks like a mistake: a flag not read, a date, an answer without header or end.

        Args:
            tokenizer: Of the model.
            end_ids: The ids that end a completion.

        Raises:
            ValueError: If the chat template makes no prompt with `system` as it is.
        """
        flags = ("student_thinking", "teacher_thinking", "eval_thinking")
        given = [f"model.prompts.{name}" for name in flags if getattr(self, name) is not None]
        found = []
        question = Problem("", "1+1?", "", "2")
        try:
            self.render(question, "", None, tokenizer)
        except Exception as error:  # whatever a template raises
            what, mend = "a prompt without a system message", "give one, if that is what it wants"
            if self.system:
                what, mend = "this system message", "leave it out (null), and say it in init_args.student and .teacher"
            raise ValueError(
                f"model.prompts.init_args.system: the model's chat template refuses {what} ({error}): {mend}."
            ) from error
        if given and len({self.render(question, "", thinking, tokenizer) for thinking in (True, False)}) == 1:
            why = "reads no enable_thinking" if tokenizer.chat_template else "is missing"
            found.append(f"{' and '.join(given)} will change nothing: the model's chat template {why}.")
        return found + chat.doubts(tokenizer, self.system, end_ids)

    def end(self, tokenizer: PreTrainedTokenizerBase, end_ids: Collection[int]) -> int:
        """The id that ends a reference: of `end_ids` the one with which the chat template does, or the tokenizer's."""
        closing = chat.closing(tokenizer, self.system)
        if closing is not None and closing in end_ids:
            return closing
        return min(end_ids) if tokenizer.eos_token_id is None else tokenizer.eos_token_id

    def _teacher_ids(self, problem: Problem, hint: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if not hint:
            return self.student(problem, tokenizer)
        return self._encode(self.render(problem, hint, self.teacher_thinking, tokenizer), tokenizer)

    def _borders(self, solution: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        if self.unit == "step":
            return step_borders(solution)
        offsets = tokenizer(solution, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        return keep_whole(solution, [end for _, end in offsets], math=False)

    @staticmethod
    def _encode(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        # A chat template writes its own special tokens; without one the tokenizer adds what its model expects (BOS).
        ids = tokenizer(text, add_special_tokens=tokenizer.chat_template is None)["input_ids"]
        while tokenizer.chat_template is None and ids[-1:] == [tokenizer.eos_token_id]:  # some close what they encode
            ids.pop()
        if tokenizer.unk_token_id is not None and ids.count(tokenizer.unk_token_id) > MAX_UNKNOWN * len(ids):
            raise ValueError(
                f"the tokenizer does not know much of this prompt: {text[:200]!r}. The embedded reasoner reads only "
                "its own arithmetic; for other problems name another model in model.student.init_args.name."
            )
        return ids
