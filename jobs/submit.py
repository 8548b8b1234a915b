"""Submit a run to a cluster as a Ray job and follow its log: `python -m rollout_ray.jobs.submit CONFIG.yaml`.

It checks the config before it sends anything. The job runs `python -m rollout_ray.run` on the head. Once accepted, the job
no longer needs the submitter: Ctrl-C or a lost connection ends the following, not the job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import requests

from rollout_ray.config.loading import load_config
from rollout_ray.core.errors import CloudError, ConfigError, RolloutError
from rollout_ray.core.redaction import escape_controls, without_secrets
from rollout_ray.ray_cluster.auth import MODE, check_token, has_token

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
STOP_S = 60  # `ray job stop` gives the run so long to save complete questions; Ray's default is 3
AGENT_S = 60.0  # a head that has just started accepts jobs after at most so long
EXIT_FAILED = 1  # for a job that ended without an exit code
LOST_S = 300.0  # how long to retry a lost connection
RETRY_S = 1.0
RUN_FLAGS = ("--quiet", "--debug")  # flags of the run that are not fields of its config


def main(arguments: Sequence[str] | None = None) -> int:
    """Submit and follow. Return the job's exit code, 0 after Ctrl-C, or that of CloudError if the connection is lost."""
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.submit",
        description="Submit a run as a Ray job and follow its log. Ctrl-C ends the following, not the job. Further "
        "flags go to the run (--limit 100, --replicas 16).",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML file of the run, in the working directory")
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", ADDRESS), help="the dashboard's URL")
    parser.add_argument(
        "--working-dir", default=".", help="the job gets a copy of this folder, without the files that .gitignore names"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass on this environment variable")
    parser.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    own, flags = parser.parse_known_args(arguments)
    try:
        entrypoint = checked_entrypoint(Path(own.config).expanduser(), Path(own.working_dir), flags)
        environment = job_environment(own.env)
        client = connect(own.address)
        job = submit(client, entrypoint, own.working_dir, environment)
    except RolloutError as error:
        print(f"submit: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code
    ray = f"{MODE}=token ray job" if os.environ.get(MODE) == "token" else "ray job"
    where = f"--address {shlex.quote(own.address)}"
    print(f"submitted {job}\n  {ray} logs {where} --follow {job}\n  {ray} stop {where} {job}", flush=True)
    if own.no_wait:
        return 0
    try:
        return follow(client, job)
    except KeyboardInterrupt:
        print(f"\n{job} goes on; the commands above follow and stop it", file=sys.stderr)
        return 0
    except CloudError as error:
        print(f"submit: {escape_controls(str(error))}", file=sys.stderr)
        return error.exit_code


def checked_entrypoint(config: Path, working_dir: Path, flags: Sequence[str]) -> str:
    """Return the job's command.

    Raises:
        ConfigError: The config is wrong, or the job would not find it.
    """
    if not config.resolve().is_relative_to(working_dir.resolve()):
        raise ConfigError(
            f"{config} is not in the working directory {working_dir}, which is copied to the job; put it there"
        )
    cfg = load_config([flag for flag in flags if flag not in RUN_FLAGS], {}, config)
    for name, path in (("dataset", cfg.data.dataset), ("output_dir", cfg.output.output_dir)):
        if path is None:
            raise ConfigError(f"no {name} was given; name one in {config} or with --{name}")
        if not os.path.isabs(path) and "://" not in path:
            raise ConfigError(f"{name} '{path}' is relative; give a path on storage that every node sees, or a URI")
    relative = config.resolve().relative_to(working_dir.resolve())
    return shlex.join(["python", "-m", "rollout_ray.run", "--config", str(relative), *flags])


def job_environment(names: Sequence[str]) -> dict[str, str]:
    """Return the environment of the job: these variables, and the time that a stop gives the run.

    Raises:
        ConfigError: A variable is not set, or it is a secret. The dashboard shows a job's environment.
    """
    values = {name: os.environ.get(name, "") for name in names}
    for name, value in values.items():
        if not value:
            raise ConfigError(f"{name} is not set here; set it, or leave out --env {name}")
    if secrets := sorted(values.keys() - without_secrets(values).keys()):
        raise ConfigError(
            f"{', '.join(secrets)} is a secret, and Ray's dashboard shows a job's environment; set it on the nodes instead"
        )
    return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **values}


def connect(address: str) -> JobSubmissionClient:
    """Connect to the cluster. Raise RolloutError if none answers, or if it refuses this client."""
    check_token()
    if has_token():
        os.environ.setdefault(MODE, "token")  # Ray reads it when it is imported
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, requests.RequestException, RuntimeError, RayError) as error:
        raise RolloutError(
            f"no cluster takes jobs at {address}: {_words(error)}; check --address, the tunnel to the head and "
            "~/.ray/auth_token"
        ) from error


def submit(client: JobSubmissionClient, entrypoint: str, working_dir: str, environment: dict[str, str]) -> str:
    """Send the job and return its submission id.

    Raises:
        RolloutError: The cluster refuses the job, or the connection broke before it answered.
    """
    deadline = time.monotonic() + AGENT_S
    runtime_env: dict[str, Any] = {"working_dir": working_dir, "env_vars": environment}
    while True:
        try:
            job: str = client.submit_job(entrypoint=entrypoint, runtime_env=runtime_env)
            return job
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise RolloutError(f"the cluster took no job: {error}") from error
            time.sleep(1)
        except requests.RequestException as error:
            raise RolloutError(
                f"the connection was lost while the job was sent, and the cluster may have it: {_words(error)}; look at "
                "`ray job list` before you send it again"
            ) from error


def follow(client: JobSubmissionClient, job: str) -> int:
    """Print the job's log to its end and return its exit code. Retry lost connections.

    Raises:
        CloudError: The connection stays lost for LOST_S.
    """
    from ray.exceptions import RayError

    following = _Following(client, job)
    lost_since = float("inf")
    told = ""
    while True:
        try:
            if client.get_job_status(job).is_terminal():
                return following.end()
            lost_since = float("inf")
            asyncio.run(following.tail())
            told = ""
        except (requests.RequestException, aiohttp.ClientError, TimeoutError, RuntimeError, RayError) as error:
            words, now = _words(error), time.monotonic()
            lost_since = min(lost_since, now)
            if now - lost_since >= LOST_S:
                raise CloudError(
                    f"the connection is lost: {words}; the job goes on without it, and the commands above follow it"
                ) from error
            if words != told:
                print(
                    f"submit: the connection is lost ({escape_controls(words)}); trying again for {LOST_S:.0f} s",
                    file=sys.stderr,
                )
            told = words
        time.sleep(RETRY_S)


@dataclass
class _Following:
    """A job's log. A new connection sends it from the beginning, so `printed` counts the characters shown."""

    client: JobSubmissionClient
    job: str
    printed: int = 0

    async def tail(self) -> None:
        """Print new text until the connection ends."""
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            seen += len(text)
            new = max(0, seen - self.printed)
            print(escape_controls(text[max(0, len(text) - new) :]), end="", flush=True)
            self.printed = max(seen, self.printed)

    def end(self) -> int:
        """Print the rest of a job that has ended and return its exit code."""
        info, log = self.client.get_job_info(self.job), self.client.get_job_logs(self.job)
        print(escape_controls(log[self.printed :]), end="", flush=True)
        print(f"{self.job} {info.status}")
        code = EXIT_FAILED if info.driver_exit_code is None else int(info.driver_exit_code)
        return 0 if info.status == "SUCCEEDED" else code


def _words(error: Exception) -> str:
    """Return the first line of the message. Ray's errors have paragraphs."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
