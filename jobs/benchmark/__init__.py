"""Compare rollout_ray with bare vLLM and ray.data.llm: `python -m rollout_ray.jobs.benchmark`."""
