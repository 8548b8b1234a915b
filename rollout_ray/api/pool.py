"""RolloutPool: engines that stay up between collections, and between jobs if the pool has a name.

This module decides which runs the engines can serve, how weights are updated, and who ends the engines.
collect.py runs a collection, driver/replica_set.py starts engines, driver/named_pool.py finds them on a cluster.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rollout_ray.api.code_hash import package_hash
from rollout_ray.api.collect import Rollouts, collect_on
from rollout_ray.api.pool_fields import engine_fields, warn_of_replicas
from rollout_ray.config.arms import default_max_model_len
from rollout_ray.config.loading import with_fields
from rollout_ray.config.schema import RunConfig
from rollout_ray.core.errors import ConfigError
from rollout_ray.core.temporary import temporary_folder
from rollout_ray.core.turns import Turns
from rollout_ray.driver.prewarm import prewarm
from rollout_ray.models.adapters import Capacity, capacity
from rollout_ray.models.checkpoint_check import check_update
from rollout_ray.models.checkpoints import Policy
from rollout_ray.models.model_check import check_before_start
from rollout_ray.models.paths import cluster_address, model_folder
from rollout_ray.models.resolved_run import ResolvedRun, policy_at, resolve
from rollout_ray.scoring.custom_reward import Rewards, with_reward
from rollout_ray.telemetry.progress import Progress

if TYPE_CHECKING:
    from rollout_ray.driver.named_pool import NamedPool
    from rollout_ray.driver.replica_set import ReplicaSet
    from rollout_ray.driver.session import PoolResources
    from rollout_ray.ray_cluster.placement import Placement

log = logging.getLogger(__name__)

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}")


class RolloutPool:
    """Engines for many collections.

        with RolloutPool(cfg) as pool:
            rollouts = pool.collect(dataset, {"output": {"output_dir": "runs/step-0"}})
            pool.update_weights("checkpoints/step-1")

    Calls of several threads are served one after the other. The engines start at the `with` statement, or at the first
    use. The scoring actors of one collection serve the next,
    unless the reward is your own function, which may have changed.

    Engines of a pool without a name end with the block. A pool with a name outlives it: the next job on the cluster that
    gives the name takes the engines over. They end after `resources.pool_idle_seconds` without a job, or with `close()`.
    """

    def __init__(self, cfg: RunConfig, name: str | None = None) -> None:
        """Check the name, the model and the adapters. Raises ConfigError. Starts nothing."""
        if name is not None and not _NAME.fullmatch(name):
            raise ConfigError(f"a pool's name has up to 64 letters, digits and _ . -, which {name!r} has not; change it")
        self._run = resolve(cfg)
        self._cfg, self._name = cfg, name
        self._pool_resources: PoolResources | None = None
        self._named_pool: NamedPool | None = None
        self._stack = ExitStack()
        self._turns = Turns("the pool")

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with self._turns.turn():
            self._leave()

    @property
    def policy_version(self) -> int:
        """Number of updates of the weights since the engines first started."""
        return self._opened().replica_set.policy.version

    @property
    def weights(self) -> str:
        """Folder or hub id of the weights that the engines hold."""
        return self._opened().replica_set.policy.path

    def collect(
        self,
        dataset: Any = None,
        cfg: RunConfig | Mapping[str, Any] | None = None,
        *,
        reward: Rewards | None = None,
        progress: Progress | None = None,
    ) -> Rollouts:
        """Run `rollout_ray.collect` on the engines of this pool, with the weights that they hold now.

        Args:
            dataset: As in `rollout_ray.collect`.
            cfg: The config of the run, or sections and fields that differ from those of the pool, such as
                {"output": {"output_dir": "runs/2"}}.
            reward: As in `rollout_ray.collect`.
            progress: As in `rollout_ray.collect`.

        Raises:
            ConfigError: The run needs other engines. Also what `rollout_ray.collect` raises.
        """
        run_cfg, source = with_reward(cfg if isinstance(cfg, RunConfig) else with_fields(self._cfg, cfg or {}), reward)
        warn_of_replicas(self._cfg, run_cfg)
        with self._turns.turn():
            pool_resources = self._open()
            run = self._fitted(run_cfg, pool_resources.replica_set.policy)
            return collect_on(pool_resources, dataset, run, source, progress)

    def update_weights(self, path: str) -> int:
        """Load a checkpoint of the same shape into every engine without a restart.

        Args:
            path: Folder of the checkpoint.

        Returns:
            The new policy version. Every later row has it.

        Raises:
            ConfigError: There is no such folder, or the checkpoint has another shape, is torn or holds NaN. The old weights
                stay in use.
            EngineError: No engine can load it. The old weights stay in use.
        """
        path = str(Path(path).expanduser().resolve())
        with self._turns.turn():
            replica_set = self._open().replica_set
            if not Path(path).is_dir():
                raise ConfigError(f"there is no folder {path} to load weights from; the old weights stay in use")
            if self._cfg.engine.backend == "vllm":
                self._check_loadable()
                check_update(self._run.model_path, path)
            policy = replace(policy_at(path), version=replica_set.policy.version + 1)
            seconds = replica_set.update_weights(policy)
        log.info("the engines hold the weights of %s, version %d, after %.1f s", path, policy.version, seconds)
        return policy.version

    def close(self) -> None:
        """End the engines once no call uses them. In a named pool this includes engines that another job started."""
        with self._turns.turn():
            if self._pool_resources is None and self._name is not None:
                self._take()
            if self._named_pool:
                self._named_pool.end_all()
            if self._pool_resources:
                self._pool_resources.replica_set.close()
            self._leave()

    # Beginning and end

    def _opened(self) -> PoolResources:
        """Return what is open. Waits only for a start: a progress display may ask for the weights during a collection."""
        if (pool_resources := self._pool_resources) is not None:
            return pool_resources
        with self._turns.turn():
            return self._open()

    def _open(self) -> PoolResources:
        if self._pool_resources is None:
            from rollout_ray.driver.ray_handles import IdleScorers
            from rollout_ray.driver.session import PoolResources

            try:
                self._pool_resources = PoolResources(self._start(), IdleScorers())
            except BaseException:
                self._leave()
                raise
            self._stack.callback(self._pool_resources.scorers.close)
        return self._pool_resources

    def _start(self) -> ReplicaSet:
        check_before_start(self._run)
        self._stack.enter_context(prewarm(self._run))
        from rollout_ray.driver.ray_handles import RayEngines
        from rollout_ray.driver.replica_set import ReplicaSet
        from rollout_ray.ray_cluster.autoscaling import placed
        from rollout_ray.ray_cluster.connection import connected

        run = replace(self._run, policy=policy_at(self._run.model_path))  # the weights as they are now
        if self._name is None:
            self._stack.enter_context(connected(self._cfg))
            logs = temporary_folder("rollout-pool-")
            self._stack.callback(shutil.rmtree, logs, ignore_errors=True)
            replica_set = ReplicaSet(run, RayEngines(placed(run), logs))
            self._stack.callback(replica_set.close)
            return replica_set
        named_pool = self._take()
        placement = placed(run)
        named_pool.note.update(_note(run, placement))
        found = named_pool.find(placement.replicas, self._cfg.resources.engine_hang_seconds)
        if found:
            run = replace(run, policy=next(iter(found.values())).policy)
            log.info("took over %d engines of the pool '%s', version %d", len(found), self._name, run.policy.version)
        logs = temporary_folder(f"rollout-pool-{self._name}-")
        self._stack.callback(_remove_if_empty, logs)
        return ReplicaSet(run, RayEngines(placement, logs, named_pool), found)

    def _take(self) -> NamedPool:
        """Connect to the cluster, and make this the only job that uses the named pool."""
        import ray

        from rollout_ray.driver.named_pool import NamedPool
        from rollout_ray.ray_cluster.connection import connected

        assert self._name is not None
        if not ray.is_initialized() and not cluster_address(self._cfg):
            raise ConfigError(
                "a named pool needs a Ray cluster that outlives this job; start one with `ray start --head` and give "
                "ray_address, or leave out the name"
            )
        self._stack.enter_context(connected(self._cfg))
        self._named_pool = NamedPool(self._name, {}, self._cfg.resources.pool_idle_seconds)
        self._stack.callback(self._named_pool.let_go)
        self._named_pool.take()
        return self._named_pool

    def _leave(self) -> None:
        if self._pool_resources and self._named_pool:
            self._pool_resources.replica_set.end_pending()
        self._pool_resources = self._named_pool = None
        self._stack.close()

    # What the engines can serve

    def _fitted(self, cfg: RunConfig, policy: Policy) -> ResolvedRun:
        """Resolve a run with the weights that the engines hold, and their max_model_len where the run sets none.

        Raises:
            ConfigError: The run needs other engines.
        """
        ours = engine_fields(self._cfg)
        longest = ours["engine.max_model_len"]
        theirs = {**engine_fields(cfg), "engine.max_model_len": cfg.engine.max_model_len or longest}
        if model_folder(cfg.model.model_path) == policy.path:
            theirs["model.model_path"] = ours["model.model_path"]
        names = [name for name in ours if ours[name] != theirs[name]]
        if names:
            shown = "; ".join(f"{name} is {ours[name]!r} there and {theirs[name]!r} here" for name in names)
            raise ConfigError(f"the pool's engines cannot serve this run: {shown}. Give the pool's values, or another pool")
        given: dict[str, dict[str, Any]] = {}
        if cfg.engine.max_model_len is None and default_max_model_len(cfg) != longest:
            given["engine"] = {"max_model_len": longest}
        if policy.version:
            given["model"] = {"model_path": policy.path}
        run = resolve(with_fields(cfg, given) if given else cfg, policy)
        have, need = _adapter_capacity(self._run), _adapter_capacity(run)
        if not have.holds(need):
            raise ConfigError(
                f"the run has {need.count} adapters of rank up to {need.rank}, and the pool's engines were started for "
                f"{have.count} of rank up to {have.rank}; start the pool with a config that names such adapters"
            )
        return run

    def _check_loadable(self) -> None:
        if self._run.adapters:
            raise ConfigError("engines with adapters cannot take new weights; load a new adapter, by lora_path of the run")
        if self._cfg.engine.load_format not in ("auto", "safetensors", "hf"):
            raise ConfigError(
                f"engines with load_format {self._cfg.engine.load_format} cannot take new weights; start them with auto"
            )


def _remove_if_empty(folder: str) -> None:
    with suppress(OSError):
        os.rmdir(folder)


def _adapter_capacity(run: ResolvedRun) -> Capacity:
    return capacity(list(run.adapters))


def _note(run: ResolvedRun, placement: Placement) -> dict[str, Any]:
    """Return the facts that engines of another job must share with the engines of this one.

    These are the fields of the config, the first weights, the placement and the code of this package.
    """
    where = {f"placement.{name}": value for name, value in vars(replace(placement, note="")).items() if name != "note"}
    adapter_capacity = vars(_adapter_capacity(run))
    code = {"rollout_ray": package_hash()}
    weights = {"model.fingerprint": run.policy.fingerprint}
    return {**engine_fields(run.config), **weights, "adapters": adapter_capacity, **where, **code}
