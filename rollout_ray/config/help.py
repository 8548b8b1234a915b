"""Write the help of a run's flags, and argparse's complaints in plain words.

It loads the config's fields and nothing else: `rollout --help` stays fast.
"""

from __future__ import annotations

import json
import re
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

from pydantic.fields import FieldInfo

from rollout_ray.config.arm_schema import Section
from rollout_ray.config.engine_schema import SimulatedConfig
from rollout_ray.config.schema import RunConfig, leaf_fields

FLAG_COLUMNS = 28
LINE_COLUMNS = 110


def help_text() -> str:
    """Return every flag with its meaning, choices and default, section by section."""
    parts = []
    for section, info in RunConfig.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type) and issubclass(kind, Section)
        fields = {name: leaf for name, leaf in leaf_fields(kind).items() if not name.startswith("simulated.")}
        parts.append(_section(section, kind, fields))
    # Last: these fields are for tests, and help nobody to start a run.
    parts.append(_section("engine: simulated", SimulatedConfig, leaf_fields(SimulatedConfig)))
    return "\n".join(parts)


def _section(name: str, kind: type[Section], fields: Mapping[str, FieldInfo]) -> str:
    lines = [f"\n{name}: {(kind.__doc__ or '').splitlines()[0]}"]
    for dotted, field in fields.items():
        flag = f"  --{dotted.rpartition('.')[2]}"
        lines += textwrap.wrap(
            f"{field.description}{_choices_and_default(field)}",
            LINE_COLUMNS,
            initial_indent=f"{flag:<{FLAG_COLUMNS - 1}} ",
            subsequent_indent=" " * FLAG_COLUMNS,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return "\n".join(lines)


def _choices_and_default(field: FieldInfo) -> str:
    """Return what stands in brackets behind a field's description; empty where there is nothing to say."""
    default = field.get_default(call_default_factory=True, validated_data={})
    said = []
    if choices := choices_of(field):
        said.append("one of " + ", ".join(choices))
    if default not in (None, {}, []):
        said.append(f"default: {_plain_value(default)}")
    return f" ({'; '.join(said)})" if said else ""


def choices_of(field: FieldInfo) -> tuple[str, ...]:
    """Return the values of a field that has few; empty for any other field."""
    if typing.get_origin(field.annotation) is not typing.Literal:
        return ()
    return tuple(map(str, typing.get_args(field.annotation)))


def _plain_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def plain(complaint: str) -> str:
    """Return what argparse says about a flag without the name of the flag's section."""
    return re.sub(r"^argument (?:--[\w.]+/)?", "", complaint).replace(": expected one argument", " needs a value")
