"""Hands a finished run on in other file formats. Reads only merged.parquet in the `questions` layout."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from rollout_ray.errors import LedgerError
from rollout_ray.files import write_whole
from rollout_ray.ledger import RunDirectory
from rollout_ray.questions import GOLD_KEY, NotText, cell_values

JSONL_FIELDS = ("full_text", "answer", "reasoning", "num_tokens", "reward", "correct")


def export_jsonl(run: RunDirectory, target: str | Path) -> int:
    """Writes one JSON object a question, streaming, and returns how many. The target appears when it is whole.

    {"question", "gold_answer", "trajectories": [{"full_text", "answer", "reasoning", "num_tokens", "reward", "correct"}]}

    A question or gold answer that JSON has no value for (bytes that are no text, NaN) is null. Raises LedgerError where
    the run is not merged, or merged in another layout, and where the target is a file of the run or cannot be written.
    """
    try:
        data = run.record()["config"]["data"]
        prompt_key, gold_key = str(data["prompt_key"]), str(data["gold_key"] or GOLD_KEY)
    except (KeyError, TypeError) as error:
        raise LedgerError(f"{run.path('run.json')} is no record of a run ({error!r}); give the folder of one") from error
    _refuse_own_file(run, target)
    count = 0
    with run.open_parquet("merged.parquet") as file:
        if prompt_key not in file.schema_arrow.names or not pa.types.is_list(_type_of(file.schema_arrow, "trajectories")):
            raise LedgerError(
                f"{run.path('merged.parquet')} is not in the 'questions' layout; run the same command with "
                "--layout questions, which merges again without generating"
            )

        def write(stream: IO[bytes]) -> None:
            nonlocal count
            for record in _records(file, prompt_key, gold_key):
                stream.write(json.dumps(record, ensure_ascii=False, allow_nan=False, default=str).encode() + b"\n")
                count += 1

        try:
            write_whole(target, write)
        except OSError as error:
            raise LedgerError(f"{target} cannot be written: {error}; give another place") from error
    return count


def _records(file: pq.ParquetFile, prompt_key: str, gold_key: str) -> Iterator[dict[str, Any]]:
    wanted = [prompt_key, *([gold_key] if gold_key in file.schema_arrow.names else []), "trajectories"]
    for batch in file.iter_batches(256, columns=wanted):
        golds = cell_values(batch.column(gold_key)) if gold_key in wanted else [None] * batch.num_rows
        rows = zip(cell_values(batch.column(prompt_key)), golds, batch.column("trajectories").to_pylist(), strict=True)
        for prompt, gold, trajectories in rows:
            yield {
                "question": _json_value(prompt),
                "gold_answer": _json_value(gold),
                "trajectories": [{name: t[name] for name in JSONL_FIELDS} for t in trajectories],
            }


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            return None
    return None if isinstance(value, NotText) else value


def _refuse_own_file(run: RunDirectory, target: str | Path) -> None:
    """The export of a run must not take the place of what it is made from."""
    if not run.is_local:
        return
    home, place = Path(os.path.realpath(run.uri)), Path(os.path.realpath(target))
    own = [home / name for name in ("run.json", "merged.parquet", "events.jsonl", "report.html")]
    if place in own or (home / "parts") in (place, *place.parents):
        raise LedgerError(f"{target} is a file of the run itself; export to another name")


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    return schema.field(name).type if name in schema.names else pa.null()
