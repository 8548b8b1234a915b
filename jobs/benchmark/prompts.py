"""The workload's conversations as token ids, for the references that take them so."""

from __future__ import annotations

import json
from typing import Any


def token_prompts(tokenizer: Any, requests: list[dict[str, Any]]) -> list[list[int]]:
    """Token ids of every request's conversation; equal conversations are tokenized once."""
    known: dict[str, list[int]] = {}
    for request in requests:
        key = json.dumps(request["messages"])
        if key not in known:
            known[key] = tokenizer.apply_chat_template(
                request["messages"], tokenize=True, add_generation_prompt=True, return_dict=False
            )
    return [known[json.dumps(request["messages"])] for request in requests]
