"""Joins the parts of a run with its input into one parquet, and proves that nothing is missing or doubled.

Owns the order of the output (the input's), its layouts and the completeness check. Memory is bounded by some row
groups, whatever the run's size. It neither generates nor scores.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rollout_ray.config import Layout
from rollout_ray.errors import IncompleteError
from rollout_ray.ledger import RunDirectory
from rollout_ray.questions import QuestionSet
from rollout_ray.records import PART_SCHEMA, TRAJECTORY

MERGE_ROWS = 128  # questions joined at a time
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 1024, 64 << 20  # the output's row groups end at whichever comes first
CACHED_ROW_GROUPS = 64
SCORES = ("s_end", "s_path", "s_cf", "s_wm")


@dataclass(frozen=True)
class Merged:
    """What the merge wrote: rows of the file, and rows of parts that were left out because their question stood twice."""

    path: str
    rows: int
    duplicates: int


class _Parts:
    """Random access to the rows of all parts by question id, through a small cache of row groups."""

    def __init__(self, run: RunDirectory) -> None:
        self.duplicates = 0
        self._row_of: dict[str, int] = {}
        self._starts: list[int] = []  # number of each row group's first row, over all parts
        self._run = run
        self._groups: list[tuple[str, int]] = []  # part and number of each row group
        self._cache: OrderedDict[int, pa.Table] = OrderedDict()
        row = 0
        for name in run.parts():
            with run.open_parquet(name) as file:
                for group in range(file.num_row_groups):
                    self._starts.append(row)
                    self._groups.append((name, group))
                    for question_id in file.read_row_group(group, columns=["question_id"]).column(0).to_pylist():
                        self.duplicates += question_id in self._row_of
                        self._row_of.setdefault(question_id, row)
                        row += 1

    def missing(self, ids: Sequence[str]) -> list[str]:
        return [question_id for question_id in ids if question_id not in self._row_of]

    def take(self, ids: Sequence[str]) -> pa.Table:
        """The rows of these questions, in this order."""
        rows = [self._row_of[question_id] for question_id in ids]
        by_group: dict[int, list[int]] = {}
        for position, row in enumerate(rows):
            by_group.setdefault(bisect_right(self._starts, row) - 1, []).append(position)
        pieces, order = [], []
        for group, positions in by_group.items():
            start = self._starts[group]
            pieces.append(self._read(group).take([rows[p] - start for p in positions]))
            order.extend(positions)
        places = [0] * len(order)
        for place, position in enumerate(order):
            places[position] = place
        return pa.concat_tables(pieces).take(places)

    def _read(self, group: int) -> pa.Table:
        if group not in self._cache:
            name, number = self._groups[group]
            with self._run.open_parquet(name) as file:
                self._cache[group] = file.read_row_group(number).cast(PART_SCHEMA)
            if len(self._cache) > CACHED_ROW_GROUPS:
                self._cache.popitem(last=False)
        self._cache.move_to_end(group)
        return self._cache[group]


def merge(
    run: RunDirectory,
    questions: QuestionSet,
    layout: Layout,
    draws_per_question: int,
    metadata: Mapping[str, Any],
    observe: Callable[[pa.Table], None] = lambda rows: None,
) -> Merged:
    """Writes OUT/merged.parquet in the order of the input and returns what it wrote.

    `observe` sees the parts' rows (PART_SCHEMA) as they pass. Raises IncompleteError where a question is missing or
    has not exactly `draws_per_question` trajectories; then no file is written.
    """
    parts = _Parts(run)
    if missing := parts.missing(questions.ids):
        raise IncompleteError(
            f"{len(missing)} of {len(questions)} questions are not in the parts of {run.uri}: {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Run the same command again to draw them"
        )
    schema = output_schema(questions.source.schema, layout).with_metadata(
        {"rollout_ray": json.dumps({**metadata, "layout": layout})}
    )
    written = 0

    def write(stream: IO[bytes]) -> None:
        nonlocal written
        with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
            for table in row_groups(_joined(parts, questions, layout, draws_per_question, observe)):
                writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
                written += table.num_rows

    run.write_atomically("merged.parquet", write)
    expected = len(questions) * (draws_per_question if layout == "trajectories" else 1)
    with run.open_parquet("merged.parquet") as file:
        if not written == expected == file.metadata.num_rows:
            raise IncompleteError(f"{expected} rows were expected, {written} written and {file.metadata.num_rows} found")
    return Merged(run.path("merged.parquet"), written, parts.duplicates)


def _joined(
    parts: _Parts, questions: QuestionSet, layout: Layout, draws: int, observe: Callable[[pa.Table], None]
) -> Iterator[pa.Table]:
    for all_ids, batch in questions.batches():
        for begin in range(0, batch.num_rows, MERGE_ROWS):
            ids = all_ids[begin : begin + MERGE_ROWS]
            rows = parts.take(ids)
            counts = pc.list_value_length(rows.column("trajectories")).to_pylist()
            for question_id, count in zip(ids, counts, strict=True):
                if count != draws:
                    raise IncompleteError(f"question {question_id} has {count} trajectories where {draws} are due")
            observe(rows)
            given = pa.Table.from_batches([batch.slice(begin, len(ids))])
            yield LAYOUTS[layout](given, rows)


def row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows of these tables in tables of a row group's size."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) >= ROW_GROUP_ROWS or sum(t.nbytes for t in held) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _as_questions(given: pa.Table, rows: pa.Table) -> pa.Table:
    table = given
    for name in rows.column_names:
        if name not in given.column_names:
            table = table.append_column(name, rows.column(name))
    return table


def _as_trajectories(given: pa.Table, rows: pa.Table) -> pa.Table:
    lists = rows.column("trajectories").combine_chunks()
    parents = pc.list_parent_indices(lists)
    flat = lists.flatten()
    table = given.take(parents).rename_columns(_beside_trajectory(given.column_names))
    if "question_id" not in table.column_names:
        table = table.append_column("question_id", rows.column("question_id").take(parents))
    for number, field in enumerate(TRAJECTORY):
        table = table.append_column(field, flat.field(number))
    for name in SCORES:
        table = table.append_column(name, rows.column(name).take(parents))
    return table


def _as_responses(given: pa.Table, rows: pa.Table) -> pa.Table:
    lists = rows.column("trajectories").combine_chunks()
    texts = lists.flatten().field("full_text")
    offsets = pc.subtract(lists.offsets, lists.offsets[0])
    return given.append_column("responses", pa.ListArray.from_arrays(offsets, texts))


LAYOUTS: dict[Layout, Callable[[pa.Table, pa.Table], pa.Table]] = {
    "questions": _as_questions,
    "trajectories": _as_trajectories,
    "responses": _as_responses,
}


def _beside_trajectory(names: Sequence[str]) -> list[str]:
    """Names of the input's columns in the flat layout: one that a trajectory has too gets the prefix `input_`."""
    taken = {field.name for field in TRAJECTORY}
    return [f"input_{name}" if name in taken else name for name in names]


def output_schema(given: pa.Schema, layout: Layout) -> pa.Schema:
    """The merged file's schema for an input of schema `given`."""
    empty = LAYOUTS[layout](given.remove_metadata().empty_table(), PART_SCHEMA.empty_table())
    return empty.schema
