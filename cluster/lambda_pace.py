"""Keep Lambda's rate limits for all threads and processes of this machine.

A file has the times of the last requests. Requests of other machines with the same account are not known here: they show
as HTTP 429, and the client tries again.
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
    """Space requests by `request_s` seconds, and launches by `launch_s`. A launch is a request, too."""

    def __init__(
        self,
        path: Path,
        request_s: float = REQUEST_INTERVAL_S,
        launch_s: float = LAUNCH_INTERVAL_S,
        now: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.request_s, self.launch_s = request_s, launch_s
        self._path = path
        self._now, self._sleep = now, sleep

    def wait(self, launch: bool = False) -> None:
        """Wait until a request may leave, and note its time."""
        while (seconds := self._seconds_left(launch)) > 0:
            self._sleep(seconds)

    def _seconds_left(self, launch: bool) -> float:
        """Return the seconds until a request may leave. For 0, note that it leaves now."""
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
        """Return the times of the last request and launch.

        A time in the future counts as now, because the clock was set back. So does a file that is half written.
        """
        try:
            text = self._path.read_text()
        except FileNotFoundError:
            return {"request": float("-inf"), "launch": float("-inf")}
        try:
            times = json.loads(text)
            return {name: min(float(times[name]), now) for name in ("request", "launch")}
        except (ValueError, KeyError, TypeError):
            return {"request": now, "launch": now}
