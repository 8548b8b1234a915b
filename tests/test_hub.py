"""A name that is neither a folder nor a model of the hub ends a run within seconds. A server here plays the hub."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from huggingface_hub import constants

from rollout_ray import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.models.hub import check_on_hub
from rollout_ray.models.model_check import check_before_start
from rollout_ray.models.resolved_run import resolve


class Hub(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        codes = {"gone": (404, "RepoNotFound"), "private": (401, "RepoNotFound"), "gated": (403, "GatedRepo")}
        codes |= {"old": (404, "RevisionNotFound"), "odd": (404, "EntryNotFound"), "busy": (503, "")}
        status, code = codes.get(self.path.split("/")[2], (200, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(autouse=True)
def hub(address: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An empty cache, and the hub at `address`."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{address}/{{repo_id}}/{{filename}}")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("gone", "no model of this name"),
        ("private", "set HF_TOKEN"),
        ("gated", "accept them there"),
        ("old", "correct --revision"),
        ("there", None),
        ("odd", None),
        ("busy", None),
    ],
)
def test_the_hub_is_asked_once(name: str, words: str | None) -> None:
    if words is None:
        check_on_hub(f"someone/{name}", None)
        return
    with pytest.raises(ConfigError, match=f"model_path someone/{name} is no folder here, and .*{words}"):
        check_on_hub(f"someone/{name}", None)


def start(model: str) -> None:
    check_before_start(resolve(RunConfig.model_validate({"model": {"model_path": model}})))


def test_a_hub_that_cannot_be_reached_is_named_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}")
    with pytest.raises(ConfigError, match=r"someone/model is no folder here, and the hub cannot be reached \(.*refused"):
        start("someone/model")
    with pytest.raises(ConfigError, match="the hub cannot be reached"):
        start("someone/model:Q4_K_M")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match=r"not in the hub's cache, and HF_HUB_OFFLINE is set; give a folder"):
        start("someone/model")
    cached = tmp_path / "models--someone--model"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "snapshots" / "abc" / "config.json").write_text("{}")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    start("someone/model")


@pytest.mark.parametrize("path", ["checkpoints/step-1", "checkpoints/deep/step-1", "step 1", "./step", "config.json"])
def test_a_mistyped_path_asks_no_hub(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match=f"model_path {path} is no folder; give one that holds a model, or a hub id"):
        start(path)
