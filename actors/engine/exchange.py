"""Define what an engine reports when it hands over chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rollout_ray.core.records import ChunkKey, Cut, Generated
from rollout_ray.telemetry.engine_stats import EngineStats


@dataclass(frozen=True)
class Exchange:
    """The report of an engine that hands over chunks.

    Attributes:
        chunks: Keys of the finished chunks.
        returned: Chunks of which the engine returns samples, each with its first returned sample.
        unfinished: Samples that are still with the engine.
        tokens: Output tokens of the finished chunks.
        steps: Decoding steps since the start. They reveal an engine that answers but no longer decodes.
        stats: Counts since the previous exchange, or since the run began.
    """

    chunks: tuple[ChunkKey, ...]
    returned: tuple[Cut, ...]
    unfinished: int
    tokens: int
    steps: int
    stats: EngineStats

    @classmethod
    def of(
        cls, done: Sequence[Generated], returned: tuple[Cut, ...], unfinished: int, steps: int, stats: EngineStats
    ) -> Self:
        """Return the report on the finished chunks `done`."""
        return cls(
            chunks=tuple((g.request.ordinal, g.request.first) for g in done),
            returned=returned,
            unfinished=unfinished,
            tokens=sum(c.num_tokens for g in done for c in g.completions),
            steps=steps,
            stats=stats,
        )


def by_scorer(done: Sequence[Generated]) -> dict[int, list[Generated]]:
    """Return the finished chunks by scorer index."""
    chunks: dict[int, list[Generated]] = defaultdict(list)
    for generated in done:
        chunks[generated.request.scorer_index].append(generated)
    return chunks
