"""Define the types of free fields: dicts whose names the config does not know, and that go to vLLM or to a template.

Invariant: their values survive JSON, because the config is stored as JSON and hashed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

# Names that users may not give, and why.
_SET_BY_RUN = "a run sets it itself; leave it out"
_NOT_STORED = "a run stores the log-probabilities of the sampled tokens only, with --tokens true; leave it out"


def _field(name: str) -> str:
    return f"a run has a field for it; give --{name}"


_RUN_SAMPLING = {
    **{
        name: _field(name)
        for name in ("temperature", "top_p", "top_k", "repetition_penalty", "max_tokens", "stop", "ignore_eos", "seed")
    },
    **dict.fromkeys(("n", "best_of"), _field("n_samples")),
    "logprobs": _field("tokens true"),
    **dict.fromkeys(("prompt_logprobs", "logprob_token_ids", "flat_logprobs"), _NOT_STORED),
    **dict.fromkeys(("repetition_detection", "detokenize", "output_kind", "stream_interval", "skip_clone"), _SET_BY_RUN),
}
_RUN_TEMPLATE = {  # arguments of apply_chat_template
    "chat_template": _field("chat_template"),
    **dict.fromkeys(
        (
            *("conversation", "messages", "tokenize", "add_generation_prompt", "continue_final_message", "padding"),
            *("truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask"),
            "tokenizer_kwargs",
        ),
        _SET_BY_RUN,
    ),
}


def _check_names(reserved: Mapping[str, str], values: dict[str, Any]) -> dict[str, Any]:
    for name in sorted(reserved.keys() & values.keys()):
        raise ValueError(f"{name} cannot stand here: {reserved[name]}")
    return values


def _check_json(values: dict[str, Any]) -> dict[str, Any]:
    for name, value in values.items():
        _check_value(name, value)
    return values


def _check_value(name: str, value: Any) -> None:
    """Raise ValueError, with the dotted name of the value, if JSON cannot hold it."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is {value}, which is not a finite number; give a finite one")
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError(f"{name} has the name {key!r}, which is not text; write it in quotes")
            _check_value(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        for number, inner in enumerate(value):
            _check_value(f"{name}.{number}", inner)
    elif not (value is None or isinstance(value, (bool, int, float, str))):
        kind = type(value).__name__
        raise ValueError(f"{name} has the type {kind}, which JSON cannot hold; give text, a number or a list")


FreeValues = Annotated[dict[str, Any], AfterValidator(_check_json)]
ExtraSampling = Annotated[FreeValues, AfterValidator(lambda values: _check_names(_RUN_SAMPLING, values))]
TemplateArguments = Annotated[FreeValues, AfterValidator(lambda values: _check_names(_RUN_TEMPLATE, values))]
