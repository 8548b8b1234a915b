"""A system's own account of its time, handed from its process to the one that measures it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """Moments of the monotonic clock, in seconds: each engine could accept a request (`ready`), the first request was
    handed in (`began`), the last answer was there (`ended`), the parquet was written. `phases` are the seconds of each
    phase of an engine's start, for every engine, where the system tells them."""

    ready: list[float]
    began: float
    ended: float
    written: float
    phases: list[dict[str, float]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))
