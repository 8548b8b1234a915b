"""Call a user's reward function as its own library calls it: rollout_ray's, TRL's or verl's signature.

    question   f(question, trajectories)
    trl        f(prompts, completions, **columns); each argument is a list with one entry a completion
    verl       f(data_source, solution_str, ground_truth, extra_info), once a trajectory

Knows no process: worker.py calls this in one.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal

import numpy as np

from rollout_ray.core.records import Question, Trajectory
from rollout_ray.core.redaction import shorten

Style = Literal["question", "trl", "verl"]
Value = float | None | dict[str, float]

_TRL_GIVEN = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric")
_TRL_NOT_IN_ROW = (*_TRL_GIVEN, "prompt", "completion")
_VERL = ("data_source", "solution_str", "ground_truth", "extra_info")
_VERL_COLUMNS = ("data_source", "extra_info")
GOLD = "gold_answer"


@dataclass(frozen=True)
class Signature:
    """What a function takes.

    Attributes:
        style: How it is called.
        required: Input columns without which it cannot be called.
        optional: Input columns that it takes if they are there.
        takes_all: Whether it takes every input column.
        takes_tokens: Whether it takes the token ids of the completions.
        is_async: Whether it is an `async def`.
    """

    style: Style
    required: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    takes_all: bool = False
    takes_tokens: bool = False
    is_async: bool = False


def signature_of(function: Callable[..., Any]) -> Signature:
    """Return what a reward function takes."""
    own_call = getattr(type(function), "__call__", None)  # noqa: B004  (of an object that is called like a function)
    is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(own_call)
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # a function of C without a signature
        return Signature("question", takes_all=True, is_async=is_async)
    if "solution_str" in parameters:
        return Signature("verl", optional=_VERL_COLUMNS, is_async=is_async)
    if not {"completions", "completion_ids"} & parameters.keys():
        return Signature("question", takes_all=True, is_async=is_async)
    named = [
        p
        for name, p in parameters.items()
        if name not in _TRL_GIVEN and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    required = tuple(p.name for p in named if p.default is p.empty)
    optional = tuple(p.name for p in named if p.default is not p.empty)
    takes_all = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    return Signature("trl", required, optional, takes_all, "completion_ids" in parameters, is_async)


class RewardFunction:
    """A reward function of the user. `invoke` calls it, and `finish` checks what it returned."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self.signature = signature_of(function)
        try:
            self._names: frozenset[str] = frozenset(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            self._names = frozenset()

    def invoke(self, question: Question, trajectories: Sequence[Trajectory]) -> Any:
        """Return what the function returns for the trajectories that it sees.

        For verl's signature, and where it sees none, this is a list of what the calls return.
        """
        seen = [t for t in trajectories if self._sees(t)]
        match self.signature.style:
            case "question":
                return self._function(question, trajectories)
            case "trl":
                return self._function(**self._trl_arguments(question, seen)) if seen else []
            case "verl":
                return [self._function(**self._verl_arguments(question, t.full_text)) for t in seen]

    def finish(self, result: Any, trajectories: Sequence[Trajectory]) -> list[Value]:
        """Return one value a trajectory: None for one that the function does not see.

        Raises:
            ValueError: The function returned anything but a value for each trajectory that it sees.
        """
        seen = [self._sees(t) for t in trajectories]
        values = iter(self._checked(result, sum(seen)))
        return [next(values) if one else None for one in seen]

    def _sees(self, trajectory: Trajectory) -> bool:
        """Return whether the function is called with a trajectory: TRL's and verl's signatures cannot show an error."""
        return self.signature.style == "question" or trajectory.finish_reason != "error"

    def _checked(self, result: Any, count: int) -> list[Value]:
        if isinstance(result, (str, bytes, Mapping)) or not isinstance(result, Iterable):
            raise ValueError(
                f"it returned {shorten(repr(result), 60)} for {count} trajectories. Return a list with one value for each"
            )
        values = [_value(value) for value in result]
        if len(values) != count:
            raise ValueError(
                f"it returned {len(values)} values for {count} trajectories. Return one value for each trajectory"
            )
        return values

    def _trl_arguments(self, question: Question, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        count = len(trajectories)
        is_chat = not isinstance(question.prompt, str)  # TRL's completions have the form of the prompts
        prompt = question.prompt if isinstance(question.prompt, str) else [dict(m) for m in question.prompt]
        texts = [t.full_text for t in trajectories]
        given: dict[str, Any] = {
            "prompts": [prompt] * count,
            "completions": [[{"role": "assistant", "content": text}] for text in texts] if is_chat else texts,
            "completion_ids": [getattr(t, "token_ids", None) for t in trajectories],
            "trainer_state": None,
            "log_extra": _ignore,
            "log_metric": _ignore,
        }
        row = {name: value for name, value in question.row.items() if name not in _TRL_NOT_IN_ROW}
        columns = {name: [value] * count for name, value in {GOLD: question.gold_answer, **row}.items()}
        wanted = {**columns, **given}
        if not self.signature.takes_all:
            return {name: value for name, value in wanted.items() if name in self._names}
        return {name: value for name, value in wanted.items() if name in self._names or name not in _TRL_GIVEN[2:]}

    def _verl_arguments(self, question: Question, text: str) -> dict[str, Any]:
        row = question.row
        values = (row.get("data_source"), text, question.gold_answer, row.get("extra_info") or {})
        return {name: value for name, value in zip(_VERL, values, strict=True) if name in self._names}


def _ignore(*arguments: Any, **named: Any) -> None:
    """Take what a function logs in TRL. A run has no place for it."""


def _value(value: Any) -> Value:
    if isinstance(value, Mapping) and "score" in value:  # as verl's functions return it; the rest may hold texts
        if value["score"] is None:
            return None
        return {
            str(name): _finite(one) for name, one in value.items() if name == "score" or isinstance(one, Real | np.bool_)
        }
    if isinstance(value, Mapping):
        return {str(name): number for name, one in value.items() if (number := _number(one)) is not None}
    return _number(value)


def _number(value: Any) -> float | None:
    return None if value is None else _finite(value)


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"it returned {number} for a trajectory. Return a finite number, or None")
    return number
