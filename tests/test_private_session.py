"""A local Ray belongs to the user that runs it: its token, its folder, its sockets."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from rollout_ray import RunConfig
from rollout_ray.core.errors import RolloutError
from rollout_ray.core.temporary import temporary_folder
from rollout_ray.data.prepare import prepare_demo
from rollout_ray.ray_cluster.auth import has_token
from rollout_ray.ray_cluster.connection import connected
from rollout_ray.ray_cluster.private_session import LONGEST_FOLDER, TOKEN, private_session
from tests.conftest import ROOT, clean_environment

NOBODY = 65534
# Prints what another user gets: the listing of Ray's folder, and a connection to each of the sockets that its owner sees.
INTRUDER = """
import os, socket, sys
for path in sys.argv[1:]:
    try:
        if path.endswith("/"):
            print(os.listdir(path))
        else:
            socket.socket(socket.AF_UNIX).connect(path)
            print("connected to", path)
    except PermissionError:
        print("refused")
"""
# Asks Ray's head for a connection without its token.
JOIN = """
import sys
from ray.exceptions import AuthenticationError
from rollout_ray.ray_cluster.ray_internals import GcsClient
try:
    GcsClient(address=sys.argv[1])
    print("connected")
except AuthenticationError:
    print("refused")
"""
# A local Ray that waits for a line, after it has printed its address and its folder.
OWNER = """
import sys, ray
from rollout_ray import RunConfig
from rollout_ray.ray_cluster.connection import connected
with connected(RunConfig()):
    node = ray._private.worker._global_node
    print(node.gcs_address, node.get_temp_dir_path(), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def short_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.delenv(TOKEN, raising=False)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_another_user_can_neither_read_nor_join_a_local_ray(tmp_path: Path, programs: None) -> None:
    environment = clean_environment() | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdin and owner.stdout
    address, folder = owner.stdout.readline().split()
    sockets = [str(path) for path in Path(folder).rglob("*") if path.is_socket()]
    assert sockets
    tried = subprocess.run(
        ["/usr/bin/python3", "-c", INTRUDER, f"{folder}/", *sockets],
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        cwd="/",
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(tried.stdout.splitlines()) == {"refused"}
    joined = subprocess.run(
        [sys.executable, "-c", JOIN, address], env=environment, capture_output=True, text=True, check=True
    )
    assert joined.stdout == "refused\n"
    owner.communicate("\n")
    assert owner.returncode == 0 and not list(tmp_path.rglob("auth_token"))


def test_the_token_of_a_session_ends_with_it() -> None:
    with private_session():
        first = os.environ[TOKEN]
    assert TOKEN not in os.environ
    with private_session():
        assert os.environ[TOKEN] != first and len(first) == 64


def test_a_token_that_others_could_read_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "auth_token"))
    (tmp_path / "auth_token").write_text("x")
    (tmp_path / "auth_token").chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert has_token()
    assert (tmp_path / "auth_token").stat().st_mode & 0o777 == 0o600
    assert "could be read by other users" in caplog.text


def test_a_folder_with_a_long_path_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * LONGEST_FOLDER)))
    with private_session() as folder:
        assert folder == f"/tmp/ray-{os.getuid()}/ray" and Path(folder).parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_full_disk_is_named_with_the_variable_that_chose_it(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    place = tempfile.mkdtemp(dir="/tmp", prefix="r")
    monkeypatch.setattr("tempfile.tempdir", place)
    if variable == "RAY_TMPDIR":
        monkeypatch.setenv("RAY_TMPDIR", place)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(100, 100, 0))  # type: ignore[attr-defined]
    with pytest.raises(RolloutError, match=rf"the disk of {place}/ray-\d+ has 0 MiB free, .* or set {variable} to"):
        private_session().__enter__()
    shutil.rmtree(place)


def test_a_temporary_folder_that_cannot_be_made_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path / "gone"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(RolloutError, match=f"can be made in {tmp_path}/gone: .*; make room there, or set TMPDIR to a writ"):
        temporary_folder("rollout-")
    with pytest.raises(RolloutError, match=r"; make room there$"):
        temporary_folder("rollout-", str(tmp_path / "gone"))


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "http://127.0.0.1:8265", "nonsense"])
def test_a_dead_address_is_named_with_the_variable_that_gave_it(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # as in a process of its own
    monkeypatch.setenv("RAY_ADDRESS", address)
    words = "correct the variable RAY_ADDRESS, or unset it: the run then starts a Ray of its own"
    with pytest.raises(RolloutError, match=f"{address}.*; {words}"):
        connected(RunConfig()).__enter__()
    with pytest.raises(RolloutError, match="; check --ray_address"):
        connected(RunConfig.model_validate({"resources": {"ray_address": address}})).__enter__()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make another user's folder")
def test_the_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = Path(f"/tmp/rollout-test-{os.getpid()}")
    monkeypatch.setenv("RAY_TMPDIR", str(short))
    theirs = short / f"ray-{os.getuid()}"
    theirs.mkdir(parents=True)
    try:
        os.chown(theirs, NOBODY, NOBODY)
        with pytest.raises(RolloutError, match="belongs to another user; set RAY_TMPDIR"), private_session():
            pass
    finally:
        theirs.rmdir()
        short.rmdir()


def test_a_run_needs_neither_a_home_nor_a_short_temporary_folder(tmp_path: Path, programs: None) -> None:
    """A container's user without a home, in the long folder of a batch job."""
    prepare_demo(2, 1, tmp_path / "q.parquet")
    long = tmp_path / ("job-" + "x" * 60)
    long.mkdir()
    words = ["--dataset", "q.parquet", "--output_dir", "run", "--arm_set", "greedy", "--replicas", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "rollout_ray.run", *words],
        env=clean_environment() | {"PYTHONPATH": str(ROOT), "HOME": "/proc/none", "TMPDIR": str(long)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
