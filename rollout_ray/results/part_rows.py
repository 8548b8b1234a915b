"""Read the rows of part files in the order of the input, with bounded memory."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from rollout_ray.core.records import PROMPT_TOKENS, has_rewards, part_schema
from rollout_ray.storage.parallel import in_parallel
from rollout_ray.storage.run_directory import RunDirectory

WINDOW_BYTES = 96 << 20  # decoded rows held at a time; joining them takes up to three times as much


class PartRows:
    """The rows of all parts in input order, window by window.

    A window holds the rows of consecutive questions, about WINDOW_BYTES. For each window, a part that holds some of its
    rows is read once, whatever the order of the parts.

    Attributes:
        duplicates: Rows of questions that an earlier part also holds.
        disagreeing: Questions with copies that differ, among the rows read so far.
        schema: Schema of the rows, with named rewards if a part has them.
    """

    def __init__(self, run: RunDirectory, ids: Sequence[str]) -> None:
        """Find the row of every question.

        Args:
            run: The run directory.
            ids: Question ids in input order.
        """
        self.duplicates = 0
        self.disagreeing = 0
        self._run = run
        self._ids = ids
        self._names = run.parts()
        self._row_bytes: list[float] = []  # mean size of the rows, by part
        self._place: dict[str, tuple[int, int]] = {}  # question id -> part and row
        self._copies: dict[str, list[tuple[int, int]]] = {}
        tokens = rewards = False
        for part, (found, row_bytes, schema) in enumerate(in_parallel(self._look, self._names, run.readers)):
            self._row_bytes.append(row_bytes)
            tokens |= PROMPT_TOKENS in schema.names
            rewards |= has_rewards(schema)
            for row, question_id in enumerate(found):
                if self._place.setdefault(question_id, (part, row)) != (part, row):
                    self._copies.setdefault(question_id, []).append((part, row))
                    self.duplicates += 1
        self._begin = 0  # position of the window in `ids`
        self._next = 0  # position of the next row in `ids`
        self.schema = part_schema(tokens, rewards)
        self._window = self.schema.empty_table()

    def missing(self) -> list[str]:
        """Return the ids without a row, in input order."""
        return [question_id for question_id in self._ids if question_id not in self._place]

    def read(self, most: int) -> pa.Table:
        """Return the rows of the next 1 to `most` questions (`schema`)."""
        at = self._next - self._begin
        if at == self._window.num_rows:
            self._begin, at = self._next, 0
            self._window = self.schema.empty_table()  # frees the window before reading the next one
            self._window = self._read_window()
        rows = self._window.slice(at, most)
        self._next += rows.num_rows
        return rows

    def _look(self, name: str) -> tuple[list[str], float, pa.Schema]:
        """Return the ids of a part, the mean size of its rows, and its schema."""
        part = self._run.read_part(name)
        return part.ids(), part.nbytes / max(1, part.num_rows), part.schema

    def _read_window(self) -> pa.Table:
        ids = self._ids[self._begin : self._window_end()]
        doubled = [question_id for question_id in ids if question_id in self._copies]
        by_part: dict[int, list[int]] = {}
        for part, row in [self._place[i] for i in ids] + [place for i in doubled for place in self._copies[i]]:
            by_part.setdefault(part, []).append(row)
        chunks: list[pa.Table] = []
        position: dict[tuple[int, int], int] = {}
        tables = in_parallel(self._rows, by_part.items(), self._run.readers)
        for (part, rows), table in zip(by_part.items(), tables, strict=True):
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

    def _window_end(self) -> int:
        """Return the position after the last question of the window that begins at `_begin`."""
        size = 0.0
        stop = self._begin
        while stop < len(self._ids) and (size == 0 or size < WINDOW_BYTES):
            size += self._row_bytes[self._place[self._ids[stop]][0]]
            stop += 1
        return stop

    def _rows(self, part_and_rows: tuple[int, list[int]]) -> pa.Table:
        part, rows = part_and_rows
        return self._run.read_part(self._names[part]).rows(sorted(rows), self.schema)
