"""Test runs in an object store, with a real S3-compatible server, Ray and driver."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from rollout_ray import RunConfig, collect
from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import ConfigError, DatasetError, LedgerError
from rollout_ray.data.prepare import prepare_demo
from rollout_ray.data.question_set import load_questions
from rollout_ray.results.verify import verify
from rollout_ray.storage.event_log import EventLog
from rollout_ray.storage.folder import Folder
from rollout_ray.storage.run_directory import RunDirectory
from tests.conftest import HANG_S, ROOT, clean_environment, demo_rows, free_port
from tests.s3_store import BUCKET, SECRET, Store, running_store
from tests.test_collect import When, keys


@pytest.fixture(scope="module")
def server() -> Iterator[Store]:
    with running_store() as store:
        yield store


@pytest.fixture
def store(server: Store) -> Iterator[Store]:
    yield server
    server.refuse = lambda request: None


def simulated(uri: str, speed: float = 1e6, **output: Any) -> RunConfig:
    return RunConfig.model_validate(
        {
            "output": {"output_dir": uri, **output},
            "engine": {"backend": "simulated", "simulated": {"sim_tokens_per_second": speed}},
            "resources": {"replicas": 2},
        }
    )


def test_a_whole_run_into_a_bucket(store: Store, local_ray: None) -> None:
    """Ray starts without the store's credentials: the driver sends them to the scoring actors."""
    rollouts = collect(demo_rows(40), simulated(f"s3://{BUCKET}/whole", part_rows=10))
    assert rollouts.path == f"s3://{BUCKET}/whole/merged.parquet"
    assert len(set(keys(rollouts))) == 320
    objects = store.objects("whole/")
    assert pq.read_table(io.BytesIO(objects["merged.parquet"])).equals(rollouts.table())
    happened = [event["event"] for event in rollouts.run.events()]
    kinds = [kind for kind in happened if kind not in ("engine_idle", "given_back", "load")]
    assert list(dict.fromkeys(kinds)) == ["begun", "placed", "engine_started", "prompts", "finished"]
    checked = verify(f"s3://{BUCKET}/whole")
    assert checked.agrees and checked.trajectories == 320
    names = {re.sub(r"[0-9a-f]{16,}-?", "*", name) for name in objects}
    assert names == {"run.json", "merged.parquet", "report.html", "events-*.jsonl", "parts/part-**.parquet"}
    assert not any(SECRET.encode() in content for content in objects.values())


