"""Load a reward function of the user: by its name, or as the function that a Python caller gave.

Modules of the working folder are found, too. They come last on the path: none of them replaces a module of a library.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.records import Question, Trajectory

CustomReward = Callable[[Question, Sequence[Trajectory]], Sequence[float | None]]
_NAME = re.compile(r"[A-Za-z_]\w*")


def _path_here() -> tuple[str, ...]:
    return tuple(dict.fromkeys(os.path.abspath(folder) for folder in (*sys.path, os.getcwd())))


@dataclass(frozen=True)
class RewardSource:
    """What a scorer on any node needs to load a reward.

    Attributes:
        name: `module:function`. None: Regime W.
        pickled: The function itself, if a Python caller gave it.
        path: Folders in which the driver finds modules.
    """

    name: str | None
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

    def load(self) -> CustomReward | None:
        """Return the function, or None for Regime W. Raises ConfigError if it cannot be loaded."""
        if self.name is None:
            return None
        sys.path.extend(folder for folder in self.path if folder not in sys.path)
        return _by_name(self.name) if self.pickled is None else _unpickled(self.name, self.pickled)


def load_reward(name: str | None) -> CustomReward | None:
    """Return the reward `module:function`. Raises ConfigError if it cannot be loaded."""
    return RewardSource(name).load()


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
