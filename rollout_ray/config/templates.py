"""Jinja templates of a run: prompt templates, which make the user's message from a row, and chat templates.

This reads, checks and renders them in Jinja's sandbox. The tokenizer renders chat templates.
The config holds the text of a template, so that a changed file is another run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from rollout_ray.core.user_paths import expand_home

# Errors of a template on a row that its author did not expect.
TEMPLATE_ERRORS = (
    jinja2.TemplateError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    RecursionError,
)


class MissingColumn(Exception):
    """The rows do not have a column of the template. The text of this error is the column's name."""


class _Generation(Extension):
    """The block {% generation %} with which chat templates mark the assistant's words for training."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def template_text(value: str) -> str:
    """Return the text of a template.

    Args:
        value: Name of a file, or the text itself.

    Raises:
        ValueError: The file cannot be read, or it has nothing to fill in.
    """
    if _has_marks(value):
        return value
    try:
        text = Path(expand_home(value)).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ValueError(f"the template {value} cannot be read ({reason}); give a Jinja file") from error
    if not _has_marks(text):
        raise ValueError(f"the template {value} holds no {{{{ }}}} or {{% %}}, so every text would be the same; correct it")
    return text


def _has_marks(text: str) -> bool:
    return "{{" in text or "{%" in text


def prompt_template(value: str) -> str:
    """Return the checked text of a prompt template. Raises ValueError with the line if it is not Jinja."""
    return _checked(value, _prompts())


def chat_template(value: str) -> str:
    """Return the checked text of a chat template. Raises ValueError with the line if it is not Jinja."""
    return _checked(value, _chats())


def stored_template(folder: str) -> str | None:
    """Return the chat template in the folder of a model or adapter; None if it has none.

    It stands in a file of its own or in the tokenizer's config. Some models that take pictures keep it where
    transformers' tokenizers do not look.
    """
    own = Path(folder) / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = _json(Path(folder) / name).get("chat_template")
        if isinstance(found, list):  # several, by their names
            found = next((each.get("template") for each in found if each.get("name") == "default"), None)
        if isinstance(found, str):
            return found
    return None


def end_token(folder: str) -> str | None:
    """Return the text of the token that ends an output, from the tokenizer's config in the folder."""
    found = _json(Path(folder) / "tokenizer_config.json").get("eos_token")
    text = found.get("content") if isinstance(found, dict) else found
    return text if isinstance(text, str) else None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def variables_of(text: str) -> set[str]:
    """Return the variables that a chat template reads."""
    return meta.find_undeclared_variables(_chats().parse(text))


def _chats() -> jinja2.Environment:
    extensions = [_Generation, "jinja2.ext.loopcontrols"]
    return ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)


def _checked(value: str, environment: jinja2.Environment) -> str:
    text = template_text(value)
    try:
        environment.parse(text)
    except jinja2.TemplateSyntaxError as error:
        name = "the template" if text == value else f"the template {value}"
        raise ValueError(f"{name} is no Jinja, line {error.lineno}: {error.message}; correct it") from error
    return text


def columns_of(text: str) -> frozenset[str]:
    """Return the columns that a prompt template names."""
    return _compiled(text)[1]


def render_prompt(text: str, row: Mapping[str, Any]) -> str:
    """Return the prompt of one row.

    Raises:
        MissingColumn: The template needs a column that the row does not have.
        ValueError: The template fails on this row.
    """
    template, columns = _compiled(text)
    try:
        return template.render(row)
    except TEMPLATE_ERRORS as error:
        for name in sorted(columns - row.keys()):
            if isinstance(error, jinja2.UndefinedError) and error.message == f"'{name}' is undefined":
                raise MissingColumn(name) from error
        raise ValueError(f"the prompt template fails on this row: {error}") from error


def _prompts() -> jinja2.Environment:
    return ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, finalize=_printable, trim_blocks=True, lstrip_blocks=True
    )


def _printable(value: Any) -> Any:
    if value is None:
        raise ValueError("a value that it prints is null")
    return value


@lru_cache(maxsize=8)
def _compiled(text: str) -> tuple[jinja2.Template, frozenset[str]]:
    environment = _prompts()
    return environment.from_string(text), frozenset(meta.find_undeclared_variables(environment.parse(text)))
