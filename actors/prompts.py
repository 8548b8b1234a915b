"""Turns a conversation into prompt tokens with the model's own tokenizer and chat template.

Owns what to do where a template is missing or takes no system message. The wording is arms.py's; no engine is known.
"""

from __future__ import annotations

import logging
from typing import Any

import jinja2

from actors.backend import Refused
from rollout_ray import arms
from rollout_ray.records import Message, Prompt

log = logging.getLogger(__name__)

# What a chat template raises on a conversation that its author did not provide for.
_TEMPLATE_ERRORS = (jinja2.TemplateError, ValueError, TypeError, KeyError, AttributeError, IndexError)


class PromptEncoder:
    """Encodes for one tokenizer (transformers' interface); refuses prompts of `max_model_len` tokens or more."""

    def __init__(self, tokenizer: Any, max_model_len: int) -> None:
        self._tokenizer, self._max_model_len = tokenizer, max_model_len
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        self._takes_system = True

    def encode(self, prompt: Prompt, system_prompt: str | None) -> list[int]:
        """Token ids of the prompt, under the chat template where there is one.

        Raises Refused where the template rejects the conversation, or the prompt is empty or too long.
        """
        if not self._has_template:
            return self._fits(list(self._tokenizer.encode(arms.plain_text(prompt, system_prompt))))
        messages = arms.chat_messages(prompt, system_prompt)
        if not self._takes_system:
            messages = arms.without_system_role(messages)
        try:
            tokens = self._apply_template(messages)
        except _TEMPLATE_ERRORS as error:
            folded = arms.without_system_role(messages)
            if folded is messages:
                raise Refused(f"the chat template refused the prompt: {error}") from error
            tokens = self._without_system(folded, error)
        return self._fits(tokens)

    def _without_system(self, messages: list[Message], first: Exception) -> list[int]:
        try:
            tokens = self._apply_template(messages)
        except _TEMPLATE_ERRORS as error:
            raise Refused(f"the chat template refused the prompt: {error}") from error
        log.warning("the chat template takes no system message (%s); it opens the user's turn instead", first)
        self._takes_system = False
        return tokens

    def _apply_template(self, messages: list[Message]) -> list[int]:
        tokens = self._tokenizer.apply_chat_template(
            [dict(m) for m in messages], tokenize=True, add_generation_prompt=True, return_dict=False
        )
        return list(tokens)

    def _fits(self, tokens: list[int]) -> list[int]:
        if not tokens:
            raise Refused("the prompt has no tokens")
        if len(tokens) >= self._max_model_len:
            raise Refused(f"the prompt has {len(tokens)} tokens and max_model_len is {self._max_model_len}")
        return tokens
