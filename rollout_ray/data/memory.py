"""Take a table, frame, list of dicts or data set in memory as an Arrow table, without a change of value."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from rollout_ray.core.errors import DatasetError
from rollout_ray.data.rows import from_rows, refuse_changed


def to_table(dataset: Any) -> pa.Table:
    """Return the rows of a data set in memory.

    Raises:
        DatasetError: The object is no kind of input, or a column has values of several types.
    """
    try:
        return _in_memory(dataset)
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(
            f"the given {type(dataset).__name__} cannot be read as a table: {_one_line(error)}. Give each column one type"
        ) from error


def _in_memory(dataset: Any) -> pa.Table:
    if isinstance(dataset, pa.Table):
        return dataset
    if isinstance(dataset, pa.RecordBatch):
        return pa.Table.from_batches([dataset])
    if isinstance(dataset, Sequence):
        return from_rows(dataset, lambda number: f"the given list, row {number} (from 0)")
    pandas = sys.modules.get("pandas")
    if pandas and isinstance(dataset, pandas.DataFrame):
        return _from_pandas(dataset)
    if hasattr(dataset, "with_format") and hasattr(dataset, "num_rows"):  # Hugging Face Dataset
        if isinstance(dataset.num_rows, dict):
            raise DatasetError(f"the given data set has splits; choose one: {', '.join(dataset.num_rows)}")
        table = dataset.with_format("arrow")[:]
        return table.replace_schema_metadata(None)
    if hasattr(dataset, "iter_batches") and hasattr(dataset, "materialize"):  # Ray Dataset
        return pa.concat_tables(
            list(dataset.iter_batches(batch_format="pyarrow", batch_size=None)), promote_options="permissive"
        )
    if hasattr(dataset, "__arrow_c_stream__"):  # polars and others
        return pa.table(dataset).replace_schema_metadata(None)
    raise DatasetError(
        f"{type(dataset).__name__} is no kind of input; give a path, a pandas or polars DataFrame, an Arrow table, a list "
        "of dicts, a Hugging Face Dataset or a Ray Dataset"
    )


def _from_pandas(frame: Any) -> pa.Table:
    """Return the columns of a DataFrame, and its index if the index has a name."""
    named = any(level is not None for level in frame.index.names)
    table = pa.Table.from_pandas(frame, preserve_index=named)
    for column in [column for column, kind in frame.dtypes.items() if kind.kind == "O"]:
        name = str(column)
        refuse_changed(table.column(name), frame[column], name, lambda row: f"the given DataFrame, row {row} (from 0)")
    return table


def _one_line(error: Exception) -> str:
    """Return the text of an error on one line. pyarrow puts the column of a DataFrame in a second argument."""
    return " ".join(" ".join(map(str, error.args)).split()) if isinstance(error, pa.ArrowException) else str(error)
