"""What jobs.submit checks before it sends anything, and the configs that lie beside it. Submitting itself: test_follow.py
and test_job.py."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from rollout_ray.config.arms import resolve_arms
from rollout_ray.config.loading import load_config
from rollout_ray.core.errors import ConfigError
from rollout_ray.jobs.submit import checked_entrypoint, job_environment, main
from tests.conftest import ROOT, free_port

# Draws a question, replicas and GPUs a replica.
READY = {"gsm8k_abel_7b": (8, 8, None), "samples_4b": (16, 8, None), "regime_w_70b": (8, 1, 8)}


@pytest.mark.parametrize("name", READY)
def test_a_ready_config_is_valid_and_can_be_submitted(name: str) -> None:
    file = ROOT / "jobs" / f"{name}.yaml"
    config = load_config((), {}, file)
    samples = sum(arm.samples for arm in resolve_arms(config))
    assert (samples, config.resources.replicas, config.engine.tensor_parallel_size) == READY[name]
    expected = f"python -m rollout_ray.run --config jobs/{name}.yaml --limit 5"
    assert checked_entrypoint(file, ROOT, ["--limit", "5"]) == expected
    assert checked_entrypoint(file, ROOT, ["--limit", "5", "--quiet", "--debug"]) == f"{expected} --quiet --debug"


def test_every_config_in_jobs_is_known() -> None:
    assert {file.stem for file in (ROOT / "jobs").glob("*.yaml")} == {*READY, "demo"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "no dataset was given; name one in .* or with --dataset"),
        (("--dataset", "q.parquet"), "dataset 'q.parquet' is relative; give a path on storage that every node sees"),
        (("--dataset", "/q.parquet"), "output_dir 'rollouts' is relative"),
        (("--no_such_flag", "1"), "no_such_flag"),
    ],
)
def test_what_the_cluster_would_refuse_is_refused_here(tmp_path: Path, flags: tuple[str, ...], message: str) -> None:
    (tmp_path / "run.yaml").write_text("resources: {replicas: 2}")
    with pytest.raises(ConfigError, match=message):
        checked_entrypoint(tmp_path / "run.yaml", tmp_path, flags)


def test_a_config_that_the_job_would_not_find_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").touch()
    with pytest.raises(ConfigError, match="is not in the working directory"):
        checked_entrypoint(tmp_path / "run.yaml", ROOT, [])


def test_secrets_do_not_go_into_a_jobs_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_1")
    monkeypatch.setenv("VLLM_CACHE_ROOT", "/shared/vllm")
    assert job_environment(["VLLM_CACHE_ROOT"])["VLLM_CACHE_ROOT"] == "/shared/vllm"
    with pytest.raises(ConfigError, match=r"HF_TOKEN is a secret.* set it on the nodes instead"):
        job_environment(["VLLM_CACHE_ROOT", "HF_TOKEN"])
    with pytest.raises(ConfigError, match="NOT_SET_AT_ALL is not set here"):
        job_environment(["NOT_SET_AT_ALL"])


def test_a_token_that_is_asked_for_must_be_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert main(["--working-dir", str(ROOT), str(ROOT / "jobs" / "gsm8k_abel_7b.yaml")]) == 1
    assert capsys.readouterr().err.startswith("submit: RAY_AUTH_MODE is token and there is none here; put the head's")


def test_without_a_cluster_it_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    address = f"http://127.0.0.1:{free_port()}"
    config = str(ROOT / "jobs" / "gsm8k_abel_7b.yaml")
    assert main(["--address", address, "--working-dir", str(ROOT), config]) == 1
    assert f"no cluster takes jobs at {address}" in capsys.readouterr().err


def test_the_former_module_still_runs_in_a_checkout() -> None:
    command = [sys.executable, "-m", "jobs.submit", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "Submit a run as a Ray job" in done.stdout
