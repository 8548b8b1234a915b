"""Fills a RunConfig from a YAML file, the environment and command-line flags; flags beat environment beats file.

Owns the names a field goes by outside Python: its section and name in YAML, `--name` (dashes alike) as a flag, and
ROLLOUT_NAME in the environment. The fields themselves, with defaults and ranges, are config.py's.
"""

from __future__ import annotations

import argparse
import difflib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from rollout_ray.config.help import plain
from rollout_ray.config.schema import RunConfig, leaf_fields
from rollout_ray.config.scoring_schema import REWARD_PRESETS, is_weight_of
from rollout_ray.config.yaml_file import parse_value, read_yaml
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.redaction import shorten

log = logging.getLogger(__name__)

ENV_PREFIX = "ROLLOUT_"
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
_FIELDS = leaf_fields(RunConfig)
FLAGS = {name.rpartition(".")[2]: name for name in _FIELDS}
MISSPELLED = 0.8  # how alike the name of a variable and a field are, from 0 to 1, where it is meant
_SECTIONS = {part for name in _FIELDS for part in name.split(".")[:-1]}
_FREE = {flag for flag, name in FLAGS.items() if "dict[" in str(_FIELDS[name].annotation)}


def load_config(
    arguments: Sequence[str] = (), environment: Mapping[str, str] | None = None, file: str | Path | None = None
) -> RunConfig:
    """Return the config of these flags, variables and YAML file. Raises ConfigError with a sentence for each bad field."""
    return overlaid({}, arguments, environment, file)


def overlaid(
    base: Mapping[str, Any], arguments: Sequence[str], environment: Mapping[str, str] | None, file: str | Path | None
) -> RunConfig:
    """Return the config of the sections `base`, overridden by these sources. Raises ConfigError."""
    given: dict[str, Any] = read_yaml(file) if file else {}
    _overlay(given, _from_environment(environment or {}))
    _overlay(given, _from_flags(arguments))
    return changed(base, given)


def changed(base: Mapping[str, Any], given: Mapping[str, Any]) -> RunConfig:
    """Return the config of the sections `base`, overridden by the sections `given`. Raises ConfigError.

    A given reward preset brings its own values, and takes those of the preset of `base` away. So do given functions.
    """
    values = deepcopy(dict(base))
    scoring = given.get("scoring")
    if isinstance(scoring, Mapping) and "reward_preset" in scoring:
        before = values.get("scoring", {})
        for preset in (before.get("reward_preset", "regime-w"), scoring["reward_preset"]):
            for name in REWARD_PRESETS.get(preset, ()) if isinstance(preset, str) else ():
                before.pop(name, None)
    if isinstance(scoring, Mapping):
        _remove_replaced_rewards(values.get("scoring", {}), scoring)
    _overlay(values, given)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error)) from None


def _remove_replaced_rewards(before: dict[str, Any], given: Mapping[str, Any]) -> None:
    """Remove the reward functions that the given ones replace, and the weights that belong to none of the new ones."""
    functions = before.get("reward"), before.get("rewards")
    if given.get("reward") is not None:
        before.pop("rewards", None)
    if given.get("rewards"):
        before.pop("reward", None)
    after = {**before, **given}
    named = after.get("rewards") or {}
    replaced = any(functions) and functions != (after.get("reward"), after.get("rewards"))
    if replaced and "reward_weights" in before and isinstance(named, Mapping):
        before["reward_weights"] = {n: w for n, w in before["reward_weights"].items() if is_weight_of(n, named)}


