"""When the next request to Lambda may leave: one limit for every thread and process of this machine.

Owns the intervals and the file with the times of the last requests. It knows nothing of what a request asks for, and
nothing of other machines that use the same account: their requests show as HTTP 429, which the client retries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

# Lambda's documented limits are 1 request a second and 1 launch in 12 seconds; a little more covers the network's jitter.
REQUEST_INTERVAL_S = 1.05
LAUNCH_INTERVAL_S = 12.5


class Pace:
    """Spaces requests by `request_s` seconds and launches, which are requests too, by `launch_s`."""

    def __init__(
        self,
        path: Path,
        request_s: float = REQUEST_INTERVAL_S,
        launch_s: float = LAUNCH_INTERVAL_S,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.request_s, self.launch_s = request_s, launch_s
        self._path, self._now, self._sleep = path, now, sleep

    def wait(self, launch: bool = False) -> None:
        """Returns when a request may leave, and has noted it as sent."""
        while (seconds := self._seconds_left(launch)) > 0:
            self._sleep(seconds)

    def _seconds_left(self, launch: bool) -> float:
        """Seconds until a request may leave; where that is 0, it is noted as leaving now."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with FileLock(f"{self._path}.lock", mode=0o600):
            now = self._now()
            last = self._last(now)
            left = last["request"] + self.request_s - now
            if launch:
                left = max(left, last["launch"] + self.launch_s - now)
            if left > 0:
                return left
            last["request"] = now
            if launch:
                last["launch"] = now
            self._path.write_text(json.dumps(last))
            return 0.0

    def _last(self, now: float) -> dict[str, float]:
        """Times of the last request and launch. A time ahead of the clock, which was set back, counts as now; so does a
        file that a dying process has left half written."""
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {"request": float("-inf"), "launch": float("-inf")}
        try:
            times = json.loads(text)
            return {name: min(float(times[name]), now) for name in ("request", "launch")}
        except (ValueError, KeyError, TypeError):
            return {"request": now, "launch": now}
