"""Compute from a run's events when each engine was starting, running and idle.

Unknown kinds of events and missing fields are ignored.
Times are seconds since the session began.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

BEGINS = ("begun", "resumed")
FAULTS = {
    "engine_died": "died",
    "engine_shrunk": "retried with less memory",
    "engine_retired": "retired",
    "node_draining": "node is going away",
    "payload_lost": "payload lost",
    "scorer_died": "scorer died",
    "part_put_aside": "part quarantined",
}


@dataclass
class _Engine:
    """One engine's spans in a session: [state, from, to]. The last span stays open until an event ends it."""

    spans: list[list[Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def turn(self, state: str | None, now: float) -> None:
        """End the open span, and begin the next one if there is a state."""
        if self.spans and self.spans[-1][2] is None:
            if self.spans[-1][0] == state:
                return
            self.spans[-1][2] = now
        if state is not None:
            self.spans.append([state, now, None])


@dataclass
class _Session:
    began: float
    kind: str
    ended: float = 0.0
    placed: str | None = None
    engines: dict[str, _Engine] = field(default_factory=dict)
    faults: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    prompts: dict[str, Any] = field(default_factory=dict)
    load: list[list[float]] = field(default_factory=list)
    finished: bool = False
    summary: Mapping[str, Any] = field(default_factory=dict)


def timeline(events: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one entry a session, oldest first.

    An entry has kind, time, seconds, note, engines with their spans, faults, warnings, summary and
    `load`: pairs of [seconds, output tokens so far].
    A span is [state, from, to], and its state is starting, running or idle.
    An engine that was idle once stays idle until another event names it.
    """
    sessions: list[_Session] = []
    for event in events:
        time, kind = event.get("time"), event.get("event")
        if not isinstance(time, (int, float)) or not isinstance(kind, str):
            continue
        if kind in BEGINS or not sessions:
            sessions.append(_Session(time, kind if kind in BEGINS else "begun"))
        session = sessions[-1]
        session.ended = time
        _take(session, kind, time - session.began, event)
    return [_as_dict(session) for session in sessions]


def _take(session: _Session, kind: str, now: float, event: Mapping[str, Any]) -> None:
    name = event.get("engine")
    if isinstance(name, str):
        engine = session.engines.setdefault(name, _Engine())
        if kind == "engine_started":
            if not engine.spans:
                engine.spans.append(["starting", 0.0, None])
            engine.turn("running", now)
            engine.facts = {k: v for k, v in event.items() if k not in ("time", "event", "engine")}
        elif kind in ("engine_adopted", "engine_busy"):
            engine.turn("running", now)
        elif kind == "engine_idle":
            engine.turn("idle", now)
        elif kind in ("engine_died", "engine_retired", "engine_left"):
            engine.turn(None, now)
            if kind == "engine_died":
                engine.turn("starting", now)  # a retirement ends this span at once
    if kind in FAULTS:
        what = {k: v for k, v in event.items() if k not in ("time", "event")}
        session.faults.append({"time": now, "kind": kind, "what": FAULTS[kind], **what})
    elif kind == "placed":
        session.placed = str(event.get("note", ""))
    elif kind == "early_warning":
        session.warnings.append(str(event.get("text", "")))
    elif kind == "prompts":
        session.prompts = {name: event.get(name) or [] for name in ("notes", "first")}
        session.warnings += map(str, event.get("warnings") or ())
    elif kind == "load" and isinstance(tokens := event.get("generated_tokens"), int):
        session.load.append([now, tokens])
    elif kind == "stopped":
        session.summary = {"account": event.get("account")}
    elif kind == "finished":
        session.finished = True
        summary = event.get("summary")
        session.summary = summary if isinstance(summary, Mapping) else {}


def _as_dict(session: _Session) -> dict[str, Any]:
    seconds = session.ended - session.began
    engines = []
    for name, engine in sorted(session.engines.items(), key=lambda item: _by_number(item[0])):
        engine.turn(None, seconds)
        spans = [span for span in engine.spans if span[2] > span[1]]
        totals = {state: sum(s[2] - s[1] for s in spans if s[0] == state) for state in ("starting", "running", "idle")}
        engines.append({"name": name, "spans": spans, "seconds": totals, "facts": engine.facts})
    return {
        "kind": session.kind,
        "time": session.began,
        "seconds": seconds,
        "note": session.placed,
        "engines": engines,
        "faults": session.faults,
        "warnings": session.warnings,
        "prompts": session.prompts,
        "load": session.load,
        "finished": session.finished,
        "summary": dict(session.summary),
    }


def _by_number(name: str) -> tuple[str, int]:
    """Return a sort key that orders engine-10 after engine-9."""
    stem, _, number = name.rpartition("-")
    return (stem, int(number)) if number.isdecimal() else (name, 0)
