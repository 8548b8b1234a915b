"""The seam between an engine actor and what generates: the interface that vLLM and the simulated engine both fill."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from rollout_ray.records import Draw, FinishReason, Prompt


class Refused(Exception):
    """A backend cannot take one request; its text becomes the trajectory's error."""


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that a backend has done with. `num_tokens` counts output tokens."""

    key: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    error: str | None = None


@dataclass(frozen=True)
class BackendInfo:
    """What a backend settled on at its start; `node` is the Ray id of the machine that it runs on."""

    max_num_seqs: int
    import_seconds: float
    load_seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    node: str = ""


class Backend(Protocol):
    """What generates. One thread calls `add` and `step`; another may call `encode` and `check` at the same time.

    `check` raises where the backend can no longer finish what it holds.
    """

    def info(self) -> BackendInfo: ...

    def check(self) -> None: ...

    def encode(self, prompt: Prompt, system_prompt: str | None) -> list[int]: ...

    def add(self, key: str, tokens: list[int], draw: Draw, seed: int) -> None: ...

    def step(self) -> list[Finished]: ...

    def close(self) -> None: ...
