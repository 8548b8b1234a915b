"""Map input column types to types that survive a Parquet round trip.

An input column comes out unchanged, or the run is refused before it starts. Reads no files.
"""

from __future__ import annotations

import io
import logging

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import shorten

log = logging.getLogger(__name__)

# Arrow cannot take rows of a view type. A plain array of the same bytes holds the same values.
PLAIN = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}


def output_schema(schema: pa.Schema, name: str) -> pa.Schema:
    """Return the schema of the input columns in the output.

    A type that Parquet lacks becomes one that holds the same values, with a log line: seconds become milliseconds.

    Args:
        schema: Schema of the input.
        name: Name of the input for messages.

    Raises:
        DatasetError: Parquet cannot hold a column at all.
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
                "drop the column or give it another type"
            ) from error
        if kind != field.type:
            types = f"{_short(field.type)}, which parquet gives back as {_short(kind)}"
            log.warning("%s: column '%s' holds %s; its values do not change", name, field.name, types)
        fields.append(pa.field(field.name, kind, nullable=True, metadata=field.metadata))
    return pa.schema(fields)


def _output_type(field: pa.Field) -> pa.DataType:
    """Return the type that a reader of the output finds, by writing a file without rows."""
    kind = _plain(field.type)
    empty = pa.schema([pa.field(field.name, kind)]).empty_table()
    sink = io.BytesIO()
    pq.write_table(empty.take(pa.array([], pa.int64())), sink)
    found = pq.read_schema(io.BytesIO(sink.getvalue())).field(0).type
    return kind if found == kind else found  # equal types may differ in the name of a list item


def _plain(kind: pa.DataType) -> pa.DataType:
    """Return the type with plain types in place of views, at any depth. Polars has all texts as views."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_plain(field.type)) for field in kind])
    for is_list, make in ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list)):
        if is_list(kind) and _plain(kind.value_type) != kind.value_type:
            return make(kind.value_field.with_type(_plain(kind.value_type)))
    return PLAIN.get(kind, kind)


def united_schema(schemas: list[pa.Schema], name: str) -> pa.Schema:
    """Return the schema that holds the rows of several files. Columns that differ get the wider type.

    Args:
        schemas: Schemas of the files.
        name: Name of the input for messages.

    Raises:
        DatasetError: No type holds the values of a column in all files, such as text and numbers.
    """
    try:
        united = pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowException, UnicodeError) as error:
        raise DatasetError(
            f"the files of {name} have columns that do not go together: {error}. Give the column one type"
        ) from error
    for field in united:
        kinds = {s.field(field.name).type for s in schemas if field.name in s.names}
        if changed := [kind for kind in kinds if _changes_values(kind, field.type)]:
            raise DatasetError(
                f"the files of {name} have columns that do not go together: '{field.name}' holds {_short(changed[0])} in "
                f"one file, and another file needs {_short(field.type)}. Give the column one type"
            )
        if len(kinds) > 1:
            log.warning("the files of %s differ in column '%s'; %s holds them all", name, field.name, _short(field.type))
    return united


def _changes_values(given: pa.DataType, wide: pa.DataType) -> bool:
    """Return whether Arrow's widening changes values: text to bytes, decimals to floats."""
    if pa.types.is_struct(given) and pa.types.is_struct(wide):
        return any(_changes_values(f.type, wide.field(f.name).type) for f in given)
    if given.num_fields and given.num_fields == wide.num_fields:
        return any(_changes_values(given.field(i).type, wide.field(i).type) for i in range(given.num_fields))
    is_text = pa.types.is_string(given) or pa.types.is_large_string(given)
    if pa.types.is_decimal(given):
        return bool(pa.types.is_floating(wide))
    return is_text and bool(pa.types.is_binary(wide) or pa.types.is_large_binary(wide))


def conform(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch with this schema. Missing columns are null.

    Raises:
        ArrowInvalid: A value would change, or could not be read back from the output.
    """
    columns = []
    for field in schema:
        column = batch.column(field.name) if field.name in batch.schema.names else pa.nulls(batch.num_rows, field.type)
        if pa.types.is_dictionary(column.type) and column.dictionary.null_count:
            column = (
                column.dictionary_decode().dictionary_encode()
            )  # Arrow cannot take rows of a dictionary that holds a null
        if "dictionary<" in str(field.type):
            column.validate(full=True)  # readers refuse a dictionary page that is not UTF-8
        columns.append(column if column.type == field.type else column.cast(field.type))
    return pa.record_batch(columns, schema=schema)


def _short(kind: pa.DataType) -> str:
    return shorten(str(kind), 120)
