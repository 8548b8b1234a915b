"""The settings of a run: their schema, how they are loaded, and their help."""

import typing


def __getattr__(name: str) -> typing.Any:
    """Return a class of schema.py. Version 0.1.0 had the schema here, so scripts import `rollout_ray.config.RunConfig`."""
    if name.endswith("Config"):
        from rollout_ray.config import schema

        if name in vars(schema):
            return vars(schema)[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
