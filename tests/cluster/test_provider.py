"""The node provider against the strict fake of Lambda's API: launches, tags, ends, and what goes wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import (
    STATUS_UP_TO_DATE,
    STATUS_UPDATE_FAILED,
    TAG_RAY_CLUSTER_NAME,
    TAG_RAY_LAUNCH_REQUEST,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from rollout_ray.cluster import lambda_provider
from rollout_ray.cluster.lambda_pace import Pace
from rollout_ray.cluster.lambda_provider import LambdaNodeProvider
from rollout_ray.core.errors import CloudError
from tests.cluster.conftest import Account
from tests.conftest import await_that

WORKER = {
    TAG_RAY_NODE_KIND: "worker",
    TAG_RAY_USER_NODE_TYPE: "gpu",
    TAG_RAY_NODE_STATUS: "uninitialized",
    TAG_RAY_LAUNCH_REQUEST: "request-1",
}
HEAD = {**WORKER, TAG_RAY_NODE_KIND: "head", TAG_RAY_USER_NODE_TYPE: "head"}
H100 = {"instance_type": "gpu_8x_h100_sxm5"}
Start = Callable[..., Account]


def make(account: Account, state: Path, name: str = "fleet", **more: Any) -> LambdaNodeProvider:
    return LambdaNodeProvider(account.provider_config(state, **more), name)


def test_a_node_is_found_at_once_and_runs_when_it_has_an_address(account: Start, state: Path) -> None:
    one = account(boot_s=1000, lag_s=0.2)
    provider = make(one, state)
    created = provider.create_node(H100, WORKER, 1)
    assert provider.non_terminated_nodes(WORKER) == list(created)
    node = next(iter(created))
    assert not provider.is_running(node) and provider.internal_ip(node) is None and provider.external_ip(node) is None
    one.change(status={node: "active"})
    await_that(lambda: provider.is_running(node))
    assert provider.internal_ip(node) == provider.external_ip(node) == "10.0.0.2"
    tags = {tag["key"]: tag["value"] for tag in one.alive()[0]["tags"]}
    assert tags[TAG_RAY_CLUSTER_NAME] == "fleet" and TAG_RAY_NODE_STATUS not in tags
    provider.terminate_node(node)
    assert provider.is_terminated(node) and provider.non_terminated_nodes({}) == [] and one.alive() == []


@pytest.mark.usefixtures("long_computation")
def test_200_launches_through_lost_answers_give_200_instances(account: Start, state: Path) -> None:
    """As the autoscaler would: two threads launch batches of five until there are as many as are wanted."""
    request_s, wanted = 0.01, 200
    one = account(fault_rate=0.3, lag_s=0.1, seed=7, request_s=request_s, launch_s=2 * request_s)
    provider = make(one, state, request_interval_s=1.05 * request_s, launch_interval_s=2.1 * request_s)

    def launch(count: int) -> None:
        with suppress(NodeLaunchException):  # which of them were launched is in the listing
            provider.create_node(H100, WORKER, count)

    while missing := wanted - len(provider.non_terminated_nodes({})):
        assert missing > 0, "more were launched than wanted"
        with ThreadPoolExecutor(2) as threads:
            list(threads.map(launch, [5] * (missing // 5) + [missing % 5] * (missing % 5 > 0)))
    truth = one.truth()
    alive = {instance["id"] for instance in one.alive()}
    assert len(alive) == wanted and alive == set(provider.non_terminated_nodes({}))
    print(f"launched {len(truth['instances'])}, alive {len(alive)}, calls {truth['calls']}")
    assert truth["calls"]["/instance-operations/launch"] > wanted * 1.1, "no fault was injected"
    provider.terminate_nodes(sorted(alive))
    provider.cleanup_cluster_resources()
    assert one.alive() == []


@pytest.mark.parametrize("fault", ["500-after", "drop-after", "hang-after", "html-after"])
def test_a_launch_whose_answer_is_lost_is_not_sent_again(account: Start, state: Path, fault: str) -> None:
    one = account(lag_s=0.3)
    one.change(faults={"/instance-operations/launch": [fault]})
    created = make(one, state).create_node(H100, WORKER, 1)
    assert [instance["id"] for instance in one.truth()["instances"]] == list(created)


@pytest.mark.parametrize("fault", ["500-before", "drop-before", "429"])
def test_a_launch_that_did_not_happen_is_sent_again(account: Start, state: Path, fault: str) -> None:
    one = account()
    one.change(faults={"/instance-operations/launch": [fault]})
    created = make(one, state).create_node(H100, WORKER, 1)
    assert [instance["id"] for instance in one.truth()["instances"]] == list(created)


def test_an_instance_of_a_launch_given_up_is_ended_when_it_appears(account: Start, state: Path) -> None:
    """Listings are older than the provider has patience for: the launch is repeated, and the first instance ended."""
    one = account(lag_s=1000)
    one.change(faults={"/instance-operations/launch": ["500-after"]})
    provider = make(one, state)
    created = provider.create_node(H100, WORKER, 1)
    assert len(one.alive()) == 2
    one.change(options={"lag_s": 0})
    await_that(lambda: provider.non_terminated_nodes({}) == list(created) and len(one.alive()) == 1)
    assert [instance["id"] for instance in one.alive()] == list(created)


@pytest.mark.parametrize("tags", [HEAD, WORKER], ids=["head", "worker"])
def test_a_launch_that_cannot_be_looked_for_may_cost_money_and_that_is_said(
    account: Start, state: Path, tags: dict[str, str]
) -> None:
    """Of a worker and of a head; what was launched all the same is ended at a later look."""
    one = account()
    one.change(faults={"/instance-operations/launch": ["500-after"]})
    provider = make(one, state)
    first = [""] if tags is HEAD else []  # a head's launch begins with a listing
    one.change(faults={"/instances": first + ["500-before"] * 6})
    unknown = (
        r"launching gpu_1x_a10 .*global/internal-error\), and listing instances failed: .*it is not known whether the "
        r"machine was launched, and it would cost money: run ray down on the cluster's YAML, or look at "
        r"https://cloud.lambda.ai/instances$"
    )
    with pytest.raises(NodeLaunchException, match=unknown):
        provider.create_node({"instance_type": "gpu_1x_a10"}, tags, 1)
    assert len(one.alive()) == 1
    await_that(lambda: make(one, state).non_terminated_nodes({}) == [] and one.alive() == [])


def test_requests_of_two_providers_and_threads_keep_the_limit(account: Start, state: Path) -> None:
    one = account(request_s=0.1, launch_s=0.2)
    times = {"request_interval_s": 0.15, "launch_interval_s": 0.3}
    providers = [make(one, state, name, **times) for name in ("one", "two")]
    with ThreadPoolExecutor(4) as threads:
        for provider in providers * 2:
            threads.submit(provider.create_node, H100, WORKER, 3)
    assert len(one.alive()) == 12 and one.truth()["calls"].get("429", 0) < 12, (
        "unpaced, each would be refused again and again"
    )


def test_clusters_of_one_account_do_not_see_each_other(account: Start, state: Path) -> None:
    one = account()
    mine, other = make(one, state, "mine"), make(one, state, "other")
    other.create_node(H100, WORKER, 1)
    assert mine.non_terminated_nodes({}) == [] and len(other.non_terminated_nodes({})) == 1


def test_tags_that_ray_changes_live_in_a_file_and_the_others_at_lambda(account: Start, state: Path, tmp_path: Path) -> None:
    one = account()
    provider = make(one, state)
    (head,) = provider.create_node({"instance_type": "gpu_1x_a10"}, HEAD, 1)
    provider.set_node_tags(head, {TAG_RAY_NODE_STATUS: "setting-up", TAG_RAY_NODE_KIND: "worker"})
    again = make(one, state)  # another process of this machine
    assert again.non_terminated_nodes({TAG_RAY_NODE_STATUS: "setting-up", TAG_RAY_NODE_KIND: "head"}) == [head]
    elsewhere = tmp_path / "other laptop"
    elsewhere.mkdir()
    other = make(one, elsewhere, api_key_file=str(state / "api_key"))
    assert other.non_terminated_nodes({TAG_RAY_NODE_STATUS: STATUS_UP_TO_DATE, TAG_RAY_NODE_KIND: "head"}) == [head]


def test_a_second_head_is_refused(account: Start, state: Path) -> None:
    provider = make(account(), state)
    provider.create_node({"instance_type": "gpu_1x_a10"}, HEAD, 1)
    with pytest.raises(CloudError, match="has a head already"):
        provider.create_node({"instance_type": "gpu_1x_a10"}, HEAD, 1)


@pytest.mark.usefixtures("long_computation")
def test_without_capacity_the_next_type_is_taken_and_the_first_left_alone(account: Start, state: Path) -> None:
    one = account(capacity={"gpu_8x_a100_80gb_sxm4": 2}, request_s=0.1)
    provider = make(one, state, request_interval_s=0.15)  # and so 9 s for which a type is left alone
    kinds = {**H100, "fallback_instance_types": ["gpu_8x_a100_80gb_sxm4"]}
    provider.create_node(kinds, WORKER, 2)
    assert {instance["instance_type_name"] for instance in one.alive()} == {"gpu_8x_a100_80gb_sxm4"}
    assert one.truth()["calls"]["launch gpu_8x_h100_sxm5"] == 1, "it was asked for again"
    with pytest.raises(NodeLaunchException, match="insufficient-capacity"):
        provider.create_node(kinds, WORKER, 1)
    calls = one.truth()["calls"]["/instance-operations/launch"]
    with pytest.raises(NodeLaunchException, match="asked for again in"):
        provider.create_node(kinds, WORKER, 1)
    assert one.truth()["calls"]["/instance-operations/launch"] == calls
    one.change(options={"capacity": {"gpu_8x_h100_sxm5": 1}})

    def launched() -> bool:
        try:
            return bool(provider.create_node(kinds, WORKER, 1))
        except NodeLaunchException:
            return False

    await_that(launched)


def test_a_quota_that_is_used_up_is_not_called_a_lack_of_capacity(account: Start, state: Path) -> None:
    one = account(quota={"gpu_8x_h100_sxm5": 0, "gpu_8x_a100_80gb_sxm4": 0}, capacity={"gpu_1x_a10": 0})
    provider = make(one, state, request_interval_s=0.15)
    kinds = {**H100, "fallback_instance_types": ["gpu_8x_a100_80gb_sxm4"]}
    for told in ("global/quota-exceeded, asked for again in", "asked for again in"):  # the second time without a call
        with pytest.raises(NodeLaunchException, match=told) as caught:
            provider.create_node(kinds, WORKER, 1)
        assert str(caught.value).endswith(
            "(global/quota-exceeded); end instances that are not needed, or ask Lambda to raise the quota"
        )
    assert one.truth()["calls"]["/instance-operations/launch"] == 2
    with pytest.raises(NodeLaunchException, match=r"\(instance-operations/launch/insufficient-capacity\); wait, add"):
        provider.create_node({**H100, "fallback_instance_types": ["gpu_1x_a10"]}, WORKER, 1)


def test_a_launch_ends_before_the_autoscaler_asks_for_it_again(
    account: Start, state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would get both: what the rate limit refuses is tried again for less long than the autoscaler waits."""
    one = account()
    one.change(faults={"/instance-operations/launch": ["429"]})
    provider = make(one, state)
    with monkeypatch.context() as patched, pytest.raises(NodeLaunchException, match="rate-limit"):
        patched.setattr(lambda_provider, "MOST_LAUNCHING_S", 0.0)
        provider.create_node(H100, WORKER, 1)
    assert one.truth()["calls"]["/instance-operations/launch"] == 1
    assert len(provider.create_node(H100, WORKER, 1)) == 1


