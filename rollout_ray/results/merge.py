"""Join the parts of a run with its input into one parquet file, and prove that it is complete.

The output has the order of the input. Only the ids of all rows are held; other memory is bounded, whatever the size of
the run. Every byte of a part is checked again when its rows are read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rollout_ray.config.schema import Layout
from rollout_ray.core.errors import IncompleteError
from rollout_ray.core.records import METADATA, has_rewards, part_schema
from rollout_ray.data.question_set import QuestionSet
from rollout_ray.results.layouts import output_schema, to_layout
from rollout_ray.results.part_rows import PartRows
from rollout_ray.storage.run_directory import RunDirectory

MERGE_ROWS = 128  # questions joined at a time
ROW_GROUP_ROWS = 1024
ROW_GROUP_BYTES = 64 << 20  # a row group of the output ends at this size, or at ROW_GROUP_ROWS


@dataclass(frozen=True)
class Merged:
    """Result of a merge.

    Attributes:
        path: Path or URI of the merged file.
        rows: Rows of the merged file.
        duplicates: Rows of parts left out because an earlier part holds the question.
        disagreeing: Questions with copies that differ.
    """

    path: str
    rows: int
    duplicates: int
    disagreeing: int


def merge(
    run: RunDirectory,
    questions: QuestionSet,
    layout: Layout,
    samples_per_question: int,
    metadata: Mapping[str, Any],
    observe: Callable[[pa.Table, pa.Table], None] = lambda rows, given: None,
) -> Merged:
    """Write OUT/merged.parquet in the order of the input.

    Args:
        run: The run directory.
        questions: The input.
        layout: Layout of the output.
        samples_per_question: Trajectories that each question must have.
        metadata: JSON values that describe the run. `logprobs` is there if the run stores token ids.
        observe: Receives the rows of the parts as they are read, and the same rows of the input.

    Raises:
        IncompleteError: A question is missing or has another number of trajectories. No file is written.
    """
    parts = PartRows(run, questions.ids)
    if missing := parts.missing():
        raise IncompleteError(
            f"{len(missing)} of {len(questions)} questions are not in the parts of {run.uri}: {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Run the same command again to sample them"
        )
    tokens = "logprobs" in metadata
    schema = output_schema(questions.source.schema, layout, part_schema(tokens, has_rewards(parts.schema)))
    written = 0

    def write(stream: IO[bytes]) -> None:
        nonlocal written
        rows = _joined(parts, questions, layout, samples_per_question, observe)
        written = write_merged(stream, schema, {**metadata, "layout": layout}, rows)

    run.write_atomically("merged.parquet", write)
    expected = len(questions) * (samples_per_question if layout == "trajectories" else 1)
    with run.open_parquet("merged.parquet") as file:
        if not written == expected == file.metadata.num_rows:
            raise IncompleteError(
                f"{expected} rows were expected, {written} written and {file.metadata.num_rows} found. "
                "Run the same command again to merge again"
            )
    return Merged(run.path("merged.parquet"), written, parts.duplicates, parts.disagreeing)


def _joined(
    parts: PartRows, questions: QuestionSet, layout: Layout, samples: int, observe: Callable[[pa.Table, pa.Table], None]
) -> Iterator[pa.Table]:
    for _, batch in questions.batches():
        begin = 0
        while begin < batch.num_rows:
            rows = parts.read(min(MERGE_ROWS, batch.num_rows - begin))
            counts = pc.list_value_length(rows.column("trajectories"))
            wrong = pc.index(pc.equal(counts, samples), False).as_py()
            if wrong >= 0:
                question_id = rows.column("question_id")[wrong]
                raise IncompleteError(
                    f"question {question_id} has {counts[wrong]} trajectories where {samples} are due. "
                    "Give another --output_dir and sample again"
                )
            given = pa.Table.from_batches([batch.slice(begin, rows.num_rows)])
            begin += rows.num_rows
            observe(rows, given)
            yield from to_layout(layout, given, rows)


def write_merged(stream: IO[bytes], schema: pa.Schema, metadata: Mapping[str, Any], tables: Iterator[pa.Table]) -> int:
    """Write a merged file of these tables, with `metadata` (JSON values) about the run. Return the number of rows."""
    written = 0
    schema = schema.with_metadata({METADATA: json.dumps(metadata)})
    with pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in _row_groups(tables):
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
            written += table.num_rows
    return written


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of these tables in tables of the size of a row group."""
    held: list[pa.Table] = []
    rows = 0
    size = 0
    for table in tables:
        held.append(table)
        rows += table.num_rows
        size += table.nbytes
        if rows >= ROW_GROUP_ROWS or size >= ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
            rows = 0
            size = 0
    if held:
        yield pa.concat_tables(held)
