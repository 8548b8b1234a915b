"""Read a config file: YAML 1.1 with the numbers of YAML 1.2, in which no name may stand twice in a mapping.

This module knows no field. loading.py merges the sections with the other sources.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import shorten
from rollout_ray.core.user_paths import expand_home

# YAML 1.1 takes a number with an exponent for text unless it has a dot and a sign: 5e-2 and 1.5e3 are text there.
_NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+")


def read_yaml(file: str | Path) -> dict[str, Any]:
    """Return the sections of a config file.

    Raises:
        ConfigError: The file cannot be read, is not a YAML mapping, or a name stands twice in a mapping.
    """
    try:
        content = _Loader(Path(expand_home(str(file))).read_text(encoding="utf-8")).get_single_data()
    except OSError as error:
        raise ConfigError(
            f"the config file {file} cannot be read: {error.strerror}; give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: wrong encoding, or a date such as 2026-02-31
        raise ConfigError(f"the config file {file} is not YAML: {_problem(error)}; correct it there") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"the config file {file} holds a {type(content).__name__} where sections are needed; write 'sampling:' and "
            "the like, with fields below them"
        )
    return content


def parse_value(text: str) -> Any:
    """Return the value that a text stands for in a config file; the text itself if it is not YAML."""
    try:
        return _Loader(text).get_single_data()
    except (yaml.YAMLError, ValueError):
        return text


class _Loader(yaml.SafeLoader):
    """Refuses a name that stands twice in a mapping. YAML's own loader keeps the last of its values."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before `<<` is resolved, since what that brings in may be given again.
        mapping = super().compose_mapping_node(anchor)
        names = set()
        for key, value in mapping.value:
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                continue
            if key.value in names:
                remedy = "join the two" if isinstance(value, yaml.CollectionNode) else "keep one of them"
                name, line = shorten(key.value, 60), key.start_mark.line + 1
                raise ConfigError(f"'{name}' stands twice, in line {line}; {remedy}")
            names.add(key.value)
        return mapping


_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(f"{_NUMBER.pattern}$"), list("-+.0123456789"))


def _problem(error: Exception) -> str:
    """Return what is wrong with a YAML file, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())
