"""Hands a finished run on in other file formats. Reads only merged.parquet in the `questions` layout."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa

from rollout_ray.errors import LedgerError
from rollout_ray.ledger import RunDirectory
from rollout_ray.questions import GOLD_KEY

JSONL_FIELDS = ("full_text", "answer", "reasoning", "num_tokens", "reward", "correct")


def export_jsonl(run: RunDirectory, target: str | Path) -> int:
    """Writes one JSON object a question, streaming, and returns how many.

    {"question", "gold_answer", "trajectories": [{"full_text", "answer", "reasoning", "num_tokens", "reward", "correct"}]}

    Raises LedgerError where the run is not merged, or merged in another layout.
    """
    data = run.record()["config"]["data"]
    partial = Path(f"{target}.partial")
    count = 0
    with run.open_parquet("merged.parquet") as file, partial.open("w", encoding="utf-8") as stream:
        if not pa.types.is_list(_type_of(file.schema_arrow, "trajectories")):
            raise LedgerError(
                f"{run.path('merged.parquet')} is not in the 'questions' layout; run the same command with "
                "--layout questions, which merges again without generating"
            )
        for batch in file.iter_batches(256):
            for row in batch.to_pylist():
                record = {
                    "question": row[data["prompt_key"]],
                    "gold_answer": row.get(data["gold_key"] or GOLD_KEY),
                    "trajectories": [{name: t[name] for name in JSONL_FIELDS} for t in row["trajectories"]],
                }
                stream.write(json.dumps(record, ensure_ascii=False, default=str) + "\n")
                count += 1
    partial.replace(target)
    return count


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    return schema.field(name).type if name in schema.names else pa.null()
