"""Pretend cloud instances: network namespaces with an sshd each, on one bridge (instance.sh says what is in them).

To be used inside network, mount and PID namespaces of the caller's own, so that all of it ends with them.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("instance.sh")
BRIDGE = "10.77.0.1"
NAMESPACES = ["--mount", "--pid", "--uts", "--ipc", "--net", "--fork", "--kill-child"]


@dataclass
class Machine:
    """`process` is the parent of the instance's first one, in its network namespace but not its PID namespace."""

    name: str
    ip: str
    process: subprocess.Popen[str]


class Namespaces:
    """Boots and kills instances. `state`: a folder with key, key.pub and shared/."""

    def __init__(self, state: Path) -> None:
        self._state, self._lock = state, threading.Lock()
        self._count = 0
        self.machines: dict[str, Machine] = {}
        _run("ip", "link", "set", "lo", "up")
        # With an address of its own: else it takes one of its ports', and is not found for a minute when that port goes.
        _run("ip", "link", "add", "bridge", "address", "02:00:00:00:00:01", "type", "bridge")
        _run("ip", "address", "add", f"{BRIDGE}/24", "dev", "bridge")
        _run("ip", "link", "set", "bridge", "up")

    def boot(self, instance_id: str) -> str:
        """Returns the address once sshd listens there."""
        with self._lock:
            self._count += 1
            number = self._count
        name, address, link = f"i-{instance_id[:8]}", f"10.77.0.{10 + number}", f"link{number}"
        # The interpreter's own files, which may lie where only root may look.
        needed = {sys.prefix, sys.base_prefix}
        command = ["unshare", *NAMESPACES, "bash", str(SCRIPT), name, address, str(self._state), *sorted(needed)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENVIRONMENT
        )
        self._await(process, "unshared")
        _run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(process.pid))
        _run("ip", "link", "set", link, "master", "bridge", "up")
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
        self._await(process, "Server listening on")
        # sshd goes on to write a line for each connection.
        threading.Thread(target=lambda: process.stdout and process.stdout.read(), daemon=True).start()
        with self._lock:
            self.machines[instance_id] = Machine(name, address, process)
        return address

    def kill(self, instance_id: str) -> None:
        """The power fails: nothing in the instance is told."""
        with self._lock:
            machine = self.machines.pop(instance_id, None)
        if machine:
            machine.process.kill()
            machine.process.wait()

    @staticmethod
    def _await(process: subprocess.Popen[str], words: str) -> None:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if words in line:
                return
        raise RuntimeError(f"an instance did not boot: {''.join(said)}")


ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)
