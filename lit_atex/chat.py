"""What a chat template does around an answer, found by rendering one; it knows no prompts of ours and no models."""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger("lit_atex")


def closing(tokenizer: PreTrainedTokenizerBase, system: str | None) -> int | None:
    """The id that follows an answer in the chat template; None if the template knows no answers."""
    ids = tokenizer(_around_answer(tokenizer, system)[1].lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids else None


def doubts(tokenizer: PreTrainedTokenizerBase, system: str | None, end_ids: Collection[int]) -> list[str]:
    """What of the chat template looks like a mistake: a date, an answer without header or end.

    Args:
        tokenizer: Of the model.
        system: The system message, if there is one.
        end_ids: The ids that end a completion.
    """
    found = []
    if "strftime_now" in (tokenizer.chat_template or ""):
        found.append(
            "the chat template writes today's date, so that prompts are others tomorrow, after a --resume too: "
            "write a fixed one into a copy of the tokenizer's chat template."
        )
    if header := _around_answer(tokenizer, system)[0].strip():
        found.append(
            f"the chat template ignores add_generation_prompt: prompts end without {header!r}, with which its "
            "answers begin, so that the model may go on with the question. Mend the tokenizer's chat template."
        )
    end = closing(tokenizer, system)
    token = None if end is None else tokenizer.added_tokens_decoder.get(end)
    if token is not None and token.special and end not in end_ids:
        found.append(
            f"the chat template ends a turn with {token.content}, which ends no completion here: answers may "
            "run on to max_new_tokens. Add its id to eos_token_id in the generation_config.json of the model."
        )
    return found


def _around_answer(tokenizer: PreTrainedTokenizerBase, system: str | None) -> tuple[str, str]:
    """What the chat template writes before an answer and leaves out of a prompt that asks for it; and after one."""
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2, I think"}]
    if tokenizer.chat_template is None:
        return "", ""
    try:
        before, known, after = str(tokenizer.apply_chat_template(turns, tokenize=False)).rpartition("2, I think")
        told, plain = (
            str(tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=asked))
            for asked in (True, False)
        )
    except Exception as error:  # whatever a template raises that knows no answers
        log.debug("how a turn begins and ends was not looked at: %s", error)
        return "", ""
    ignored = known and told == plain and before.startswith(plain)
    return before[len(plain) :] if ignored else "", after
