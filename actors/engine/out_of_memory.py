"""Recognise an engine that cannot allocate its memory at start, and ask for less.

This module knows the words of vLLM and PyTorch, and the steps down. driver/replica_set.py retries.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from rollout_ray.sizing.hardware import EngineLimits

MOST_STEPS = 3  # each halves what is decoded at once, so the last asks for an eighth
SHARE_STEP = 0.75

_NO_MEMORY = re.compile(
    r"out of memory|OutOfMemory|MemoryError|can't allocate memory|cannot allocate memory|Free memory on device|"
    r"No available memory for the cache|larger than the available KV cache|is less than requested memory|not enough memory",
    re.IGNORECASE,
)
_NO_CACHE = re.compile(r"No available memory for the cache|larger than the available KV cache", re.IGNORECASE)


class NoMemory(Exception):
    """An engine could not allocate its memory.

    Attributes:
        keep_share: A smaller share of the GPU would not help, because weights and activations fill the present one.
    """

    def __init__(self, text: str, keep_share: bool = False) -> None:
        super().__init__(text, keep_share)
        self.text, self.keep_share = text, keep_share

    def __str__(self) -> str:
        return self.text


def as_start_failure(text: str) -> Exception:
    """Return the error of a failed start: NoMemory if its words say that memory was short, else RuntimeError."""
    if _NO_MEMORY.search(text):
        return NoMemory(text, keep_share=bool(_NO_CACHE.search(text)))
    return RuntimeError(text)


def count_oom_kills() -> int:
    """Return how many processes this machine has killed since its start because it or a container ran out of memory."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:  # not Linux, or a sandbox without it
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def smaller(limits: EngineLimits, step: int, *, keep_share: bool) -> EngineLimits:
    """Return the limits of an engine at step number `step` (1 ..) down."""
    tokens = limits.max_num_batched_tokens
    less = replace(
        limits,
        max_num_seqs=max(1, limits.max_num_seqs >> step),
        max_num_batched_tokens=max(256, tokens >> step) if tokens else None,
    )
    if keep_share:
        return less
    return replace(
        less,
        gpu_memory_utilization=round(limits.gpu_memory_utilization * SHARE_STEP**step, 3),
        kv_cache_gib=limits.kv_cache_gib / 2**step if limits.kv_cache_gib else None,
    )
