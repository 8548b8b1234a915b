"""`ray job submit` against a started head with Ray's token authentication on, in a PID namespace of its own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import pyarrow.parquet as pq

from rollout_ray.data.prepare import prepare_demo
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import AWAIT_JOB_AGENT, Command, clean_environment, free_port

HEAD = """
export RAY_AUTH_TOKEN_PATH={logs}/token
RAY_AUTH_MODE=token ray start --head --port={gcs} --dashboard-port={dashboard} --num-cpus=2 >{logs}/head.log 2>&1 || exit 9
export RAY_API_SERVER_ADDRESS=http://127.0.0.1:{dashboard}
"""

SCRIPT = """
submit() {{
    ray job submit --working-dir . -- python -m rollout_ray.run --dataset {data} --output_dir {out} --replicas 2
}}
submit >{logs}/refused.log 2>&1; echo $? >{logs}/refused.code
export RAY_AUTH_MODE=token
{await_agent}
submit >{logs}/job.log 2>&1; echo $? >{logs}/job.code
ray job submit --working-dir . --no-wait --submission-id stopped -- \\
    python -m rollout_ray.run --dataset {data} --output_dir {out}-stopped --backend simulated \\
    --sim_tokens_per_second 1000 --sim_mean_tokens 20 --flush_seconds 0.5 >/dev/null 2>&1
for _ in $(seq 300); do ls {out}-stopped/parts/part-* >/dev/null 2>&1 && break; sleep 0.2; done
ray job stop stopped >{logs}/stop.log 2>&1
ray job logs stopped >{logs}/stopped.log 2>&1
client() {{
    python -m rollout_ray.run --ray_address 127.0.0.1:{gcs} --dataset {data} --output_dir {out}-$1 --limit 4 --quiet \\
        --backend simulated --sim_mean_tokens 20 >{logs}/$1.log 2>&1; echo $? >{logs}/$1.code
}}
RAY_AUTH_TOKEN_PATH={logs}/none client tokenless
unset RAY_AUTH_MODE
client client
ray stop >/dev/null 2>&1
RAY_AUTH_MODE=disabled ray start --head --port={gcs} --include-dashboard=false --num-cpus=2 >>{logs}/head.log 2>&1 || exit 9
python - >{logs}/open.log 2>&1 <<'PYTHON'; echo $? >{logs}/open.code
import os
from rollout_ray import RunConfig, collect

def run(name, address):
    engine = {{"backend": "simulated", "simulated": {{"sim_mean_tokens": 20}}}}
    config = {{"engine": engine, "data": {{"limit": 4}}, "output": {{"output_dir": "{out}-" + name}}}}
    collect("{data}", RunConfig.model_validate(config | {{"resources": {{"replicas": 1, "ray_address": address}}}}))

run("local", None)
assert "RAY_AUTH_MODE" not in os.environ
run("open", "127.0.0.1:{gcs}")
os.environ["RAY_AUTH_MODE"] = "token"
run("told", "127.0.0.1:{gcs}")
assert os.environ["RAY_AUTH_MODE"] == "token"
PYTHON
ray stop >/dev/null 2>&1
"""


def test_a_job_runs_on_a_head_with_token_authentication(checkout: Path, tmp_path: Path, run_alone: Command) -> None:
    prepare_demo(40, 1, tmp_path / "q.parquet")
    (tmp_path / "token").write_text(secrets.token_hex(32))
    script = (HEAD + SCRIPT).format(
        gcs=free_port(),
        dashboard=free_port(),
        await_agent=AWAIT_JOB_AGENT,
        data=tmp_path / "q.parquet",
        out=tmp_path / "run",
        logs=tmp_path,
    )
    run_alone(script, checkout, clean_environment())
    names = ("head", "refused", "job", "stopped", "tokenless", "client", "open")
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in names}
    assert (tmp_path / "refused.code").read_text().strip() != "0", "a client without the token must be refused"
    assert "oken" in logs["refused"]
    assert (tmp_path / "job.code").read_text().strip() == "0", logs["job"]
    assert "40 questions, 320 trajectories" in logs["job"]
    assert pq.read_metadata(tmp_path / "run" / "merged.parquet").num_rows == 40
    started = next(e for e in RunDirectory(str(tmp_path / "run")).events() if e["event"] == "engine_started")
    assert {"process", "import", "config", "device", "weights", "kv_cache"} <= set(started["phases"])
    assert 0.8 * started["seconds"] <= sum(started["phases"].values()) <= started["seconds"] + 0.1
    assert "working_dir" in started["settings"]["model"], "the job must run what was submitted"
    assert "the same command goes on from there" in logs["stopped"]
    assert not (tmp_path / "run-stopped" / "merged.parquet").exists()
    assert os.listdir(tmp_path / "run-stopped" / "parts")
    assert "RAY_AUTH_MODE is token and there is none here" in logs["tokenless"]
    assert (tmp_path / "tokenless.code").read_text().strip() == "1"
    for client in ("client", "open"):  # of a head that asks for a token, and of one that asks for none
        assert (tmp_path / f"{client}.code").read_text().strip() == "0", logs[client]
        assert "Unauthenticated" not in logs[client]


SUBMITTED = """
submit() {{ python -m rollout_ray.jobs.submit jobs/demo.yaml \\
    --dataset {data} --backend simulated --sim_mean_tokens 20 "$@"; }}
