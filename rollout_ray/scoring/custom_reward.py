"""Name a reward function of the user for another process, and load it there.

A function is known by `module:function`, or is the one that a Python caller gave. Modules of the working folder are
found, too. They come last on the path: none of them replaces a module of a library.
"""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from rollout_ray.config.loading import with_fields
from rollout_ray.config.schema import RunConfig
from rollout_ray.config.scoring_schema import ScoringConfig
from rollout_ray.core.errors import ConfigError

CustomReward = Callable[..., Any]  # f(question, trajectories), or with the signature of TRL or verl
Rewards = CustomReward | Mapping[str, CustomReward] | Sequence[CustomReward]
_NAME = re.compile(r"[A-Za-z_]\w*")


def _path_here() -> tuple[str, ...]:
    return tuple(dict.fromkeys(os.path.abspath(folder) for folder in (*sys.path, os.getcwd())))


@dataclass(frozen=True)
class RewardSource:
    """What a scorer on any node needs to load a reward.

    Attributes:
        name: `module:function`.
        pickled: The function itself, if a Python caller gave it.
        path: Folders in which the driver finds modules.
    """

    name: str
    pickled: bytes | None = None
    path: tuple[str, ...] = field(default_factory=_path_here)

    @classmethod
    def of_function(cls, function: Any) -> RewardSource:
        """Return the source of a function of this process. Raises ConfigError if other processes cannot call it."""
        name = getattr(function, "__name__", "")
        if not callable(function) or not _NAME.fullmatch(name):
            raise ConfigError(
                f"reward is {function!r}, which has no name. Give a function that is defined with def: run.json records "
                "its name"
            )
        import cloudpickle

        try:
            pickled = cloudpickle.dumps(function)
        except Exception as error:
            raise ConfigError(
                f"the reward {name} cannot be sent to the scorers: {error}. Leave out what it captures, such as an open "
                "file, or give module:function as scoring.reward"
            ) from error
        module = re.sub(r"[^\w.]", "_", function.__module__ or "__main__")
        return cls(f"{module}:{name}", pickled)

    def load(self) -> CustomReward:
        """Return the function. Raises ConfigError if it cannot be loaded."""
        sys.path.extend(folder for folder in self.path if folder not in sys.path)
        return _by_name(self.name) if self.pickled is None else _unpickled(self.name, self.pickled)


@dataclass(frozen=True)
class RewardSources:
    """The reward functions of a run.

    Attributes:
        by_name: Each function, by the name of its reward.
        named: Whether the rewards stand on the rows by name. A single function without names gives the reward itself.
    """

    by_name: Mapping[str, RewardSource] = field(default_factory=dict)
    named: bool = False

    @classmethod
    def of_functions(cls, rewards: Rewards) -> RewardSources:
        """Return the functions of a Python caller. Raises ConfigError if other processes cannot call one of them."""
        if not isinstance(rewards, Mapping | list | tuple):
            source = RewardSource.of_function(rewards)
            return cls({function_name(source.name): source})
        named = rewards.items() if isinstance(rewards, Mapping) else ((None, function) for function in rewards)
        found: dict[str, RewardSource] = {}
        for name, function in named:
            source = RewardSource.of_function(function)
            if (key := name or function_name(source.name)) in found:
                raise ConfigError(f"two rewards have the name {key}. Give them as {{name: function}}, with different names")
            found[key] = source
        return cls(found, named=True)

    @classmethod
    def of_config(cls, scoring: ScoringConfig) -> RewardSources:
        """Return the functions that a config names."""
        functions = scoring.reward_functions
        return cls({name: RewardSource(function) for name, function in functions.items()}, bool(scoring.rewards))


def with_reward(cfg: RunConfig, rewards: Rewards | None) -> tuple[RunConfig, RewardSources]:
    """Return the config with the names of the caller's functions, and where scorers get the functions."""
    if rewards is None:
        refuse_lone_weights(cfg.scoring)
        return cfg, RewardSources.of_config(cfg.scoring)
    sources = RewardSources.of_functions(rewards)
    names = {name: source.name for name, source in sources.by_name.items()}
    given: dict[str, Any] = {"rewards": names} if sources.named else {"reward": next(iter(names.values()))}
    for field_name in ("reward", "rewards"):
        if (own := getattr(cfg.scoring, field_name)) not in (None, {}, given.get(field_name)):
            raise ConfigError(f"scoring.{field_name} is {own}, and a function is given as well; leave one of them out")
    return with_fields(cfg, {"scoring": given}), sources


def refuse_lone_weights(scoring: ScoringConfig) -> None:
    """Raise ConfigError if the config has weights, and no function of the user's."""
    if scoring.reward_weights and not scoring.reward_functions:
        raise ConfigError(
            f"scoring.reward_weights names {next(iter(scoring.reward_weights))}, and no reward function is given. Name the "
            "functions with --rewards, or leave out the weights"
        )


def function_name(name: str) -> str:
    """Return the function in `module:function`."""
    return name.rpartition(":")[2]


def packed(value: Any) -> bytes:
    """Return a value in the form in which a process of the user's functions takes it."""
    return pickle.dumps(value)


def unpacked(content: bytes) -> Any:
    """Return the value. The content comes from the process that started this one."""
    return pickle.loads(content)


def _by_name(name: str) -> CustomReward:
    module, _, function = name.partition(":")
    try:
        found = getattr(import_module(module), function)
    except (Exception, SystemExit) as error:
        raise ConfigError(
            f"scoring.reward {name} cannot be loaded: {_reason(error)}; {_remedy(module, function)}"
        ) from error
    if not callable(found):
        raise ConfigError(f"scoring.reward {name} is no function; give the name of one")
    return found  # type: ignore[no-any-return]


def _reason(error: BaseException) -> str:
    return str(error) if isinstance(error, ImportError | AttributeError) else f"its module raises {error!r}"


def _remedy(module: str, function: str) -> str:
    if module.endswith(".py"):
        return f"give {module.removesuffix('.py')}:{function}"
    return "give a module:function of the working folder, of PYTHONPATH or of an installed package"


def _unpickled(name: str, pickled: bytes) -> CustomReward:
    import cloudpickle

    try:
        function: CustomReward = cloudpickle.loads(pickled)
    except Exception as error:
        raise ConfigError(f"the reward {name} cannot be loaded by a scorer: {error}. Install its module there") from error
    return function
