"""Joins the parts of a run with its input into one parquet, and proves that nothing is missing or doubled.

Owns the order of the output (the input's), its layouts and the completeness check. Memory is bounded by a window of
rows, whatever the run's size and whatever order the parts were written in; only ids are held of all rows. Every byte of
a part is checked again when its rows are taken. It neither generates nor scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rollout_ray.config.schema import Layout
from rollout_ray.core.errors import IncompleteError
from rollout_ray.core.records import METADATA, PART_SCHEMA, SCORES, TRAJECTORY
from rollout_ray.data.question_set import QuestionSet
from rollout_ray.storage.parallel import in_parallel
from rollout_ray.storage.run_directory import RunDirectory

MERGE_ROWS = 128  # questions joined at a time
ROW_GROUP_ROWS, ROW_GROUP_BYTES = 1024, 64 << 20  # the output's row groups end at whichever comes first
WINDOW_BYTES = 96 << 20  # decoded rows of parts held at a time; joining them takes up to three times as much


@dataclass(frozen=True)
class Merged:
    """What the merge wrote: rows of the file, rows of parts that were left out because their question stood in an
    earlier part too, and questions whose copies differ in anything."""

    path: str
    rows: int
    duplicates: int
    disagreeing: int


class _Parts:
    """Where every question's row is, and the rows in the order of the input, window by window.

    A window is a run of questions that follow each other in the input and whose rows take about WINDOW_BYTES. For each
    one every part that holds some of its rows is read once, whatever order the parts were written in.
    """

    def __init__(self, run: RunDirectory, ids: Sequence[str]) -> None:
        self.duplicates = self.disagreeing = 0
        self._run, self._ids = run, ids
        self._names = run.parts()
        self._row_bytes: list[float] = []  # mean size of a part's rows
        self._place: dict[str, tuple[int, int]] = {}  # question id -> part and row
        self._copies: dict[str, list[tuple[int, int]]] = {}
        for part, (found, row_bytes) in enumerate(in_parallel(self._look, self._names, run.readers)):
            self._row_bytes.append(row_bytes)
            for row, question_id in enumerate(found):
                if self._place.setdefault(question_id, (part, row)) != (part, row):
                    self._copies.setdefault(question_id, []).append((part, row))
                    self.duplicates += 1
        self._begin = self._next = 0  # positions in `ids`
        self._window = PART_SCHEMA.empty_table()

    def missing(self) -> list[str]:
        return [question_id for question_id in self._ids if question_id not in self._place]

    def following(self, most: int) -> pa.Table:
        """The rows of the next questions: at least one, at most `most`."""
        at = self._next - self._begin
        if at == self._window.num_rows:
            self._begin, at = self._next, 0
            self._window = PART_SCHEMA.empty_table()  # lets go of the window before the next one is read
            self._window = self._read_window()
        rows = self._window.slice(at, most)
        self._next += rows.num_rows
        return rows

    def _look(self, name: str) -> tuple[list[str], float]:
        part = self._run.read_part(name)
        return part.ids(), part.nbytes / max(1, part.num_rows)

    def _read_window(self) -> pa.Table:
        size, stop = 0.0, self._begin
        while stop < len(self._ids) and (size == 0 or size < WINDOW_BYTES):
            size += self._row_bytes[self._place[self._ids[stop]][0]]
            stop += 1
        ids = self._ids[self._begin : stop]
        doubled = [question_id for question_id in ids if question_id in self._copies]
        wanted = [self._place[i] for i in ids] + [place for i in doubled for place in self._copies[i]]
        by_part: dict[int, list[int]] = {}
        for part, row in wanted:
            by_part.setdefault(part, []).append(row)
        chunks: list[pa.Table] = []
        position: dict[tuple[int, int], int] = {}
        for (part, rows), table in zip(
            by_part.items(), in_parallel(self._rows, by_part.items(), self._run.readers), strict=True
        ):
            for row in sorted(rows):
                position[part, row] = len(position)
            chunks.append(table)
        found = pa.concat_tables(chunks)
        del chunks
        for question_id in doubled:
            copies = [self._place[question_id], *self._copies[question_id]]
            contents = [found.slice(position[place], 1).to_pylist() for place in copies]
            self.disagreeing += any(content != contents[0] for content in contents)
        return found.take([position[self._place[i]] for i in ids])

    def _rows(self, part_and_rows: tuple[int, list[int]]) -> pa.Table:
        part, rows = part_and_rows
        return self._run.read_part(self._names[part]).rows(sorted(rows))


def merge(
    run: RunDirectory,
    questions: QuestionSet,
    layout: Layout,
    samples_per_question: int,
    metadata: Mapping[str, Any],
    observe: Callable[[pa.Table], None] = lambda rows: None,
) -> Merged:
    """Writes OUT/merged.parquet in the order of the input and returns what it wrote.

    `observe` sees the parts' rows (PART_SCHEMA) as they pass. Raises IncompleteError where a question is missing or
    has not exactly `draws_per_question` trajectories; then no file is written.
    """
    parts = _Parts(run, questions.ids)
    if missing := parts.missing():
        raise IncompleteError(
            f"{len(missing)} of {len(questions)} questions are not in the parts of {run.uri}: {', '.join(missing[:10])}"
            f"{' ...' if len(missing) > 10 else ''}. Run the same command again to draw them"
        )
    schema = output_schema(questions.source.schema, layout)
    written = 0

    def write(stream: IO[bytes]) -> None:
        nonlocal written
        rows = _joined(parts, questions, layout, samples_per_question, observe)
        written = write_merged(stream, schema, {**metadata, "layout": layout}, rows)

    run.write_atomically("merged.parquet", write)
    expected = len(questions) * (samples_per_question if layout == "trajectories" else 1)
    with run.open_parquet("merged.parquet") as file:
        if not written == expected == file.metadata.num_rows:
            raise IncompleteError(f"{expected} rows were expected, {written} written and {file.metadata.num_rows} found")
    return Merged(run.path("merged.parquet"), written, parts.duplicates, parts.disagreeing)


def _joined(
    parts: _Parts, questions: QuestionSet, layout: Layout, samples: int, observe: Callable[[pa.Table], None]
) -> Iterator[pa.Table]:
    for _, batch in questions.batches():
        begin = 0
        while begin < batch.num_rows:
            rows = parts.following(min(MERGE_ROWS, batch.num_rows - begin))
            counts = pc.list_value_length(rows.column("trajectories"))
            wrong = pc.index(pc.equal(counts, samples), False).as_py()
            if wrong >= 0:
                raise IncompleteError(
                    f"question {rows.column('question_id')[wrong]} has {counts[wrong]} trajectories where {samples} are due"
                )
            observe(rows)
            given = pa.Table.from_batches([batch.slice(begin, rows.num_rows)])
            begin += rows.num_rows
            yield from to_layout(layout, given, rows)


def write_merged(stream: IO[bytes], schema: pa.Schema, metadata: Mapping[str, Any], tables: Iterator[pa.Table]) -> int:
    """Writes a merged file of these rows, with `metadata` (JSON values) about their run; returns how many they are."""
    written = 0
    schema = schema.with_metadata({METADATA: json.dumps(metadata)})
    with pq.ParquetWriter(stream, schema, compression="zstd", write_page_checksum=True) as writer:
        for table in _row_groups(tables):
            writer.write_table(table.cast(schema), row_group_size=max(1, table.num_rows))
            written += table.num_rows
    return written


def _row_groups(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The rows of these tables in tables of a row group's size."""
    held: list[pa.Table] = []
    for table in tables:
        held.append(table)
        if sum(t.num_rows for t in held) >= ROW_GROUP_ROWS or sum(t.nbytes for t in held) >= ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _as_questions(given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    table = given
    for name in rows.column_names:
        if name not in given.column_names:
            table = table.append_column(name, rows.column(name))
    yield table


def _as_trajectories(given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    lists = rows.column("trajectories").combine_chunks()
    parents = pc.list_parent_indices(lists)
    flat = lists.flatten()
    # A question's columns are repeated with every trajectory: large ones would fill the memory, or more than Arrow holds.
    most = max(1, WINDOW_BYTES * max(1, given.num_rows) // max(1, given.nbytes))
    for begin in range(0, max(1, len(flat)), most):
        parent, own = parents.slice(begin, most), flat.slice(begin, most)
        table = given.take(parent).rename_columns(_beside_trajectory(given.column_names))
        if "question_id" not in table.column_names:
            table = table.append_column("question_id", rows.column("question_id").take(parent))
        for number, field in enumerate(TRAJECTORY):
            table = table.append_column(field, own.field(number))
        for name in SCORES:
            table = table.append_column(name, rows.column(name).take(parent))
        yield table


def _as_responses(given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    lists = rows.column("trajectories").combine_chunks()
    texts = lists.flatten().field("full_text")
    offsets = pc.subtract(lists.offsets, lists.offsets[0])
    yield given.append_column("responses", pa.ListArray.from_arrays(offsets, texts))


_LAYOUTS = {"questions": _as_questions, "trajectories": _as_trajectories, "responses": _as_responses}


def to_layout(layout: Layout, given: pa.Table, rows: pa.Table) -> Iterator[pa.Table]:
    """The rows of the output for questions with these columns of the input, and these rows of PART_SCHEMA: at least one
    table, in order."""
    return _LAYOUTS[layout](given, rows)


def _beside_trajectory(names: Sequence[str]) -> list[str]:
    """Names of the input's columns in the flat layout: one that a trajectory has too gets the prefix `input_`."""
    taken = {field.name for field in TRAJECTORY}
    return [f"input_{name}" if name in taken else name for name in names]


def output_schema(given: pa.Schema, layout: Layout) -> pa.Schema:
    """The merged file's schema for an input of schema `given`."""
    empty = to_layout(layout, given.remove_metadata().empty_table(), PART_SCHEMA.empty_table())
    return next(empty).schema
