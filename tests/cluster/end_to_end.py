"""From a laptop to a fleet and back, with nothing missing but the GPUs and Lambda itself: `ray up`, a job that makes the
cluster grow, a node that is preempted, the rows, the idle nodes' end, `ray down`; and a search for the API key.

`python -m tests.cluster.end_to_end CHECKOUT FOLDER` runs it inside namespaces that the caller has made (test_end_to_end.py
does), prints its timeline and writes FOLDER/report.json.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.fake_lambda import FakeLambda, Options, server
from tests.cluster.machines import BRIDGE, ENVIRONMENT, Namespaces

REQUEST_S, LAUNCH_S = 0.1, 1.2  # the fake's limits: a tenth of Lambda's
PORT = 8000
QUESTIONS, ARMS = 250, 8
RUN = "/lambda/nfs/rollouts/runs/fleet"
ALIVE = ("booting", "active", "unhealthy")
WORKING = "export PATH=$HOME/env/bin:$PATH PYTHONPATH=$HOME/site RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0;"
SSH = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR"]


def cluster_yaml(checkout: Path) -> dict[str, Any]:
    """The YAML that is shipped, where it cannot be used as it is: the API's address, no downloads, no GPUs, shorter
    times."""
    config: dict[str, Any] = yaml.safe_load((checkout / "cluster" / "lambda.yaml").read_text())
    config["provider"] |= {
        "api_url": f"http://{BRIDGE}:{PORT}",
        "request_interval_s": REQUEST_S * 1.05,
        "launch_interval_s": LAUNCH_S * 1.05,
    }
    config |= {"idle_timeout_minutes": 0.2, "max_workers": 2}
    config["available_node_types"]["h100"] |= {"resources": {"CPU": 1, "GPU": 0}, "max_workers": 2}
    downloads = [command for command in config["setup_commands"] if "/uv" in command]
    config["setup_commands"] = [command for command in config["setup_commands"] if command not in downloads]
    config["setup_commands"] += [f"ln -sfn {sys.prefix} ~/env", f"{install('~/rollout_ray')}"]
    config["worker_setup_commands"] = []
    for name in ("head_start_ray_commands", "worker_start_ray_commands"):
        stop, begin = config[name]
        begin = begin.replace("ray start", "ray start --object-store-memory=100000000")
        config[name] = [stop, f"export PYTHONPATH=$HOME/site; {begin}"]
    return config


def install(source: str) -> str:
    """The command that installs the package, and nothing that it needs, without a network."""
    pip = "~/env/bin/python -m pip --disable-pip-version-check install -q --no-deps --no-build-isolation --no-index"
    return f"rm -rf ~/site; {pip} --target ~/site {source}"


class Scenario:
    """The laptop, the account, and the clock."""

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._checkout, self._state = checkout, folder / "state"
        self._shared = self._state / "shared"
        self._shared.mkdir(parents=True)
        self._shared.chmod(0o777)
        key_file = self._state / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key_file)], check=True)
        self._key = f"secret_fleet_{secrets.token_hex(16)}"  # nowhere but in this process, until the laptop has it
        self.namespaces = Namespaces(self._state)
        public = (self._state / "key.pub").read_text().strip()
        digest = hashlib.sha256(self._key.encode()).hexdigest()
        options = Options(
            digest, host=BRIDGE, request_s=REQUEST_S, launch_s=LAUNCH_S, lag_s=0.3, ssh_keys={"laptop": public}
        )
        self.fake = FakeLambda(options, self.namespaces)
        threading.Thread(target=server(self.fake, PORT).serve_forever, daemon=True).start()
        self._began = time.monotonic()
        self.timeline: dict[str, float] = {}
        self.report: dict[str, Any] = {"timeline": self.timeline}

    def mark(self, what: str) -> None:
        self.timeline[what] = round(time.monotonic() - self._began, 1)
        print(f"{self.timeline[what]:7.1f} s  {what}", flush=True)

    # The laptop

    def on_laptop(self, command: str, stdin: str = "", check: bool = True, timeout: float = 180) -> str:
        """What the command prints."""
        laptop = self.namespaces.machines["laptop"].ip
        done = subprocess.run(
            ["ssh", *SSH, "-i", str(self._state / "key"), f"ubuntu@{laptop}", f"{WORKING} cd ~/project; {command}"],
            input=stdin, capture_output=True, text=True, timeout=timeout, check=False, env=ENVIRONMENT,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(f"on the laptop, {command!r} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done.stdout + done.stderr

    def set_up_laptop(self) -> None:
        address = self.namespaces.boot("laptop")
        ssh = shlex.join(["ssh", *SSH, "-i", str(self._state / "key")])
        self.on_laptop(f"ln -sfn {sys.prefix} ~/env; mkdir -p ~/project; umask 077; mkdir ~/.lambda_cloud")
        command = [
            "rsync",
            "-a",
            "--exclude",
            "/.venv",
            "--exclude",
            "/runs",
            "-e",
            ssh,
            f"{self._checkout}/",
            f"ubuntu@{address}:project/",
        ]
        subprocess.run(command, check=True, env=ENVIRONMENT)
        self.on_laptop("umask 077; cat > ~/.lambda_cloud/api_key", self._key)
        self.on_laptop("umask 077; cat > ~/.ssh/id_ed25519", (self._state / "key").read_text())
        self.on_laptop("cat > cluster/test.yaml", yaml.safe_dump(cluster_yaml(self._checkout), width=10_000))
        self.on_laptop(install("~/project"))
        self.on_laptop("ray get-auth-token --generate")
        self.on_laptop(f"python -m rollout_ray.run prepare demo {QUESTIONS} questions.parquet")

    # What there is

    def alive(self, kind: str = "") -> list[str]:
        """Ids of the instances that cost money; of a head or worker."""
        found = []
        for one in self.fake.truth()["instances"]:
            tags = {tag["key"]: tag["value"] for tag in one["tags"]}
            if one["status"] in ALIVE and kind in ("", tags["ray-node-type"]):
                found.append(one["id"])
        return found

    def events(self, name: str) -> list[dict[str, Any]]:
        """The run's events of that name."""
        path = self._shared / "runs" / "fleet" / "events.jsonl"
        if not path.exists():
            return []
        return [
            e for line in path.read_text().splitlines() if line.endswith("}") and (e := json.loads(line))["event"] == name
        ]

    def until(self, true: Callable[[], bool], what: str, seconds: float = 300) -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                raise RuntimeError(f"after {seconds:.0f} s: not {what}")
            time.sleep(0.2)
        self.mark(what)

    def job_status(self) -> str:
        said = self.on_laptop(f"{JOB} status rollouts", check=False)
        return next((s for s in ("PENDING", "RUNNING", "SUCCEEDED", "FAILED", "STOPPED") if s in said), said)

    # The key

    def key_found(self) -> list[str]:
        """Where the API key stands: files of every machine, the shared ones, command lines and environments of every
        process. The two files that it was put into are named 'laptop' and 'head'."""
        places = []
        for process in Path("/proc").glob("[0-9]*"):
            for part in ("environ", "cmdline"):
                try:
                    if self._key.encode() in (process / part).read_bytes():
                        places.append(f"{part} of {(process / 'cmdline').read_bytes()!r}")
                except (FileNotFoundError, ProcessLookupError):  # it has ended
                    continue
        heads = self.alive("head")
        for instance, machine in list(self.namespaces.machines.items()):  # another thread adds nodes
            own = self._state / machine.name
            folders = [own / "upper", *(own / "root" / name for name in ("tmp", "dev/shm", "run"))]
            for path in self._files_with_key(folders, machine.process.pid):
                name = path.removeprefix(f"{own}/upper/home/ubuntu/")
                kind = instance if instance == "laptop" else "head" if instance in heads else "worker"
                places.append(kind if name == ".lambda_cloud/api_key" else f"{kind}: {path}")
        return sorted(places + self._files_with_key([self._shared], os.getpid()))

    def _files_with_key(self, folders: list[Path], pid: int) -> list[str]:
        """Paths, in the mount namespace of the process, of the files that hold the key. It goes to grep by a pipe."""
        command = ["nsenter", f"--mount=/proc/{pid}/ns/mnt", "grep", "-rlsaF", "-f", "-", *map(str, folders)]
        found = subprocess.run(command, input=self._key, capture_output=True, text=True, check=False, env=ENVIRONMENT)
        if "nsenter: cannot open" in found.stderr and not os.path.exists(f"/proc/{pid}"):
            return []  # the machine has ended meanwhile, and its files with it
        if found.returncode not in (0, 1, 2) or "nsenter" in found.stderr:
            raise RuntimeError(f"the search for the key failed: {found.stderr}")
        return found.stdout.splitlines()

    # When something went wrong

    def last_words(self) -> str:
        """The ends of the autoscaler's and the job's logs."""
        logs = []
        for machine in list(self.namespaces.machines.values()):
            script = "cd /tmp/ray/session_latest/logs && tail -n 40 monitor.* job-driver-* 2>/dev/null"
            root = str(self._state / machine.name / "root")
            enter = ["nsenter", f"--mount=/proc/{machine.process.pid}/ns/mnt", "chroot", root, "sh", "-c", script]
            logs.append(subprocess.run(enter, capture_output=True, text=True, check=False).stdout)
        return "\n".join(logs)


