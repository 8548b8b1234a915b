"""Define the config's section for grading and rewards, and the presets of rewards."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from rollout_ray.config.arm_schema import Section
from rollout_ray.core.redaction import shorten

NonNegative = Annotated[float, Field(ge=0.0)]
ColumnName = Annotated[str, Field(min_length=1)]
_REWARD = re.compile(r"[\w.]+:\w+")

REWARD_PRESETS: dict[str, dict[str, float]] = {
    "regime-w": {"gamma": 0.0, "bonus": 0.0},
    "regime-w-2": {"gamma": 0.3, "bonus": 0.2},
    "exact": {"alpha": 1.0, "beta": 0.0, "gamma": 0.0, "bonus": 0.0, "penalty_per_token": 0.0},
}


class RewardConfig(Section):
    """Regime W: reward = alpha x correct + beta x s_wm + gamma x quality + bonus - penalty."""

    reward_preset: Literal["regime-w", "regime-w-2", "exact"] = Field(
        "regime-w",
        description="regime-w sets gamma and bonus to 0, regime-w-2 to 0.3 and 0.2. exact pays 1 for a correct answer and "
        "0 for a wrong one.",
    )
    alpha: float = Field(1.0, description="Reward of a correct answer.")
    beta: float = Field(0.5, description="Weight of the coherence s_wm of the question. Wrong answers get it, too.")
    gamma: float = Field(0.0, description="Weight of the quality of a correct trajectory: how short it is.")
    bonus: float = Field(0.0, description="Reward of a correct trajectory where s_end is above bonus_above.")
    bonus_above: float = Field(0.9, ge=0, le=1, description="Value of s_end above which the bonus is paid.")
    penalty_per_token: float = Field(0.001, ge=0, description="Penalty for each output token beyond penalty_free_tokens.")
    penalty_free_tokens: int = Field(512, ge=0, description="Output tokens without a penalty.")
    s_wm_weights: tuple[NonNegative, NonNegative, NonNegative] = Field(
        (0.4, 0.3, 0.3), description="Weights of s_end, s_path and s_cf in s_wm. Their sum is 1."
    )

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_in(cls, data: Any) -> Any:
        preset = data.get("reward_preset", "regime-w") if isinstance(data, dict) else None
        return {**REWARD_PRESETS.get(preset, {}), **data} if isinstance(preset, str) else data

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> Self:
        if abs(sum(self.s_wm_weights) - 1.0) > 1e-9:
            raise ValueError(f"s_wm_weights must sum to 1, not {sum(self.s_wm_weights):g}")
        return self


class ScoringConfig(RewardConfig):
    """Grading and rewards."""

    reward: str | None = Field(None, description="Reward function of your own, as module:function. It replaces Regime W's.")
    rewards: dict[str, str] = Field(
        default_factory=dict,
        description="Reward functions by name, as name=module:function. Their weighted sum replaces Regime W's reward.",
    )
    reward_weights: dict[str, float] = Field(
        default_factory=dict, description="Weights of named rewards, as name=weight. A reward without a weight counts once."
    )
    reward_columns: list[ColumnName] | None = Field(
        None,
        description="Input columns that a reward function sees as question.row. Unset: those that its parameters name, or "
        "all for a function of (question, trajectories).",
    )
    call_timeout_s: float = Field(120.0, gt=0, description="Time limit of one call of a function of your own, in seconds.")
    calls_in_flight: int | None = Field(
        None,
        ge=1,
        description="Calls of a function of your own at a time, in threads. Unset: 64 of an async def, one of any other.",
    )
    call_retries: int | None = Field(
        None, ge=0, description="How often a failed call is made again. Unset: twice for an async def, else never."
    )
    function_memory_mib: int = Field(
        4096, ge=64, description="Memory limit of the process in which functions of your own run, in MiB."
    )
    max_error_share: float = Field(
        0.2,
        ge=0,
        le=1,
        description="Share of trajectories without a grade or reward for an error, above which the run ends.",
    )
    grader: Literal["math", "choice", "exact", "regex"] | None = Field(
        None,
        description="Grader: math, choice, exact or regex. Unset: math, or none for a source that graders does not name.",
    )
    graders: dict[str, Literal["math", "choice", "exact", "regex"]] = Field(
        default_factory=dict, description="Graders by source, as source=grader. The column source_key holds the source."
    )
    source_key: str = Field("data_source", description="Column of the source of a question, by which graders chooses.")
    grade_timeout_s: int = Field(
        5, ge=1, le=600, description="CPU time limit of one step of a symbolic comparison, in seconds."
    )
    grader_memory_mib: int = Field(1024, ge=256, description="Memory limit of a grading process, in MiB.")

    @field_validator("reward", mode="before")
    @classmethod
    def _reward_is_a_name(cls, value: Any) -> Any:
        return _checked_name("reward", value)

    @field_validator("rewards", mode="before")
    @classmethod
    def _rewards_are_names(cls, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: _checked_name("rewards", function) for name, function in value.items()}
        return value

    @model_validator(mode="after")
    def _one_kind_of_reward(self) -> Self:
        if self.reward is not None and self.rewards:
            raise ValueError("reward and rewards are both given; leave one of them out")
        return self

    @model_validator(mode="after")
    def _names_are_clear(self) -> Self:
        for name in self.rewards:
            if (outer := _outer_reward(name, self.rewards)) is not None:
                raise ValueError(f"rewards has {name}, a name for a value of its reward {outer}; rename one of them")
        unknown = [name for name in self.reward_weights if not is_weight_of(name, self.rewards)] if self.rewards else []
        if unknown:
            raise ValueError(
                f"reward_weights names {unknown[0]}, which is no reward; the rewards are {', '.join(self.rewards)}. "
                "Give one of them, or name.value for a value of a dict"
            )
        return self

    @property
    def reward_functions(self) -> dict[str, str]:
        """Return the reward functions of the user, by the name of their reward. Empty: Regime W."""
        return {self.reward.rpartition(":")[2]: self.reward} if self.reward is not None else self.rewards


def _outer_reward(name: str, rewards: Collection[str]) -> str | None:
    """Return the reward whose function gives the value of this name, as in `name.value`."""
    return next((reward for reward in rewards if name.startswith(f"{reward}.")), None)


def is_weight_of(name: str, rewards: Collection[str]) -> bool:
    """Return whether a weight of this name belongs to one of the named rewards, or to a value of one."""
    return name in rewards or _outer_reward(name, rewards) is not None


def reward_weight(scoring: ScoringConfig, name: str, row: Collection[str]) -> float:
    """Return the weight of a value in the reward. Values beside a `score`, as verl's functions return it, have none.

    Args:
        scoring: The config.
        name: Name of the value.
        row: Names of all values of the trajectory.
    """
    weights = scoring.reward_weights
    if name in weights:
        return weights[name]
    if name in scoring.rewards:
        return 1.0
    outer = _outer_reward(name, scoring.rewards)
    if outer is not None:
        return 0.0 if outer in row else weights.get(outer, 1.0)
    return 0.0 if "score" in row and name != "score" else 1.0


def _checked_name(field: str, value: Any) -> Any:
    if callable(value):
        raise ValueError(f"{field} takes a name; give the function itself to collect(..., reward=...)")
    if isinstance(value, str) and not _REWARD.fullmatch(value):
        raise ValueError(f"{field} takes module:function, such as my_rewards:score, not {shorten(value, 60)!r}; correct it")
    return value


def reward_sentence(scoring: ScoringConfig) -> str:
    """Return the rule of the reward in words. A rule that pays wrong answers says so."""
    weights = scoring.reward_weights
    if scoring.reward is not None:
        own = ", ".join(f"{weight:g} x {name}" for name, weight in weights.items())
        return f"Reward: the function {scoring.reward}{f' with {own}' if own else ''}."
    if scoring.rewards:
        terms = [f"{weights.get(name, 1.0):g} x {name} ({call})" for name, call in scoring.rewards.items()]
        terms += [f"{weight:g} x {name}" for name, weight in weights.items() if name not in scoring.rewards]
        return f"Reward: {' plus '.join(terms)}."
    parts = [f"{scoring.alpha:g} for a correct answer"]
    if scoring.gamma:
        parts.append(f"plus {scoring.gamma:g} x its quality")
    if scoring.bonus:
        parts.append(f"plus {scoring.bonus:g} if s_end is above {scoring.bonus_above:g}")
    if scoring.beta:
        parts.append(f"plus {scoring.beta:g} x coherence (s_wm) for every answer")
    else:
        parts.append("0 for any other")
    if scoring.penalty_per_token:
        parts.append(f"minus {scoring.penalty_per_token:g} a token beyond {scoring.penalty_free_tokens}")
    said = f"Reward: {', '.join(parts)}."
    return f"{said} Wrong answers are paid, too; --reward_preset exact pays 1 or 0." if scoring.beta > 0 else said
