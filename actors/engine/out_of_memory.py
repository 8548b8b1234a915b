"""What to do when an engine cannot allocate its memory at start: recognise it, and ask for less.

Owns the words by which vLLM and PyTorch say so, and the steps down. It retries nothing itself (fleet.py does).
"""

from __future__ import annotations

import re

from rollout_ray.config.schema import RunConfig
from rollout_ray.sizing.hardware import CPU_SEQS, DEFAULT_SEQS

MOST_STEPS = 3  # each halves what is decoded at once, so the last asks for an eighth
SHARE_STEP = 0.75

_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|can't allocate memory|cannot allocate memory|Free memory on device|"
    r"No available memory for the cache|larger than the available KV cache|is less than requested memory|not enough memory",
    re.IGNORECASE,
)
_NO_CACHE = re.compile(r"No available memory for the cache|larger than the available KV cache", re.IGNORECASE)


class NoMemory(Exception):
    """An engine could not allocate its memory. `keep_share`: a smaller share of the GPU would only make it worse,
    because the weights and the activations fill the present one."""

    def __init__(self, text: str, keep_share: bool = False) -> None:
        super().__init__(text, keep_share)
        self.text, self.keep_share = text, keep_share

    def __str__(self) -> str:
        return self.text


def as_start_failure(text: str) -> Exception:
    """The failure of a start by its words: NoMemory where memory was short, else a RuntimeError."""
    if _NO_MEMORY.search(text):
        return NoMemory(text, keep_share=bool(_NO_CACHE.search(text)))
    return RuntimeError(text)


def smaller(config: RunConfig, step: int, *, gpus: int, keep_share: bool) -> RunConfig:
    """The config of an engine with `gpus` GPUs, step number `step` (1 ..) down."""
    engine = config.engine
    usual = DEFAULT_SEQS if gpus else CPU_SEQS
    less = {"max_num_seqs": max(1, (engine.max_num_seqs or usual) >> step)}
    if engine.max_num_batched_tokens:
        less["max_num_batched_tokens"] = max(256, engine.max_num_batched_tokens >> step)
    shares: dict[str, float] = {}
    if not keep_share:
        shares["gpu_memory_utilization"] = round(engine.gpu_memory_utilization * SHARE_STEP**step, 3)
        if engine.kv_cache_gib:
            shares["kv_cache_gib"] = engine.kv_cache_gib / 2**step
    return config.model_copy(update={"engine": engine.model_copy(update={**less, **shares})})
