"""Small changes of chat messages that templates and tokenizers ask for."""

from __future__ import annotations

from typing import Any


def as_parts(text: str) -> list[dict[str, str]]:
    """Return the content of a message as a list of one part, for templates of models that take pictures."""
    return [{"type": "text", "text": text}]


def mapped(value: Any, change: Any) -> Any:
    """Return the value with every string in it changed, but for the keys of dicts."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {key: mapped(item, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [mapped(item, change) for item in value]
    return value


def mistral_errors(tokenizer: Any) -> tuple[type[Exception], ...]:
    """Return the errors of Mistral's own tokenizer on a conversation that it refuses; none for other tokenizers."""
    if not getattr(tokenizer, "IS_MISTRAL_TOKENIZER", False):
        return ()
    from mistral_common.exceptions import MistralCommonException

    return (MistralCommonException,)