def test_preempted_is_gone_and_unhealthy_is_ended(account: Start, state: Path) -> None:
    one = account()
    provider = make(one, state)
    first, second, third = provider.create_node(H100, WORKER, 3)
    await_that(lambda: provider.is_running(third))
    one.change(status={first: "preempted", second: "unhealthy"})
    await_that(lambda: provider.is_terminated(first))
    assert not provider.is_terminated(second)  # it may get well
    await_that(lambda: provider.non_terminated_nodes({}) == [third])
    assert [instance["id"] for instance in one.alive()] == [third]


def test_a_type_whose_set_up_fails_is_left_alone_for_a_while(account: Start, state: Path) -> None:
    one = account()
    provider = make(one, state)
    (node,) = provider.create_node(H100, WORKER, 1)
    for _ in range(3):  # Ray tries a set-up three times
        provider.set_node_tags(node, {TAG_RAY_NODE_STATUS: STATUS_UPDATE_FAILED})
    provider.terminate_node(node)
    with pytest.raises(NodeLaunchException, match="failed in its set-up"):
        provider.create_node(H100, WORKER, 1)
    assert one.alive() == []


@pytest.mark.usefixtures("long_computation")
def test_what_appears_after_the_end_is_ended_too(account: Start, state: Path) -> None:
    """A launch that was under way when the head ended: nothing is listed, then there is one."""
    one = account(lag_s=1000)
    # The laptop looks for fifteen of its intervals, within which it must appear.
    laptop, head = make(one, state, request_interval_s=0.8), make(one, state)
    head.create_node(H100, WORKER, 1)
    assert laptop.non_terminated_nodes({}) == []
    with ThreadPoolExecutor(1) as thread:
        cleanup = thread.submit(laptop.cleanup_cluster_resources)
        await_that(lambda: one.truth()["calls"]["/instances"] > 2)
        one.change(options={"lag_s": 0})
        cleanup.result()
    assert one.alive() == []


