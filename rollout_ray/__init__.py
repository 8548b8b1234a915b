"""rollout_ray: N trajectories a question, tagged by arm, scored, in one parquet.

    from rollout_ray import RunConfig, collect
    rollouts = collect("questions.parquet", RunConfig(model={"model_path": "..."}))

Importing the package loads neither Ray, nor torch, nor vLLM; a public name is loaded when it is first asked for, so that
the command line answers `--help` without pyarrow and numpy.
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

__version__ = "0.1.0"
__all__ = ["RolloutError", "RolloutPool", "Rollouts", "RunConfig", "__version__", "collect"]

_HOMES = {
    "RolloutError": "core.errors",
    "RolloutPool": "api.pool",
    "Rollouts": "api.collect",
    "RunConfig": "config.schema",
    "collect": "api.collect",
}


class _Package(types.ModuleType):
    """This package. Importing the module collect.py does not hide the function of that name."""

    def __getattr__(self, name: str) -> typing.Any:
        if name not in _HOMES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{self.__name__}.{_HOMES[name]}"), name)
        self.__dict__[name] = value
        return value

    def __setattr__(self, name: str, value: typing.Any) -> None:
        if not (name in _HOMES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
