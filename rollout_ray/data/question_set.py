"""Reads a question set from whatever holds it and turns its rows into Questions with stable ids.

Owns what an input row must look like and how it is identified. A row that cannot be asked becomes a Question with a
`fault`, never an exception; an input that cannot be read raises DatasetError. It renders no prompts (arms.py).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import Any

import pyarrow as pa

from rollout_ray.config.schema import DataConfig
from rollout_ray.config.templates import MissingColumn, columns_of, render_prompt
from rollout_ray.core.errors import DatasetError
from rollout_ray.core.records import TRAJECTORY, Prompt, Question
from rollout_ray.core.redaction import shorten
from rollout_ray.data.sources import Source, open_source

GOLD_KEY, ID_KEY = "gold_answer", "question_id"
PASSES = 4
RESERVED = ("trajectories", "responses", "s_end", "s_path", "s_cf", "s_wm")
ROLES = frozenset(("system", "developer", "user", "assistant", "tool"))


@dataclass(frozen=True)
class QuestionSet:
    """A question set that was read through once: every id is known and unique.

    `ids` are in input order; `fingerprint` is equal for equal sets of (id, prompt, gold), whatever their order.
    `gold_key` is None where there is no gold column; `template` makes the prompts, if there is one. `turns` says in which
    pass over the input a question is asked, where that is not the first.
    """

    source: Source
    prompt_key: str
    gold_key: str | None
    ids: tuple[str, ...]
    fingerprint: str
    passes: Mapping[str, int] = field(default_factory=dict)
    template: str | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def questions(self, done: Set[str] = frozenset()) -> Iterator[Question]:
        """The questions, those of one turn in input order, without those whose id is in `done`. Holds one batch of rows
        at a time, and reads the input once a turn."""
        for pass_number in sorted({0, *self.passes.values()}):
            for ids, batch in self.batches():
                wanted = [self.passes.get(question_id, 0) == pass_number and question_id not in done for question_id in ids]
                if not any(wanted):
                    continue
                rows = _rows(batch, self.prompt_key, self.gold_key, self.template)
                for question_id, asked, (prompt, gold, fault) in zip(ids, wanted, rows, strict=True):
                    if asked:
                        yield Question(question_id, prompt, gold, fault)

    def long_first(self, lengths: Mapping[str, float]) -> QuestionSet:
        """The same set, asked in TURNS turns: the quarter with the longest expected output of these `lengths` (by id,
        any unit) first, with it the questions of unknown length, and the shortest last."""
        known = sorted((i for i in self.ids if i in lengths), key=lambda i: -lengths[i])
        return replace(self, passes={i: PASSES * rank // len(known) for rank, i in enumerate(known)})

    def batches(self) -> Iterator[tuple[tuple[str, ...], pa.RecordBatch]]:
        """The input's rows with their ids, in input order."""
        begin = 0
        for batch in self.source.batches():
            yield self.ids[begin : begin + batch.num_rows], batch
            begin += batch.num_rows


def load_questions(dataset: Any, data: DataConfig) -> QuestionSet:
    """Reads the whole input once and checks it.

    `dataset` is a path (parquet file, folder or glob, JSONL file), a pandas DataFrame, an Arrow table, a list of dicts,
    a Hugging Face Dataset or a Ray Dataset. Raises DatasetError with the file, row and column that cannot be read.
    """
    source = open_source(dataset, data.limit)
    gold_key = _find_column(source, data.gold_key, GOLD_KEY, "gold_key")
    id_key = _find_column(source, data.id_key, ID_KEY, "id_key")
    _check_columns(source, data.prompt_key, gold_key, id_key)
    ids: list[str] = []
    seen: Counter[str] = Counter()
    total = 0
    for batch in source.batches():
        given = _given_ids(batch, id_key, source.name, len(ids)) if id_key else None
        rows = _named(_rows(batch, data.prompt_key, gold_key, data.prompt_template), source, ids)
        for number, (prompt, gold, fault) in enumerate(rows):
            content = json.dumps([prompt, gold, fault], sort_keys=True, ensure_ascii=True, default=str).encode()
            if given:
                question_id = given[number]
            else:
                digest = hashlib.blake2b(content, digest_size=8).hexdigest()
                seen[digest] += 1
                question_id = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
            ids.append(question_id)
            row = hashlib.blake2b(content, digest_size=16, person=b"rollout row", key=question_id.encode()[-64:])
            total += int.from_bytes(row.digest(), "big")
    if id_key:
        _refuse_duplicates(ids, id_key, source.name)
    fingerprint = f"{total % 2**128:032x}"
    return QuestionSet(source, data.prompt_key, gold_key, tuple(ids), fingerprint, template=data.prompt_template)


