"""Test what happens where an object store cannot be reached: a sentence in bounded time, and Ctrl-C ends the wait."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from rollout_ray.config.schema import DataConfig
from rollout_ray.core.errors import DatasetError, LedgerError
from rollout_ray.data.question_set import load_questions
from rollout_ray.results.merged_file import MergedFile
from rollout_ray.storage.run_directory import RunDirectory
from rollout_ray.storage.stores import check_contact
from tests.conftest import free_port


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The options of a store that takes connections and never answers."""
    for name, value in (("AWS_ACCESS_KEY_ID", "x"), ("AWS_SECRET_ACCESS_KEY", "x")):
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"endpoint_override=127.0.0.1:{server.getsockname()[1]}&scheme=http&region=x"


def test_a_store_that_never_answers_is_given_up(silent: str) -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer in 1 s"):
        check_contact(f"s3://bucket/x?{silent}", 1)
    assert time.monotonic() - began < 5


def test_ctrl_c_ends_the_wait_for_a_store(silent: str) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    began = time.monotonic()
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        check_contact(f"s3://bucket/x?{silent}", 1000)
    timer.join()
    assert time.monotonic() - began < 3


GOOGLE = "gs://anonymous@bucket/run?endpoint_override=127.0.0.1:{port}&scheme=http&retry_limit_seconds=1"


def test_an_unreachable_google_store_is_one_sentence_everywhere() -> None:
    uri = GOOGLE.format(port=free_port())
    with pytest.raises(DatasetError, match=r"^gs://.* cannot be read: .*Check the path, its permissions and the network$"):
        load_questions(uri, DataConfig())
    with pytest.raises(LedgerError, match=r"^gs://.* cannot be read: "):
        MergedFile(uri)
    with pytest.raises(LedgerError, match=r"^the store of gs://.* cannot be reached \("), RunDirectory(uri).lease():
        pass


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(DatasetError, match=r"^hf://.* cannot be read: ConnectError: "):
        load_questions("hf://datasets/nobody/nothing-at-all/train.parquet", DataConfig())


def test_an_error_of_our_own_is_no_error_of_a_store() -> None:
    from rollout_ray.storage.stores import client_errors

    with pytest.raises(KeyError), client_errors():
        raise KeyError("a mistake in the code")
