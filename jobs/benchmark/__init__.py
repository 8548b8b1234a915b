"""Ours against bare vLLM and ray.data.llm on one workload, in one run: `python -m rollout_ray.jobs.benchmark`."""
