"""A strict stand-in for Lambda Cloud's API, as an HTTP server of its own: what the real one forbids, it forbids too.

It follows the OpenAPI 1.10.0 description and what is known of the real one's manners: rate limits that answer 429 in
plain text, a user agent filter, exactly one SSH key, tags that cannot change, no address while an instance boots,
listings that lag behind, capacity refused with HTTP 400. On demand it loses answers, before or after the deed.
Its own doors for tests begin with /_test/: the truth, and what is to go wrong.

`python -m tests.cluster.fake_lambda OPTIONS_JSON` prints its address and serves until it is ended.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
import re
import sys
import threading
import time
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

TAG_KEY = re.compile(r"^[a-z][a-z0-9-:]+$")
HOSTNAME = re.compile(r"^[a-z0-9][0-9a-z-]{0,62}$")
LAUNCH_FIELDS = {
    "region_name", "instance_type_name", "ssh_key_names", "name", "hostname", "file_system_names", "file_system_mounts",
    "image", "user_data", "tags", "firewall_rulesets",
}  # fmt: skip
SPECS = {  # cents an hour, vcpus, GPUs
    "gpu_8x_h100_sxm5": (2392, 208, 8),
    "gpu_8x_a100_80gb_sxm4": (1432, 240, 8),
    "gpu_1x_a10": (75, 30, 1),
    "cpu_4x_general": (20, 4, 0),
}
REGIONS = ("us-east-1", "us-west-1", "us-south-1")
PLAIN = {"429": 429, "blocked": 403, "moved": 301}  # answers without JSON
LAUNCH_FAULTS = ("429", "500-before", "500-after", "drop-before", "drop-after", "hang-after", "html-after")
FAULTS = ("429", "500-before", "drop-before", "html-after")


class Machines(Protocol):
    """What an instance runs on, where it is more than an entry."""

    def boot(self, instance_id: str) -> str:
        """Returns the address once sshd answers there."""
        ...

    def kill(self, instance_id: str) -> None: ...


@dataclass
class Options:
    """`key_sha256`: of the one valid key; the server never holds it. Times in seconds."""

    key_sha256: str
    host: str = "127.0.0.1"
    request_s: float = 1.0
    launch_s: float = 12.0
    lag_s: float = 0.0  # by which listings are old
    boot_s: float = 0.0
    end_s: float = 0.1  # from terminating to terminated
    hang_s: float = 1.0
    fault_rate: float = 0.0
    seed: int = 1
    ssh_keys: dict[str, str] = field(default_factory=lambda: {"laptop": "ssh-ed25519 AAAA laptop"})
    capacity: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPECS, 10000))  # in us-east-1
    quota: dict[str, int] = field(default_factory=dict)  # by type, of launches; none where it is not named
    file_systems: dict[str, str] = field(default_factory=lambda: {"rollouts": "us-east-1", "far": "us-west-1"})


@dataclass
class Record:
    """An instance. `history`: (time, status), the last one for ever."""

    id: str
    body: dict[str, Any]
    history: list[tuple[float, str]]
    ip: str | None = None

    def status(self, at: float) -> str | None:
        """The status at that time; None before its launch."""
        return next((status for when, status in reversed(self.history) if when <= at), None)

    def becomes(self, status: str, at: float) -> None:
        self.history = [entry for entry in self.history if entry[0] <= at] + [(at, status)]


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str, message: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.message = status, code, message


class FakeLambda:
    """The account's state and the rules."""

    def __init__(self, options: Options, machines: Machines | None = None) -> None:
        self.options, self._machines = options, machines
        self._lock = threading.RLock()
        self._records: dict[str, Record] = {}
        self._last = {"request": float("-inf"), "launch": float("-inf")}
        self._random = random.Random(options.seed)
        self.faults: dict[str, list[str]] = {}  # path -> what the next calls of it suffer
        self.calls: dict[str, int] = {}

    # Rules

    def admit(self, agent: str, authorization: str, launch: bool) -> None:
        """Raises Refusal. 429 and the filter's 403 come without JSON: their code is empty."""
        if not agent or agent.startswith(("Python-urllib", "python-requests")):
            raise Refusal(403, "", "error code: 1010")
        with self._lock:
            now = time.monotonic()
            early = now - self._last["request"] < self.options.request_s
            if early or (launch and now - self._last["launch"] < self.options.launch_s):
                self.count("429")
                raise Refusal(429, "", "Too Many Requests")
            self._last["request"] = now
            if launch:
                self._last["launch"] = now
        key = authorization.removeprefix("Bearer ")
        if hashlib.sha256(key.encode()).hexdigest() != self.options.key_sha256:
            raise Refusal(401, "global/invalid-api-key", "API key was invalid, expired, or deleted.")

    def fault(self, path: str, launch: bool) -> str:
        """What this call is to suffer; nothing where empty."""
        with self._lock:
            if self.faults.get(path):
                return self.faults[path].pop(0)
            if path.startswith("/_test") or self._random.random() >= self.options.fault_rate:
                return ""
            return self._random.choice(LAUNCH_FAULTS if launch else FAULTS)

    def count(self, what: str) -> None:
        with self._lock:
            self.calls[what] = self.calls.get(what, 0) + 1

    # Calls

    def instances(self) -> list[dict[str, Any]]:
        at = time.monotonic() - self.options.lag_s
        with self._lock:
            return [self._shown(one, status) for one in self._records.values() if (status := one.status(at))]

    def _shown(self, one: Record, status: str) -> dict[str, Any]:
        shown = {
            "id": one.id,
            "status": status,
            "ssh_key_names": one.body["ssh_key_names"],
            "file_system_names": one.body.get("file_system_names", []),
            "region": {"name": one.body["region_name"], "description": ""},
            "instance_type": {"name": one.body["instance_type_name"], "price_cents_per_hour": 1},
            "actions": {},
            "jupyter_token": "a-secret-of-the-instance",
        }
        shown |= {name: one.body[name] for name in ("name", "hostname", "tags") if name in one.body}
        if one.ip and status != "booting":
            shown |= {"ip": one.ip, "private_ip": one.ip}
        return shown

    def launch(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check_launch(body)
        with self._lock:
            kind, now = body["instance_type_name"], time.monotonic()
            self.count(f"launch {kind}")
            if sum(one.body["instance_type_name"] == kind for one in self._records.values()) >= self.options.quota.get(
                kind, sys.maxsize
            ):
                raise Refusal(400, "global/quota-exceeded", "Quota exceeded.")
            if body["region_name"] != REGIONS[0] or self.options.capacity.get(kind, 0) <= 0:
                raise Refusal(
                    400,
                    "instance-operations/launch/insufficient-capacity",
                    "Not enough capacity to fulfill launch request.",
                )
            self.options.capacity[kind] -= 1
            one = Record(uuid.uuid4().hex, body, [(now, "booting")])
            self._records[one.id] = one
            if self._machines is None:
                one.ip = f"10.0.{len(self._records) // 250}.{len(self._records) % 250 + 1}"
                one.history.append((now + self.options.boot_s, "active"))
            else:
                threading.Thread(target=self._boot, args=(one, self._machines), daemon=True).start()
        return {"instance_ids": [one.id]}

    def _boot(self, one: Record, machines: Machines) -> None:
        one.ip = machines.boot(one.id)
        with self._lock:
            if one.status(time.monotonic()) == "booting":
                one.becomes("active", time.monotonic())

    def _check_launch(self, body: dict[str, Any]) -> None:
        def need(true: bool, message: str) -> None:
            if not true:
                raise Refusal(400, "global/invalid-parameters", message)

        need(set(body) <= LAUNCH_FIELDS, f"unknown fields {sorted(set(body) - LAUNCH_FIELDS)}")
        for name in ("region_name", "instance_type_name"):
            need(isinstance(body.get(name), str), f"{name} is required")
        keys = body.get("ssh_key_names")
        need(isinstance(keys, list) and len(keys) == 1, "exactly one SSH key is required")
        need(len(body.get("name", "")) <= 64, "name is too long")
        need("hostname" not in body or bool(HOSTNAME.match(body["hostname"])), "hostname is not valid")
        need(len(body.get("user_data", "")) <= 2**20, "user_data is too long")
        tags = body.get("tags", [])
        for tag in tags:
            need(set(tag) == {"key", "value"}, "a tag has a key and a value")
            need(bool(TAG_KEY.match(tag["key"])) and len(tag["key"]) <= 55, f"tag key {tag['key']} is not valid")
            need(isinstance(tag["value"], str) and len(tag["value"]) <= 128, f"the value of tag {tag['key']} is not valid")
        need(len({tag["key"] for tag in tags}) == len(tags), "a tag key stands twice")
        if body["region_name"] not in REGIONS or body["instance_type_name"] not in SPECS:
            raise Refusal(400, "global/object-does-not-exist", "no such region or instance type")
        if keys[0] not in self.options.ssh_keys:
            raise Refusal(400, "global/object-does-not-exist", "no such SSH key")
        for name in body.get("file_system_names", []):
            if name not in self.options.file_systems:
                raise Refusal(400, "global/object-does-not-exist", "no such file system")
            if self.options.file_systems[name] != body["region_name"]:
                raise Refusal(400, "instance-operations/launch/file-system-in-wrong-region")

    def terminate(self, body: dict[str, Any]) -> dict[str, Any]:
        ids, now = body["instance_ids"], time.monotonic()
        with self._lock:
            for one_id in ids:
                if one_id not in self._records or self._records[one_id].status(now) == "terminated":
                    raise Refusal(404, "global/object-does-not-exist", "Specified instance does not exist.")
            for one_id in ids:
                self._end(self._records[one_id], "terminating")
                self._records[one_id].history.append((now + self.options.end_s, "terminated"))
            return {"terminated_instances": [self._shown(self._records[one], "terminating") for one in ids]}

    def _end(self, one: Record, status: str) -> None:
        with self._lock:
            one.becomes(status, time.monotonic())
        if self._machines is not None:
            self._machines.kill(one.id)

    def rename(self, one_id: str, body: dict[str, Any]) -> dict[str, Any]:
        if set(body) != {"name"}:
            raise Refusal(400, "global/invalid-parameters", "only the name can be changed")
        if one_id not in self._records:
            raise Refusal(404, "global/object-does-not-exist")
        self._records[one_id].body["name"] = body["name"]
        return self._shown(self._records[one_id], "active")

    def catalogue(self) -> dict[str, Any]:
        types = {}
        for kind, (cents, vcpus, gpus) in SPECS.items():
            specs = {"vcpus": vcpus, "memory_gib": 100, "storage_gib": 100, "gpus": gpus}
            regions = [REGIONS[0]] if self.options.capacity.get(kind, 0) > 0 else ["us-west-1"][:gpus]
            types[kind] = {
                "instance_type": {
                    "name": kind, "description": kind, "gpu_description": "", "price_cents_per_hour": cents, "specs": specs,
                },
                "regions_with_capacity_available": [{"name": name, "description": ""} for name in regions],
            }  # fmt: skip
        return types

    def files(self) -> list[dict[str, Any]]:
        return [
            {"id": name, "name": name, "mount_point": f"/lambda/nfs/{name}", "region": {"name": region, "description": ""}}
            for name, region in self.options.file_systems.items()
        ]

    # For tests

    def truth(self) -> dict[str, Any]:
        """Every instance there ever was, with its status now, and how often each path was called."""
        with self._lock:
            now = time.monotonic()
            records = [{"id": r.id, "status": r.status(now), **r.body} for r in self._records.values()]
            return {"instances": records, "calls": self.calls, "clock": now}

    def change(self, body: dict[str, Any]) -> dict[str, Any]:
        """{faults: {path: [fault, ..]}, status: {id: status}, options: {field: value}}"""
        with self._lock:
            self.faults |= body.get("faults", {})
            for name, value in body.get("options", {}).items():
                setattr(self.options, name, value)
        for one_id, status in body.get("status", {}).items():
            self._end(self._records[one_id], status)
        return {}

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Any:
        """Raises Refusal."""
        simple = {
            ("GET", "/instances"): self.instances,
            ("GET", "/instance-types"): self.catalogue,
            ("GET", "/regions"): lambda: [{"name": name, "description": ""} for name in REGIONS],
            ("GET", "/ssh-keys"): lambda: [
                {"id": name, "name": name, "public_key": key} for name, key in self.options.ssh_keys.items()
            ],
            ("GET", "/file-systems"): self.files,
            ("GET", "/_test/truth"): self.truth,
        }
        with_body = {
            ("POST", "/instance-operations/launch"): self.launch,
            ("POST", "/instance-operations/terminate"): self.terminate,
            ("POST", "/_test/change"): self.change,
        }
        if (method, path) in simple:
            return simple[method, path]()
        if (method, path) in with_body:
            return with_body[method, path](body)
        if method == "POST" and path.startswith("/instances/"):
            return self.rename(path.removeprefix("/instances/"), body)
        raise Refusal(404, "global/object-does-not-exist", "no such path")


class Handler(BaseHTTPRequestHandler):
    """One request."""

    fake: FakeLambda
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._serve("GET")

    def do_POST(self) -> None:
        self._serve("POST")

    def _serve(self, method: str) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
        path, launch = self.path, self.path.endswith("/launch")
        self.fake.count(path)
        try:
            if not path.startswith("/_test/"):
                self.fake.admit(self.headers.get("User-Agent", ""), self.headers.get("Authorization", ""), launch)
            fault = self.fake.fault(path, launch)
            if fault in PLAIN:
                raise Refusal(PLAIN[fault], "", fault)
            if not fault.endswith("-before"):
                data = self.fake.answer(method, path, body)
        except Refusal as refusal:
            error = {"error": {"code": refusal.code, "message": refusal.message}}
            self._send(refusal.status, error if refusal.code else refusal.message)
            return
        if fault.startswith("500"):
            self._send(500, {"error": {"code": "global/internal-error", "message": "An unexpected error occurred."}})
        elif fault.startswith("html"):
            self._send(502, "<html>Bad gateway</html>")
        elif fault:  # no answer
            if fault.startswith("hang"):
                time.sleep(self.fake.options.hang_s)
            self.close_connection = True
        else:
            self._send(200, {"data": data})

    def _send(self, status: int, content: Any) -> None:
        payload = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a client that has stopped waiting
            super().handle_error(request, client_address)


def server(fake: FakeLambda, port: int = 0) -> Server:
    """A server on a free port; `serve_forever()` is the caller's."""
    return Server((fake.options.host, port), type("FakeHandler", (Handler,), {"fake": fake}))


def start(options: Options) -> tuple[Any, str]:
    """The server as a process of its own, and its address."""
    import subprocess

    command = [sys.executable, "-m", "tests.cluster.fake_lambda", json.dumps(dataclasses.asdict(options))]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


if __name__ == "__main__":
    served = server(FakeLambda(Options(**json.loads(sys.argv[1]))))
    print(f"http://{served.server_address[0]!s}:{served.server_address[1]}", flush=True)
    served.serve_forever()
