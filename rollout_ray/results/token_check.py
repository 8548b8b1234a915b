"""Check the stored tokens of a trajectory against its counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from rollout_ray.results.merged_file import StoredQuestion

MOST_LOGPROB = 1e-3  # rounding may put the log-probability of a certain token above 0


def token_faults(stored: StoredQuestion, trajectory: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield each value that cannot be right: its name, what is stored, and what is due."""
    for name in ("token_ids", "logprobs"):
        values = trajectory[name]
        if values is None or len(values) != trajectory["num_tokens"]:
            yield f"number of {name}", None if values is None else len(values), trajectory["num_tokens"]
    logprobs = trajectory["logprobs"]
    if logprobs is not None and len(wrong := logprobs[~(np.isfinite(logprobs) & (logprobs <= MOST_LOGPROB))]):
        yield "logprobs", float(wrong[0]), "a finite number up to 0"
    variant = trajectory["prompt_variant"]
    known = isinstance(variant, int) and 0 <= variant < len(stored.prompt_token_ids)
    prompt = stored.prompt_token_ids[variant] if known else None
    count = None if prompt is None else len(prompt)
    if count != trajectory["num_prompt_tokens"] and trajectory["finish_reason"] != "error":
        yield "number of prompt_token_ids", count, trajectory["num_prompt_tokens"]
