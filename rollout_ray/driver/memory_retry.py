"""Start an engine again with less memory after it ran out of memory at its start."""

from __future__ import annotations

from dataclasses import dataclass

from rollout_ray.actors.engine.out_of_memory import MOST_STEPS, NoMemory, smaller
from rollout_ray.sizing.hardware import EngineLimits


@dataclass(frozen=True)
class MemoryRetry:
    """How much less memory the engines of a replica ask for.

    Attributes:
        steps: Steps down from the config; 0: none.
        keep_share: The share of the GPU's memory stays as it is: a smaller one would not hold the weights.
    """

    steps: int = 0
    keep_share: bool = False

    def allows(self, error: Exception) -> bool:
        """Return whether less memory may help after this error."""
        return isinstance(error, NoMemory) and self.steps < MOST_STEPS

    def after(self, error: Exception) -> MemoryRetry:
        """Return the next step down."""
        assert isinstance(error, NoMemory)
        return MemoryRetry(self.steps + 1, error.keep_share)

    def reduce(self, limits: EngineLimits) -> EngineLimits:
        """Return the limits of an engine after these steps."""
        return smaller(limits, self.steps, keep_share=self.keep_share) if self.steps else limits
