"""Fills a RunConfig from a YAML file, the environment and command-line flags; flags beat environment beats file.

Owns the names a field goes by outside Python: its section and name in YAML, `--name` (dashes alike) as a flag, and
ROLLOUT_NAME in the environment. The fields themselves, with defaults and ranges, are config.py's.
"""

from __future__ import annotations

import argparse
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict, SettingsError

from rollout_ray.config import RunConfig, leaf_fields
from rollout_ray.errors import ConfigError
from rollout_ray.redaction import shortened
from rollout_ray.usage import plain

ENV_PREFIX = "ROLLOUT_"
_FIELDS = leaf_fields(RunConfig)
FLAGS = {name.rpartition(".")[2]: name for name in _FIELDS}


class _Settings(RunConfig, BaseSettings):
    """RunConfig as pydantic-settings wants it, for its command-line parser."""

    model_config = SettingsConfigDict(
        extra="forbid", cli_exit_on_error=False, cli_shortcuts={name: flag for flag, name in FLAGS.items()},
        cli_hide_none_type=True,
    )  # fmt: skip


def load_config(
    arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, file: str | Path | None = None
) -> RunConfig:
    """The config of these flags, variables and YAML file. Raises ConfigError with one sentence for each bad field."""
    return overlaid({}, arguments, environment, file)


def overlaid(
    base: Mapping[str, Any], arguments: Sequence[str], environment: Mapping[str, str] | None, file: str | Path | None
) -> RunConfig:
    """The config of the sections `base` with what these sources give written over it. Raises ConfigError."""
    given: dict[str, Any] = read_yaml(file) if file else {}
    _overlay(given, _from_environment(environment or {}))
    _overlay(given, _from_flags(arguments))
    return changed(base, given)


def changed(base: Mapping[str, Any], given: Mapping[str, Any]) -> RunConfig:
    """The config of the sections `base` with the sections `given` written over it. Raises ConfigError.

    A reward preset that is given brings its gamma and bonus, whatever `base` has.
    """
    values = deepcopy(dict(base))
    scoring = given.get("scoring")
    if isinstance(scoring, Mapping) and "reward_preset" in scoring:
        for name in ("gamma", "bonus"):
            values.get("scoring", {}).pop(name, None)
    _overlay(values, given)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def read_yaml(file: str | Path) -> dict[str, Any]:
    """The sections of a config file. Raises ConfigError where it is no YAML mapping."""
    try:
        content = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"the config file {file} cannot be read: {error.strerror}; give the path of a YAML file"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file {file} is not YAML: {_problem(error)}; correct it there") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(
            f"the config file {file} holds a {type(content).__name__} where sections are needed; write 'sampling:' and "
            "the like, with fields below them"
        )
    return content


def _problem(error: Exception) -> str:
    """What is wrong with a YAML file, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}"
    return " ".join(str(error).split())


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        flag = variable.removeprefix(ENV_PREFIX).lower()
        if flag not in FLAGS:
            raise ConfigError(
                f"the environment variable {variable} names no field{_suggest(flag, FLAGS, ENV_PREFIX, str.upper)}"
            )
        name = FLAGS[flag]
        _put(values, name, _json_value(variable, text) if _is_json(_FIELDS[name]) else text)
    return values


def _from_flags(arguments: Sequence[str]) -> dict[str, Any]:
    if not arguments:
        return {}
    try:
        source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
            _Settings, cli_prog_name="rollout", cli_parse_args=_plain_flags(arguments)
        )
        return dict(source())
    except SettingsError as error:
        message = str(error).removeprefix("error parsing CLI: ")
        if unknown := re.match(r"unrecognized arguments: (\S+)", message):
            flag = unknown.group(1)
            name = flag.lstrip("-").partition("=")[0]
            if not flag.startswith("-"):
                raise ConfigError(f"'{flag}' is neither a command nor a flag with its value; see rollout --help") from None
            raise ConfigError(f"{flag} is not a flag{_suggest(name, FLAGS, '--')}") from None
        raise ConfigError(f"{plain(message)}; see rollout --help") from None


def _plain_flags(arguments: Sequence[str]) -> list[str]:
    """Flags with dashes as they are with underscores, and `--flag` / `--no-flag` of a yes-or-no field as a value."""
    plain: list[str] = []
    for number, argument in enumerate(arguments):
        if not argument.startswith("--"):
            plain.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        following = arguments[number + 1] if number + 1 < len(arguments) else "--"
        if name.startswith("no_") and _is_bool(name.removeprefix("no_")) and not equals:
            plain.append(f"--{name.removeprefix('no_')}=false")
        elif _is_bool(name) and not equals and following.startswith("--"):
            plain.append(f"--{name}=true")
        else:
            plain.append(f"--{name}{equals}{value}")
    return plain


def _is_bool(flag: str) -> bool:
    name = FLAGS.get(flag)
    return name is not None and "bool" in str(_FIELDS[name].annotation)


def _is_json(info: FieldInfo) -> bool:
    """Whether a field takes a list, tuple or dict, written as JSON outside YAML."""
    return re.search(r"\b(list|dict|tuple)\[", str(info.annotation)) is not None


def _json_value(source: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{source} must be JSON: {error}") from error


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    *sections, leaf = name.split(".")
    for section in sections:
        values = values.setdefault(section, {})
    values[leaf] = value


def _overlay(values: dict[str, Any], over: Mapping[str, Any]) -> None:
    """Writes `over` into `values`; sections are merged, anything else (a list, the free `extra` dict) is replaced."""
    for key, value in over.items():
        if isinstance(value, Mapping) and isinstance(values.get(key), dict) and key != "extra":
            _overlay(values[key], value)
        else:
            values[key] = value


def describe(error: ValidationError) -> str:
    """One sentence for each bad field."""
    sentences = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = [name.rpartition(".")[2] for name in _FIELDS] + list(RunConfig.model_fields)
            sentences.append(f"{place} is not a field{_suggest(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "value_error":
            sentences.append(f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"]))
        else:
            message = re.sub(r"^\w+ should", "must", problem["msg"].partition(", unable to parse")[0])
            given = shortened(json.dumps(problem["input"], default=str), 60)
            remedy = f"give --{place.rpartition('.')[2]} such a value" if place in _FIELDS else "correct it there"
            sentences.append(f"{place} {message}, not {given}; {remedy}")
    return "; ".join(sentences)


def _suggest(name: str, known: Any, prefix: str = "", style: Any = str) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), 1)
    return f"; did you mean {prefix}{style(close[0])}?" if close else "; rollout --help lists all"
