"""Call Lambda Cloud's API: keep its rate limits, retry what is safe to repeat, and name its errors.

Invariant: a launch that may have happened is never repeated here. It raises LambdaError with `uncertain` set.
The caller decides what to launch and what to terminate.
Source: Lambda's OpenAPI 1.10.0 (https://cloud.lambda.ai/api/v1/openapi.json).
"""

from __future__ import annotations

import logging
import os
import random
import stat
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from rollout_ray.cluster.lambda_pace import Pace
from rollout_ray.core.errors import CloudError

log = logging.getLogger(__name__)

API_URL = "https://cloud.lambda.ai/api/v1"
KEY_VARIABLE = "LAMBDA_API_KEY"
KEY_FILE = "~/.lambda_cloud/api_key"
USER_AGENT = "rollout-ray/0.1"
TRIES = 6
MOST_BACKOFF = 32  # request intervals

ENDED = frozenset({"terminated", "preempted"})
GONE = ENDED | {"terminating"}
NO_CAPACITY = "instance-operations/launch/insufficient-capacity"
QUOTA_USED_UP = "global/quota-exceeded"
NO_SUCH_OBJECT = "global/object-does-not-exist"
NOT_KNOWN = "not-known"

REMEDIES = {
    NO_CAPACITY: "wait, add fallback_instance_types, or move the cluster to a region that has some (rollout cluster check "
    "lists them)",
    "instance-operations/launch/file-system-in-wrong-region": "name a file system of the cluster's region, or change "
    "provider.region",
    QUOTA_USED_UP: "end instances that are not needed, or ask Lambda to raise the quota",
    "global/invalid-api-key": f"put a key that is in use into {KEY_FILE} (mode 0600) or {KEY_VARIABLE}",
    "global/account-inactive": "activate the account at https://cloud.lambda.ai",
    "global/invalid-address": "complete the billing address at https://cloud.lambda.ai",
    "global/forbidden": "use a key whose owner may do this",
    "global/invalid-parameters": "run rollout cluster check on the YAML",
    NO_SUCH_OBJECT: "run rollout cluster check on the YAML: a name in it does not exist",
    "global/conflict": "wait until the other operation on the instance is done",
    "global/duplicate": "choose another name",
    "rate-limit": "fewer clusters at once should use one account, or raise request_interval_s and launch_interval_s",
    "blocked": "the request was stopped before it reached the API, which says nothing about the key: try from another "
    "network",
    "moved": "give the API's new address as provider.api_url",
    NOT_KNOWN: "it is not known whether the machine was launched, and it would cost money: run ray down on the cluster's "
    "YAML, or look at https://cloud.lambda.ai/instances",
}
LATER = "try again in a few minutes; https://status.lambda.ai tells of outages"


class LambdaError(CloudError):
    """A call that failed for good.

    Attributes:
        code: Lambda's code, or our own: rate-limit, blocked, moved, network, server, nonsense, not-known.
        message: Lambda's message, or a description.
        uncertain: The call may have taken effect nevertheless.
        refused: The call has had no effect, and may be repeated at once.
    """

    def __init__(self, what: str, code: str, message: str, uncertain: bool = False, refused: bool = False) -> None:
        super().__init__(f"Lambda: {what} failed: {message} ({code}); {REMEDIES.get(code, LATER)}")
        self.code, self.message = code, message
        self.uncertain, self.refused = uncertain, refused


@dataclass(frozen=True)
class Instance:
    """An instance, without its jupyter_token, which is a secret. It may lack addresses and tags while it boots."""

    id: str
    status: str
    name: str = ""
    ip: str | None = None
    private_ip: str | None = None
    instance_type: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_answer(cls, data: Mapping[str, Any]) -> Instance:
        """Read an instance from an answer. Raises KeyError or TypeError if the answer holds none."""
        return cls(
            id=data["id"],
            status=data["status"],
            name=data.get("name") or "",
            ip=data.get("ip"),
            private_ip=data.get("private_ip"),
            instance_type=data["instance_type"]["name"],
            tags={tag["key"]: tag["value"] for tag in data.get("tags") or []},
        )


def file_key(path: str) -> str:
    """Return the key in the file. Raise CloudError if it is missing, or if others may read it."""
    file = Path(path).expanduser()
    try:
        mode = file.stat().st_mode
        key = file.read_text().strip()
    except OSError as error:
        raise CloudError(
            f"no Lambda API key: {file} cannot be read ({error.strerror}); put the key there and chmod it 600 (ray up "
            f"copies this file to the head, so that {KEY_VARIABLE} alone is not enough)"
        ) from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise CloudError(f"{file} holds a key and others may read it; chmod 600 {file}")
    return _checked(key, str(file))


def api_key(path: str) -> str:
    """Return the key from the environment, or from the file. Raise CloudError if there is none."""
    key = os.environ.get(KEY_VARIABLE)
    return _checked(key, KEY_VARIABLE) if key else file_key(path)


def check_key_for_head(path: str) -> None:
    """Check the key's file, which `ray up` copies to the head. An environment variable there would reach every job.

    Raises:
        CloudError: The file holds no key, or another key than the environment here.
    """
    key = file_key(path)
    if (os.environ.get(KEY_VARIABLE) or key) != key:
        raise CloudError(f"{KEY_VARIABLE} and {path} hold different keys; unset the one that is wrong")


def _checked(key: str, place: str) -> str:
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise CloudError(f"{place} holds no Lambda API key; it is one line of letters, digits and signs")
    return key