JOB = "RAY_API_SERVER_ADDRESS=http://127.0.0.1:8265 ray job"


def play(it: Scenario) -> None:
    """The scenes, in order."""
    it.set_up_laptop()
    print(it.on_laptop('rollout() { python -m rollout_ray.run "$@"; }; rollout cluster check cluster/test.yaml'))
    it.mark("checked")
    it.report["up"] = it.on_laptop("ray up -y cluster/test.yaml", timeout=240)
    it.mark("up")
    it.report["alive after up"] = len(it.alive())
    it.on_laptop("ray rsync-up cluster/test.yaml questions.parquet /lambda/nfs/rollouts/questions.parquet")
    it.report["ray status"] = it.on_laptop("ray exec cluster/test.yaml 'ray status'")
    submit(it)
    it.until(lambda: len(it.events("engine_started")) >= 1, "first node joined")
    it.until(lambda: len(it.events("engine_started")) >= 2, "second node joined")
    with ThreadPoolExecutor(1) as pool:  # the run does not wait for the search
        search = pool.submit(it.key_found)
        parts = it._shared / "runs" / "fleet" / "parts"
        it.until(lambda: any(parts.glob("*.parquet")), "first part committed")
        it.report["preempted"] = it.alive("worker")[-1]
        it.fake.change({"status": {it.report["preempted"]: "preempted"}})
        it.mark("node killed")
        it.report["key while running"] = search.result()
    it.until(lambda: it.job_status() not in ("PENDING", "RUNNING"), "rows complete")
    it.report["job"] = it.on_laptop(f"{JOB} logs rollouts")
    it.report["job status"] = it.job_status()
    it.until(lambda: not it.alive("worker"), "scaled down")
    it.report["key after the run"] = it.key_found()
    it.report["down"] = it.on_laptop("ray down -y cluster/test.yaml")
    it.mark("down")
    it.report["alive after down"] = it.alive()
    it.report["key after down"] = it.key_found()
    it.report["launches"] = len(it.fake.truth()["instances"])
    it.report["calls"] = it.fake.truth()["calls"]


