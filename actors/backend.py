"""The seam between an engine actor and what generates: the interface that vLLM and the simulated engine both fill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rollout_ray.core.records import Arm, FinishReason, Prompt, SampleSpec
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.telemetry.engine_stats import EngineStats


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that a backend has done with. `num_tokens` counts output tokens; `unread` is what its text is still to be
    made of."""

    key: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    error: str | None = None
    unread: Any = None


@dataclass(frozen=True)
class BackendInfo:
    """What a backend settled on at its start; `phases` are the seconds of its parts, in their order, and `node` is the
    Ray id of the machine that it runs on. `core_apart`: what decodes has a process of its own, and does not wait for what
    feeds it."""

    max_num_seqs: int
    import_seconds: float
    load_seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    core_apart: bool = False


class Backend(Protocol):
    """What generates. One thread calls all but `info`, `encode`, `check`, `stats` and `read`, which others may call at the
    same time.

    `check` raises where the backend can no longer finish what it holds. `step` decodes one step and returns what it
    finished, to which `read` gives the text. `begin` prepares for a run's requests, and raises ConfigError where an arm
    cannot be served; `opening` is the tag of a thought that an arm's prompts begin, empty where they begin none. `abort`
    forgets requests, whatever their state. `update_weights` loads other weights of the same shape while there are no
    requests, and leaves the backend broken where it raises. `stats` counts since the start; `steps` and `idle_seconds` in
    it are left to engine.py, and what waits there is added there.
    """

    def info(self) -> BackendInfo: ...

    def check(self) -> None: ...

    def stats(self) -> EngineStats: ...

    def begin(self, run: ResolvedRun) -> None: ...

    def update_weights(self, path: str) -> None: ...

    def encode(self, prompt: Prompt, arm: Arm) -> list[int]: ...

    def opening(self, arm: Arm) -> str: ...

    def add(self, key: str, tokens: list[int], spec: SampleSpec, seed: int) -> None: ...

    def step(self) -> list[Finished]: ...

    def read(self, finished: Sequence[Finished]) -> list[Finished]: ...

    def abort(self, keys: Sequence[str]) -> None: ...
