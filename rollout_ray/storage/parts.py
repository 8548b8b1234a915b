"""Encode and check part files: rows as parquet, with a hash of every byte in the file name.

A part that passes the checks is exactly the part that its writer committed. Storage is in run_directory.py.

    part-<nanoseconds>-<BLAKE2b-128 of the content>.parquet      whole questions
    partial-<nanoseconds>-<BLAKE2b-128 of the content>.parquet   samples (partial_files.py)
"""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import METADATA, part_schema
from rollout_ray.storage.paths import split_path

PART_ROW_GROUP = 128  # questions
PART_SCHEMAS = tuple(part_schema(tokens, rewards) for tokens in (False, True) for rewards in (False, True))
_NAME = re.compile(r"(?:part|partial)-\d{20}-([0-9a-f]{32})\.parquet")


class BadPartError(LedgerError):
    """A part differs from every part that this run committed. `reason` names the failed check."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"{path} {reason}. Run the same command again: the file moves to parts/bad and its questions are sampled again"
        )
        self.reason = reason


@dataclass(frozen=True)
class Part:
    """A part that passed every check, in memory as stored. `nbytes` is the decoded size of its rows."""

    file: pq.ParquetFile
    nbytes: int
    schema: pa.Schema

    @property
    def num_rows(self) -> int:
        return int(self.file.metadata.num_rows)

    def ids(self) -> list[str]:
        """Return the question ids, in row order."""
        return self.file.read(columns=["question_id"]).column(0).to_pylist()  # type: ignore[no-any-return]

    def rows(self, numbers: list[int], schema: pa.Schema | None = None) -> pa.Table:
        """Return the rows with these ascending numbers. Decodes only the row groups that hold them.

        Args:
            numbers: Numbers of the rows.
            schema: Schema of the rows, with more fields of trajectories than the part has, or as many. None: its own.
        """
        wanted = iter([*numbers, self.num_rows])
        number = next(wanted)
        groups: list[int] = []
        chosen: list[int] = []  # row numbers within the decoded groups
        start = 0
        skipped = 0
        for group in range(self.file.num_row_groups):
            stop = start + self.file.metadata.row_group(group).num_rows
            if number < stop:
                groups.append(group)
                while number < stop:
                    chosen.append(number - skipped)
                    number = next(wanted)
            else:
                skipped += stop - start
            start = stop
        table = fill_fields(self.file.read_row_groups(groups).replace_schema_metadata(), schema or self.schema)
        return table if len(chosen) == table.num_rows else table.take(chosen)


def fill_fields(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the rows in this schema. A field that their trajectories lack is null."""
    if table.schema.equals(schema):
        return table
    lists = table.column("trajectories").combine_chunks()
    flat, wanted = lists.flatten(), schema.field("trajectories").type.value_type
    known = {field.name for field in flat.type}
    children = [flat.field(f.name) if f.name in known else pa.nulls(len(flat), f.type) for f in wanted]
    struct = pa.StructArray.from_arrays(children, fields=list(wanted))
    lists = pa.ListArray.from_arrays(pc.subtract(lists.offsets, lists.offsets[0]), struct)
    return table.set_column(table.schema.get_field_index("trajectories"), "trajectories", lists).cast(schema)


def encode_part(table: pa.Table, run_digest: str, kind: str = "part") -> tuple[str, pa.Buffer]:
    """Return file name and content of a part with these rows. `kind` begins the name."""
    about = json.dumps({"run": run_digest, "bytes": table.nbytes})
    sink = pa.BufferOutputStream()
    pq.write_table(
        table.replace_schema_metadata({METADATA: about}), sink, row_group_size=PART_ROW_GROUP, compression="zstd"
    )
    content = sink.getvalue()
    return f"{kind}-{time.time_ns():020d}-{_hash(content)}.parquet", content


def decode_part(path: str, content: pa.Buffer, run_digest: str, schemas: Sequence[pa.Schema] = PART_SCHEMAS) -> Part:
    """Check and decode a part.

    Args:
        path: Path of the file; its name holds the expected hash.
        content: The bytes of the file.
        run_digest: Identity of the run that the part must belong to.
        schemas: It must have the columns of one of these.

    Raises:
        BadPartError: The part is torn, altered, or belongs to another run.
    """
    named = _NAME.fullmatch(split_path(path)[1])
    if named is None:
        raise BadPartError(path, "does not have the name of a part file")
    if _hash(content) != named[1]:
        raise BadPartError(path, "is torn or altered: its content does not match the checksum in its name")
    try:
        file = pq.ParquetFile(pa.BufferReader(content))
        about = json.loads((file.schema_arrow.metadata or {}).get(METADATA, b"null"))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise BadPartError(path, f"is not a parquet file ({error})") from error
    schema = next(filter(file.schema_arrow.equals, schemas), None)
    if about is None or schema is None:
        raise BadPartError(path, "does not have the columns of a part of this version")
    if about["run"] != run_digest:
        raise BadPartError(path, "belongs to a run with another config, data set or model")
    return Part(file, about["bytes"], schema)


def _hash(content: pa.Buffer) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
