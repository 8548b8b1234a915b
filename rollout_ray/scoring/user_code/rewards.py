"""Reward scored questions with the user's functions.

A function that fails costs its question's rewards: the rows get the status error and the reason. No reward is guessed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from rollout_ray.config.scoring_schema import ScoringConfig, reward_weight
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Question, ScoredQuestion, Trajectory
from rollout_ray.scoring.custom_reward import RewardSources
from rollout_ray.scoring.user_code.conventions import GOLD, Signature, Value
from rollout_ray.scoring.user_code.process import Call, Limits, Reply, UserProcess


def limits_of(scoring: ScoringConfig) -> Limits:
    """Return the bounds that a config sets on calls."""
    return Limits(scoring.call_timeout_s, scoring.function_memory_mib, scoring.calls_in_flight, scoring.call_retries)


def row_columns(sources: RewardSources, scoring: ScoringConfig, names: Sequence[str]) -> tuple[str, ...]:
    """Return the input columns that the reward functions see.

    Args:
        sources: The functions. They are loaded, in a process that then ends.
        scoring: The config.
        names: Columns of the input.

    Raises:
        ConfigError: A function cannot be loaded, or takes a column that the input lacks.
    """
    rewards = UserRewards(sources, scoring)
    if rewards.process is None:
        return ()
    try:
        signatures = dict(zip(sources.by_name, rewards.process.signatures(), strict=True))
    finally:
        rewards.close()
    listed = scoring.reward_columns
    if listed is not None and (absent := [name for name in listed if name not in names]):
        raise ConfigError(f"scoring.reward_columns names {absent[0]}, which is no column; {_columns(names)}")
    wanted = {*(listed or ())}
    for reward, signature in signatures.items():
        _check_signature(reward, signature, names)
        wanted |= {*signature.required, *signature.optional}
        if signature.takes_all and listed is None:
            wanted |= {*names}
    return tuple(name for name in names if name in wanted)


def _check_signature(reward: str, signature: Signature, names: Sequence[str]) -> None:
    if signature.takes_tokens:
        raise ConfigError(
            f"the reward {reward} takes completion_ids, which a reward does not get. Take completions instead"
        )
    if absent := [name for name in signature.required if name not in (*names, GOLD)]:
        raise ConfigError(
            f"the reward {reward} takes {absent[0]}, which is no column of the data; {_columns(names)}. Give the parameter "
            "another name, or a default"
        )


def _columns(names: Sequence[str]) -> str:
    return f"the columns are {', '.join(names)}"


class UserRewards:
    """The reward functions of a run, in their process. Without functions it changes nothing."""

    def __init__(self, sources: RewardSources, scoring: ScoringConfig) -> None:
        self._names = tuple(sources.by_name)
        self._named, self._scoring = sources.named, scoring
        self.process = UserProcess(tuple(sources.by_name.values()), limits_of(scoring)) if self._names else None

    def prepare(self) -> None:
        """Start the process. Raises ConfigError if a function cannot be loaded."""
        if self.process is not None:
            self.process.signatures()

    def close(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.close()

    def apply(self, questions: Sequence[Question], scored: Sequence[ScoredQuestion]) -> list[ScoredQuestion]:
        """Return the scored questions with the rewards of the functions.

        Raises:
            ConfigError: The process with the functions does not start.
        """
        if self.process is None:
            return list(scored)
        functions = range(len(self._names))
        calls = [Call(n, q, s.trajectories) for q, s in zip(questions, scored, strict=True) for n in functions]
        replies = iter(self.process.run(calls))
        return [self._rewarded(one, [next(replies) for _ in functions]) for one in scored]

    def _rewarded(self, one: ScoredQuestion, replies: Sequence[Reply]) -> ScoredQuestion:
        failed = [(name, reply) for name, reply in zip(self._names, replies, strict=True) if reply.error is not None]
        if failed:
            name, reply = failed[0]
            return with_failure(one, f"the reward {name} fails: {reply.error}")
        rows = zip(one.trajectories, *(reply.result for reply in replies), strict=True)
        return replace(one, trajectories=tuple(self._with_values(t, values) for t, *values in rows))

    def _with_values(self, trajectory: Trajectory, values: Sequence[Value]) -> Trajectory:
        if not self._named and not isinstance(values[0], Mapping):
            return replace(trajectory, reward=values[0])
        found: dict[str, float] = {}
        for name, value in zip(self._names, values, strict=True):
            found |= self._by_name(name, value)
        terms = [reward_weight(self._scoring, name, found) * value for name, value in found.items()]
        return replace(trajectory, reward=sum(terms) if terms else None, rewards=found)

    def _by_name(self, name: str, value: Value) -> Mapping[str, float]:
        """Return a function's values by name. In a named function's dict, `score` is its value, others are prefixed."""
        if not isinstance(value, Mapping):
            return {} if value is None else {name: value}
        if not self._named:
            return value
        return {name if inner == "score" else f"{name}.{inner}": number for inner, number in value.items()}


def with_failure(one: ScoredQuestion, reason: str) -> ScoredQuestion:
    """Return the question with the status error and this reason on each row that has an output."""
    return replace(
        one,
        trajectories=tuple(
            t
            if t.finish_reason == "error"
            else replace(t, score_status="error", correct=None, reward=None, rewards=None, error=reason)
            for t in one.trajectories
        ),
    )