def with_fields(config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
    """Return the config with the sections and fields `given` written over it. Raises ConfigError."""
    return changed(config.model_dump(exclude_unset=True), given)


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for variable, text in environment.items():
        if not variable.startswith(ENV_PREFIX):
            continue
        flag = variable.removeprefix(ENV_PREFIX).lower()
        if flag not in FLAGS:
            if difflib.get_close_matches(flag, FLAGS, 1, MISSPELLED):
                raise ConfigError(
                    f"the environment variable {variable} names no field{_suggest(flag, FLAGS, ENV_PREFIX, str.upper)}"
                )
            log.warning("the environment variable %s names no field of a run, and is not read", variable)
            continue
        _put(values, FLAGS[flag], _value(variable, flag, [text]))
    return values


class _Flags(argparse.ArgumentParser):
    """Parses a flag for every field. Each flag gives the list of its texts."""

    def __init__(self) -> None:
        super().__init__(prog="rollout", add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
        for flag, name in FLAGS.items():
            yes_or_no: dict[str, Any] = {}
            if "bool" in str(_FIELDS[name].annotation):
                yes_or_no = {"nargs": "?", "const": "true"}
                self.add_argument(f"--no_{flag}", dest=flag, action="append_const", const="false")
            self.add_argument(f"--{name}", f"--{flag}", dest=flag, action="append", **yes_or_no)

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{plain(message)}; see rollout --help")


def _from_flags(arguments: Sequence[str]) -> dict[str, Any]:
    given, unknown = _Flags().parse_known_args([_underscored(argument) for argument in arguments])
    if unknown:
        word, _, _ = unknown[0].partition("=")
        if not word.startswith("-"):
            raise ConfigError(f"'{unknown[0]}' is neither a command nor a flag with its value; see rollout --help")
        raise ConfigError(f"{word} is not a flag{_suggest(word.lstrip('-'), FLAGS, '--')}")
    values: dict[str, Any] = {}
    for flag, found in vars(given).items():
        texts = ["--" if text == [] else text for text in found]  # what argparse makes of --stop=--
        _put(values, FLAGS[flag], _value(f"--{flag}", flag, texts))
    return values


def _underscored(argument: str) -> str:
    """Return a flag with underscores in place of dashes."""
    name, equals, value = argument.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if argument.startswith("--") else argument


def _value(source: str, flag: str, texts: Sequence[str]) -> Any:
    """Return the value of a field from its texts.

    In a field that holds a list or dict, each text adds to it: as JSON, as an entry of a list of strings with escapes, or
    as name=value. In any other field the last text counts, and `null` unsets it.
    """
    kind = str(_FIELDS[FLAGS[flag]].annotation)
    if flag == "dataset" and len(set(texts)) > 1:
        raise ConfigError(f"{source} is given {len(texts)} times: {', '.join(texts)}. Name a folder or a glob of all files")
    if flag in _FREE:
        return {name: value for text in texts for name, value in _named(source, text).items()}
    if "list[" in kind or "tuple[" in kind:
        return [entry for text in texts for entry in _entries(source, text, strings="list[typing.Annotated[str" in kind)]
    return None if texts[-1] == "null" else texts[-1]


def _named(source: str, text: str) -> dict[str, Any]:
    if text.lstrip().startswith("{"):
        return dict(_json(source, text))
    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f'{source} takes name=value, or JSON such as {{"name": 1}}, not {shorten(text, 60)}')
    return {name: parse_value(value)}


def _unescaped(text: str) -> str:
    """Return the text with the escapes \\n, \\t, \\r and \\\\ read. A shell passes a line break as a backslash and an n."""
    return re.sub(r"\\([ntr\\])", lambda found: _ESCAPES[found[1]], text)


def _entries(source: str, text: str, *, strings: bool) -> list[Any]:
    opening = text.lstrip()[:1]
    if opening != "[" and strings:
        return [_unescaped(text)]
    found = _json(source, text if opening in ("[", "{") else f"[{text}]")
    return found if isinstance(found, list) else [found]


def _json(source: str, text: str) -> Any:
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
    """Write `over` into `values`. Sections are merged; lists and free dicts such as `extra` are replaced."""
    for key, value in over.items():
        if value is None and key in _SECTIONS:  # a section without fields, whose lines may be comments
            continue
        if isinstance(value, Mapping) and key not in _FREE and (key in _SECTIONS or isinstance(values.get(key), dict)):
            if not isinstance(values.get(key), dict):
                values[key] = {}
            _overlay(values[key], value)
        else:
            values[key] = value


def describe(error: ValidationError) -> str:
    """Return one sentence for each bad field."""
    sentences = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            sentences.append(f"{place} is not a field{_hint(place)}")
        elif problem["type"] == "invalid_key":
            sentences.append(f"{place} is a name that is not text; write it in quotes")
        elif problem["type"] == "value_error":
            sentences.append(f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"]))
        else:
            message = re.sub(r"^\w+ should", "must", problem["msg"].partition(", unable to ")[0])
            given = shorten(_as_json(problem["input"]), 60)
            remedy = f"give --{place.rpartition('.')[2]} such a value" if place in _FIELDS else "correct it there"
            sentences.append(f"{place} {message}, not {given}; {remedy}")
    return "; ".join(sentences)


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except TypeError:  # a name that is not text
        return repr(value)


def _hint(place: str) -> str:
    """Return a hint at the field that an unknown dotted name may mean."""
    section, _, name = place.rpartition(".")
    its_section, _, field = FLAGS.get(name.replace("-", "_"), "").rpartition(".")
    if field and its_section != section:
        return f"; {field} belongs under {its_section.replace('.', ': ')}:"
    return _suggest(name, [*FLAGS, *RunConfig.model_fields])


def _suggest(name: str, known: Any, prefix: str = "", style: Any = str) -> str:
    close = difflib.get_close_matches(name.lower().replace("-", "_"), list(known), 1)
    return f"; did you mean {prefix}{style(close[0])}?" if close else "; rollout --help lists all"
