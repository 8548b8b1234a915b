"""Read prompts, gold answers and ids from the cells of an input.

A row that cannot be asked yields a fault, never an exception. The text of a fault is part of the hash that makes
question ids: a new wording changes ids, and so breaks the resume of a run. Renders no chat templates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa

from rollout_ray.config.templates import columns_of, render_prompt
from rollout_ray.core.records import Prompt
from rollout_ray.core.redaction import shorten

ENDS_WITH_ANSWER = "the prompt ends with the assistant's message, so that nothing is left to answer"
EXACT = 2**53  # Arrow turns no larger integer into a float
ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))

Row = tuple[Prompt, str | None, str | None]  # prompt, gold answer, fault


def read_rows(batch: pa.RecordBatch, prompt_key: str, gold_key: str | None, template: str | None) -> Iterator[Row]:
    """Yield prompt, gold answer and fault of each row. The fault is None for a row that can be asked.

    Args:
        batch: Rows of the input.
        prompt_key: Column of the prompts. Ignored if there is a template.
        gold_key: Column of the gold answers, or None.
        template: Template that makes the prompts, or None.

    Raises:
        MissingColumn: The template names a column that the input lacks.
    """
    prompts = iter(cell_values(batch.column(prompt_key))) if template is None else _rendered(batch, template)
    golds = _golds(batch.column(gold_key)) if gold_key else [None] * batch.num_rows
    for prompt, gold in zip(prompts, golds, strict=True):
        try:
            if isinstance(prompt, ValueError):
                raise prompt
            readable = _read_prompt(prompt)
        except ValueError as fault:
            yield "", _read_gold(gold), str(fault)
        else:
            yield readable, _read_gold(gold), None


def read_columns(batch: pa.RecordBatch, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Yield these columns of each row. A value that is not UTF-8 is None."""
    columns = [[_readable(value) for value in cell_values(batch.column(name))] for name in names]
    for number in range(batch.num_rows):
        yield {name: values[number] for name, values in zip(names, columns, strict=True)}


def _readable(value: Any) -> Any:
    return None if isinstance(value, NotText) else without_absent_keys(value)


def _golds(column: pa.Array) -> list[Any]:
    """Return the values of the column. A 0.1 of single precision stays 0.1, not 0.10000000149."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = cell_values(column)
    if not (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
        return values
    own = kind.to_pandas_dtype()
    return [value if value is None or not math.isfinite(value) else str(own(value)) for value in values]


def _rendered(batch: pa.RecordBatch, template: str) -> Iterator[str | ValueError]:
    """Yield the prompt that the template makes of each row, or a ValueError with the reason why it makes none."""
    names = sorted(columns_of(template) & set(batch.schema.names))
    columns = [[_struct(value) for value in cell_values(batch.column(name))] for name in names]
    for number in range(batch.num_rows):
        row = {name: values[number] for name, values in zip(names, columns, strict=True)}
        try:
            if odd := next((name for name, value in row.items() if isinstance(value, NotText)), None):
                raise ValueError(f"the column '{odd}', which the prompt template names, is not UTF-8 text")
            yield render_prompt(template, row)
        except ValueError as fault:
            yield fault


class _Struct(dict[str, Any]):
    """A struct as a template reads it: a key that the row lacks reads as None, as it does beside a row that has it."""

    def __missing__(self, key: str) -> None:
        return None


def _struct(value: Any) -> Any:
    if isinstance(value, dict):
        return _Struct({key: _struct(item) for key, item in value.items() if item is not None})
    return [_struct(item) for item in value] if isinstance(value, list) else value


def without_absent_keys(value: Any) -> Any:
    """Return the value without the null keys of its structs.

    Arrow gives every struct of a column the keys of all rows. A key that the row lacks is null, like a key that is null
    in the data. So that no question depends on other rows, both count as absent.
    """
    if isinstance(value, dict):
        return {key: without_absent_keys(item) for key, item in value.items() if item is not None}
    return [without_absent_keys(item) for item in value] if isinstance(value, list) else value


class NotText:
    """Stands for a value with bytes that are not UTF-8."""


def cell_values(column: pa.Array) -> list[Any]:
    """Return the Python values of the column, with a NotText for each value that is not UTF-8."""
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except UnicodeDecodeError:
        return [_value(item) for item in column]


def _value(item: pa.Scalar) -> Any:
    try:
        return item.as_py()
    except UnicodeDecodeError:
        return NotText()


def _read_prompt(value: Any) -> Prompt:
    """Return the prompt of a cell. Raise ValueError with the reason if it cannot be asked."""
    if value is None:
        raise ValueError("the prompt is null")
    if isinstance(value, NotText):
        raise ValueError("the prompt is not UTF-8 text")
    if isinstance(value, str):
        if not value.strip():
            raise ValueError("the prompt is empty")
        return value
    messages = tuple({} if message is None else _read_message(message) for message in value)
    if not messages:
        raise ValueError("the prompt is a conversation without messages")
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise ValueError(f"message {number} of the prompt has the role {shorten(repr(role), 80)}")
        if content is None:
            raise ValueError(f"message {number} of the prompt has no text as its content")
        if not isinstance(content, str):
            raise ValueError(
                f"message {number} of the prompt has a {type(content).__name__} as its content; only text is read"
            )
    if messages[-1]["role"] == "assistant":
        raise ValueError(ENDS_WITH_ANSWER)
    if not messages[-1]["content"].strip():
        raise ValueError("the last message of the prompt is empty")
    return tuple(map(_own, messages))


def _own(value: Any) -> Any:
    """Return a message, or a value of one, as it stands in this row, whatever the other rows hold.

    Null keys count as absent, as in `without_absent_keys`. 3.0 becomes 3: a column with one 2.5 has turned every 3 into it.
    """
    if isinstance(value, dict):
        return {key: _own(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_own(item) for item in value]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) <= EXACT
    return int(value) if is_whole else value


def _read_message(message: Any) -> dict[str, Any]:
    """Return a message as a dict. Arrow gives a struct as a dict and a map as pairs."""
    found = dict(message)
    if len(found) < len(message):
        raise ValueError("a message of the prompt has one key twice")
    return found


def _read_gold(value: Any) -> str | None:
    """Return the gold answer of a cell as text, or None if it is null or NaN.

    Broken text and infinity become "", which grading reports as a bad gold.
    """
    if isinstance(value, bytes):
        value = decode(value)
    if value is None or (isinstance(value, (float, Decimal)) and math.isnan(value)):
        return None
    return "" if isinstance(value, NotText) or value in (math.inf, -math.inf) else str(value)


def decode(value: bytes) -> str | NotText:
    """Return the text of the bytes, or a NotText if they are not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return NotText()
