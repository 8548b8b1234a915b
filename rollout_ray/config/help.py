"""What `rollout --help` prints of a run's flags, and argparse's complaints in plain words. Light: it loads the config's
fields and nothing else."""

from __future__ import annotations

import json
import re

from rollout_ray.config.arm_schema import Section
from rollout_ray.config.schema import RunConfig, leaf_fields


def help_text() -> str:
    """Every flag with its section, meaning and default."""
    lines = []
    for section, info in RunConfig.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type) and issubclass(kind, Section)
        lines.append(f"\n{section}: {(kind.__doc__ or '').splitlines()[0]}")
        for name, leaf in leaf_fields(kind).items():
            default = leaf.get_default(call_default_factory=True, validated_data={})
            shown = "" if default is None else f" (default: {json.dumps(default)})"
            lines.append(f"  --{name.rpartition('.')[2]:<24} {leaf.description}{shown}")
    return "\n".join(lines)


def plain(complaint: str) -> str:
    """What argparse says about a flag, without the name of its section."""
    return re.sub(r"^argument (?:--[\w.]+/)?", "", complaint).replace(": expected one argument", " needs a value")
