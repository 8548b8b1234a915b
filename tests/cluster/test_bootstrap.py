"""What `ray up` needs before it launches a head: the key, and the files that the head is sent."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
from ray.autoscaler.tags import TAG_RAY_NODE_KIND, TAG_RAY_NODE_STATUS, TAG_RAY_USER_NODE_TYPE

from rollout_ray.cluster.lambda_provider import LambdaNodeProvider
from rollout_ray.core.errors import CloudError, ConfigError
from tests.cluster.conftest import KEY, Account

HEAD = {TAG_RAY_NODE_KIND: "head", TAG_RAY_USER_NODE_TYPE: "head", TAG_RAY_NODE_STATUS: "uninitialized"}
A10 = {"instance_type": "gpu_1x_a10"}
Start = Callable[..., Account]


def test_a_wrong_key_and_a_key_that_others_can_read_are_said_so(
    account: Start, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = account()
    monkeypatch.setenv("LAMBDA_API_KEY", "wrong-key-of-mine")
    with pytest.raises(CloudError, match=r"global/invalid-api-key.*put a key that is in use") as caught:
        LambdaNodeProvider(one.provider_config(state), "fleet").non_terminated_nodes({})
    assert "wrong-key-of-mine" not in str(caught.value)
    monkeypatch.delenv("LAMBDA_API_KEY")
    (state / "api_key").chmod(0o644)
    with pytest.raises(CloudError, match="others may read it; chmod 600") as caught:
        LambdaNodeProvider(one.provider_config(state), "fleet")
    assert KEY not in str(caught.value)


def test_no_head_is_launched_where_a_file_that_it_is_to_be_sent_is_missing(
    account: Start, state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray would find out when the head costs money already. `ray down`, which is given the same config, ends what there
    is from wherever it is called."""
    one = account()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "jobs").mkdir()
    mounts = {"~/rollout_ray/jobs": "jobs", "~/.ray/auth_token": str(tmp_path / "token")}
    config = {"cluster_name": "fleet", "provider": one.provider_config(state), "file_mounts": mounts}
    config = LambdaNodeProvider.bootstrap_config(config)
    provider = LambdaNodeProvider(config["provider"], "fleet")
    with pytest.raises(ConfigError, match=f"^file_mounts: {tmp_path}/token does not exist; put it there"):
        provider.create_node(A10, HEAD, 1)
    (tmp_path / "token").touch()
    monkeypatch.chdir(state)
    with pytest.raises(ConfigError, match=r"^file_mounts: jobs does not exist; run this from the checkout's root$"):
        provider.create_node(A10, HEAD, 1)
    assert one.truth()["instances"] == []
    monkeypatch.chdir(tmp_path)
    assert len(provider.create_node(A10, HEAD, 1)) == 1
    monkeypatch.chdir(state)
    down = LambdaNodeProvider(config["provider"], "fleet")
    down.terminate_nodes(down.non_terminated_nodes({}))
    assert one.alive() == []


def test_a_head_is_launched_only_with_the_keys_file(account: Start, state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"cluster_name": "fleet", "provider": account().provider_config(state), "file_mounts": {}}
    monkeypatch.setenv("LAMBDA_API_KEY", "another-key-of-mine")
    with pytest.raises(CloudError, match="hold different keys; unset the one that is wrong"):
        LambdaNodeProvider.bootstrap_config(config)
    monkeypatch.setenv("LAMBDA_API_KEY", KEY)
    (state / "api_key").unlink()
    with pytest.raises(
        CloudError, match=r"put the key there and chmod it 600 \(ray up copies this file to the head"
    ) as caught:
        LambdaNodeProvider.bootstrap_config(config)
    assert "set LAMBDA_API_KEY" not in str(caught.value) and KEY not in str(caught.value)


def test_the_key_enters_no_config(account: Start, state: Path) -> None:
    config = {"cluster_name": "fleet", "provider": account().provider_config(state), "file_mounts": {"~/a": "b"}}
    provider = LambdaNodeProvider(config["provider"], "fleet")
    for_the_head = LambdaNodeProvider.bootstrap_config(config)
    assert for_the_head["file_mounts"] == {"~/a": "b", "~/.lambda_cloud/api_key": str(state / "api_key")}
    for_the_workers = provider.prepare_for_head_node(copy.deepcopy(for_the_head))
    assert "_file_mounts" in for_the_head["provider"] and "_file_mounts" not in for_the_workers["provider"]
    assert for_the_workers["file_mounts"] == {"~/a": "b"}
    assert for_the_workers["provider"]["api_key_file"] == "~/.lambda_cloud/api_key"
    assert KEY not in str(for_the_head) + str(for_the_workers)
