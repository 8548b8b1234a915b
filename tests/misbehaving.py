"""Reward functions that misbehave. They lie apart from the tests: a process that calls them imports little."""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import sys
import threading
import time
from collections.abc import Sequence

from rollout_ray.core.records import Question, Trajectory


def fine(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    return [float(json.dumps([]) == "[]")] * len(trajectories)


def leaves(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    sys.exit(3)


def aborts(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    os._exit(4)


def segfaults(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    ctypes.string_at(0)
    return []


def loops(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    while True:
        time.sleep(0.01)


def fills(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    return [float(len(b"x" * 10**10))] * len(trajectories)


def prints(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    print('{"id": 0, "result": [9, 9]}')
    os.write(1, b"no reply\n")
    return [1.0] * len(trajectories)


def changes(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    json.dumps = lambda *arguments, **named: "broken"  # type: ignore[assignment]
    os.environ.clear()
    sys.stdout.close()
    os.chdir("/")
    return [1.0] * len(trajectories)


def leaves_a_thread(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    threading.Thread(target=time.sleep, args=(600,)).start()
    return [1.0] * len(trajectories)


async def slow(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    await asyncio.sleep(0.3)
    return [1.0] * len(trajectories)


async def flaky(question: Question, trajectories: Sequence[Trajectory]) -> list[float]:
    """Fail once for each question, and hang for the question `hang`."""
    failed = globals().setdefault("FAILED", set())
    if question.question_id == "hang":
        await asyncio.sleep(600)
    if question.question_id not in failed:
        failed.add(question.question_id)
        raise OSError("busy")
    return [1.0] * len(trajectories)
