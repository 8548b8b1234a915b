"""Named pools on a cluster: which job uses one, which engines it has, and whether they are what a job wants.

Owns the names under which Ray knows a pool's engines and its tether (actors/engine/keepalive.py), and the refusals.
The engines' lives are fleet.py's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError

from rollout_ray.actors.backend import BackendInfo
from rollout_ray.actors.engine.actor import Card
from rollout_ray.actors.engine.keepalive import NAMESPACE, Keepalive, KeepaliveActor
from rollout_ray.core.errors import ConfigError, EngineError
from rollout_ray.models.checkpoints import Policy
from rollout_ray.ray_cluster.ray_internals import is_pending

TAKE_S = 30.0  # within which Ray notices that the last job is gone


@dataclass(frozen=True)
class Found:
    """An engine of the pool that is at work: its actor, what it says of itself, and what its start settled on."""

    actor: Any
    card: Card
    info: BackendInfo


class NamedPool:
    """This job's use of the pool `name`. `note` says what decides its engines, by the names of the fields."""

    def __init__(self, name: str, note: Mapping[str, Any], idle_seconds: float) -> None:
        self.name, self.note = name, dict(note)
        self.keepalive = Keepalive(f"{name}/tether", idle_seconds)
        self._keepalive_actor: Any = None

    def options(self, replica: str) -> dict[str, Any]:
        """Ray's options for an engine of the pool. No two engines ever share a name: an old one may still be ending."""
        return {"name": f"{self.name}/{replica}/{time.time_ns()}", "namespace": NAMESPACE, "lifetime": "detached"}

    def take(self) -> None:
        """Makes this job the one that uses the pool. Raises EngineError where another one does."""
        deadline = time.monotonic() + TAKE_S
        keepalive_actor = ray.remote(KeepaliveActor).options(
            name=self.keepalive.keepalive_actor, namespace=NAMESPACE, num_cpus=0, max_restarts=-1
        )
        while self._keepalive_actor is None:
            try:
                self._keepalive_actor = keepalive_actor.remote(os.getpid())
            except ValueError:
                if (owner := self._owner()) or time.monotonic() > deadline:
                    raise EngineError(
                        f"the pool '{self.name}' is in use by {owner or 'another job'}, and one job at a time can use it; "
                        "wait for its end, or give another name"
                    ) from None
                time.sleep(0.1)  # the last job's tether is about to go
        ray.get(self._keepalive_actor.owner.remote())

    def _owner(self) -> str | None:
        """Which job uses the pool; None where it has just ended."""
        try:
            owner: str = ray.get(
                ray.get_actor(self.keepalive.keepalive_actor, namespace=NAMESPACE).owner.remote(), timeout=TAKE_S
            )
        except (ValueError, RayError):
            return None
        return owner

    def let_go(self) -> None:
        """Lets other jobs use the pool; its engines end when none does for `idle_seconds`."""
        if self._keepalive_actor is not None:
            ray.kill(self._keepalive_actor)
            self._keepalive_actor = None

    def find(self, replicas: int, wait_s: float) -> dict[str, Found]:
        """The pool's engines that are up, by slot. Whatever else bears the pool's name is ended: engines that never
        started, do not answer, hold older weights than others or stand beyond the number of slots.

        Raises ConfigError, naming what differs, where the engines are not what this job wants; they stay as they are.
        """
        actors = []
        for replica, actor in self._actors():
            if is_pending(actor):  # an earlier job's, which found no room: it would never say what it is
                ray.kill(actor)
            else:
                actors.append((replica, actor))
        cards = {actor.card.remote(): (replica, actor) for replica, actor in actors}
        if cards:
            ray.wait(list(cards), num_returns=len(cards), timeout=wait_s)
        found: list[tuple[str, Found]] = []
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
                found.append((replica, Found(actor, card, card.info)))
        newest = newest_policy([one for _, one in found])
        wanted = {f"engine-{number}" for number in range(replicas)}
        kept: dict[str, Found] = {}
        for replica, one in found:
            if replica in wanted and replica not in kept and one.card.policy == newest:
                kept[replica] = one
            else:
                ray.kill(one.actor)
        return kept

    def end_all(self) -> None:
        """Ends every engine of the pool."""
        for _, actor in self._actors():
            ray.kill(actor)

    def _actors(self) -> list[tuple[str, Any]]:
        """Slot and actor of all that bear the pool's name, the last that were started first."""
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


def newest_policy(found: list[Found]) -> Policy | None:
    """The weights after the most updates that one of these engines has."""
    policies = [one.card.policy for one in found]
    return max(policies, key=lambda policy: policy.version) if policies else None
