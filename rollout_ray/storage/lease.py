"""One driver at a time on a run directory: a lease with an owner, renewed while its holder lives.

Owns the claim files OUT/lease-*.json and who may write. It knows nothing of parts. A claim is one small file of its own
name, so nothing here needs a store that creates conditionally; what it needs is that a listing shows every file written
before it (a local disk, NFS with its default caching, S3, GCS).

    claim    write the own file, then list; whoever sees no other live claim holds the lease. Two that come at once
             see each other: the lower name stays and waits, the other gives way.
    live     on one machine the process decides. Elsewhere a claim is watched: one that changes is live, one that does
             not change for EXPIRY_S is dead and is removed. No two machines' clocks are compared.
    held     a daemon thread changes the file every RENEW_S. The file is the fence too: whatever is about to be published
             under this lease is refused once the file is gone (RunDirectory), in scoring actors as in the driver.

The guarantee: of two drivers that live, one refuses. What is left open is a driver suspended for longer than EXPIRY_S
between its last look at the fence and the rename or upload that follows: that one file still appears. A part is then
doubled, which the merge counts and reports; rows are never mixed, since a part is whole questions.
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

RENEW_S, EXPIRY_S, POLL_S = 5.0, 30.0, 0.2
PREFIX = "lease-"


@dataclass(frozen=True)
class _Claim:
    """Another driver's claim as it was just read. `epoch` is 0 while it waits, else it counts the holders so far."""

    name: str
    epoch: int
    owner: dict[str, Any]
    mark: tuple[int, bytes]  # changes with every renewal

    @property
    def whose(self) -> str:
        pid, host, since = (self.owner.get(field, "unknown") for field in ("pid", "host", "since"))
        return f"another driver (process {pid} on {host}, since {since})"


class Lease:
    """A claim on a folder: `acquire` and `release` it once, or use it as a context manager."""

    def __init__(self, folder: Folder, renew_s: float = RENEW_S, expiry_s: float = EXPIRY_S) -> None:
        self.name = f"{PREFIX}{uuid.uuid4().hex[:12]}.json"
        self._folder, self._renew_s, self._expiry_s = folder, renew_s, expiry_s
        self._owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
            "machine": _machine(),
            "started": _started(os.getpid()),
        }
        self._epoch = self._highest = self._renewals = 0
        self._watched: dict[str, tuple[tuple[int, bytes], float]] = {}
        self._proven: set[str] = set()  # claims of processes that were seen to live
        self._dead: set[str] = set()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def acquire(self) -> None:
        """Returns once this process is the only driver. Raises LedgerError, naming the owner, where another one lives."""
        self._folder.make()
        self._write()
        try:
            self._await_turn()
            self._epoch = self._highest + 1
            self._write()
            # A process that was suspended right here may have been taken for dead meanwhile, and another holds the lease.
            # Claims that only wait have seen nothing yet; they will see this one, and give way.
            if holders := [other for other in self._others() if other.epoch]:
                raise self._refusal(holders[0])
            for name in self._dead:
                self._folder.remove(name)
        except BaseException:
            self._folder.remove(self.name)
            raise
        self._thread.start()

    def release(self) -> None:
        """Gives the lease up; where the storage fails, it expires by itself."""
        self._ending.set()
        self._thread.join()
        try:
            self._folder.remove(self.name)
        except LedgerError as error:
            log.warning("the lease could not be given back and expires by itself: %s", error)

    def __enter__(self) -> Lease:
        self.acquire()
        return self

    def __exit__(self, *raised: object) -> None:
        self.release()

    def _await_turn(self) -> None:
        renewed, told = time.monotonic(), False
        while others := self._others():
            for other in others:
                if other.name in self._proven and (other.epoch or other.name < self.name):
                    raise self._refusal(other)
            if not told and (silent := [other for other in others if other.name not in self._proven]):
                told = True
                log.info("%s may be in use by %s; watching for up to %.0f s whether that driver lives",
                         self._folder.uri, silent[0].whose, self._expiry_s)  # fmt: skip
            time.sleep(POLL_S)
            if time.monotonic() - renewed >= self._renew_s:
                renewed = time.monotonic()
                self._renew()

    def _others(self) -> list[_Claim]:
        """The other claims that are not known to be dead."""
        looked = time.monotonic()
        entries = {entry.name: entry for entry in self._folder.entries() if entry.name.startswith(PREFIX)}
        own = entries.pop(self.name, None)
        living = []
        for entry in entries.values():
            claim = self._read(entry)
            if claim is None:
                continue
            self._highest = max(self._highest, claim.epoch)
            # Both times are the store's. A shared disk's may be the writers' own, so there a claim is watched instead.
            age = (own.mtime_ns - entry.mtime_ns) / 1e9 if own and not self._folder.is_local else 0.0
            if self._lives(claim, age, looked):
                living.append(claim)
            else:
                self._dead.add(claim.name)
        return living

    def _lives(self, claim: _Claim, age: float, now: float) -> bool:
        """False where the claim's driver is surely dead."""
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
            return _Claim(entry.name, 1, {}, mark)  # not ours to judge: it is watched like any other

    def _write(self) -> None:
        values = {"owner": self._owner, "epoch": self._epoch, "renewals": self._renewals}
        self._folder.write_atomically(self.name, json.dumps(values).encode())

    def _keep(self) -> None:
        while not self._ending.wait(self._renew_s):
            try:
                if not self._renew():
                    log.error("the lease on %s was taken over by another driver", self._folder.uri)
                    return
            except LedgerError as error:
                log.warning("the lease could not be renewed and is tried again: %s", error)

    def _renew(self) -> bool:
        """Changes the own file; False where it is gone, and then it stays gone."""
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
        # The file may have been removed, by a driver that took over, just before it was written again.
        entries = [e for e in self._folder.entries() if e.name.startswith(PREFIX) and e.name != self.name]
        if any(claim.epoch > self._epoch > 0 for entry in entries if (claim := self._read(entry))):
            self._folder.remove(self.name)
            return False
        return True

    def _refusal(self, other: _Claim) -> LedgerError:
        return LedgerError(
            f"{self._folder.uri} is in use by {other.whose}. Wait until it ends or stop it, or give another --output_dir"
        )


def _machine() -> str | None:
    """Names the machine, its boot and the PID namespace: within it a process is known by its number. None where the
    system does not tell."""
    try:
        return f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(pid: int) -> int | None:
    """When a process began, in ticks since the boot: a number that is used again has another. None where it has ended
    or the system does not tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _process_lives(owner: dict[str, Any]) -> bool | None:
    """Whether a process of this machine lives; None where that cannot be told."""
    try:
        os.kill(owner["pid"], 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return None
    return bool(_started(owner["pid"]) == owner["started"])
