"""The settings of a run: their schema, how they are loaded, and their help."""

import importlib
import typing


def __getattr__(name: str) -> typing.Any:
    """Return a class of the schema. Version 0.1.0 had it here, so scripts import `rollout_ray.config.RunConfig`."""
    if name.endswith("Config"):
        for module in ("schema", "engine_schema", "scoring_schema"):
            found = vars(importlib.import_module(f"{__name__}.{module}"))
            if name in found:
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
