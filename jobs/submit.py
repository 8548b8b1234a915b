"""Submits a run to a cluster as a Ray job and follows its log: `python -m jobs.submit [--address URL] CONFIG.yaml`.

Owns what is checked before anything is sent, and what the job is given; the run is `python -m rollout_ray.run`, on the
head. The job needs the submitter no more once it is accepted: Ctrl-C here ends the following, not the job.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rollout_ray.auth import MODE, check_token, has_token
from rollout_ray.config_sources import load_config
from rollout_ray.errors import ConfigError, RolloutError
from rollout_ray.redaction import shown, without_secrets

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

ADDRESS = "http://127.0.0.1:8265"
STOP_S = 60  # that `ray job stop` leaves the run to save what is complete; Ray's own default is 3
AGENT_S = 60.0  # within which a head that has just been started takes jobs
EXIT_FAILED = 1  # of a job that ended without an exit code of its own


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the job's exit code, or 0 where it is not followed to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m jobs.submit",
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
        print(f"submit: {shown(str(error))}", file=sys.stderr)
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


def checked_entrypoint(config: Path, working_dir: Path, flags: Sequence[str]) -> str:
    """The job's command. Raises ConfigError where the run would be refused for its config, or could not find it."""
    if not config.resolve().is_relative_to(working_dir.resolve()):
        raise ConfigError(
            f"{config} is not in the working directory {working_dir}, of which the job gets a copy; put it there"
        )
    cfg = load_config(flags, {}, config)
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
    from ray.job_submission import JobSubmissionClient

    try:
        return JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise RolloutError(
            f"no cluster takes jobs at {address}: {error}; check --address, the tunnel to the head and ~/.ray/auth_token"
        ) from error


def submit(client: JobSubmissionClient, entrypoint: str, working_dir: str, environment: dict[str, str]) -> str:
    """The submission id. Raises RolloutError where the cluster takes no job."""
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


def follow(client: JobSubmissionClient, job: str) -> int:
    """Prints the job's log to its end, through lost connections; returns its exit code."""
    printed = 0
    while not client.get_job_status(job).is_terminal():
        try:
            printed = asyncio.run(_tail(client, job, printed))
        except RuntimeError as error:  # the connection was lost: the log is told from its beginning again
            print(f"submit: {shown(str(error))}", file=sys.stderr)
            time.sleep(1)
    print(shown(client.get_job_logs(job)[printed:]), end="", flush=True)
    info = client.get_job_info(job)
    print(f"{job} {info.status}")
    code = EXIT_FAILED if info.driver_exit_code is None else int(info.driver_exit_code)
    return 0 if info.status == "SUCCEEDED" else code


async def _tail(client: JobSubmissionClient, job: str, printed: int) -> int:
    """Prints what comes after the first `printed` characters of the log; returns how many it has now."""
    seen = 0
    async for text in client.tail_job_logs(job):
        seen += len(text)
        print(shown(text[max(0, len(text) - max(0, seen - printed)) :]), end="", flush=True)
    return max(seen, printed)


if __name__ == "__main__":
    sys.exit(main())
