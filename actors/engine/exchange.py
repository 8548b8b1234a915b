"""Define what an engine reports when it hands over chunks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Self

from rollout_ray.core.records import ChunkKey, Cut, Generated, SampleSpec
from rollout_ray.telemetry.engine_stats import ArmCount, EngineStats


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
        arms: Samples of the finished chunks, by arm.
        partial_arms: Finished samples of chunks that are still in work, by arm.
    """

    chunks: tuple[ChunkKey, ...]
    returned: tuple[Cut, ...]
    unfinished: int
    tokens: int
    steps: int
    stats: EngineStats
    arms: Mapping[str, ArmCount] = field(default_factory=dict)
    partial_arms: Mapping[str, ArmCount] = field(default_factory=dict)

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


def by_arm(generated: Iterable[Generated], samples: Sequence[SampleSpec]) -> dict[str, ArmCount]:
    """Return the counts of completions by arm. `samples` are all samples of a question."""
    counts: dict[str, ArmCount] = {}
    for completion in (completion for one in generated for completion in one.completions):
        arm = samples[completion.sample_index].arm.name
        one_more = ArmCount(1, completion.num_tokens, completion.finish_reason == "length")
        counts[arm] = counts.get(arm, ArmCount()) + one_more
    return counts
