"""Give each test the markers that its fixtures imply, and refuse what an unmarked test must not start.

`make check` runs the tests without a marker. A test that starts Ray, an engine or another slow program
without a fixture that says so fails with a sentence, in `make check` as in `make test`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# By the fixture that a test uses, directly or through another fixture.
MARKERS = {
    "local_ray": "ray",
    "rollout_process": "process",
    "run_alone": "process",
    "programs": "process",
    "browser": "browser",
    "long_computation": "slow",
}
SLOW_PROGRAM = re.compile(
    r"-m rollout_ray\.(run|jobs)|rollout_ray\.actors\.engine\.process import|-m (pip|pytest|build)\b"
    r"|(^|/)(gcs_server|raylet|ray|rollout|make|unshare|chromium|chrome|sshd)\b"
)
ENGINE_MODULE = "vllm.v1.engine.llm_engine"
REMEDY = f"Ask for one of the fixtures {', '.join(MARKERS)} (tests/markers.py)."

_refused: list[str] | None = None  # what the running test must not have started; None: it may start anything


# Files with slow tests come first, so that no process is left alone with one at the end.
ORDER = ("process", "browser", "slow", "ray")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places: dict[pytest.Item, int] = {}
    for item in items:
        markers = {MARKERS[name] for name in getattr(item, "fixturenames", ()) if name in MARKERS}
        for marker in markers:
            item.add_marker(marker)
        places[item] = min((ORDER.index(marker) for marker in markers), default=len(ORDER))
    items.sort(key=places.__getitem__)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    global _refused
    _refused = None if any(item.get_closest_marker(marker) for marker in MARKERS.values()) else []
    try:
        return (yield)
    finally:
        _refused = None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    """Fails the test even where it caught the refusal."""
    result = yield
    if _refused:
        pytest.fail(_refused[0], pytrace=False)
    return result


def take_refusals() -> list[str]:
    """Return what was refused to the running test, and forget it: for the tests of this module."""
    global _refused
    taken, _refused = _refused or [], []
    return taken


def _refuse(event: str, arguments: tuple[Any, ...]) -> None:
    if _refused is None:
        return
    if event == "subprocess.Popen":
        command = arguments[1]
        words = [command] if isinstance(command, (str, bytes, os.PathLike)) else command
        line = " ".join(os.fsdecode(word) for word in words)
        if any(SLOW_PROGRAM.search(part) for part in (line, *map(os.fsdecode, words))):
            _refused.append(f"A test without a marker starts `{line[:120]}`. {REMEDY}")
            raise RuntimeError(_refused[-1])
    elif event == "import" and arguments[0] == ENGINE_MODULE:
        _refused.append(f"A test without a marker imports {ENGINE_MODULE}. {REMEDY}")
        raise RuntimeError(_refused[-1])


sys.addaudithook(_refuse)
