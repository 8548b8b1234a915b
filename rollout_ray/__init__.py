"""rollout_ray: N trajectories a question, tagged by arm, scored, in one parquet.

    from rollout_ray import RunConfig, collect
    rollouts = collect("questions.parquet", RunConfig(model={"model_path": "..."}))

A public name is loaded when it is first used. Importing the package loads neither Ray, torch, vLLM nor pyarrow.
"""

import importlib
import sys
import types
import typing

if typing.TYPE_CHECKING:
    from rollout_ray.api.collect import Rollouts, collect
    from rollout_ray.api.pool import RolloutPool
    from rollout_ray.config.schema import RunConfig
    from rollout_ray.core.errors import RolloutError
    from rollout_ray.core.records import Question, Trajectory

__version__ = "0.1.0"  # the only place: pyproject.toml reads it, and a checkout that is not installed has it too
__all__ = [
    "Question",
    "RolloutError",
    "RolloutPool",
    "Rollouts",
    "RunConfig",
    "Trajectory",
    "__version__",
    "collect",
]

_MODULES = {
    "Question": "core.records",
    "RolloutError": "core.errors",
    "RolloutPool": "api.pool",
    "Rollouts": "api.collect",
    "RunConfig": "config.schema",
    "Trajectory": "core.records",
    "collect": "api.collect",
}
# Modules that scripts import by the name they had in version 0.1.0. `config` is a package now and has its own.
_FORMER_MODULES = {
    "collect": "api.collect",
    "errors": "core.errors",
    "grading": "scoring.grader",
    "pool": "api.pool",
    "records": "core.records",
    "regime_w": "scoring.regime_w",
}


class _FormerModule(types.ModuleType):
    """A module under its former name. It stands in sys.modules, so no import binds it over the function `collect`."""

    def __init__(self, name: str, module: str) -> None:
        super().__init__(f"{__name__}.{name}", f"The former name of {__name__}.{module}.")
        self._module = f"{__name__}.{module}"

    def __getattr__(self, name: str) -> typing.Any:
        if name.startswith("__"):  # tools that look at every module must not load it
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(self._module), name)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self._module))


for _name, _module in _FORMER_MODULES.items():
    sys.modules.setdefault(f"{__name__}.{_name}", _FormerModule(_name, _module))


def __getattr__(name: str) -> typing.Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    elif name in _FORMER_MODULES:
        value = sys.modules[f"{__name__}.{name}"]
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