def _find_column(source: Source, named: str | None, usual: str, flag: str) -> str | None:
    """The column that was named, which must exist, else the usual one where it exists."""
    if named is not None and named not in source.schema.names:
        raise DatasetError(f"{source.name} has no column '{named}'; {_what_is_there(source)}. Name it: --{flag}")
    return named or (usual if usual in source.schema.names else None)


def _what_is_there(source: Source) -> str:
    return f"it has: {', '.join(source.schema.names)}" if source.schema.names else "it is empty"


def _check_columns(source: Source, prompt_key: str, gold_key: str | None, id_key: str | None) -> None:
    """Raises DatasetError where a column is missing, of a type that cannot serve, or of a name that the output needs."""
    names = source.schema.names
    if prompt_key not in names:
        raise DatasetError(
            f"{source.name} has no column '{prompt_key}' for the prompt; {_what_is_there(source)}. Name it: --prompt_key"
        )
    taken = [name for name in names if name in RESERVED or (name == ID_KEY and id_key != name)]
    if taken:
        raise DatasetError(f"{source.name} has a column '{taken[0]}', a name of the output; rename it")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DatasetError(f"{source.name} has the column '{twice[0]}' more than once; rename one")
    if clash := [n for n in names if n in TRAJECTORY.names and f"input_{n}" in names]:
        raise DatasetError(f"{source.name} has the columns '{clash[0]}' and 'input_{clash[0]}'; rename one")
    kind = source.schema.field(prompt_key).type
    if not (_is_text(kind) or _is_chat(kind) or pa.types.is_null(kind)):
        raise DatasetError(
            f"{source.name}: column '{prompt_key}' holds {kind}; a prompt is a string, or a list of messages with role "
            "and content"
        )
    if gold_key and not _is_scalar(kind := source.schema.field(gold_key).type):
        raise DatasetError(f"{source.name}: column '{gold_key}' holds {kind}; a gold answer is one string or number")
    if id_key and not _is_scalar(kind := source.schema.field(id_key).type):
        raise DatasetError(f"{source.name}: column '{id_key}' holds {kind}; an id is one string or number")


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    """Whether a cell is one string (or bytes that may be one), number, yes or no, or uuid."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(
        _is_text(kind) or is_bytes or is_number or pa.types.is_boolean(kind) or pa.types.is_null(kind) or kind == pa.uuid()
    )


def _is_chat(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    item = kind.value_type
    if pa.types.is_map(item):
        return True
    fields = {item.field(i).name for i in range(item.num_fields)} if pa.types.is_struct(item) else set()
    return {"role", "content"} <= fields


Row = tuple[Prompt, str | None, str | None]  # prompt, gold answer, fault


def _named(rows: Iterator[Row], source: Source, ids: list[str]) -> Iterator[Row]:
    """The rows; a missing column is an error that names the file, the row (as many as there are `ids`) and the column."""
    try:
        yield from rows
    except MissingColumn as missing:
        raise DatasetError(
            f"{source.name}, row {len(ids)} (from 0): the prompt template asks for '{missing}', which is no column; "
            f"{_what_is_there(source)}. Correct the template, or the data"
        ) from missing


def _rows(batch: pa.RecordBatch, prompt_key: str, gold_key: str | None, template: str | None) -> Iterator[Row]:
    """What is asked in each row. Raises MissingColumn."""
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


def _golds(column: pa.Array) -> list[Any]:
    """The column's values; 0.1 of single or half precision is 0.1, and not what this is in Python's double."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    values = cell_values(column)
    if not (pa.types.is_float32(kind) or pa.types.is_float16(kind)):
        return values
    own = kind.to_pandas_dtype()
    return [value if value is None or not math.isfinite(value) else str(own(value)) for value in values]