class _Bearer(requests.auth.AuthBase):
    """Set the header with the key. As `auth` it wins over ~/.netrc, and no representation shows the key."""

    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def hidden(self, text: str) -> str:
        """Return the text without the key."""
        return text.replace(self._key, "***")


class LambdaClient:
    """The API with one key. It holds no connection, and is thread-safe."""

    def __init__(
        self,
        key: str,
        pace: Pace,
        api_url: str = API_URL,
        timeout_s: float = 30.0,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._auth = _Bearer(key)
        self._url, self._timeout_s = api_url.rstrip("/"), timeout_s
        self._sleep = sleep
        self.pace = pace

    def instances(self) -> list[Instance]:
        """Return every instance of the account, of all clusters."""
        what = "listing instances"
        listed = self._safe(what, "GET", "/instances")
        try:
            return [Instance.from_answer(one) for one in listed]
        except (KeyError, TypeError) as error:
            raise LambdaError(what, "nonsense", "an entry is not an instance") from error

    def launch(self, body: Mapping[str, Any], until: float = float("inf")) -> str:
        """Launch one instance and return its id.

        Args:
            body: Body of the call.
            until: Time until which a call that the rate limit refuses is repeated, by time.monotonic().

        Raises:
            LambdaError: The launch failed, or `uncertain` is set and it may have happened.
        """
        what = f"launching {body['instance_type_name']} in {body['region_name']}"

        def once() -> Any:
            return self._call(what, "POST", "/instance-operations/launch", body, launch=True)

        data = self._again(once, lambda error: error.refused, self.pace.launch_s, until)
        try:
            return str(data["instance_ids"][0])
        except (KeyError, IndexError, TypeError) as error:
            raise LambdaError(what, "nonsense", "the answer holds no instance id", uncertain=True) from error

    def terminate(self, ids: Sequence[str]) -> None:
        """Terminate the instances. It is repeated like a read, because a second call does no harm."""
        self._safe(f"ending {', '.join(ids)}", "POST", "/instance-operations/terminate", {"instance_ids": list(ids)})

    def instance_types(self) -> dict[str, Any]:
        """Return name -> {instance_type: {price_cents_per_hour, specs}, regions_with_capacity_available: [{name}]}."""
        return dict(self._safe("reading the catalogue", "GET", "/instance-types"))

    def regions(self) -> list[str]:
        """Return the names of the regions."""
        return [one["name"] for one in self._safe("listing regions", "GET", "/regions")]

    def ssh_keys(self) -> dict[str, str]:
        """Return name -> public key."""
        return {one["name"]: one["public_key"] for one in self._safe("listing SSH keys", "GET", "/ssh-keys")}

    def file_systems(self) -> dict[str, dict[str, Any]]:
        """Return name -> {mount_point, region: {name}}."""
        return {one["name"]: one for one in self._safe("listing file systems", "GET", "/file-systems")}

    # HTTP

    def _safe(self, what: str, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """Make a call that may be repeated, until the API answers. Raises LambdaError."""
        return self._again(
            lambda: self._call(what, method, path, body), lambda e: e.refused or e.uncertain, self.pace.request_s
        )

    def _again(
        self,
        once: Callable[[], Any],
        may: Callable[[LambdaError], bool],
        unit_s: float,
        until: float = float("inf"),
    ) -> Any:
        for attempt in range(TRIES):
            # The random share keeps several machines with one account apart.
            wait_s = unit_s * min(2**attempt, MOST_BACKOFF) * random.uniform(1.0, 2.0)
            try:
                return once()
            except LambdaError as error:
                if attempt == TRIES - 1 or not may(error) or time.monotonic() + wait_s > until:
                    raise
                log.info("%s; trying again", error)
            self._sleep(wait_s)
        raise AssertionError("unreachable")

    def _call(self, what: str, method: str, path: str, body: Mapping[str, Any] | None, launch: bool = False) -> Any:
        """Send one request and return the answer's data. Raise LambdaError if it fails."""
        self.pace.wait(launch)
        try:
            answer = requests.request(
                method,
                self._url + path,
                json=body,
                auth=self._auth,
                headers={"User-Agent": USER_AGENT, "Accept": "application/json"},
                timeout=self._timeout_s,
                allow_redirects=False,  # a redirected POST can become a GET
            )
        except requests.RequestException as error:
            raise LambdaError(what, "network", type(error).__name__, uncertain=True) from None
        return self._data(what, answer)

    def _data(self, what: str, answer: requests.Response) -> Any:
        status = answer.status_code
        try:
            content = answer.json()
        except requests.JSONDecodeError:
            content = None
        if status == 429:
            raise LambdaError(what, "rate-limit", "too many requests", refused=True)
        if 300 <= status < 400:
            raise LambdaError(what, "moved", f"HTTP {status}")
        if isinstance(content, dict) and "data" in content and status < 300:
            return content["data"]
        error = content.get("error") if isinstance(content, dict) else None
        if isinstance(error, dict) and "code" in error:
            code = self._shown(error["code"])
            uncertain = status >= 500 or code.startswith("provider/") or code == "global/internal-error"
            raise LambdaError(what, code, self._shown(error.get("message", f"HTTP {status}")), uncertain=uncertain)
        if status == 403:
            raise LambdaError(what, "blocked", "HTTP 403 without an answer of the API")
        if status >= 500:
            raise LambdaError(what, "server", f"HTTP {status}", uncertain=True)
        raise LambdaError(what, "nonsense", f"HTTP {status} with an unknown answer", uncertain=status < 300)

    def _shown(self, text: object) -> str:
        """Return a text of the answer as one line, without control characters and without the key."""
        return self._auth.hidden("".join(c if c.isprintable() else "?" for c in str(text)))[:300]
