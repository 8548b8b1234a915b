"""What jobs.submit does once a job is sent, against a dashboard that loses connections. With a real one: test_job.py."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from rollout_ray.jobs import submit
from rollout_ray.jobs.submit import main

JOB = "raysubmit_1"
LINES = ["one\n", "two\n", "three\n"]


class Dashboard:
    """Ray's job API over sockets, in a thread of its own, with one job that writes LINES.

    `tails`: what the next followers of the log meet, the last one for ever: "end" (the whole log, then the job's end),
    "cut" (two lines, then the connection breaks), "vanish" (the same, and nothing listens any more), "refuse" (the same,
    and every answer is HTTP 500 from then on), "500" (this answer alone).
    """

    def __init__(self, tails: list[str], exit_code: int = 0, broken: str = "") -> None:
        self._tails, self._exit_code, self._broken = tails, exit_code, broken
        self._ended = self._refusing = False
        self.entrypoint = ""
        self._loop, self._listens = asyncio.new_event_loop(), threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        assert self._listens.wait(60)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)

    def _serve(self) -> None:
        app = web.Application(middlewares=[self._admit])
        app.router.add_get("/api/version", self._version)
        app.router.add_get("/api/packages/{tail:.*}", self._package)
        app.router.add_post("/api/jobs/", self._submit)
        app.router.add_get(f"/api/jobs/{JOB}", self._details)
        app.router.add_get(f"/api/jobs/{JOB}/logs", self._logs)
        app.router.add_get(f"/api/jobs/{JOB}/logs/tail", self._tail)
        runner = web.AppRunner(app, shutdown_timeout=0)
        self._loop.run_until_complete(runner.setup())
        self._site = web.TCPSite(runner, "127.0.0.1", 0)
        self._loop.run_until_complete(self._site.start())
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._listens.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    @web.middleware
    async def _admit(self, request: web.Request, handler: Any) -> web.StreamResponse:
        if self._refusing:
            return web.Response(status=500, text="no agent")
        answer: web.StreamResponse = await handler(request)
        return answer

    async def _version(self, request: web.Request) -> web.Response:
        if self._broken == "token":
            return web.Response(status=403, text="wrong token")
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "0"})

    async def _package(self, request: web.Request) -> web.Response:
        return web.Response()

    async def _submit(self, request: web.Request) -> web.Response:
        self.entrypoint = (await request.json())["entrypoint"]
        if self._broken == "submit":
            self._break(request)
        return web.json_response({"job_id": JOB, "submission_id": JOB})

    async def _details(self, request: web.Request) -> web.Response:
        ended = "FAILED" if self._exit_code else "SUCCEEDED"
        details: dict[str, Any] = {"type": "SUBMISSION", "submission_id": JOB, "entrypoint": self.entrypoint}
        if self._ended:
            return web.json_response({**details, "status": ended, "driver_exit_code": self._exit_code})
        return web.json_response({**details, "status": "RUNNING"})

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": "".join(LINES)})

    async def _tail(self, request: web.Request) -> web.StreamResponse:
        what = self._tails.pop(0) if len(self._tails) > 1 else self._tails[0]
        if what == "500":
            return web.Response(status=500, text="no agent")
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for line in LINES if what == "end" else LINES[:2]:
            await socket.send_str(line)
        if what == "end":
            self._ended = True
            await socket.close()
            return socket
        if what == "vanish":
            await self._site.stop()
        self._refusing = what == "refuse"
        self._break(request)
        return socket

    @staticmethod
    def _break(request: web.Request) -> None:
        """The connection ends in the middle, after what was sent."""
        assert request.transport is not None
        request.transport.close()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with run.yaml."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(submit, "LOST_S", 0.5)
    monkeypatch.setattr(submit, "RETRY_S", 0.05)
    (tmp_path / "run.yaml").write_text("data: {dataset: /q.parquet}\noutput: {output_dir: /runs/one}\n")
    return tmp_path


@pytest.fixture
def dashboards() -> Iterator[list[Dashboard]]:
    """Those that are put in it end with the test."""
    started: list[Dashboard] = []
    yield started
    for one in started:
        one.close()


def run(project: Path, dashboard: Dashboard, *flags: str) -> int:
    words = ["--address", dashboard.url, "--working-dir", str(project), str(project / "run.yaml")]
    return main([*words, *flags])


@pytest.mark.parametrize("tail", ["vanish", "refuse"])
def test_a_connection_that_stays_lost_ends_the_following_and_is_no_failed_job(
    project: Path, dashboards: list[Dashboard], capsys: pytest.CaptureFixture[str], tail: str
) -> None:
    dashboards.append(Dashboard([tail]))
    assert run(project, dashboards[0]) == 10
    said = capsys.readouterr()
    assert said.out.endswith(f" {JOB}\none\ntwo\n")
    last = said.err.splitlines()[-1]
    assert last.startswith("submit: the connection is lost: ")
    assert last.endswith("; the job goes on without it, and the commands above follow it")


@pytest.mark.parametrize("exit_code", [0, 7])
def test_a_job_is_followed_through_lost_connections_and_no_line_is_told_twice(
    project: Path, dashboards: list[Dashboard], capsys: pytest.CaptureFixture[str], exit_code: int
) -> None:
    dashboards.append(Dashboard(["cut", "500", "cut", "end"], exit_code))
    assert run(project, dashboards[0]) == exit_code
    said = capsys.readouterr()
    ended = "FAILED" if exit_code else "SUCCEEDED"
    assert said.out.endswith(f" {JOB}\n{''.join(LINES)}{JOB} {ended}\n")
    assert "trying again for" in said.err and "the job goes on" not in said.err


def test_flags_of_the_run_that_are_no_fields_reach_it(project: Path, dashboards: list[Dashboard]) -> None:
    dashboards.append(Dashboard(["end"]))
    assert run(project, dashboards[0], "--quiet", "--limit", "3", "--no-wait") == 0
    assert dashboards[0].entrypoint == "python -m rollout_ray.run --config run.yaml --quiet --limit 3"


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        ("token", "submit: no cluster takes jobs at {url}: Authentication failed: wrong token; check --address"),
        ("submit", "submit: the connection was lost while the job was sent, and the cluster may have it: "),
    ],
    ids=["token", "submit"],
)
def test_a_cluster_that_does_not_take_the_job_is_said_so(
    project: Path, dashboards: list[Dashboard], capsys: pytest.CaptureFixture[str], broken: str, words: str
) -> None:
    dashboards.append(Dashboard(["end"], broken=broken))
    assert run(project, dashboards[0]) == 1
    assert words.format(url=dashboards[0].url) in capsys.readouterr().err