def test_the_endpoint_may_stand_in_the_uri(store: Store, local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    options = f"?endpoint_override=127.0.0.1:{store.port}&scheme=http&region=us-east-1"
    rollouts = collect(demo_rows(5), simulated(f"s3://{BUCKET}/options{options}"))
    assert rollouts.path == f"s3://{BUCKET}/options/merged.parquet{options}"
    assert len(keys(rollouts)) == 40
    assert pq.read_table(rollouts.path).num_rows == 5


def test_a_file_uri_is_a_local_directory(tmp_path: Path, local_ray: None) -> None:
    rollouts = collect(demo_rows(5), simulated(f"file://{tmp_path}/run"))
    assert len(keys(rollouts)) == 40
    assert {p.name for p in (tmp_path / "run").iterdir()} == {
        "run.json",
        "parts",
        "events.jsonl",
        "merged.parquet",
        "report.html",
        "logs",
    }
    assert pq.read_table(rollouts.path).num_rows == 5


def test_a_torn_object_is_put_aside_and_its_questions_drawn_again(store: Store, local_ray: None) -> None:
    cfg = simulated(f"s3://{BUCKET}/torn", part_rows=10)
    expected = keys(collect(demo_rows(40), cfg))
    name, content = next((n, c) for n, c in store.objects("torn/").items() if n.startswith("parts/"))
    store.client().put_object(Bucket=BUCKET, Key=f"torn/{name}", Body=content[: len(content) // 2])
    assert keys(collect(demo_rows(40), cfg)) == expected
    objects = store.objects("torn/")
    assert objects[f"parts/bad/{name.removeprefix('parts/')}"] == content[: len(content) // 2] and name not in objects
    assert [e["part"] for e in RunDirectory(f"s3://{BUCKET}/torn").events() if e["event"] == "part_put_aside"] == [name]


def test_a_killed_driver_is_followed_and_what_it_committed_counts(store: Store, tmp_path: Path, programs: None) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in demo_rows(60)))
    words = [sys.executable, "-m", "rollout_ray.run", "--dataset", str(rows), "--output_dir", f"s3://{BUCKET}/killed"]
    words += ["--backend", "simulated", "--flush_seconds", "0.2"]
    options: dict[str, Any] = {"env": clean_environment() | {"PYTHONPATH": str(ROOT)}, "text": True, "cwd": tmp_path}
    first = subprocess.Popen([*words, "--quiet", "--sim_tokens_per_second", "2000"], **options)
    run = RunDirectory(f"s3://{BUCKET}/killed")
    while not run.parts():
        assert first.poll() is None
        time.sleep(0.1)
    refused = subprocess.run([*words, "--quiet"], capture_output=True, timeout=HANG_S, check=False, **options)
    assert refused.returncode == 6 and f"is in use by another driver (process {first.pid} on " in refused.stderr
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = run.done_ids()
    last = subprocess.run(
        [*words, "--sim_tokens_per_second", "1000000"], capture_output=True, timeout=HANG_S, check=False, **options
    )
    assert last.returncode == 0, last.stderr
    resumed = next(e for e in RunDirectory(f"s3://{BUCKET}/killed").events() if e["event"] == "resumed")
    assert len(done) <= resumed["done"] < 60
    assert pq.read_table(io.BytesIO(store.objects("killed/")["merged.parquet"])).num_rows == 60
    assert not [name for name in store.objects("killed/") if name.startswith("lease")]
    assert SECRET not in last.stderr + last.stdout + refused.stderr


@pytest.mark.parametrize(
    ("status", "code", "sentence"),
    [
        ("503 Slow Down", "SlowDown", "answers with errors, repeatedly"),
        ("500 Internal Server Error", "InternalError", "answers with errors, repeatedly"),
        ("403 Forbidden", "AccessDenied", "Check the credentials in the environment"),
    ],
)
def test_a_store_that_fails_in_the_middle_is_one_sentence_and_the_run_goes_on_later(
    store: Store, local_ray: None, status: str, code: str, sentence: str
) -> None:
    cfg = simulated(f"s3://{BUCKET}/middle-{code}", speed=100_000, part_rows=5)
    put_parts: set[str] = set()

    def refuse(request: dict[str, Any]) -> tuple[str, str] | None:
        if request["REQUEST_METHOD"] in ("PUT", "POST") and "/parts/part-" in request["PATH_INFO"]:
            put_parts.add(request["PATH_INFO"])
            if len(put_parts) > 2:
                return status, code
        return None

    store.refuse = refuse
    with pytest.raises(LedgerError, match=rf"s3://{BUCKET}/middle-{code}.*{sentence}") as raised:
        collect(demo_rows(60), cfg)
    assert "\n" not in str(raised.value) and SECRET not in str(raised.value)
    store.refuse = lambda request: None
    assert 0 < len(RunDirectory(cfg.output.output_dir).done_ids()) < 60
    assert len(set(keys(collect(demo_rows(60), cfg)))) == 480


def test_a_few_errors_of_the_store_are_not_noticed(store: Store, local_ray: None) -> None:
    """The client of the store retries by itself; our code does not."""
    answered: dict[tuple[str, str, str], int] = {}

    def refuse_the_first(request: dict[str, Any]) -> tuple[str, str] | None:
        wanted = request["REQUEST_METHOD"], request["PATH_INFO"], request["QUERY_STRING"]
        answered[wanted] = answered.get(wanted, 0) + 1
        return ("503 Slow Down", "SlowDown") if answered[wanted] == 1 and wanted[0] == "PUT" else None

    store.refuse = refuse_the_first
    assert len(keys(collect(demo_rows(10), simulated(f"s3://{BUCKET}/bumpy")))) == 80
    assert max(answered.values()) > 1


@pytest.mark.usefixtures("long_computation")
def test_an_upload_that_breaks_off_leaves_what_was_there(store: Store) -> None:
    folder = Folder(f"s3://{BUCKET}/upload")
    folder.write_atomically("file", b"whole")
    large = b"x" * (25 << 20)
    store.refuse = lambda request: ("503 Slow Down", "SlowDown") if "partNumber=2" in request["QUERY_STRING"] else None
    with pytest.raises(LedgerError, match="answers with errors"):
        folder.write_atomically("file", large)
    with pytest.raises(LedgerError, match="answers with errors"):
        folder.write_atomically("other", large)
    store.refuse = lambda request: None
    assert store.objects("upload/") == {"file": b"whole"}

    def interrupted(stream: Any) -> None:
        stream.write(large)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        folder.write_atomically("file", interrupted)
    assert store.objects("upload/") == {"file": b"whole"}
    folder.write_atomically("file", large)
    assert store.objects("upload/") == {"file": large}


def test_ctrl_c_during_an_upload_leaves_the_whole_file(store: Store) -> None:
    folder = Folder(f"s3://{BUCKET}/interrupted")
    large = b"x" * (25 << 20)

    def interrupt(request: dict[str, Any]) -> None:
        if "partNumber=2" in request["QUERY_STRING"]:
            os.kill(os.getpid(), signal.SIGINT)

    store.refuse = interrupt
    with pytest.raises(KeyboardInterrupt):
        folder.write_atomically("file", large)
    assert store.objects("interrupted/") == {"file": large}


def test_ctrl_c_on_a_store_keeps_what_is_complete(store: Store, local_ray: None) -> None:
    from rollout_ray.core.errors import Interrupted

    cfg = simulated(f"s3://{BUCKET}/ctrl-c", speed=60_000)
    progress = When(lambda view: view.generated_samples >= 400, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(Interrupted, match=r"stopped with [1-9]\d* of 100 questions in s3://"):
        collect(demo_rows(100), cfg, progress=progress)
    assert not [name for name in store.objects("ctrl-c/") if name.startswith("lease")]
    assert len(set(keys(collect(demo_rows(100), cfg)))) == 800


def test_events_are_saved_while_the_run_goes_on(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rollout_ray.storage.event_log.SAVE_EVENTS_S", 0.0)
    log = EventLog(RunDirectory(f"s3://{BUCKET}/events"))
    log.write("begun")
    log.write("resumed")
    assert [e["event"] for e in RunDirectory(f"s3://{BUCKET}/events").events()] == ["begun", "resumed"]


def test_a_question_set_is_made_in_a_bucket_and_named_by_a_glob(store: Store) -> None:
    for split, count in (("train-0", 3), ("train-1", 2), ("test-0", 1)):
        assert prepare_demo(count, count, f"s3://{BUCKET}/sets/{split}.parquet") == count
    with pytest.raises(DatasetError, match=r"holds the splits .*such as 's3://runs/sets/train\*'"):
        load_questions(f"s3://{BUCKET}/sets", DataConfig())
    assert len(load_questions(f"s3://{BUCKET}/sets/train*", DataConfig())) == 5
    assert len(load_questions(f"s3://{BUCKET}/sets/**/*.parquet", DataConfig())) == 6


def test_a_bucket_that_is_missing_is_named(store: Store) -> None:
    with pytest.raises(LedgerError, match=r"the bucket of s3://nowhere-at-all/run does not exist .* Create it"):
        collect(demo_rows(1), simulated("s3://nowhere-at-all/run"))


@pytest.mark.usefixtures("long_computation")
def test_a_store_that_does_not_answer_is_named(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(
        LedgerError, match=rf"the store of s3://{BUCKET}/run cannot be reached .*AWS_ENDPOINT_URL"
    ) as raised:
        collect(demo_rows(1), simulated(f"s3://{BUCKET}/run"))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        f"s3://AKIA123:{SECRET}@bucket/run",
        f"s3://bucket/run?secret_key={SECRET}",
        f"abfs://account:{SECRET}@container/run",
        f"gs://bucket/run?access_token={SECRET}",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="carries a credential; give credentials in the environment") as directory:
        RunDirectory(uri)
    with pytest.raises(ValueError, match=r"output\.output_dir holds a secret") as config:
        simulated(uri)
    with pytest.raises(DatasetError, match="the data set's URI holds credentials") as dataset:
        collect(uri, simulated(str(tmp_path / "run")))
    assert not any(SECRET in str(raised.value) for raised in (directory, config, dataset))
    assert not (tmp_path / "run").exists()


def test_uris_without_credentials_are_taken() -> None:
    for uri in ("s3://bucket/run?region=eu-west-1&scheme=http", "gs://anonymous@bucket/run", "/a:b@c", "file:///tmp/x"):
        Folder(uri)


def test_a_uri_that_means_nothing_is_a_config_error() -> None:
    for uri in ("ftp://host/run", "s3://bucket/run?colour=red", "file://host/run"):
        with pytest.raises(ConfigError, match=re.escape(uri)):
            collect(demo_rows(1), simulated(uri))