def _rendered(batch: pa.RecordBatch, template: str) -> Iterator[str | ValueError]:
    """The prompt that the template makes of each row, or why it makes none."""
    names = sorted(columns_of(template) & set(batch.schema.names))
    columns = [cell_values(batch.column(name)) for name in names]
    for number in range(batch.num_rows):
        row = {name: values[number] for name, values in zip(names, columns, strict=True)}
        try:
            if odd := next((name for name, value in row.items() if isinstance(value, NotText)), None):
                raise ValueError(f"the column '{odd}', which the prompt template names, is not UTF-8 text")
            yield render_prompt(template, row)
        except ValueError as fault:
            yield fault


class NotText:
    """Stands for a value whose bytes are not UTF-8."""


def cell_values(column: pa.Array) -> list[Any]:
    """The column's Python values, a NotText for each that is not UTF-8."""
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
    """The prompt of a cell; raises ValueError with the reason why it cannot be asked."""
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
            raise ValueError(f"message {number} of the prompt has the role {_short(role)}")
        if content is None:
            raise ValueError(f"message {number} of the prompt has no text as its content")
        if not isinstance(content, str):
            raise ValueError(
                f"message {number} of the prompt has a {type(content).__name__} as its content; only text is read"
            )
    if messages[-1]["role"] == "assistant":
        raise ValueError("the prompt ends with the assistant's message, so that nothing is left to answer")
    if not messages[-1]["content"].strip():
        raise ValueError("the last message of the prompt is empty")
    return tuple({key: item for key, item in message.items() if item is not None} for message in messages)


def _read_message(message: Any) -> dict[str, Any]:
    """A struct comes as a dict, a map as pairs."""
    found = dict(message)
    if len(found) < len(message):
        raise ValueError("a message of the prompt has one key twice")
    return found


def _short(value: Any) -> str:
    return shorten(repr(value), 80)


def _read_gold(value: Any) -> str | None:
    """The gold answer of a cell as text; None where it is null or not a number. What is no text and no finite number
    stays unreadable, so that grading reports a bad gold."""
    if isinstance(value, bytes):
        value = _decoded(value)
    if value is None or (isinstance(value, (float, Decimal)) and math.isnan(value)):
        return None
    return "" if isinstance(value, NotText) or value in (math.inf, -math.inf) else str(value)


def _decoded(value: bytes) -> str | NotText:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return NotText()


def _given_ids(batch: pa.RecordBatch, key: str, name: str, begin: int) -> list[str]:
    values = [_decoded(v) if isinstance(v, bytes) else v for v in cell_values(batch.column(key))]
    for number, value in enumerate(values):
        if value is None or isinstance(value, NotText) or value != value or not str(value):
            raise DatasetError(f"{name}, row {begin + number} (from 0): column '{key}' has no id")
    return [str(value) for value in values]


def _refuse_duplicates(ids: list[str], key: str, name: str) -> None:
    if len(set(ids)) == len(ids):
        return
    first: dict[str, int] = {}
    for number, question_id in enumerate(ids):
        if question_id in first:
            raise DatasetError(
                f"{name}: rows {first[question_id]} and {number} (from 0) have the same {key} {_short(question_id)}; "
                "make them unique, or name another column with --id_key"
            )
        first[question_id] = number
