"""The fake API as a process, its doors for tests, and providers that use it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.cluster.fake_lambda import Options, start

KEY = "secret_fake_0123456789abcdef"
REQUEST_S = 0.02  # in place of Lambda's 1 s: everything else is scaled by it


@dataclass
class Account:
    """An account at the fake API."""

    url: str

    def truth(self) -> dict[str, Any]:
        data: dict[str, Any] = requests.get(f"{self.url}/_test/truth", headers={"User-Agent": "test"}, timeout=10).json()[
            "data"
        ]
        return data

    def alive(self) -> list[dict[str, Any]]:
        """Instances that cost money now."""
        return [one for one in self.truth()["instances"] if one["status"] in ("booting", "active", "unhealthy")]

    def change(self, **what: Any) -> None:
        requests.post(f"{self.url}/_test/change", json=what, headers={"User-Agent": "test"}, timeout=10).raise_for_status()

    def provider_config(self, state: Path, **more: Any) -> dict[str, Any]:
        return {
            "type": "external",
            "module": "rollout_ray.cluster.lambda_provider.LambdaNodeProvider",
            "region": "us-east-1",
            "ssh_key_name": "laptop",
            "api_url": self.url,
            "state_dir": str(state),
            "api_key_file": str(state / "api_key"),
            "request_interval_s": REQUEST_S * 1.05,
            "launch_interval_s": REQUEST_S * 2 * 1.05,
            "request_timeout_s": 0.5,
            **more,
        }


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Account]]:
    """Starts fake APIs with the given options."""
    monkeypatch.delenv("LAMBDA_API_KEY", raising=False)
    processes = []

    def begin(**options: Any) -> Account:
        digest = hashlib.sha256(KEY.encode()).hexdigest()
        defaults = {"request_s": REQUEST_S, "launch_s": REQUEST_S * 2, "hang_s": 0.8}
        process, url = start(Options(digest, **{**defaults, **options}))
        processes.append(process)
        return Account(url)

    yield begin
    for process in processes:
        process.kill()
        process.wait()


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder that holds the key."""
    folder = tmp_path / "state"
    folder.mkdir()
    (folder / "api_key").touch(mode=0o600)
    (folder / "api_key").write_text(f"{KEY}\n")
    return folder
