"""Submits a run to a cluster as a Ray job and follows its log: `python -m rollout_ray.jobs.submit CONFIG.yaml`.

Owns what is checked before anything is sent, and what the job is given; the run is `python -m rollout_ray.run`, on the
head. The job needs the submitter no more once it is accepted: Ctrl-C here, or a connection that stays lost, ends the
following, not the job.
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
STOP_S = 60  # that `ray job stop` leaves the run to save what is complete; Ray's own default is 3
AGENT_S = 60.0  # within which a head that has just been started takes jobs
EXIT_FAILED = 1  # of a job that ended without an exit code of its own
LOST_S = 300.0  # for which a lost connection is tried again
RETRY_S = 1.0
RUNS_OWN = ("--quiet", "--debug")  # flags of the run that are no fields of its config


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the job's exit code; 0 where it is left alone on demand, and CloudError's where the connection is lost."""
    parser = argparse.ArgumentParser(
        prog="python -m rollout_ray.jobs.submit",
        description="Submits a run as a Ray job and follows its log; Ctrl-C ends the following, not the job. Further "
        "flags are the run's (--limit 100, --replicas 16).",
        allow_abbrev=False,
    )
    parser.add_argument("config", help="YAML file of the run, in the working directory")
    parser.add_argument("--address", default=os.environ.get("RAY_API_SERVER_ADDRESS", ADDRESS), help="the dashboard's URL")
    parser.add_argument(
        "--working-dir", default=".", help="folder that the job gets a copy of (what .gitignore names is left out)"
    )
    parser.add_argument("--env", action="append", default=[], metavar="NAME", help="pass on this environment variable")
    parser.add_argument("--no-wait", action="store_true", help="return once the job is accepted")
    own, flags = parser.parse_known_args(arguments)
    try:
        entrypoint = checked_entrypoint(Path(own.config), Path(own.working_dir), flags)
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
    """The job's command. Raises ConfigError where the run would be refused for its config, or could not find it."""
    if not config.resolve().is_relative_to(working_dir.resolve()):
        raise ConfigError(
            f"{config} is not in the working directory {working_dir}, of which the job gets a copy; put it there"
        )
    cfg = load_config([flag for flag in flags if flag not in RUNS_OWN], {}, config)
    for name, path in (("dataset", cfg.data.dataset), ("output_dir", cfg.output.output_dir)):
        if path is None:
            raise ConfigError(f"no {name} was given; name one in {config} or with --{name}")
        if not os.path.isabs(path) and "://" not in path:
            raise ConfigError(f"{name} '{path}' is relative; give a path on storage that every node sees, or a URI")
    relative = config.resolve().relative_to(working_dir.resolve())
    return shlex.join(["python", "-m", "rollout_ray.run", "--config", str(relative), *flags])


def job_environment(names: Sequence[str]) -> dict[str, str]:
    """The variables of these names, and what a stop needs. Raises ConfigError for one that is not set, or a secret: a
    job's environment stands in the dashboard."""
    values = {name: os.environ.get(name, "") for name in names}
    for name, value in values.items():
        if not value:
            raise ConfigError(f"{name} is not set here; set it, or leave out --env {name}")
    if secrets := sorted(values.keys() - without_secrets(values).keys()):
        raise ConfigError(
            f"{', '.join(secrets)} is a secret, and a job's environment stands in Ray's dashboard; set it on the "
            "nodes instead"
        )
    return {"RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": str(STOP_S), **values}


def connect(address: str) -> JobSubmissionClient:
    """Raises RolloutError where no cluster answers, or it refuses the client."""
    check_token()
    if has_token():
        os.environ.setdefault(MODE, "token")  # before Ray is imported: it reads it then
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
    """The submission id. Raises RolloutError where the cluster takes no job, or it is not known whether it has."""
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
                f"the connection was lost while the job was sent, which may have been taken: {_words(error)}; look at "
                "`ray job list` before you send it again"
            ) from error


def follow(client: JobSubmissionClient, job: str) -> int:
    """Prints the job's log to its end, through lost connections; returns its exit code. Raises CloudError where the
    connection stays lost for LOST_S."""
    from ray.exceptions import RayError

    following, lost_since, told = _Following(client, job), float("inf"), ""
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
    """A job's log, of which the first `printed` characters are printed: a new connection tells it from its beginning."""

    client: JobSubmissionClient
    job: str
    printed: int = 0

    async def tail(self) -> None:
        """Prints what is new until the connection ends."""
        seen = 0
        async for text in self.client.tail_job_logs(self.job):
            seen += len(text)
            new = max(0, seen - self.printed)
            print(escape_controls(text[max(0, len(text) - new) :]), end="", flush=True)
            self.printed = max(seen, self.printed)

    def end(self) -> int:
        """Prints the rest; returns the exit code of the job, which has ended."""
        info, log = self.client.get_job_info(self.job), self.client.get_job_logs(self.job)
        print(escape_controls(log[self.printed :]), end="", flush=True)
        print(f"{self.job} {info.status}")
        code = EXIT_FAILED if info.driver_exit_code is None else int(info.driver_exit_code)
        return 0 if info.status == "SUCCEEDED" else code


def _words(error: Exception) -> str:
    """The first line of what it says: Ray's errors go on for paragraphs."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
