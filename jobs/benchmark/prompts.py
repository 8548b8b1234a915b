"""Tokenize the workload's conversations, for the references that take token ids."""

from __future__ import annotations

import json
from typing import Any


def token_prompts(tokenizer: Any, requests: list[dict[str, Any]]) -> list[list[int]]:
    """Return the token ids of every request's conversation. Equal conversations are tokenized once."""
    known: dict[str, list[int]] = {}
    for request in requests:
        key = json.dumps(request["messages"])
        if key not in known:
            known[key] = tokenizer.apply_chat_template(
                request["messages"], tokenize=True, add_generation_prompt=True, return_dict=False
            )
    return [known[json.dumps(request["messages"])] for request in requests]
