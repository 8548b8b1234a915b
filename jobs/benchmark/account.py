"""Pass a system's timing from its process to the measuring process."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """Moments of the monotonic clock, in seconds.

    ready: Each engine could accept a request.
    began: The first request was submitted.
    ended: The last answer arrived.
    written: The parquet was written.
    phases: Seconds of each phase of each engine's start, if the system reports them.
    """

    ready: list[float]
    began: float
    ended: float
    written: float
    phases: list[dict[str, float]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))
