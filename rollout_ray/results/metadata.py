"""Write and read the description of a run in the metadata of its merged file.

The description suffices to verify or rescore the file without the run directory. run.json holds the same facts.
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
    """The description of a run.

    Attributes:
        config: Fields of the identity of the run, and defaults for the others.
        arms: The resolved arms.
        questions: Number of questions.
        fingerprint: Fingerprint of the QuestionSet.
        hashed_ids: Whether ids are hashes of prompt and gold answer.
        gold_key: Column of the gold answers, or None.
        id_sketch: Sketch of the question ids.
        columns: Columns of the input.
        metadata: The whole entry as stored in the file.
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
    """Return the description as JSON values, for the metadata of the merged file and run.json."""
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
    """Parse the JSON values of a description. Raise LedgerError if they are incomplete or of another version."""
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
            f"the description of the run cannot be read ({type(error).__name__}: {error}); another version "
            "wrote it. Run the command of the run again, which merges again without generating"
        ) from error


def _nested(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested sections for dotted names of a config, without the fingerprints that run.json adds."""
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