def submit(it: Scenario) -> None:
    """As a user does: a tunnel to the dashboard, then the job. The laptop may go then."""
    it.on_laptop("nohup ray dashboard cluster/test.yaml >/tmp/dashboard.log 2>&1 </dev/null &")
    command = (
        f"python -m rollout_ray.run --backend simulated --replicas 2 --dataset /lambda/nfs/rollouts/questions.parquet "
        f"--output_dir {RUN} --sim_tokens_per_second 2500 --sim_mean_tokens 60 --max_num_seqs 64 --flush_seconds 2"
    )
    waiting = f"until (echo > /dev/tcp/127.0.0.1/8265) 2>/dev/null && {JOB} list >/dev/null 2>&1; do sleep 0.5; done"
    it.on_laptop(f"timeout 60 bash -c {shlex.quote(waiting)}")
    it.mark("dashboard reached")
    one = f"{JOB} submit --no-wait --submission-id rollouts --working-dir . -- {command}"
    it.on_laptop(
        f"for _ in $(seq 20); do {one} >/tmp/submit.log 2>&1 && exit 0; sleep 1; done; cat /tmp/submit.log; exit 1"
    )
    it.until(lambda: it.job_status() == "RUNNING", "job start")


def main(checkout: Path, folder: Path) -> None:
    it = Scenario(checkout, folder)
    try:
        play(it)
    except BaseException:
        print(it.last_words())
        raise
    finally:
        (folder / "report.json").write_text(json.dumps(it.report, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
