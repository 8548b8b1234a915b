"""rollout_ray: N trajectories a question, tagged by arm, scored, in one parquet.

    from rollout_ray import RunConfig, collect
    rollouts = collect("questions.parquet", RunConfig(model={"model_path": "..."}))

Importing the package loads neither Ray, nor torch, nor vLLM.
"""

from rollout_ray.collect import Rollouts, collect
from rollout_ray.config import RunConfig
from rollout_ray.errors import RolloutError
from rollout_ray.pool import RolloutPool

__version__ = "0.1.0"
__all__ = ["RolloutError", "RolloutPool", "Rollouts", "RunConfig", "__version__", "collect"]