def test_what_a_head_launches_while_it_ends_is_ended_too(account: Start, state: Path) -> None:
    one = account(end_s=1000)
    laptop, head = make(one, state), make(one, state)
    (node,) = laptop.create_node({"instance_type": "gpu_1x_a10"}, HEAD, 1)
    laptop.terminate_node(node)
    assert laptop.non_terminated_nodes({}) == [], "Ray takes it to be over now"
    with ThreadPoolExecutor(1) as thread:
        cleanup = thread.submit(laptop.cleanup_cluster_resources)
        await_that(lambda: one.truth()["calls"]["/instances"] > 8)
        assert not cleanup.done()
        one.change(options={"end_s": 0.1})
        head.create_node(H100, WORKER, 1)
        one.change(status={node: "terminated"})
        cleanup.result()
    assert len(one.truth()["instances"]) == 2 and one.alive() == []


def test_what_cannot_be_ended_is_named(account: Start, state: Path) -> None:
    one = account()
    provider = make(one, state)
    (node,) = provider.create_node(H100, WORKER, 1)
    one.change(faults={"/instance-operations/terminate": ["500-before"] * 6})
    with pytest.raises(CloudError, match=f"could not end {node}, which cost money .*run ray down again"):
        provider.terminate_nodes([node])
    assert provider.non_terminated_nodes({}) == [node]
    provider.terminate_nodes([node, "never-there"])  # one that is gone already does not keep the others
    assert one.alive() == []


