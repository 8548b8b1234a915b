"""A system's own account of its time, handed from its process to the one that measures it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Account:
    """Moments of the monotonic clock, in seconds: each engine could accept a request (`ready`), the first request was
    handed in (`began`), the last answer was there (`ended`), the parquet was written."""

    ready: list[float]
    began: float
    ended: float
    written: float

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))
