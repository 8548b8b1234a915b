"""What becomes of the input's columns: the types that parquet gives back as they went in, and what to do about the others.

Owns the promise that an input column comes out unchanged, or that the run is refused before it starts. It reads no files.
"""

from __future__ import annotations

import io
import logging

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import shorten

log = logging.getLogger(__name__)

# Arrow cannot pick rows of a view, whose values any plain array of the same bytes holds as well.
PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def output_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """The schema under which the output carries the columns of the input called `name`.

    It differs from the input's only where parquet has no such type but one that holds the same values (seconds become
    milliseconds); that is logged. Raises DatasetError for a column that parquet cannot hold at all.
    """
    fields = []
    for number in range(len(schema)):
        try:
            field = schema.field(number)
            kind = _output_type(field)
        except UnicodeError as error:
            raise DatasetError(f"{name}: the name of column {number} (from 0) is not UTF-8 text; rename it") from error
        except (pa.ArrowException, NotImplementedError, RecursionError, OSError) as error:
            raise DatasetError(
                f"{name}: column '{field.name}' holds {_short(field.type)}, which the output cannot hold ({error}); "
                "drop it or give it another type"
            ) from error
        if kind != field.type:
            log.warning(
                "%s: column '%s' holds %s, which parquet gives back as %s; its values stay what they are",
                name, field.name, _short(field.type), _short(kind),
            )  # fmt: skip
        fields.append(pa.field(field.name, kind, nullable=True, metadata=field.metadata))
    return pa.schema(fields)


def _output_type(field: pa.Field) -> pa.DataType:
    """The type that a reader of the output will find, by writing a file without rows."""
    kind = PLAIN.get(field.type, field.type)
    empty = pa.schema([pa.field(field.name, kind)]).empty_table()
    sink = io.BytesIO()
    pq.write_table(empty.take(pa.array([], pa.int64())), sink)
    found = pq.read_schema(io.BytesIO(sink.getvalue())).field(0).type
    return kind if found == kind else found  # two equal types can differ in the name of a list's item


def united_schema(schemas: list[pa.Schema], name: str) -> pa.Schema:
    """The schema of files that belong together: where they differ in a column's type, the wider one that holds every
    value. Raises DatasetError where there is none, such as text in one and numbers in another."""
    try:
        united = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowException, UnicodeError) as error:
        raise DatasetError(f"the files of {name} have columns that do not go together: {error}") from error
    for field in united:
        kinds = {s.field(field.name).type for s in schemas if field.name in s.names}
        if changed := [kind for kind in kinds if _changes_values(kind, field.type)]:
            raise DatasetError(
                f"the files of {name} have columns that do not go together: '{field.name}' holds {_short(changed[0])} in "
                f"one, and in another what only {_short(field.type)} can hold; give it one type"
            )
        if len(kinds) > 1:
            log.warning("the files of %s differ in column '%s'; %s holds them all", name, field.name, _short(field.type))
    return united


def _changes_values(given: pa.DataType, wide: pa.DataType) -> bool:
    """Whether Arrow's widening would turn values into others: text into bytes, decimals into floats."""
    if pa.types.is_struct(given) and pa.types.is_struct(wide):
        return any(_changes_values(f.type, wide.field(f.name).type) for f in given)
    if given.num_fields and given.num_fields == wide.num_fields:
        return any(_changes_values(given.field(i).type, wide.field(i).type) for i in range(given.num_fields))
    is_text = pa.types.is_string(given) or pa.types.is_large_string(given)
    if pa.types.is_decimal(given):
        return bool(pa.types.is_floating(wide))
    return is_text and bool(pa.types.is_binary(wide) or pa.types.is_large_binary(wide))


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The batch under `schema`, missing columns null. Raises ArrowInvalid where a value would change or could not be
    read from the output again."""
    columns = []
    for field in schema:
        column = batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
            column = column.dictionary_decode().dictionary_encode()  # Arrow cannot pick rows of one with a null in it
        if "dictionary<" in str(field.type):
            column.validate(full=True)  # readers refuse a dictionary page that is not UTF-8
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.record_batch(columns, schema=schema)


def _short(kind: pa.DataType) -> str:
    return shorten(str(kind), 120)