@pytest.mark.parametrize(
    ("fault", "words"),
    [("blocked", "says nothing about the key"), ("moved", "give the API's new address as provider.api_url")],
)
def test_an_answer_that_is_not_the_apis_is_said_so(account: Start, state: Path, fault: str, words: str) -> None:
    one = account()
    one.change(faults={"/instance-operations/launch": [fault]})
    with pytest.raises(NodeLaunchException, match=words):
        make(one, state).create_node(H100, WORKER, 1)
    assert one.truth()["instances"] == []


def test_a_node_is_not_given_up_because_lambda_does_not_answer(account: Start, state: Path) -> None:
    one = account()
    provider = make(one, state)
    (node,) = provider.create_node(H100, WORKER, 1)
    await_that(lambda: provider.is_running(node))
    one.change(faults={"/instances": ["500-before"] * 6})
    await_that(lambda: provider.is_running(node) and one.truth()["calls"]["/instances"] > 6)
    assert provider.internal_ip(node) == "10.0.0.2" and not provider.is_terminated(node)


def test_lambdas_limits_are_kept_where_nothing_else_is_said(tmp_path: Path) -> None:
    """On a clock of its own: when requests (r) and launches (l) of two processes leave."""
    clock = [1000.0]

    def sleep(seconds: float) -> None:
        clock[0] += seconds

    left = []
    paces = [Pace(tmp_path / "pace.json", now=lambda: clock[0], sleep=sleep) for _ in range(2)]
    for number, kind in enumerate("rrlrrl"):
        paces[number % 2].wait(launch=kind == "l")
        left.append(round(clock[0] - 1000, 2))
    assert left == [0, 1.05, 2.1, 3.15, 4.2, 14.6]
