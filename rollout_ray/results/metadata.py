"""What a merged file says about its run: enough to verify it, or reward it again, from the file alone.

Owns this entry of the metadata in both directions; run.json holds the same facts. It reads no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import ValidationError

from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import LedgerError
from rollout_ray.core.records import Arm
from rollout_ray.data.columns import ID_KEY
from rollout_ray.data.question_set import QuestionSet
from rollout_ray.results.id_sketch import IdSketch


@dataclass(frozen=True)
class Description:
    """What a merged file says about its run.

    `config` has the fields of the run's identity, and defaults for the others. `hashed_ids`: the ids are hashes of prompt
    and gold answer. `fingerprint` is QuestionSet's, `columns` are the input's. `metadata` is the whole entry as it stands
    in the file.
    """

    config: RunConfig
    arms: tuple[Arm, ...]
    questions: int
    fingerprint: str
    hashed_ids: bool
    gold_key: str | None
    id_sketch: IdSketch
    columns: tuple[str, ...]
    metadata: Mapping[str, Any]


def describe(cfg: RunConfig, arms: Sequence[Arm], questions: QuestionSet) -> dict[str, Any]:
    """The description as JSON values, to stand in the metadata of the merged file and in run.json."""
    given_ids = cfg.data.id_key is not None or ID_KEY in questions.source.schema.names
    return {
        "identity": cfg.identity(),
        "arms": [asdict(arm) for arm in arms],
        "dataset": {
            "questions": len(questions),
            "fingerprint": questions.fingerprint,
            "hashed_ids": not given_ids,
            "gold_key": questions.gold_key,
            "columns": questions.source.schema.names,
            "roster": IdSketch.of(questions.ids).to_text(),
        },
    }


def read_description(metadata: Mapping[str, Any]) -> Description:
    """The description of these JSON values. Raises LedgerError where they are incomplete or of another version."""
    try:
        dataset = metadata["dataset"]
        return Description(
            RunConfig.model_validate(_nested(metadata["identity"])),
            tuple(Arm(**arm) for arm in metadata["arms"]),
            dataset["questions"],
            dataset["fingerprint"],
            dataset["hashed_ids"],
            dataset["gold_key"],
            IdSketch.from_text(dataset["roster"]),
            tuple(dataset["columns"]),
            metadata,
        )
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        raise LedgerError(
            f"the description of the run cannot be read ({type(error).__name__}: {error}); it was written by another "
            "version: run the command of the run again, which merges again without generating"
        ) from error


def _nested(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Sections of the dotted names of a config; what run.json adds to them (fingerprints) is left out."""
    values: dict[str, Any] = {}
    for name, value in identity.items():
        *sections, leaf = name.split(".")
        if leaf == "fingerprint":
            continue
        inner = values
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[leaf] = value
    return values