submit --output_dir {out}-resumed --no-wait --sim_tokens_per_second 1000 --flush_seconds 0.5 >{logs}/first.log 2>&1
for _ in $(seq 300); do ls {out}-resumed/parts/part-* >/dev/null 2>&1 && break; sleep 0.2; done
eval "$(grep -o 'RAY_AUTH_MODE=token ray job stop .*' {logs}/first.log)" >{logs}/stop.log 2>&1
submit --output_dir {out}-resumed >{logs}/second.log 2>&1; echo $? >{logs}/second.code
submit --output_dir {out}-refused --tensor_parallel_size 8 --backend vllm >{logs}/refused.log 2>&1
echo $? >{logs}/refused.code
submit --output_dir {out}-left --sim_tokens_per_second 2000 >{logs}/left.log 2>&1 & submitter=$!
for _ in $(seq 300); do grep -q 'trajectories (' {logs}/left.log && break; sleep 0.2; done
kill -9 $submitter; echo $? >{logs}/left.code
for _ in $(seq 300); do ls {out}-left/merged.parquet >/dev/null 2>&1 && break; sleep 0.2; done
ray stop >/dev/null 2>&1
"""


def test_a_submitted_job_is_followed_stopped_and_outlives_its_submitter(
    checkout: Path, tmp_path: Path, run_alone: Command
) -> None:
    """The token is found without a variable; the exit code is the run's; a stopped job goes on where it was."""
    prepare_demo(40, 1, tmp_path / "q.parquet")
    (tmp_path / "token").write_text(secrets.token_hex(32))
    places = {"data": tmp_path / "q.parquet", "out": tmp_path / "run", "logs": tmp_path}
    script = (HEAD + SUBMITTED).format(gcs=free_port(), dashboard=free_port(), **places)
    run_alone(script, checkout, clean_environment())
    logs = {name: (tmp_path / f"{name}.log").read_text() for name in ("first", "stop", "second", "refused", "left")}
    codes = {name: (tmp_path / f"{name}.code").read_text().strip() for name in ("second", "refused", "left")}
    assert codes == {"second": "0", "refused": "4", "left": "0"}, logs
    assert "40 questions, 320 trajectories" in logs["second"] and "SUCCEEDED" in logs["second"]
    assert "tensor_parallel_size 8 needs GPUs and the machines at hand have none" in logs["refused"]
    told = RunDirectory(str(tmp_path / "run-resumed")).events()
    (resumed,) = (e for e in told if e["event"] == "resumed")
    assert 0 < resumed["done"] < 40 and told[-1]["event"] == "finished" and told[-1]["duplicates"] == 0
    for name in ("resumed", "left"):
        assert pq.read_metadata(tmp_path / f"run-{name}" / "merged.parquet").num_rows == 40
