"""Where secrets do not go: not into a run directory, a log, a message or Ray's files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout_ray import collect
from rollout_ray.core.errors import DatasetError
from rollout_ray.core.redaction import has_credentials, secret_names
from rollout_ray.data.prepare import prepare_demo
from rollout_ray.models.paths import model_folder
from tests.conftest import ROOT, Command, clean_environment, simulated_greedy

CANARY = "canary-7f3b9d1c5e"
SECRETS = (
    "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "HF_TOKEN", "RAY_AUTH_TOKEN", "LAMBDA_API_KEY", "VLLM_API_KEY",
    "OPENAI_API_KEY", "WANDB_API_KEY",
)  # fmt: skip


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the demo model, to be altered."""
    return Path(shutil.copytree(model_folder("demo"), tmp_path / "model"))


@pytest.fixture
def ray_folder() -> Iterator[Path]:
    """A folder of its own for Ray's session, with a short path, since sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="r", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("fails", [False, True])
def test_secrets_of_the_environment_stay_there(
    tmp_path: Path, ray_folder: Path, model: Path, fails: bool, programs: None
) -> None:
    prepare_demo(2, 1, tmp_path / "q.parquet")
    words = ["--dataset", str(tmp_path / "q.parquet"), "--output_dir", str(tmp_path / "run"), "--replicas", "1"]
    if fails:
        words += ["--extra", "kv_cache_dtype=nonsense"]
    done = subprocess.run(
        [sys.executable, "-m", "rollout_ray.run", *words, "--model_path", str(model), "--arm_set", "greedy"],
        env=clean_environment() | {"PYTHONPATH": str(ROOT), "RAY_TMPDIR": str(ray_folder)} | dict.fromkeys(SECRETS, CANARY),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == (5 if fails else 0), done.stderr
    assert CANARY not in done.stdout + done.stderr
    files = [
        p for folder in (tmp_path / "run", ray_folder) for p in folder.rglob("*") if p.is_file() and not p.is_symlink()
    ]
    assert {"run.json", "events.jsonl", "raylet.out"} <= {p.name for p in files}
    assert not [p for p in files if CANARY.encode() in p.read_bytes()]


def test_a_secret_in_the_config_is_refused_and_not_repeated(tmp_path: Path, rollout: Command) -> None:
    for words in (
        ["--dataset", f"s3://key:{CANARY}@bucket/q.parquet"],
        ["--output_dir", f"s3://bucket/run?secret_key={CANARY}"],
        ["--extra", json.dumps({"hf_token": CANARY})],
        ["--extra", json.dumps({"model_loader_extra_config": {"source": f"https://me:{CANARY}@host/x"}})],
    ):
        done = rollout(*words, cwd=tmp_path)
        assert done.returncode == 2 and "holds a secret, and the config is written to run.json" in done.stderr
        assert CANARY not in done.stdout + done.stderr
    with pytest.raises(DatasetError, match="the data set's URI holds credentials") as raised:
        collect(f"s3://key:{CANARY}@bucket/q.parquet", simulated_greedy(tmp_path / "run"))
    assert CANARY not in str(raised.value) and not list(tmp_path.iterdir())


def test_what_is_a_secret() -> None:
    assert (
        has_credentials("s3://a:b@c/d") and has_credentials("abfs://c/d?sas_token=x") and has_credentials("gs://b?token=x")
    )
    assert not any(map(has_credentials, ("s3://bucket/x?region=us", "gs://anonymous@b/x", "/a:b@c", "http://[bad", "demo")))
    assert list(
        secret_names({"a": {"api_key": "x", "b": {"password": "y"}}, "hf_token": True, "max_num_batched_tokens": 3})
    ) == [
        "a.api_key",
        "a.b.password",
    ]
    assert not list(secret_names({"tokenizer": "x", "tokenizer_mode": "auto", "key": "x", "stop_token": ""}))
