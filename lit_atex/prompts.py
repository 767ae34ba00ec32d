"""Student and teacher prompts as token ids, built by one object from one frame.

It knows templates and the tokenizer; it knows nothing of models, or of how the exposure was chosen. Ids are made once,
from text, and are never decoded and encoded again.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from lit_atex.reveal import keep_whole, reveal, step_borders
from lit_atex.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

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
        hint: The part of the solution in it; empty: the prompt is the student's.
        truncated: Whether steps of the hint were left out because the prompt was too long.
    """

    ids: list[int]
    hint: str
    truncated: bool


class PromptStyle:
    """How a problem, and a part of its solution, become a prompt."""

    def __init__(
        self,
        student: str = STUDENT_TEMPLATE,
        teacher: str = TEACHER_TEMPLATE,
        system: str | None = None,
        student_thinking: bool | None = None,
        teacher_thinking: bool | None = None,
        eval_thinking: bool | None = None,
        unit: Literal["step", "token"] = "step",
        hide_answer: bool = False,
        max_prompt_tokens: int = 2048,
        max_teacher_tokens: int = 4096,
    ) -> None:
        """Check the templates.

        Args:
            student: User message of the student (and of evaluation); holds `{question}`.
            teacher: User message of the teacher; holds `{question}` and `{hint}`. With an empty hint it is not used:
                the teacher then sees the student's prompt.
            system: System message of both; None: none is given, and the chat template may insert its own.
            student_thinking: The chat template's `enable_thinking` for rollouts; None: the template's own default.
            teacher_thinking: The same for the teacher's prompt.
            eval_thinking: The same for validation, test and predict.
            unit: Hints are cut at borders of steps or of tokens.
            hide_answer: Never show the step that holds the answer, even at exposure 1: the last one, or from the first
                one with a box on.
            max_prompt_tokens: A problem whose student prompt is longer is skipped and counted.
            max_teacher_tokens: A teacher prompt that would be longer loses the hint's last steps, and is counted.

        Raises:
            ValueError: If a template lacks a field, or the teacher's limit is below the student's.
        """
        if "{question}" not in student:
            raise ValueError("prompts.student must contain {question}.")
        if "{question}" not in teacher or "{hint}" not in teacher:
            raise ValueError("prompts.teacher must contain {question} and {hint}.")
        if max_teacher_tokens < max_prompt_tokens:
            raise ValueError(
                f"prompts.max_teacher_tokens ({max_teacher_tokens}) must not be below prompts.max_prompt_tokens "
                f"({max_prompt_tokens}): the teacher sees at least what the student sees."
            )
        self.student_template, self.teacher_template, self.system = student, teacher, system
        self.student_thinking, self.teacher_thinking, self.eval_thinking = (
            student_thinking,
            teacher_thinking,
            eval_thinking,
        )
        self.unit, self.hide_answer = unit, hide_answer
        self.max_prompt_tokens, self.max_teacher_tokens = max_prompt_tokens, max_teacher_tokens

    def student(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the prompt that rollouts continue."""
        return self._encode(self.render(problem, "", self.student_thinking, tokenizer), tokenizer)

    def evaluation(self, problem: Problem, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """Token ids of the prompt for validation, test and predict."""
        return self._encode(self.render(problem, "", self.eval_thinking, tokenizer), tokenizer)

    def teacher(
        self, problem: Problem, ratio: float, tokenizer: PreTrainedTokenizerBase, room: int | None = None
    ) -> TeacherPrompt:
        """The prompt with the part of the solution that `ratio` in [0, 1] shows.

        With nothing to show it is the student's prompt, id for id. A prompt above `max_teacher_tokens`, or
        above `room` tokens if that is less, loses pieces at the hint's end, never the frame or the question.
        """
        borders = self._borders(problem.solution, tokenizer)
        hint = wanted = reveal(problem.solution, ratio, borders, self.hide_answer)
        ids = self._teacher_ids(problem, hint, tokenizer)
        limit = self.max_teacher_tokens if room is None else min(self.max_teacher_tokens, room)
        if len(ids) > limit:
            ends = [b for b in borders if b < len(wanted)]
            low, high = 0, len(ends)  # the prompt with `low` pieces fits, the one with `high` + 1 does not
            while low < high:
                middle = (low + high + 1) // 2
                fits = len(self._teacher_ids(problem, wanted[: ends[middle - 1]].rstrip(), tokenizer)) <= limit
                low, high = (middle, high) if fits else (low, middle - 1)
            hint = wanted[: ends[low - 1]].rstrip() if low else ""
            ids = self._teacher_ids(problem, hint, tokenizer)
        return TeacherPrompt(ids, hint, truncated=hint != wanted)

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
        if tokenizer.unk_token_id is not None and ids.count(tokenizer.unk_token_id) > MAX_UNKNOWN * len(ids):
            raise ValueError(
                f"the tokenizer does not know much of this prompt: {text[:200]!r}. The embedded reasoner reads only "
                "its own arithmetic; for other problems name another model in model.student.init_args.name."
            )
        return ids
