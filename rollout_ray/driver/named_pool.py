"""Named pools on a cluster: which job uses one, which engines it has, and whether a job can use them.

This module knows the names under which Ray keeps a pool's engines and its keepalive actor. The replica set decides
about the engines themselves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import ray
from ray.exceptions import RayError

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.actor import Card
from rollout_ray.actors.engine.keepalive import NAMESPACE, Keepalive, KeepaliveActor
from rollout_ray.core.errors import ConfigError, EngineError
from rollout_ray.driver.handle import RunningEngine
from rollout_ray.driver.ray_handles import RayEngine
from rollout_ray.models.checkpoints import Policy
from rollout_ray.ray_cluster.ray_internals import is_pending

TAKE_S = 30.0  # Ray notices within this that the last job has ended


class _Candidate(NamedTuple):
    """An engine that bears the pool's name and is up."""

    replica: str
    actor: Any
    card: Card
    info: BackendInfo


class NamedPool:
    """This job's use of the pool `name`. `note` maps the fields that decide its engines to their values."""

    def __init__(self, name: str, note: Mapping[str, Any], idle_seconds: float) -> None:
        self.name, self.note = name, dict(note)
        self.keepalive = Keepalive(f"{name}/tether", idle_seconds)
        self._keepalive_actor: Any = None

    def options(self, replica: str) -> dict[str, Any]:
        """Return Ray's options for an engine of the pool. No two share a name: an old one may still be ending."""
        return {"name": f"{self.name}/{replica}/{time.time_ns()}", "namespace": NAMESPACE, "lifetime": "detached"}

    def take(self) -> None:
        """Make this job the one that uses the pool. Raises EngineError if another job does."""
        deadline = time.monotonic() + TAKE_S
        keepalive_actor = ray.remote(KeepaliveActor).options(
            name=self.keepalive.keepalive_actor, namespace=NAMESPACE, num_cpus=0, max_restarts=-1
        )
        while self._keepalive_actor is None:
            late = time.monotonic() > deadline  # before the attempt: a job that was stopped meanwhile gets another one
            try:
                self._keepalive_actor = keepalive_actor.remote(os.getpid())
            except ValueError:
                if (owner := self._owner()) or late:
                    raise EngineError(
                        f"the pool '{self.name}' is in use by {owner or 'another job'}, and one job at a time can use it; "
                        "wait for its end, or give another name"
                    ) from None
                time.sleep(0.1)  # the last job's keepalive actor is about to end
        ray.get(self._keepalive_actor.owner.remote())

    def _owner(self) -> str | None:
        """Return which job uses the pool; None if it has just ended."""
        try:
            owner: str = ray.get(
                ray.get_actor(self.keepalive.keepalive_actor, namespace=NAMESPACE).owner.remote(), timeout=TAKE_S
            )
        except (ValueError, RayError):
            return None
        return owner

    def let_go(self) -> None:
        """Let other jobs use the pool. Its engines end when no job uses it for `idle_seconds`."""
        if self._keepalive_actor is not None:
            ray.kill(self._keepalive_actor)
            self._keepalive_actor = None

    def find(self, replicas: int, wait_s: float) -> dict[str, RunningEngine]:
        """Return the pool's engines that are up, by replica, and end all others that bear the pool's name.

        It ends engines that never started or do not answer within `wait_s`. It also ends those with older
        weights than others, and those beyond the number of replicas.

        Raises:
            ConfigError: The engines are not what this job needs; the text names what differs. They stay as they are.
        """
        found = self._answering(wait_s)
        newest = newest_policy([one.card.policy for one in found])
        wanted = {f"engine-{number}" for number in range(replicas)}
        kept: dict[str, RunningEngine] = {}
        for one in found:
            if one.replica in wanted and one.replica not in kept and one.card.policy == newest:
                kept[one.replica] = RunningEngine(RayEngine(one.actor, one.card.log_file), one.card.policy, one.info.node)
            else:
                ray.kill(one.actor)
        return kept

    def _answering(self, wait_s: float) -> list[_Candidate]:
        """Return the engines that say within `wait_s` that they are up; end the others."""
        cards = {}
        for replica, actor in self._actors():
            if is_pending(actor):  # an earlier job's that found no node: it would never answer
                ray.kill(actor)
            else:
                cards[actor.card.remote()] = replica, actor
        if cards:
            ray.wait(list(cards), num_returns=len(cards), timeout=wait_s)
        found = []
        for call, (replica, actor) in cards.items():
            try:
                card: Card = ray.get(call, timeout=0)
            except RayError:
                ray.kill(actor)
                continue
            self._compare(card.note)
            if card.info is None:
                ray.kill(actor)
            else:
                found.append(_Candidate(replica, actor, card, card.info))
        return found

    def end_all(self) -> None:
        """End every engine of the pool."""
        for _, actor in self._actors():
            ray.kill(actor)

    def _actors(self) -> list[tuple[str, Any]]:
        """Return replica and actor of all that bear the pool's name, the youngest first."""
        known = [a["name"] for a in ray.util.list_named_actors(all_namespaces=True) if a["namespace"] == NAMESPACE]
        actors = []
        for name in sorted((n for n in known if n.startswith(f"{self.name}/engine-")), reverse=True):
            try:
                actors.append((name.split("/")[1], ray.get_actor(name, namespace=NAMESPACE)))
            except ValueError:
                continue  # it has ended meanwhile
        return actors

    def _compare(self, note: Mapping[str, Any]) -> None:
        names = [name for name in {**note, **self.note} if note.get(name) != self.note.get(name)]
        if names:
            shown = "; ".join(f"{name} is {note.get(name)!r} there and {self.note.get(name)!r} here" for name in names)
            raise ConfigError(
                f"the pool '{self.name}' has engines of another kind: {shown}. Give the same values, another name, or end "
                "those engines with RolloutPool(cfg, name).close()"
            )


def newest_policy(policies: list[Policy]) -> Policy | None:
    """Return the weights after the most updates."""
    return max(policies, key=lambda policy: policy.version) if policies else None
