"""The interface between an engine and its backend: vLLM and the simulated engine implement it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rollout_ray.core.errors import Refused
from rollout_ray.core.records import Arm, FinishReason, Prompt, Question, SampleSpec
from rollout_ray.models.prompt_report import PromptReport
from rollout_ray.models.resolved_run import ResolvedRun
from rollout_ray.telemetry.engine_stats import EngineStats


@dataclass(frozen=True, slots=True)
class Finished:
    """One request that a backend has finished.

    Attributes:
        num_tokens: Output tokens.
        unread: The tokens of a text that `read` still has to decode. None: `text` is complete.
        token_ids: The output tokens (int32), the end token included. None: the run does not store them.
        logprobs: The log-probability of each (float32).
    """

    key: str
    text: str
    num_tokens: int
    finish_reason: FinishReason
    error: str | None = None
    unread: Any = None
    token_ids: Sequence[int] | None = None
    logprobs: Sequence[float] | None = None


@dataclass(frozen=True)
class BackendInfo:
    """What a backend chose at its start.

    Attributes:
        phases: Seconds of each phase of the start, in order.
        node: Ray's id of the machine.
        core_apart: The engine core has a process of its own, and does not wait for the process that feeds it.
        prompts: How the run that the engine took up words its prompts. None: it has taken up no run.
    """

    max_num_seqs: int
    import_seconds: float
    load_seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    node: str = ""
    core_apart: bool = False
    prompts: PromptReport | None = None


class Backend(Protocol):
    """Generates. One thread calls all methods but `info`, `encode`, `check`, `stats` and `read`.

    Other threads may call those five at the same time.
    """

    def info(self) -> BackendInfo:
        """Return what the backend chose at its start."""
        ...

    def check(self) -> None:
        """Raise if the backend can no longer finish its requests."""
        ...

    def stats(self) -> EngineStats:
        """Return counts since the start. The engine adds `steps`, `idle_seconds` and its own waiting samples."""
        ...

    def begin(self, run: ResolvedRun) -> PromptReport:
        """Prepare for the requests of a run, and say how its prompts are worded.

        Raises ConfigError if the backend cannot serve an arm, or if the prompts seem to be rendered already.
        """
        ...

    def update_weights(self, path: str) -> None:
        """Load other weights of the same shape, while there are no requests. An error leaves the backend broken."""
        ...

    def encode(self, prompt: Prompt, arm: Arm) -> list[int]:
        """Return the tokens of a prompt. Raises Refused."""
        ...

    def opening(self, arm: Arm) -> str:
        """Return the tag of a thought that the prompts of an arm begin; empty if they begin none."""
        ...

    def add(self, key: str, tokens: list[int], spec: SampleSpec, seed: int) -> None:
        """Queue one request. Raises Refused."""
        ...

    def step(self) -> list[Finished]:
        """Decode one step and return the requests that it finished."""
        ...

    def read(self, finished: Sequence[Finished]) -> list[Finished]:
        """Return the finished requests with their texts."""
        ...

    def abort(self, keys: Sequence[str]) -> None:
        """Forget requests, whatever their state."""
        ...


def encode_prompts(backend: Backend, question: Question, arms: Sequence[Arm]) -> list[list[int] | Refused]:
    """Return the tokens of a question's prompt under each arm, or why it is refused. Equal prompts are encoded once."""
    known: dict[Any, list[int] | Refused] = {}
    for arm in arms:
        if arm.prompt_variant not in known:
            try:
                if question.fault:
                    raise Refused(question.fault)
                known[arm.prompt_variant] = backend.encode(question.prompt, arm)
            except Refused as refused:
                known[arm.prompt_variant] = refused
    return [known[arm.prompt_variant] for arm in arms]
