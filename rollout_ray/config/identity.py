"""Name the fields that are no part of a run's identity: they never change a row, or are later ones at their defaults."""

from __future__ import annotations

from typing import Any

# Fields (or, with a closing dot, sections) that change how a run is carried out but never which rows it writes: a
# resume may change them. The dataset's place is here because its content has a fingerprint of its own.
OPERATIONAL = (
    "data.dataset",
    "data.lengths_from",
    "engine.tensor_parallel_size",
    "engine.gpu_memory_utilization",
    "engine.kv_cache_gib",
    "engine.max_num_seqs",
    "engine.max_num_batched_tokens",
    "engine.enforce_eager",
    "engine.enable_prefix_caching",
    "engine.enable_chunked_prefill",
    "engine.simulated.",
    "scoring.call_timeout_s",
    "scoring.calls_in_flight",
    "scoring.call_retries",
    "scoring.function_memory_mib",
    "scoring.max_error_share",
    "output.output_dir",
    "output.layout",
    "output.report",
    "output.part_rows",
    "output.flush_seconds",
    "resources.",
)

# Fields that version 0.1.0 did not have. The identity leaves them out at these defaults, so that its runs can go on.
ADDED: dict[str, Any] = {
    "model.prompt_style": None,
    "output.tokens": False,
    "output.logprobs": "sampled",
    "scoring.grader": None,
    "scoring.graders": {},
    "scoring.source_key": "data_source",
    "scoring.rewards": {},
    "scoring.reward_weights": {},
    "scoring.reward_columns": None,
}
ADDED_TO_ARMS: dict[str, Any] = {"stop": None}


def is_operational(name: str) -> bool:
    """Return whether the field of this dotted name never changes a row."""
    return any(name.startswith(entry) if entry.endswith(".") else name == entry for entry in OPERATIONAL)


def drop_defaults(fields: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Remove the fields that have their default."""
    for name, default in defaults.items():
        if fields.get(name) == default:
            fields.pop(name, None)
