"""Allow one driver at a time on a run directory, by a lease that a thread renews.

Each driver writes one claim file OUT/lease-*.json. The store needs no conditional create, but a listing must show
every file written before it (a local disk, NFS with default caching, S3, GCS).

    claim    A driver writes its file, then lists. It holds the lease if it sees no other live claim. Two drivers
             that start together see each other: the lower name waits, the other driver gives way.
    live     On one machine, the process table decides. Elsewhere, a claim is live while its file changes. It is dead
             and removed after EXPIRY_S without a change. Clocks of two machines are never compared.
    held     A daemon thread changes the file every RENEW_S. The file is also the fence: once it is gone, RunDirectory
             refuses to publish under this lease, in the driver and in scoring actors.

Of two live drivers, one is refused. One gap is open: a driver may be suspended for longer than EXPIRY_S between its
last check of the fence and the following rename or upload. That one file still appears. The merge counts and reports
such a doubled part. Rows never mix, since a part holds whole questions.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout_ray.core.errors import LedgerError
from rollout_ray.storage.folder import Entry, Folder

log = logging.getLogger(__name__)

RENEW_S = 5.0
EXPIRY_S = 30.0
POLL_S = 0.2
PREFIX = "lease-"


@dataclass(frozen=True)
class _Claim:
    """Another driver's claim, as read. `epoch` is 0 while the driver waits, else the number of holders so far."""

    name: str
    epoch: int
    owner: dict[str, Any]
    mark: tuple[int, bytes]  # changes with every renewal

    @property
    def driver(self) -> str:
        """Describe the driver that wrote the claim."""
        known = {field: self.owner.get(field, "unknown") for field in ("pid", "host", "since")}
        return "another driver (process {pid} on {host}, since {since})".format(**known)


class Lease:
    """A claim on a folder. Call `acquire` and `release` once, or use it as a context manager."""

    def __init__(self, folder: Folder, renew_s: float = RENEW_S, expiry_s: float = EXPIRY_S) -> None:
        self.name = f"{PREFIX}{uuid.uuid4().hex[:12]}.json"
        self._folder = folder
        self._renew_s = renew_s
        self._expiry_s = expiry_s
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "machine": _machine(),
            "started": _started(os.getpid()),
        }
        self._epoch = 0
        self._highest = 0  # epoch that was seen
        self._renewals = 0
        self._watched: dict[str, tuple[tuple[int, bytes], float]] = {}
        self._proven: set[str] = set()  # claims whose processes were seen alive
        self._dead: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Wait until this process is the only driver.

        Raises:
            LedgerError: Another driver is alive. The text names it.
        """
        self._folder.make()
        self._write()
        try:
            self._await_turn()
            self._epoch = self._highest + 1
            self._write()
            # A process suspended right here may have expired, so that another driver holds the lease.
            # Waiting claims have not decided yet: they will see this one and give way.
            if holders := [other for other in self._others() if other.epoch]:
                raise self._refusal(holders[0])
            for name in self._dead:
                self._folder.remove(name)
        except BaseException:
            self._folder.remove(self.name)
            raise
        self._thread.start()

    def release(self) -> None:
        """Give up the lease. If the storage fails, the lease expires by itself."""
        self._ending.set()
        self._thread.join()
        try:
            self._folder.remove(self.name)
        except LedgerError as error:
            log.warning("the lease file could not be removed; the lease expires by itself: %s", error)

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def _await_turn(self) -> None:
        renewed = time.monotonic()
        announced = False
        while others := self._others():
            for other in others:
                if other.name in self._proven and (other.epoch or other.name < self.name):
                    raise self._refusal(other)
            if not announced and (silent := [other for other in others if other.name not in self._proven]):
                announced = True
                log.info(
                    "%s may be in use by %s; waiting up to %.0f s to see whether that driver is alive",
                    self._folder.uri,
                    silent[0].driver,
                    self._expiry_s,
                )
            time.sleep(POLL_S)
            if time.monotonic() - renewed >= self._renew_s:
                renewed = time.monotonic()
                self._renew()

    def _others(self) -> list[_Claim]:
        """Return the claims of other drivers, without those that are dead."""
        listed_at = time.monotonic()
        entries = {entry.name: entry for entry in self._folder.entries() if entry.name.startswith(PREFIX)}
        own = entries.pop(self.name, None)
        living = []
        for entry in entries.values():
            claim = self._read(entry)
            if claim is None:
                continue
            self._highest = max(self._highest, claim.epoch)
            # An object store sets both times by its own clock. On a shared disk, each writer's clock may set them.
            age = (own.mtime_ns - entry.mtime_ns) / 1e9 if own and not self._folder.is_local else 0.0
            if self._lives(claim, age, listed_at):
                living.append(claim)
            else:
                self._dead.add(claim.name)
        return living

    def _lives(self, claim: _Claim, age: float, now: float) -> bool:
        """Return False only if the driver of the claim is surely dead."""
        if claim.owner.get("machine") == self._owner["machine"] is not None:
            lives = _process_lives(claim.owner)
            if lives:
                self._proven.add(claim.name)
            if lives is not None:
                return lives
        mark, since = self._watched.setdefault(claim.name, (claim.mark, now))
        if mark != claim.mark:
            self._proven.add(claim.name)
            self._watched[claim.name] = claim.mark, now
            return True
        return max(age, now - since) <= self._expiry_s

    def _read(self, entry: Entry) -> _Claim | None:
        content = self._folder.read(entry.name)
        if content is None:
            return None
        text = content.to_pybytes()
        mark = (entry.mtime_ns, text)
        try:
            values = json.loads(text)
            return _Claim(entry.name, int(values["epoch"]), dict(values["owner"]), mark)
        except (ValueError, KeyError, TypeError):
            return _Claim(entry.name, 1, {}, mark)  # unreadable: watch it like any other claim

    def _write(self) -> None:
        values = {"owner": self._owner, "epoch": self._epoch, "renewals": self._renewals}
        self._folder.write_atomically(self.name, json.dumps(values).encode())

    def _keep(self) -> None:
        while not self._ending.wait(self._renew_s):
            try:
                if not self._renew():
                    log.error("another driver has taken over the lease on %s", self._folder.uri)
                    return
            except LedgerError as error:
                log.warning("the lease could not be renewed; trying again: %s", error)

    def _renew(self) -> bool:
        """Change the own file. Return False if it is gone; it is then not written again."""
        if self._folder.is_local:
            with self._folder.storage_errors():
                try:
                    os.utime(self._folder.local(self.name))
                except FileNotFoundError:
                    return False
            return True
        if not self._folder.exists(self.name):
            return False
        self._renewals += 1
        self._write()
        # A driver that took over may have removed the file just before this write.
        entries = [e for e in self._folder.entries() if e.name.startswith(PREFIX) and e.name != self.name]
        if any(claim.epoch > self._epoch > 0 for entry in entries if (claim := self._read(entry))):
            self._folder.remove(self.name)
            return False
        return True

    def _refusal(self, other: _Claim) -> LedgerError:
        return LedgerError(
            f"{self._folder.uri} is in use by {other.driver}. Wait until it ends or stop it, or give another --output_dir"
        )


def _machine() -> str | None:
    """Return an id of the boot and the PID namespace, in which a PID names one process. None if unknown."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """Return the start time of a process in ticks since boot. None if it has ended or /proc is missing.

    A reused PID has another start time.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _process_lives(owner: dict[str, Any]) -> bool | None:
    """Return whether a process of this machine is alive, or None if that is unknown."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return None
    return bool(_started(owner["pid"]) == owner["started"])
